"""Numbers that are looked up in place of a net: a row for each value of a discrete latent."""

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

UNIT = 20.0
"""A table keeps its numbers in this unit. A step moves each weight by about the learning rate, and a net's output by
that of many weights, but a table's by that of one: so a learning rate for nets serves a table as well."""


class Table(nn.Module):
    """Free numbers, which start at the given ones."""

    def __init__(self, start: Float[Tensor, "..."]):
        super().__init__()
        self.kept = nn.Parameter(torch.empty_like(start))
        self.set(start)

    def forward(self) -> Float[Tensor, "..."]:
        return UNIT * self.kept

    def set(self, values: Float[Tensor, "..."]) -> None:
        """Let the numbers be these."""
        with torch.no_grad():
            self.kept.copy_(values / UNIT)


class Emissions(nn.Module):
    """A distribution of x for each value of a discrete latent: a likelihood at the numbers in a table's row.

    Args:
        rows: how many values the latent has.
        likelihood: an object with the interface of `pyro_vae.parts.likelihoods.Likelihood`.
        data_shape: shape of one x.
        mean: mean of the data [*data_shape], around which the rows start, apart from each other; None: not known.
    """

    def __init__(
        self, rows: int, likelihood: nn.Module, data_shape: Sequence[int], mean: Float[Tensor, "..."] | None = None
    ):
        super().__init__()
        self.likelihood = likelihood
        middle = torch.zeros(likelihood.channels, *data_shape) if mean is None else likelihood.start(mean)
        start = middle.repeat(rows, *[1] * middle.dim())
        start[:, 0] += torch.randn_like(start[:, 0])
        self.table = Table(start)

    def forward(self, row: Int[Tensor, "..."]) -> dist.Distribution:
        """The distributions of x [*data_shape] for these values of the latent."""
        return self.likelihood(self.table()[row])
