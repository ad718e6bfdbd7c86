"""The deep Markov model (Krishnan, Shalit & Sontag 2017)."""

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from pyro_vae.pair.pair import Pair
from pyro_vae.pair.slices import slice_shape, until
from pyro_vae.parts import build
from pyro_vae.parts.build import LIKELIHOOD, POSTERIOR
from pyro_vae.parts.nets import MLPDecoder

Sequences = Float[Tensor, "batch time ..."]


class DeepMarkovModel(Pair):
    """p(z_0) p(x_0|z_0) p(z_1|z_0) p(x_1|z_1) ..., with nets for the step from z to the next and from z to x.

    The step is gated: its mean is between a linear map of z and a net's. The guide is q(z_t|z_t-1, x_t, x_t+1, ...),
    which is all of x that z_t depends on given z_t-1; a recurrent net reads x from its end. Sites are `z_t`, and `x` of
    all time slices.

    Args:
        data_shape: shape of one sequence x, [time, ...]; the data set's own on the command line. Other numbers of time
            slices serve as well.
        latent_dim: size of each z_t.
        hidden: widths of the hidden layers from z_t to x_t.
        transition_dim: width of the hidden layers of the step.
        rnn_dim: width of the recurrent net.
        activation: of the net from z_t to x_t; any torch activation by name ("relu", "elu", "tanh", ...).
        likelihood: of one time slice; a name or an object, as for a VAE.
        posterior: of each z_t; a name or an object, as for a VAE.
        data_mean: mean of the training data [*data_shape]; where given, the net to x starts at it.
        part_options: options of the chosen parts, named after their kind, as for a VAE.

    Raises:
        ContractError: data that are no sequences, or a size that is not positive.
        UnknownName: a part that is not known; lists those that are.

    Source: Pyro's example dmm.py; its recurrent net is a GRU here.
    """

    default_data = "planted_chains"

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dim: int = 16,
        hidden: Sequence[int] = (64,),
        transition_dim: int = 64,
        rnn_dim: int = 64,
        activation: str = "relu",
        likelihood: build.LikelihoodPart = "bernoulli",
        posterior: build.PosteriorPart = "diagonal_normal",
        data_mean: Float[Tensor, "..."] | None = None,
        **part_options: Any,
    ):
        super().__init__()
        of_slice = slice_shape(data_shape)
        build.check_sizes(latent_dim=[latent_dim], hidden=hidden, transition_dim=[transition_dim], rnn_dim=[rnn_dim])
        parts = build.Parts(part_options)
        self.likelihood = parts.build("likelihood", LIKELIHOOD, likelihood, data_shape=of_slice)
        sizes = {"in_features": rnn_dim, "latent_dim": latent_dim}
        self.posterior = parts.build("posterior", POSTERIOR, posterior, **sizes)
        parts.check_all_taken()
        self.before = nn.Parameter(torch.zeros(latent_dim))
        self.before_q = nn.Parameter(torch.zeros(latent_dim))
        self.step = GatedStep(latent_dim, transition_dim)
        self.decoder = MLPDecoder(latent_dim, hidden, activation, of_slice, self.likelihood.channels)
        self.rnn = nn.GRU(torch.Size(of_slice).numel(), rnn_dim, batch_first=True)
        self.combine = nn.Linear(latent_dim, rnn_dim)
        build.start_at(None if data_mean is None else data_mean.mean(0), self.decoder, self.likelihood)

    def model(self, x: Sequences, length: Int[Tensor, " batch"] | None = None) -> None:
        with self.plate(x.shape[0]):
            z, path = self.before.expand(x.shape[0], -1), []
            for t in range(x.shape[1]):
                with until(length, t):
                    z = pyro.sample(f"z_{t}", self.step(z))
                path.append(z)
            fn = self.likelihood(self.decoder(torch.stack(path, -2)))
            within = True if length is None else torch.arange(x.shape[1], device=x.device) < length.unsqueeze(1)
            pyro.sample("x", fn.mask(within).to_event(1), obs=x)

    def guide(self, x: Sequences, length: Int[Tensor, " batch"] | None = None) -> None:
        ahead = self.read(x, length)
        with self.plate(x.shape[0]):
            z = self.before_q.expand(x.shape[0], -1)
            for t in range(x.shape[1]):
                with until(length, t):
                    both = 0.5 * (torch.tanh(self.combine(z)) + ahead[:, t])
                    z = pyro.sample(f"z_{t}", self.posterior(both))

    def read(self, x: Sequences, length: Int[Tensor, " batch"] | None) -> Float[Tensor, "batch time rnn"]:
        """What the recurrent net knows of x at each time slice and after it."""
        seen = self.likelihood.encoder_input(x).reshape(*x.shape[:2], -1)
        return turned(self.rnn(turned(seen, length))[0], length)


class GatedStep(nn.Module):
    """z -> p(next z): N(loc, diag(scale)^2), loc = (1 - gate) linear(z) + gate net(z), scale a net of net(z)."""

    def __init__(self, latent_dim: int, hidden: int):
        super().__init__()
        self.gate, self.net = (
            nn.Sequential(nn.Linear(latent_dim, hidden), nn.ReLU(), nn.Linear(hidden, latent_dim)) for _ in range(2)
        )
        self.linear, self.scale = nn.Linear(latent_dim, latent_dim), nn.Linear(latent_dim, latent_dim)
        with torch.no_grad():
            self.linear.weight.copy_(torch.eye(latent_dim))
            self.linear.bias.zero_()

    def forward(self, z: Float[Tensor, "... latent"]) -> dist.Distribution:
        gate, proposed = torch.sigmoid(self.gate(z)), self.net(z)
        loc = (1 - gate) * self.linear(z) + gate * proposed
        return dist.Normal(loc, F.softplus(self.scale(F.relu(proposed)))).to_event(1)


def turned(x: Float[Tensor, "batch time features"], length: Int[Tensor, " batch"] | None) -> Float[Tensor, "..."]:
    """Each sequence from its end to its beginning; what lies beyond its length stays."""
    if length is None:
        return x.flip(1)
    time, ends = torch.arange(x.shape[1], device=x.device), length.unsqueeze(1)
    places = torch.where(time < ends, ends - 1 - time, time)
    return x.gather(1, places.unsqueeze(2).expand_as(x))
