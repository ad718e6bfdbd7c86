"""Random hidden Markov models: chains that the model or the guide enumerates, plates inside the data's, masks."""

import random
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from enumerated import PARALLEL, Fields, log_marginal
from pyro import poutine
from pyro.ops.indexing import Vindex
from torch import Tensor, nn


@dataclass(frozen=True)
class ChainSpec:
    seed: int
    n: int
    steps: int
    states: int
    history: int
    second: bool
    """Whether there is another chain, which depends on the first."""
    by_guide: bool
    latent: str | None
    """A latent of the sequence that the guide draws "first", "last" (given the last state), or not at all."""
    tones: str
    """What a step has: "one" number, an "event", a "plate" to the right of the data's, or a "left" plate."""
    likelihood: str
    mask: bool
    loop: bool
    """Whether tones in a plate come one after another."""
    subsample: bool
    plate: str
    float64: bool
    breach: str | None = None
    latents: tuple = ()

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64 if self.float64 else torch.float32


def draw_chain(source: random.Random) -> ChainSpec:
    one_of, flip = source.choice, lambda: source.random() < 0.5
    second = flip()
    return ChainSpec(
        seed=source.randint(0, 10**6),
        n=one_of([1, 2, 3, 5]),
        steps=source.randint(1, 2 if second else 4),
        states=one_of([2, 3]),
        history=one_of([1, 1, 2]),
        second=second,
        by_guide=source.random() < 0.4,
        latent=one_of([None, "first", "last"]),
        tones=one_of(["one", "event", "plate", "left"]),
        likelihood=one_of(["normal", "bernoulli", "poisson"]),
        mask=flip(),
        loop=flip(),
        subsample=source.random() < 0.2,
        plate=one_of(["data", "sequences", "n"]),
        float64=flip(),
    )


class RandomChain(nn.Module):
    """The pair of a specification. Its nets are tables, which broadcast."""

    def __init__(self, spec: ChainSpec):
        super().__init__()
        self.spec, k = spec, spec.states
        self.data_dim = -2 if spec.tones == "plate" else -1
        self.first, self.second = self.table(k, k, k), self.table(2, k, 2)
        self.centres, self.offsets, self.slope = self.table(k, 2), self.table(2), self.table(1)
        self.first_q, self.second_q, self.moves, self.bias = (
            self.table(k, k),
            self.table(2, 2),
            self.table(k),
            self.table(1),
        )

    def table(self, *shape: int) -> nn.Parameter:
        return nn.Parameter(0.7 * torch.randn(shape))

    def rows(self, value: Tensor) -> Tensor:
        """[n] with the dims of the plates."""
        return value[:, None] if self.data_dim == -2 else value

    def plates(self, x: Tensor):
        size = {"size": 10**7, "subsample_size": len(x)} if self.spec.subsample else {"size": len(x)}
        return pyro.plate(self.spec.plate, dim=self.data_dim, **size)

    def chain(self, x: Tensor, length: Tensor | None, guide: bool, mark: bool):
        """The states of each step, and which data have the step."""
        y = before = w = torch.zeros((), dtype=torch.long)
        infer = PARALLEL if mark else {}
        for t in pyro.markov(range(x.shape[1]), history=self.spec.history):
            seen = torch.ones(len(x), dtype=torch.bool) if length is None else t < length
            with poutine.mask(mask=self.rows(seen)):
                given = before if self.spec.history == 2 else torch.tensor(0)
                logits = self.first_q[y] + self.rows(0.3 * self.seen(x, t))[..., None] if guide else None
                logits = Vindex(self.first)[given, y] if logits is None else logits
                before, y = y, pyro.sample(f"y_{t}", dist.Categorical(logits=logits), infer=infer)
                if self.spec.second:
                    logits = self.second_q[w] if guide else Vindex(self.second)[w, y]
                    w = pyro.sample(f"w_{t}", dist.Categorical(logits=logits), infer=infer)
            yield t, y, w, self.rows(seen)

    def seen(self, x: Tensor, t: int) -> Tensor:
        return x[:, t].reshape(len(x), -1).mean(1).to(self.bias.dtype)

    def model(self, x, length=None):
        with self.plates(x):
            z = self.bias.new_zeros(())
            if self.spec.latent:
                z = pyro.sample("z", dist.Normal(self.rows(self.bias.new_zeros(len(x))), 1.0))
            for t, y, w, seen in self.chain(x, length, False, not self.spec.by_guide):
                with poutine.mask(mask=seen):
                    self.emit(t, Vindex(self.centres)[y, w] + 0.5 * self.slope * z, x[:, t])

    def emit(self, t: int, loc: Tensor, x: Tensor) -> None:
        spec = self.spec
        if spec.tones == "one":
            pyro.sample(f"x_{t}", self.likelihood(loc), obs=x)
        elif spec.tones == "event":
            pyro.sample(f"x_{t}", self.likelihood(loc[..., None] + self.offsets).to_event(1), obs=x)
        elif spec.loop:
            for i in pyro.plate(f"tones_{t}", 2):
                pyro.sample(f"x_{t}_{i}", self.likelihood(loc + self.offsets[i]), obs=self.rows(x[:, i]))
        else:
            dim, obs = (-1, x) if spec.tones == "plate" else (-2, x.T)
            with pyro.plate(f"tones_{t}", 2, dim=dim):
                offsets = self.offsets if dim == -1 else self.offsets[:, None]
                pyro.sample(f"x_{t}", self.likelihood(loc + offsets), obs=obs)

    def likelihood(self, loc: Tensor) -> dist.Distribution:
        if self.spec.likelihood == "normal":
            return dist.Normal(loc, 0.8)
        return dist.Bernoulli(logits=loc) if self.spec.likelihood == "bernoulli" else dist.Poisson(loc.exp())

    def guide(self, x, length=None):
        with self.plates(x):
            mean = self.rows(0.3 * self.seen(x, 0)) + 0.3 * self.bias
            if self.spec.latent == "first":
                pyro.sample("z", dist.Normal(mean, 1.1))
            if self.spec.by_guide:
                for t, y, _, _ in self.chain(x, length, True, True):
                    if self.spec.latent == "last" and t == self.spec.steps - 1:
                        pyro.sample("z", dist.Normal(mean + 0.3 * self.moves[y], 1.1))
            elif self.spec.latent == "last":
                pyro.sample("z", dist.Normal(mean, 1.1))

    def data(self) -> Fields:
        shape = (self.spec.n, self.spec.steps, *([] if self.spec.tones == "one" else [2]))
        x = torch.randn(shape) if self.spec.likelihood == "normal" else torch.randint(2, shape).float()
        length = {"length": torch.randint(1, self.spec.steps + 1, (self.spec.n,))} if self.spec.mask else {}
        return {"x": x, **length}


def draw_pair(spec: ChainSpec) -> tuple[RandomChain, Fields]:
    torch.manual_seed(spec.seed)
    pair = RandomChain(spec).to(spec.dtype)
    fields = pair.data()
    return pair, fields | {"x": fields["x"].to(spec.dtype)}


def exact_log_marginal(pair: RandomChain, fields: Fields) -> Tensor:
    """log p(x) [n] in float64."""
    exact = RandomChain(pair.spec).double()
    exact.load_state_dict(pair.state_dict())
    with torch.no_grad():
        return log_marginal(exact, fields | {"x": fields["x"].double()})
