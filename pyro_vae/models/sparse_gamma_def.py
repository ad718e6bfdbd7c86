"""The sparse gamma deep exponential family (Ranganath, Tang, Charlin & Blei 2015)."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import prod

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pyro_vae.errors import ContractError
from pyro_vae.pair.pair import Pair
from pyro_vae.parts import build
from pyro_vae.parts.nets import mlp

SHAPE_OF_Z, SHAPE_OF_W, RATE_OF_W = 0.1, 0.1, 0.3
LEAST_SHAPE, LEAST_MEAN = 0.1, 0.01
"""Below these, draws of a gamma are zeros: Pyro's example keeps its guide from there as well."""

SHAPE_START, LEAST_START = 0.5, 0.05
"""Where the guide's shapes of weights start, before the softplus, and the least mean of x from which weights start."""


class SparseGammaDEF(Pair):
    """Layers of gamma variables, each the mean of those below through positive weights, and counts x under a Poisson.

    Every z has the shape 0.1, so that most are near zero. The weights have gamma priors too and are latents that all
    data share, so figures are given draws of them, beside the bound of all data. Pyro's example has parameters of each
    image in its guide; here an encoder says shape and mean of each z.

    Args:
        data_shape: shape of one datum x; the data set's own on the command line.
        widths: how many z each layer has, from the top down.
        hidden: widths of the encoder's hidden layers.
        activation: any torch activation by name ("relu", "elu", "tanh", ...).
        data_mean: mean of the training data [*data_shape]; where given, the weights on x start at it.

    Raises:
        ContractError: a size that is not positive, or no layer.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        widths: Sequence[int] = (100, 40, 15),
        hidden: Sequence[int] = (200,),
        activation: str = "relu",
        data_mean: Float[Tensor, "..."] | None = None,
    ):
        super().__init__()
        build.check_sizes(data_shape=data_shape, widths=widths, hidden=hidden)
        if not widths:
            raise ContractError("a deep exponential family needs at least one layer: widths, such as 100,40,15")
        self.data_shape, self.widths = tuple(data_shape), tuple(widths)
        sizes = [*widths, prod(data_shape)]
        self.encoder = mlp([sizes[-1], *hidden], activation)
        self.heads = nn.Linear([sizes[-1], *hidden][-1], 2 * sum(widths))
        means = [torch.full((below,), 1 / above) for above, below in pairwise(sizes)]
        if data_mean is not None:
            means[-1] = data_mean.reshape(-1).clamp(min=LEAST_START) / widths[-1]
        starts = [_inverse_softplus(mean).expand(above, -1) for mean, above in zip(means, widths, strict=True)]
        starts = [torch.stack([torch.full_like(start, SHAPE_START), start]) for start in starts]
        self.weights = nn.ParameterList(start + 0.1 * torch.randn_like(start) for start in starts)

    def model(self, x: Float[Tensor, "batch ..."]) -> None:
        shapes = [weights.shape[1:] for weights in self.weights]
        ones = self.weights[0].new_ones
        shape, rate = SHAPE_OF_W * ones(()), RATE_OF_W * ones(())
        weights = [pyro.sample(f"w_{i}", dist.Gamma(shape, rate).expand(s).to_event(2)) for i, s in enumerate(shapes)]
        tiny = torch.finfo(rate.dtype).tiny
        with self.plate(x.shape[0]):
            mean = ones(self.widths[0])
            for i, weight in enumerate(weights):
                z = pyro.sample(f"z_{i}", dist.Gamma(SHAPE_OF_Z * ones(()), SHAPE_OF_Z / mean).to_event(1))
                mean = z @ weight + tiny
            pyro.sample("x", dist.Poisson(mean.unflatten(-1, self.data_shape)).to_event(len(self.data_shape)), obs=x)

    def guide(self, x: Float[Tensor, "batch ..."]) -> None:
        for i, weights in enumerate(self.weights):
            pyro.sample(f"w_{i}", _gamma(*weights).to_event(2))
        with self.plate(x.shape[0]):
            for i, (shape, mean) in enumerate(self.said(x)):
                pyro.sample(f"z_{i}", _gamma(shape, mean).to_event(1))

    def said(self, x: Float[Tensor, "batch ..."]) -> Iterator[tuple[Tensor, Tensor]]:
        """What the encoder says of shape and mean of each layer's z, [batch, width] each."""
        both = self.heads(self.encoder(x.flatten(-len(self.data_shape)).log1p())).unflatten(-1, (2, -1))
        yield from zip(*(part.split(self.widths, -1) for part in (both[..., 0, :], both[..., 1, :])), strict=True)


def _gamma(shape: Tensor, mean: Tensor) -> dist.Gamma:
    """A gamma from numbers of any sign."""
    shape, mean = LEAST_SHAPE + F.softplus(shape), LEAST_MEAN + F.softplus(mean)
    return dist.Gamma(shape, shape / mean)


def _inverse_softplus(value: Tensor) -> Tensor:
    return value + torch.log(-torch.expm1(-value))
