"""The guide's part of a proposal: its draws in unconstrained coordinates, and its density where it has one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pyro_vae.errors import UserError
from pyro_vae.evaluation.ais.bridge import Coordinates, check_guide_density, guide_density
from pyro_vae.evaluation.blocks import Block
from pyro_vae.evaluation.draws import draws_of
from pyro_vae.pair.particles import run_model
from pyro_vae.pair.sites import latent, values_of


@dataclass(frozen=True)
class GuideDensity:
    """log q(z|x) at unconstrained coordinates of the data of a block, or of some of them."""

    block: Block
    coordinates: Coordinates
    density: Callable[[Mapping[str, Tensor], int], Tensor]
    fields: Mapping[str, Tensor]

    def of(self, data: Int[Tensor, " data"]) -> "GuideDensity":
        """That of some data."""
        fields = {name: value[data] for name, value in self.fields.items()}
        density = guide_density(self.block.pair, fields)
        return GuideDensity(self.block, self.coordinates, density, fields)

    def __call__(self, places: Float[Tensor, "draws data dim"]) -> Float[Tensor, "draws data"]:
        values, log_stretch = self.coordinates.values(places.to(self.coordinates.dtype))
        found = self.density(values, len(places)) + log_stretch
        return found.double().nan_to_num(-torch.inf, torch.inf, -torch.inf)


def density_of_guide(block: Block, coordinates: Coordinates) -> tuple[GuideDensity | None, str]:
    """The guide's density; None, and why, where it has none away from its own draws."""
    fields = block.batch()
    try:
        check_guide_density(block.pair, fields)
        return GuideDensity(block, coordinates, guide_density(block.pair, fields), fields), ""
    except UserError as problem:
        return None, str(problem)


def guide_places(block: Block, coordinates: Coordinates, count: int, *purpose: int) -> Float[Tensor, "count data dim"]:
    """Draws of the guide."""
    with block.seeded(*purpose):
        return coordinates.places(draws_of(block, count).values)


def prior_places(block: Block, coordinates: Coordinates, count: int, *purpose: int) -> Float[Tensor, "count data dim"]:
    """Draws of the prior, by the model itself."""
    batch, parts = block.batch(), []
    with block.seeded(*purpose):
        for some in block.ways.counts(count):
            drawn = values_of(latent(run_model(block.pair, batch, {}, some)))
            parts.append(coordinates.places(drawn))
    return torch.cat(parts)


def narrow(places: Float[Tensor, "draws data dim"]) -> Bool[Tensor, " data"]:
    """Whether the draws of a datum are one point in some coordinate."""
    return (places == places[:1]).all(0).any(-1)
