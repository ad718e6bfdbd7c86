"""log p(x, z) of the data of a block as a function of unconstrained coordinates of z, with its slopes."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pyro_vae.evaluation.ais.bridge import Coordinates
from pyro_vae.evaluation.chunks import rows_that_fit
from pyro_vae.pair.pair import batch_size
from pyro_vae.pair.particles import Fields
from pyro_vae.pair.terms import model_terms

Rows = Int[Tensor, " rows"]
"""For each of some places, the number of its datum in the block."""


class Densities(NamedTuple):
    """log p(x|z), and log p(z) with the log Jacobian of the coordinates, in nats; -inf where one is not a number."""

    log_likelihood: Float[Tensor, " rows"]
    log_prior: Float[Tensor, " rows"]

    @property
    def log_joint(self) -> Float[Tensor, " rows"]:
        return self.log_likelihood + self.log_prior


class Target:
    """log p(x, z) of the data of a batch. Every place comes with the number of its datum, so that each datum may ask
    for as many places as it needs, and the model still sees batches of data.

    Args:
        batch: the fields [batch, ...] that the pair takes.
        coordinates: those of the latents.
    """

    def __init__(self, pair: nn.Module, batch: Fields, coordinates: Coordinates):
        self.pair, self.batch, self.coordinates = pair, batch, coordinates
        self.size, self.most = batch_size(batch), rows_that_fit(batch)

    @property
    def device(self) -> torch.device:
        return next(iter(self.batch.values())).device

    def fields(self, rows: Rows) -> dict[str, Tensor]:
        """The fields of the data of some places."""
        return {name: value[rows] for name, value in self.batch.items()}

    def densities(self, places: Float[Tensor, "rows dim"], rows: Rows) -> Densities:
        """Both parts of log p(x, z) at these places."""
        values, log_stretch = self.coordinates.values(places.unsqueeze(0))
        log_likelihood, log_prior = model_terms(self.pair, self.fields(rows), values, 1)
        return Densities(_known(log_likelihood[0]), _known(log_prior[0] + log_stretch[0]))

    def weigh(self, places: Float[Tensor, "rows dim"], rows: Rows) -> Densities:
        """The same for any number of places, as many at a time as fit."""
        parts = [self.densities(*part) for part in self._parts(places, rows)]
        return Densities(*map(torch.cat, zip(*parts, strict=True)))

    def slopes(
        self, places: Float[Tensor, "rows dim"], rows: Rows, other: Callable[..., Tensor] | None = None
    ) -> tuple[Float[Tensor, " rows"], Float[Tensor, "rows dim"]]:
        """log p(x, z) and its gradient, zero where it is not finite."""
        values, slopes = [], []
        for some, of in self._parts(places, rows):
            with torch.enable_grad():
                here = some.detach().requires_grad_()
                value = self.densities(here, of).log_joint
                slope = torch.autograd.grad(value.sum(), here)[0]
            values.append(value.detach())
            slopes.append(slope.nan_to_num(0.0, 0.0, 0.0))
        return torch.cat(values), torch.cat(slopes)

    def _parts(self, places: Tensor, rows: Rows) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(places.split(self.most), rows.split(self.most), strict=True)


def _known(density: Tensor) -> Tensor:
    return density.nan_to_num(-torch.inf, torch.inf, -torch.inf)


def rows_of(count: int, data: Int[Tensor, " data"]) -> Rows:
    """The rows of `count` places for each of some data, in the order of places [count, data, dim]."""
    return data.repeat(count)
