"""Pairs of sequences, as users write them, and their terms for one sequence at a time, with nothing filled up."""

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro import poutine
from torch import Tensor, nn

STATES, WIDTH, STEPS = 3, 2, 4


def sequences(lengths: list[int], steps: int = STEPS, width: int = WIDTH, seed: int = 0) -> dict[str, Tensor]:
    """Binary x [n, steps, width], zeros after the end, and `length` [n]."""
    generator = torch.Generator().manual_seed(seed)
    length = torch.tensor(lengths)
    x = torch.bernoulli(torch.full((len(lengths), steps, width), 0.6), generator=generator)
    return {"x": x * (torch.arange(steps) < length[:, None])[:, :, None], "length": length}


class Chain(nn.Module):
    """A hidden Markov model whose states are summed out, so that log p(x) is exact."""

    def __init__(self, masked: bool = True, width: int = WIDTH):
        super().__init__()
        self.masked = masked
        generator = torch.Generator().manual_seed(1)
        self.moves = nn.Parameter(torch.randn(STATES, STATES, generator=generator))
        self.rates = nn.Parameter(torch.randn(STATES, width, generator=generator))

    def model(self, x: Tensor, length: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            state = torch.zeros((), dtype=torch.long)
            for t in pyro.markov(range(x.shape[1])):
                with poutine.mask(mask=t < length if self.masked else torch.ones(len(x), dtype=torch.bool)):
                    fn = dist.Categorical(logits=self.moves[state])
                    state = pyro.sample(f"z_{t}", fn, infer={"enumerate": "parallel"})
                    pyro.sample(f"x_{t}", dist.Bernoulli(logits=self.rates[state]).to_event(1), obs=x[:, t])

    def guide(self, x: Tensor, length: Tensor) -> None:
        pass

    def log_likelihood(self, x: Tensor) -> Tensor:
        """log p(x) of one sequence [length, width] by the forward algorithm."""
        moves = F.log_softmax(self.moves, 1)
        forward = None
        for row in x:
            seen = (row * F.logsigmoid(self.rates) + (1 - row) * F.logsigmoid(-self.rates)).sum(1)
            forward = (moves[0] if forward is None else torch.logsumexp(forward[:, None] + moves, 0)) + seen
        return torch.logsumexp(forward, 0)


class Deep(nn.Module):
    """A small deep Markov model: a latent for each time slice, and a guide that reads x from the end.

    Args:
        masked: whether what lies beyond the length of a sequence is left out of "model" and "guide".
        reads_beyond: whether the encoder reads what fills the sequences up.
    """

    def __init__(self, masked: tuple[str, ...] = ("model", "guide"), reads_beyond: bool = False, width: int = WIDTH):
        super().__init__()
        self.masked, self.reads_beyond, self.dim = masked, reads_beyond, 2
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.move = nn.Linear(2, 4)
            self.emit = nn.Linear(2, width)
            self.encoder = nn.RNN(width, 3, batch_first=True)
            self.combine = nn.Linear(5, 4)

    def prior(self, before: Tensor) -> dist.TorchDistribution:
        loc, scale = self.move(before).chunk(2, -1)
        return dist.Normal(loc, F.softplus(scale)).to_event(1)

    def likelihood(self, z: Tensor) -> dist.TorchDistribution:
        return dist.Bernoulli(logits=self.emit(z)).to_event(1)

    def posterior(self, before: Tensor, hidden: Tensor) -> dist.TorchDistribution:
        loc, scale = self.combine(torch.cat([before, hidden], -1)).chunk(2, -1)
        return dist.Normal(loc, F.softplus(scale)).to_event(1)

    def encoded(self, x: Tensor, length: Tensor) -> Tensor:
        """What is seen of x from the end to each time slice."""
        time = torch.arange(x.shape[1])
        within = (time < length[:, None]).unsqueeze(-1)
        if self.reads_beyond:
            return self.encoder(x.flip(1))[0].flip(1)
        backwards = (length[:, None] - 1 - time).clamp(min=0).unsqueeze(-1)
        hidden = self.encoder(x.gather(1, backwards.expand_as(x)))[0]
        return hidden.gather(1, backwards.expand_as(hidden)) * within

    def beyond(self, program: str, length: Tensor, t: int) -> Tensor:
        return t < length if program in self.masked else torch.ones_like(length, dtype=torch.bool)

    def model(self, x: Tensor, length: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = x.new_zeros(len(x), self.dim)
            for t in range(x.shape[1]):
                with poutine.mask(mask=self.beyond("model", length, t)):
                    z = pyro.sample(f"z_{t}", self.prior(z))
                    pyro.sample(f"x_{t}", self.likelihood(z), obs=x[:, t])

    def guide(self, x: Tensor, length: Tensor) -> None:
        hidden = self.encoded(x, length)
        with pyro.plate("data", len(x), dim=-1):
            z = x.new_zeros(len(x), self.dim)
            for t in range(x.shape[1]):
                with poutine.mask(mask=self.beyond("guide", length, t)):
                    z = pyro.sample(f"z_{t}", self.posterior(z, hidden[:, t]))

    def terms_of_one(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log p(x|z), log p(z) and log q(z|x) of one sequence x [length, width] at z [length, dim]."""
        hidden = self.encoder(x.flip(0)[None])[0][0].flip(0)
        before = torch.cat([torch.zeros_like(z[:1]), z[:-1]])
        log_likelihood = self.likelihood(z).log_prob(x).sum()
        return log_likelihood, self.prior(before).log_prob(z).sum(), self.posterior(before, hidden).log_prob(z).sum()
