"""The guide's part of a proposal: its draws in unconstrained coordinates, and its density where it has one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pyro_vae.errors import UserError
from pyro_vae.evaluation.ais.bridge import Coordinates, check_guide_density, guide_density
from pyro_vae.evaluation.blocks import Block
from pyro_vae.evaluation.log_likelihood.masked import log_density_of_masked
from pyro_vae.evaluation.log_likelihood.normals import Places
from pyro_vae.pair.particles import Fields, run_guide, run_model
from pyro_vae.pair.sites import latent, side_by_side, values_of
from pyro_vae.pair.terms import counts


@dataclass(frozen=True)
class GuideDensity:
    """log q(z|x) at unconstrained coordinates of the data of a block, or of some of them."""

    block: Block
    coordinates: Coordinates
    density: Callable[[Mapping[str, Tensor], int], Tensor]
    fields: Mapping[str, Tensor]
    masked: Tensor | None = None

    def of(self, data: Int[Tensor, " data"]) -> "GuideDensity":
        """That of some data."""
        fields = {name: value[data] for name, value in self.fields.items()}
        density = guide_density(self.block.pair, fields)
        masked = None if self.masked is None else self.masked[data]
        return GuideDensity(self.block, self.coordinates, density, fields, masked)

    def __call__(self, places: Float[Tensor, "draws data dim"]) -> Float[Tensor, "draws data"]:
        values, log_stretch = self.coordinates.values(places.to(self.coordinates.dtype))
        found = self.density(values, len(places)) + log_stretch
        if self.masked is not None:
            found = found + log_density_of_masked(places, self.masked)
        return found.double().nan_to_num(-torch.inf, torch.inf, -torch.inf)


def density_of_guide(block: Block, coordinates: Coordinates, masked: Tensor | None) -> tuple[GuideDensity | None, str]:
    """The guide's density; None, and why, where it has none away from its own draws."""
    fields = block.batch()
    try:
        check_guide_density(block.pair, fields)
        return GuideDensity(block, coordinates, guide_density(block.pair, fields), fields, masked), ""
    except UserError as problem:
        return None, str(problem)


def guide_places(pair: nn.Module, fields: Fields, coordinates: Coordinates, count: int) -> Places:
    """Draws of the guide."""
    drawn = [values_of(latent(run_guide(pair, fields, some))) for some in counts(pair, fields, count)]
    return coordinates.places(side_by_side(drawn))


def prior_places(pair: nn.Module, fields: Fields, coordinates: Coordinates, count: int) -> Places:
    """Draws of the prior, by the model itself."""
    drawn = [values_of(latent(run_model(pair, fields, {}, some))) for some in counts(pair, fields, count)]
    return coordinates.places(side_by_side(drawn))


def narrow(places: Float[Tensor, "draws data dim"]) -> Bool[Tensor, " data"]:
    """Whether the draws of a datum are one point in some coordinate."""
    return (places == places[:1]).all(0).any(-1)
