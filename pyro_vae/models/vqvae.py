"""The VQ-VAE (van den Oord, Vinyals & Kavukcuoglu 2017), with a prior over its codes that is trained with it."""

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_vae.errors import ContractError
from pyro_vae.pair.pair import Pair
from pyro_vae.parts import build
from pyro_vae.parts.build import LIKELIHOOD, NET

DECAY = 0.99
"""What is left after a step of the past of an entry, and of the share of the codes that it has."""

DEAD = 0.03
"""An entry that no code of a batch names is dead where its share is below this part of an even share."""


class VQVAE(Pair):
    """p(codes) p(x|codes): a datum has several codes, each the number of the entry of a codebook that is nearest to
    what the encoder says, so q(codes|x) is a point mass. p(codes) is autoregressive, a GRU over the codes before.

    The entries are moving averages of what the encoder says where they are named; a dead one starts anew at what the
    encoder says of some datum. The decoder's gradient goes to the encoder past the choice of the entry, and under
    train() the guide adds commitment |encoder - entry|^2 to the loss, which enters no bound. The ELBO is
    log p(codes) + log p(x|codes) at the guide's codes: a lower bound on log p(x). All draws of a point mass are alike,
    so the importance-weighted bound is the same number at any number of particles.

    Args:
        data_shape: shape of one datum x; the data set's own on the command line.
        codes: how many codes a datum has.
        codebook: how many entries there are to choose from.
        code_dim: size of an entry.
        hidden: widths of the encoder's hidden layers, or its channels; the decoder mirrors them.
        activation: any torch activation by name ("relu", "elu", "tanh", ...).
        likelihood: a name or an object, as for a VAE.
        net: a name or an object, as for a VAE.
        commitment: weight of the commitment, nats for each unit of squared distance.
        prior_hidden: width of the GRU.
        data_mean: mean of the training data [*data_shape]; where given, the decoder starts at it.
        part_options: options of the chosen parts, named after their kind, as for a VAE.

    Raises:
        ContractError: a size that is not positive, or a codebook of one entry.
        UnknownName: a part that is not known; lists those that are.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        codes: int = 8,
        codebook: int = 32,
        code_dim: int = 8,
        hidden: Sequence[int] = (512,),
        activation: str = "relu",
        likelihood: build.LikelihoodPart = "bernoulli",
        net: build.NetPart = "mlp",
        commitment: float = 0.25,
        prior_hidden: int = 128,
        data_mean: Float[Tensor, "..."] | None = None,
        **part_options: Any,
    ):
        super().__init__()
        build.check_sizes(data_shape=data_shape, codes=[codes], code_dim=[code_dim], prior_hidden=[prior_hidden])
        if codebook < 2:
            raise ContractError(f"codebook must have at least 2 entries, not {codebook}: the codes of all x are alike")
        if not commitment >= 0:
            raise ContractError(f"commitment must not be negative, but is {commitment}")
        parts = build.Parts(part_options)
        self.likelihood = parts.build("likelihood", LIKELIHOOD, likelihood, data_shape=data_shape)
        nets = parts.build("net", NET, net, hidden=hidden, activation=activation)
        parts.check_all_taken()
        self.codes, self.code_dim, self.commitment = codes, code_dim, commitment
        self.encoder = nets.encoder(data_shape)
        self.heads = nn.Linear(self.encoder.out_features, codes * code_dim)
        self.prior = CodePrior(codes, codebook, prior_hidden)
        self.decoder = nets.decoder(codes * code_dim, data_shape, self.likelihood.channels)
        self.register_buffer("codebook", torch.randn(codebook, code_dim))
        self.register_buffer("share", torch.zeros(codebook))
        build.start_at(data_mean, self.decoder, self.likelihood)

    def model(self, x: Float[Tensor, "batch ..."]) -> None:
        with self.plate(x.shape[0]):
            chosen = pyro.sample("codes", Codes(self.prior))
            entries = self.codebook[chosen]
            if torch.is_grad_enabled():
                said = self.said(x)
                entries = entries + (said - said.detach())  # the same number, with the encoder's gradient
            pyro.sample("x", self.likelihood(self.decoder(entries.flatten(-2))), obs=x)

    def guide(self, x: Float[Tensor, "batch ..."]) -> None:
        said = self.said(x)
        chosen = self.nearest(said.detach())
        with self.plate(x.shape[0]):
            pyro.sample("codes", dist.Delta(chosen, event_dim=1))
            if self.training:
                distance = (said - self.codebook[chosen]).square().sum((-2, -1))
                pyro.factor("commitment", self.commitment * distance, has_rsample=True)
                self.learn(said.detach().flatten(0, -2), chosen.flatten())

    def said(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch codes code_dim"]:
        """What the encoder says of each code."""
        features = self.encoder(self.likelihood.encoder_input(x))
        return self.heads(features).unflatten(-1, (self.codes, self.code_dim))

    def nearest(self, said: Float[Tensor, "... code_dim"]) -> Int[Tensor, "..."]:
        """The number of the nearest entry."""
        return (self.codebook.square().sum(1) - 2 * said @ self.codebook.T).argmin(-1)

    @torch.no_grad()
    def learn(self, said: Float[Tensor, "n code_dim"], chosen: Int[Tensor, " n"]) -> None:
        """Move the entries towards what they were chosen for, and start the dead ones anew."""
        entries = torch.arange(len(self.codebook), device=chosen.device)
        named = (chosen.unsqueeze(1) == entries).to(said)
        share, tiny = named.mean(0), torch.finfo(said.dtype).tiny
        self.share.lerp_(share, 1 - DECAY)
        mean = named.T @ said / named.sum(0).clamp(min=1).unsqueeze(1)
        step = (1 - DECAY) * share / self.share.clamp(min=tiny)
        entry = self.codebook + step.unsqueeze(1) * (mean - self.codebook)
        dead = (share == 0) & (self.share < DEAD / len(entries))
        others = said[torch.randint(len(said), entries.shape, device=said.device)]
        self.codebook.copy_(torch.where(dead.unsqueeze(1), others, entry))
        self.share.copy_(torch.where(dead, 1 / len(entries), self.share))


class CodePrior(nn.Module):
    """Log-probabilities of each code given those before it: a GRU that reads one code after the other."""

    def __init__(self, codes: int, codebook: int, hidden: int):
        super().__init__()
        self.codes, self.codebook = codes, codebook
        self.embedding = nn.Embedding(codebook + 1, hidden)  # the last stands before the first code
        self.rnn = nn.GRU(hidden, hidden, batch_first=True)
        self.out = nn.Linear(hidden, codebook)

    def forward(self, before: Int[Tensor, "n steps"], state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Log-probabilities [n, steps, codebook] of what follows each of these codes, and the GRU's state."""
        hidden, state = self.rnn(self.embedding(before), state)
        return self.out(hidden).log_softmax(-1), state

    def start(self, n: int) -> Int[Tensor, "n 1"]:
        """What stands before the first code."""
        return torch.full((n, 1), self.codebook, device=self.out.weight.device)


class Codes(dist.TorchDistribution):
    """Codes [codes] of a datum, drawn one after the other from a `CodePrior`."""

    arg_constraints: dict[str, Any] = {}
    has_rsample = False

    def __init__(self, prior: CodePrior, batch_shape: Sequence[int] = ()):
        self.prior = prior
        super().__init__(torch.Size(batch_shape), torch.Size([prior.codes]), validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.integer_interval(0, self.prior.codebook - 1), 1)

    def expand(self, batch_shape: torch.Size, _instance: dist.Distribution | None = None) -> "Codes":
        return Codes(self.prior, batch_shape)

    def sample(self, sample_shape: Sequence[int] = ()) -> Int[Tensor, "... codes"]:
        shape = self._extended_shape(torch.Size(sample_shape))
        with torch.no_grad():
            drawn, state = [self.prior.start(shape[:-1].numel())], None
            for _ in range(self.prior.codes):
                log_probs, state = self.prior(drawn[-1], state)
                drawn.append(torch.distributions.Categorical(logits=log_probs).sample())
        return torch.cat(drawn[1:], 1).reshape(shape)

    def log_prob(self, value: Int[Tensor, "... codes"]) -> Float[Tensor, "..."]:
        rows = value.reshape(-1, self.prior.codes).long()
        log_probs, _ = self.prior(torch.cat([self.prior.start(len(rows)), rows[:, :-1]], 1))
        total = log_probs.gather(-1, rows.unsqueeze(-1)).sum((1, 2)).reshape(value.shape[:-1])
        return total.expand(torch.broadcast_shapes(total.shape, self.batch_shape))
