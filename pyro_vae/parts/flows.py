"""Invertible maps of a latent vector, made of Pyro's transforms.

Here a module holds the nets alone. The transform itself, which keeps what it last drew, is made anew at every use, so
that no draw is left behind in a pair, and a graph can be traced.
"""

from collections.abc import Callable, Sequence

import pyro.distributions as dist
import pyro.distributions.transforms as T
import torch
from jaxtyping import Float
from pyro.nn import AutoRegressiveNN, ConditionalAutoRegressiveNN
from torch import Tensor, nn

from pyro_vae.parts.splines import SplineAutoregressive

WIDTH = 64
"""The least width of an autoregressive net's hidden layer; else twice the latent's size."""

NEAR = 0.1
"""Of the size of a linear layer's first weights, that of an autoregressive net's last one, so that maps begin near the
identity."""

BINS, BOUND = 8, 5.0
"""Of a spline: its bins, and its box [-BOUND, BOUND], outside of which it is the identity."""

LIMIT = 4.0
"""How large a number a net may give for a spline, so that it can be inverted in float32."""


class Flowed(dist.TransformedDistribution):
    """A transformed distribution that scores values of fewer batch dims than its own, as a mixture asks of it."""

    def log_prob(self, value: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(value.shape, self.batch_shape + self.event_shape)
        return super().log_prob(value if value.shape == shape else value.expand(shape))  # its own draws as they are


class Pieces(nn.Module):
    """One linear layer, its output cut into pieces of these sizes."""

    def __init__(self, in_features: int, sizes: Sequence[int]):
        super().__init__()
        self.sizes = tuple(sizes)
        self.linear = nn.Linear(in_features, sum(sizes))

    def forward(self, features: Float[Tensor, "... features"]) -> tuple[Tensor, ...]:
        return self.linear(features).split(self.sizes, -1)


def planar(in_features: int, dim: int) -> nn.Module:
    """A planar map whose b, u and w are linear in the features."""
    return T.ConditionalPlanar(Pieces(in_features, (1, dim, dim)))


def radial(in_features: int, dim: int) -> nn.Module:
    """A radial map whose centre, alpha and beta are linear in the features."""
    return T.ConditionalRadial(Pieces(in_features, (dim, 1, 1)))


class Autoregressive(nn.Module):
    """A masked net (Germain et al. 2015) that gives numbers for each dimension from those before it, and from features.

    Args:
        dim: how many dimensions.
        in_features: how many features; None: there are none.
        turn: take the dimensions in reverse order.
    """

    numbers: Sequence[int]
    """How many numbers of each sort for each dimension."""

    def __init__(self, dim: int, in_features: int | None, turn: bool):
        super().__init__()
        self.dim, order = dim, torch.arange(dim).flip(0) if turn else torch.arange(dim)
        self.order = order.tolist()
        sizes = {"hidden_dims": [max(WIDTH, 2 * dim)], "param_dims": list(self.numbers)}
        sizes |= {"permutation": order, "nonlinearity": nn.ELU()}
        if in_features is None:
            self.net = AutoRegressiveNN(dim, **sizes)
        else:
            self.net = ConditionalAutoRegressiveNN(dim, in_features, **sizes)
        with torch.no_grad():
            for parameter in self.net.layers[-1].parameters():
                parameter.mul_(NEAR)

    def condition(self, features: Float[Tensor, "... features"] | None = None) -> torch.distributions.Transform:
        """The map at these features."""
        raise NotImplementedError

    def given(self, features: Float[Tensor, "... features"] | None) -> Callable[[Tensor], tuple[Tensor, ...]]:
        """The net at these features, as Pyro's transforms call it. Their inverse begins with numbers in the default
        precision, and asks for the order, which is read from no tensor."""
        more = () if features is None else (features,)

        def net(z: Float[Tensor, "... dim"]) -> tuple[Tensor, ...]:
            return self.net(z.to(self.net.layers[0].weight.dtype), *more)

        net.permutation = self.order
        return net


class Affine(Autoregressive):
    """Each dimension is shifted and scaled."""

    numbers = (1, 1)

    def condition(self, features: Float[Tensor, "... features"] | None = None) -> torch.distributions.Transform:
        return T.AffineAutoregressive(self.given(features))


class Spline(Autoregressive):
    """Each dimension goes through a monotone spline."""

    numbers = (BINS, BINS, BINS - 1)

    def condition(self, features: Float[Tensor, "... features"] | None = None) -> torch.distributions.Transform:
        net = self.given(features)

        def limited(z: Float[Tensor, "... dim"]) -> list[Tensor]:
            return [LIMIT * torch.tanh(numbers / LIMIT) for numbers in net(z)]

        return SplineAutoregressive(self.dim, limited, BINS, BOUND)


def masked_autoregressive(base: dist.Distribution, maps: Sequence[Affine]) -> dist.Distribution:
    """The distribution whose values the maps, from the last to the first, turn into draws of `base`: its density takes
    one pass, its draws one for each dimension (Papamakarios, Pavlakou & Murray 2017)."""
    return Flowed(base, [each.condition().inv for each in maps])
