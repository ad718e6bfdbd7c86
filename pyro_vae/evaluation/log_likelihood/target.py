"""log p(x, z) of the data of a block as a function of unconstrained coordinates of z, with its slopes."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pyro_vae.engine.tracing import Named
from pyro_vae.errors import ContractError
from pyro_vae.evaluation.ais.bridge import Coordinates, coordinates_of
from pyro_vae.evaluation.blocks import Block
from pyro_vae.evaluation.chunks import CHUNK_BYTES, ChunkEngine, rows_that_fit
from pyro_vae.evaluation.log_likelihood.masked import log_density_of_masked, masked_out
from pyro_vae.pair.pair import batch_size
from pyro_vae.pair.particles import Fields
from pyro_vae.pair.terms import model_terms

COORDINATES = 9
"""What random numbers are for, as the last part of their seeds."""

Rows = Int[Tensor, " rows"]
"""For each of some places, the number of its datum in the block."""


class Densities(NamedTuple):
    """log p(x|z), and log p(z) with the log Jacobian of the coordinates, in nats; -inf where one is not a number."""

    log_likelihood: Float[Tensor, " rows"]
    log_prior: Float[Tensor, " rows"]

    @property
    def log_joint(self) -> Float[Tensor, " rows"]:
        return self.log_likelihood + self.log_prior


class _Rows(nn.Module):
    """A function of the fields and of `places` [rows, dim], so many rows at a time."""

    def __init__(self, pair: nn.Module, coordinates: Coordinates, rows: int):
        super().__init__()
        self.pair, self.coordinates, self.shape = pair, coordinates, (1, rows)


class RowDensities(_Rows):
    """Both parts of log p(x, z)."""

    def forward(self, batch: Named, values: Named) -> Sequence[Tensor]:
        latents, log_stretch = self.coordinates.values(values["places"].unsqueeze(0))
        log_likelihood, log_prior = model_terms(self.pair, batch, latents, 1)
        log_prior = log_prior[0] + log_stretch[0]
        if "masked" in values:
            log_prior = log_prior + log_density_of_masked(values["places"], values["masked"])
        return log_likelihood[0], log_prior


class RowSlopes(RowDensities):
    """log p(x, z) and its gradient."""

    def forward(self, batch: Named, values: Named) -> Sequence[Tensor]:
        with torch.enable_grad():
            places = values["places"].detach().requires_grad_()
            log_joint = sum(super().forward(batch, {**values, "places": places}))
            (slope,) = torch.autograd.grad(log_joint.sum(), places)
        return log_joint.detach(), slope


class Engines(NamedTuple):
    """What runs the model on so many rows at a time, once for its densities and once for its slopes."""

    densities: ChunkEngine
    slopes: ChunkEngine


class Target:
    """log p(x, z) of the data of a batch. Every place comes with the number of its datum, so that each datum may ask
    for as many places as it needs, and the model still sees batches of data.

    Args:
        batch: the fields [batch, ...] that the pair takes.
        coordinates: those of the latents.
        engines: what runs the model; eagerly where there are none.
    """

    def __init__(self, pair: nn.Module, batch: Fields, coordinates: Coordinates, engines: Engines | None = None):
        self.pair, self.batch, self.coordinates, self.engines = pair, batch, coordinates, engines
        self.size = batch_size(batch)
        masked = masked_out(pair, batch, coordinates)
        self.masked = masked.to(coordinates.dtype) if masked.any() else None
        of_latents = CHUNK_BYTES[self.device.type] // (16 * max(1, coordinates.dim))
        self.most = max(1, min(rows_that_fit(batch), of_latents))

    @classmethod
    def of_block(cls, block: Block, engines: Engines | None = None) -> "Target":
        """That of the data of a block; raises `ContractError` where the model has no log-densities of each datum, or
        its latents no unconstrained coordinates."""
        batch = block.batch()
        with block.seeded(COORDINATES):
            return cls(block.pair, batch, coordinates_of_rows(block.pair, batch), engines)

    @property
    def device(self) -> torch.device:
        return next(iter(self.batch.values())).device

    def fields(self, rows: Rows) -> dict[str, Tensor]:
        """The fields of the data of some places."""
        return {name: value[rows] for name, value in self.batch.items()}

    def densities(self, places: Float[Tensor, "rows dim"], rows: Rows) -> Densities:
        """Both parts of log p(x, z) at these places, which are few, differentiable."""
        module = RowDensities(self.pair, self.coordinates, len(rows))
        return Densities(*map(_known, module(self.fields(rows), self._values(places, rows))))

    def _values(self, places: Tensor, rows: Rows) -> dict[str, Tensor]:
        return {"places": places} | ({} if self.masked is None else {"masked": self.masked[rows]})

    def weigh(self, places: Float[Tensor, "rows dim"], rows: Rows) -> Densities:
        """The same for any number of places, as many at a time as fit."""
        found = self._run(RowDensities, self.engines and self.engines.densities, places, rows)
        return Densities(*map(_known, found))

    def slopes(
        self, places: Float[Tensor, "rows dim"], rows: Rows
    ) -> tuple[Float[Tensor, " rows"], Float[Tensor, "rows dim"]]:
        """log p(x, z) and its gradient, zero where it is not finite."""
        value, slope = self._run(RowSlopes, self.engines and self.engines.slopes, places, rows)
        return _known(value), slope.nan_to_num(0.0, 0.0, 0.0)

    def _run(self, kind: type[_Rows], engine: ChunkEngine | None, places: Tensor, rows: Rows) -> Sequence[Tensor]:
        """A function of all rows, in chunks of one size; what is left over is filled up, or runs eagerly where it is
        short."""
        parts = []
        for some, of in zip(places.split(self.most), rows.split(self.most), strict=True):
            count = len(of)
            fill = engine is not None and self.most > count > self.most // SHORT
            if fill:
                more = torch.arange(self.most, device=of.device) % count
                some, of = some[more], of[more]
            module = kind(self.pair, self.coordinates, len(of))
            run = engine if engine is not None and len(of) == self.most else _eagerly
            found = run(module, self.fields(of), self._values(some, of))
            parts.append([each[:count] for each in found])
        return [torch.cat(part) for part in zip(*parts, strict=True)]


SHORT = 4
"""A chunk that is this many times too short is not filled up."""


def _eagerly(module: nn.Module, batch: Named, values: Named) -> Sequence[Tensor]:
    return module(batch, values)


def coordinates_of_rows(pair: nn.Module, batch: Fields) -> Coordinates:
    """The coordinates of a batch's latents, which are those of each datum alone; raises as `coordinates_of` does, and
    where a support depends on the data."""
    coordinates = coordinates_of(pair, batch)
    place = torch.zeros(1, 1, coordinates.dim, dtype=coordinates.dtype, device=next(iter(batch.values())).device)
    try:
        values, log_stretch = coordinates.values(place)
        alone = all(each.shape[:2] == (1, 1) for each in (log_stretch, *values.values()))
    except RuntimeError:  # a bound [batch] does not fit a single datum
        alone = False
    if not alone:
        names = ", ".join(map(repr, coordinates.transforms))
        raise ContractError(f"the support of one of the sites {names} depends on the data, which no search can follow")
    return coordinates


def _known(density: Tensor) -> Tensor:
    return density.nan_to_num(-torch.inf, torch.inf, -torch.inf)


def rows_of(count: int, data: Int[Tensor, " data"]) -> Rows:
    """The rows of `count` places for each of some data, in the order of places [count, data, dim]."""
    return data.repeat(count)
