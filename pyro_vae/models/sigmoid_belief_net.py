"""The sigmoid belief net with a recognition net beside it: the Helmholtz machine (Dayan, Hinton, Neal & Zemel 1995)."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_vae.errors import ContractError
from pyro_vae.pair.pair import Pair
from pyro_vae.parts import build
from pyro_vae.parts.build import LIKELIHOOD
from pyro_vae.parts.distributions import BernoulliDistribution
from pyro_vae.parts.nets import MLPDecoder


class SigmoidBeliefNet(Pair):
    """p(z_L) ... p(z_1|z_2) p(x|z_1), sites `z_1` (next to x) to `z_L`: layers of bits, each on with a probability that
    is a sigmoid of a linear function of the layer above (Neal 1992). The guide goes bottom up, q(z_1|x) q(z_2|z_1) ...,
    by sigmoids as well.

    Bits have no pathwise gradient, so it trains by `wake_sleep` unless another objective is asked for:
    `reweighted_wake_sleep`, `iwae` with gradient="vimco", `trace_graph_elbo`.

    Args:
        data_shape: shape of one datum x; the data set's own on the command line.
        latent_dims: how many bits each layer has, from x upwards.
        likelihood: a name or an object, as for a VAE.
        data_mean: mean of the training data [*data_shape]; where given, p(x|z_1) starts at it.
        part_options: options of the chosen parts, named after their kind, as for a VAE.

    Raises:
        ContractError: no layer, or a size that is not positive.
        UnknownName: a part that is not known; lists those that are.
    """

    default_objective = "wake_sleep"

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dims: Sequence[int] = (64, 32),
        likelihood: build.LikelihoodPart = "bernoulli",
        data_mean: Float[Tensor, "..."] | None = None,
        **part_options: Any,
    ):
        super().__init__()
        if not latent_dims:
            raise ContractError("latent_dims is empty; give the size of at least one layer of bits, such as 64,32")
        build.check_sizes(data_shape=data_shape, latent_dims=latent_dims)
        parts = build.Parts(part_options)
        self.likelihood = parts.build("likelihood", LIKELIHOOD, likelihood, data_shape=data_shape)
        parts.check_all_taken()
        self.names, self.event_dims = [f"z_{i}" for i in range(1, len(latent_dims) + 1)], len(data_shape)
        self.top = nn.Parameter(torch.zeros(latent_dims[-1]))
        self.down = nn.ModuleList(nn.Linear(above, below) for below, above in pairwise(latent_dims))
        self.up = nn.ModuleList(nn.Linear(*sizes) for sizes in pairwise([math.prod(data_shape), *latent_dims]))
        self.decoder = MLPDecoder(latent_dims[0], (), "sigmoid", data_shape, self.likelihood.channels)
        build.start_at(data_mean, self.decoder, self.likelihood)

    def model(self, x: Float[Tensor, "batch ..."]) -> None:
        with self.plate(x.shape[0]):
            z = pyro.sample(self.names[-1], bits(self.top))
            for name, layer in zip(self.names[-2::-1], reversed(self.down), strict=True):
                z = pyro.sample(name, bits(layer(z)))
            pyro.sample("x", self.likelihood(self.decoder(z)), obs=x)

    def guide(self, x: Float[Tensor, "batch ..."]) -> None:
        below = self.likelihood.encoder_input(x).flatten(-self.event_dims)
        with self.plate(x.shape[0]):
            for name, layer in zip(self.names, self.up, strict=True):
                below = pyro.sample(name, bits(layer(below)))


def bits(logits: Float[Tensor, "... bits"]) -> dist.Distribution:
    """Independent bits, each on with the probability that is the sigmoid of its logit."""
    return BernoulliDistribution(logits=logits).to_event(1)
