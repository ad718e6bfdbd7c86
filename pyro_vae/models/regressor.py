"""The regressor: one net from the context to x, which a conditional VAE is held against."""

import math
from collections.abc import Sequence
from typing import Any

import pyro
from jaxtyping import Float
from torch import Tensor

from pyro_vae.pair.pair import Pair
from pyro_vae.parts import build
from pyro_vae.parts.build import LIKELIHOOD
from pyro_vae.parts.distributions import completed
from pyro_vae.parts.nets import MLPDecoder

Field = Float[Tensor, "batch ..."]


class Regressor(Pair):
    """p(x|c) by one net of the context c and no latent: its guess of x, and a log-likelihood that needs no bound.

    Fields are as for `CVAE`.

    Args:
        data_shape: shape of one datum x; the data set's own on the command line.
        context_shape: shape of one context; the data set's own on the command line.
        hidden: widths of the hidden layers.
        activation: any torch activation by name ("relu", "elu", "tanh", ...).
        likelihood: a name or an object, as for a VAE.
        data_mean: mean of the training data [*data_shape]; where given, the net starts at it.
        part_options: options of the likelihood: `likelihood_sigma=0.1`.

    Raises:
        ContractError: a size that is not positive.
        UnknownName: a part that is not known; lists those that are.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        context_shape: Sequence[int],
        hidden: Sequence[int] = (512,),
        activation: str = "relu",
        likelihood: build.LikelihoodPart = "bernoulli",
        data_mean: Float[Tensor, "..."] | None = None,
        **part_options: Any,
    ):
        super().__init__()
        build.check_sizes(data_shape=data_shape, context_shape=context_shape, hidden=hidden)
        self.shapes = {"x": tuple(data_shape), "context": tuple(context_shape), "mask": tuple(data_shape)}
        parts = build.Parts(part_options)
        self.likelihood = parts.build("likelihood", LIKELIHOOD, likelihood, data_shape=data_shape)
        parts.check_all_taken()
        self.net = MLPDecoder(math.prod(context_shape), hidden, activation, data_shape, self.likelihood.channels)
        build.start_at(data_mean, self.net, self.likelihood)

    def guess(self, context: Field) -> Field:
        """The mean of p(x|c), [batch, *data_shape]."""
        return self.likelihood(self.net(context.flatten(1))).mean

    def model(self, x: Field, context: Field, mask: Field | None = None) -> None:
        build.check_shapes(self.shapes, {"x": x, "context": context, "mask": mask})
        with self.plate(x.shape[0]):
            pyro.sample("x", completed(self.likelihood(self.net(context.flatten(1))), x, mask), obs=x)

    def guide(self, x: Field, context: Field, mask: Field | None = None) -> None:
        """Empty: no latent."""
        with self.plate(x.shape[0]):
            pass
