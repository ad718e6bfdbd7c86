"""Coordinates of latents that a mask leaves out, as those beyond the length of a sequence: they have no density."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pyro_vae.errors import ContractError
from pyro_vae.evaluation.ais.bridge import Coordinates, latent_sites
from pyro_vae.pair.particles import Fields
from pyro_vae.pair.sites import Site, layers


def masked_out(pair: nn.Module, batch: Fields, coordinates: Coordinates) -> Bool[Tensor, "batch dim"]:
    """Which coordinates of which datum are left out, by model and guide alike.

    Raises:
        ContractError: one of them is bounded, or a distribution holds a mask of its own.
    """
    parts = []
    for name, site in latent_sites(pair, batch).items():
        size, width = site.value.shape[1], coordinates.shapes[name].numel()
        out = _out(site)
        if out.any() and not coordinates.are_values:
            raise ContractError(f"a mask leaves elements of site {name!r} out, and the latents are bounded")
        spread = out.reshape(size, -1, 1).expand(-1, -1, max(1, width // max(1, out[0].numel())))
        parts.append(spread.reshape(size, width))
    return torch.cat(parts, 1)


def _out(site: Site) -> Bool[Tensor, "batch ..."]:
    """Which elements of a site a mask leaves out, [batch, *its own plates]."""
    if any(isinstance(getattr(fn, "_mask", None), Tensor) for fn in layers(site.fn)):
        raise ContractError(f"the distribution of site {site.name!r} holds a mask of its own")
    mask = site.mask if isinstance(site.mask, Tensor) else torch.tensor(True if site.mask is None else site.mask)
    kept = mask.to(site.density.device).expand(site.density.shape)
    return ~site.unfold(kept, 0)[0]


def log_density_of_masked(places: Float[Tensor, "... dim"], masked: Tensor) -> Float[Tensor, "..."]:
    """The standard normal density of what is left out, in nats: it is in all densities alike, so in no weight."""
    return -((0.5 * places.square() + 0.5 * math.log(2 * math.pi)) * masked).sum(-1)
