"""Monotone rational-quadratic splines, elementwise (Durkan, Bekasov, Murray & Papamakarios 2019).

Pyro's own assign through a mask, which no graph can hold; these choose instead. All else of its spline flows is Pyro's.
"""

from functools import partial

import pyro.distributions.transforms as T
import torch
import torch.nn.functional as F
from jaxtyping import Float
from pyro.distributions.transforms.spline import ConditionedSpline
from torch import Tensor

LEAST = 1e-2
"""The least width and height of a bin, as shares of the box, and the least slope at a knot."""


def rational_quadratic(
    x: Float[Tensor, "..."],
    widths: Float[Tensor, "... bins"],
    heights: Float[Tensor, "... bins"],
    slopes: Float[Tensor, "... knots"],
    bound: float,
    inverse: bool = False,
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """y and log |dy/dx| of the spline on [-bound, bound], the identity elsewhere (eq. 4 to 8).

    Args:
        widths, heights: shares of the box, which sum to 1.
        slopes: at the knots between the bins; at the ends the slope is 1.
        inverse: x from y.
    """
    inside = x.abs() < bound
    held = torch.where(inside, x, 0.0)
    across, up = _knots(widths, bound), _knots(heights, bound)
    slopes = F.pad(slopes + LEAST, (1, 1), value=1.0)
    place = (held.unsqueeze(-1) >= (up if inverse else across)[..., 1:-1]).sum(-1, keepdim=True)
    x0, x1, y0, y1, d0, d1 = [
        torch.take_along_dim(table.expand(*place.shape[:-1], table.shape[-1]), place + step, -1).squeeze(-1)
        for table in (across, up, slopes)
        for step in (0, 1)
    ]
    slope = (y1 - y0) / (x1 - x0)
    bend = d0 + d1 - 2 * slope
    share = _share(held - y0, slope, bend, d0, y1 - y0) if inverse else (held - x0) / (x1 - x0)
    mixed = share * (1 - share)
    denominator = slope + bend * mixed
    value = x0 + share * (x1 - x0) if inverse else y0 + (y1 - y0) * (slope * share.square() + d0 * mixed) / denominator
    steepness = d1 * share.square() + 2 * slope * mixed + d0 * (1 - share).square()
    stretch = 2 * slope.log() + steepness.log() - 2 * denominator.log()
    return torch.where(inside, value, x), torch.where(inside, -stretch if inverse else stretch, 0.0)


def _knots(shares: Float[Tensor, "... bins"], bound: float) -> Float[Tensor, "... knots"]:
    """Where the bins begin and end, from -bound to bound."""
    inner = (LEAST + (1 - LEAST * shares.shape[-1]) * shares).cumsum(-1)[..., :-1]
    return F.pad(F.pad(2 * bound * inner - bound, (1, 0), value=-bound), (0, 1), value=bound)


def _share(rise: Tensor, slope: Tensor, bend: Tensor, d0: Tensor, height: Tensor) -> Tensor:
    """How far into its bin the value lies that is mapped `rise` above the bin's lower end: the root of a quadratic."""
    a, b, c = height * (slope - d0) + rise * bend, height * d0 - rise * bend, -slope * rise
    return 2 * c / (-b - (b.square() - 4 * a * c).clamp(min=0).sqrt())


class SplineAutoregressive(T.SplineAutoregressive):
    """Pyro's, with the spline of this file."""

    def __init__(self, input_dim: int, net: object, bins: int, bound: float):
        super().__init__(input_dim, net, bins, bound, "quadratic")
        self.spline = _Conditional(net, input_dim, bins, bound, "quadratic")


class _Conditional(T.ConditionalSpline):
    def condition(self, context: Tensor) -> ConditionedSpline:
        return _Conditioned(partial(self._params, context), self.bound, self.order)


class _Conditioned(ConditionedSpline):
    def spline_op(self, x: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        widths, heights, slopes, _ = self._params()
        return rational_quadratic(x, widths, heights, slopes, self.bound, inverse)
