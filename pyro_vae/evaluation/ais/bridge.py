"""The path from a pair's guide, or prior, to its posterior, in unconstrained coordinates."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import biject_to

from pyro_vae.errors import ContractError
from pyro_vae.evaluation.ais.annealing import PerChain, Places, State
from pyro_vae.pair.checks import check_density, check_per_datum, check_sites, check_supports, support_of
from pyro_vae.pair.pair import batch_size
from pyro_vae.pair.particles import OWN_DIM, run_guide, run_guide_at, run_model, ways
from pyro_vae.pair.sites import Layout, Sites, is_point_mass, latent, values_of
from pyro_vae.pair.terms import guide_terms, model_terms

Batch = Mapping[str, Tensor]
Values = dict[str, Tensor]
Density = Callable[[Values, int, PerChain], PerChain]


class PairBridge:
    """log start and log p(x, z) of a batch, each with the log Jacobian of the coordinates, [chains, batch] in nats.

    Args:
        batch: the fields that the pair takes.
        start: a name in `STARTS`.
        step: data in a chunk, which are worked on at once.
    """

    def __init__(self, pair: nn.Module, batch: Batch, start: str, step: int):
        self.step = step
        self.chunks = [_Chunk(pair, fields, start) for fields in _split(batch, step, 0)]

    def places(self, values: Values) -> Places:
        """The coordinates of values [chains, batch, *event]."""
        parts = zip(self.chunks, _split(values, self.step, 1), strict=True)
        return torch.cat([chunk.coordinates.places(here) for chunk, here in parts], 1)

    def at(self, place: Places) -> State:
        ends = [chunk.ends(here) for chunk, here in zip(self.chunks, place.split(self.step, 1), strict=True)]
        start, end = (torch.cat(parts, 1) for parts in zip(*ends, strict=True))
        return State(place, start, end)

    def slope(self, place: Places, beta: float) -> Places:
        slopes = []
        for chunk, here in zip(self.chunks, place.split(self.step, 1), strict=True):
            with torch.enable_grad():
                here = here.detach().requires_grad_()
                density = State(here, *chunk.ends(here)).log_density(beta).sum()
            slopes += torch.autograd.grad(density, here)
        return torch.cat(slopes, 1)


def _split(tensors: Mapping[str, Tensor], step: int, dim: int) -> list[dict[str, Tensor]]:
    """Tensors by name in chunks of so many along a dim."""
    parts = zip(*[tensor.split(step, dim) for tensor in tensors.values()], strict=True)
    return [dict(zip(tensors, part, strict=True)) for part in parts]


class _Chunk:
    """The bridge of data that are worked on at once."""

    def __init__(self, pair: nn.Module, batch: Batch, start: str):
        self.pair, self.batch = pair, batch
        self.coordinates = coordinates_of(pair, batch)
        self.log_start = STARTS[start].density(pair, batch)

    def ends(self, place: Places) -> tuple[PerChain, PerChain]:
        chains = len(place)
        values, log_stretch = self.coordinates.values(place)
        log_likelihood, log_prior = model_terms(self.pair, self.batch, values, chains)
        log_start = self.log_start(values, chains, log_prior)
        return log_start + log_stretch, log_likelihood + log_prior + log_stretch


class Start(NamedTuple):
    """Where chains come from. `draw(pair, batch)` gives the sites of a fresh draw; `density(pair, batch)` gives the log
    density, as a function of values, the number of chains, and log p(z) of the values."""

    draw: Callable[[nn.Module, Batch], Sites]
    density: Callable[[nn.Module, Batch], Density]


def _guide_density(pair: nn.Module, batch: Batch) -> Density:
    """log q(z|x); the encoder runs only once where the guide has one site."""
    sites = run_guide(pair, batch)
    model = run_model(pair, batch, values_of(sites))
    for name, site in sites.items():
        if site.auxiliary or is_point_mass(site.fn):
            raise ContractError(
                f"the guide has no density of the latents because of its site {name!r}; use start=prior"
            )
    check_density(model, sites)
    check_supports(model, sites)
    run_guide_at(pair, batch, values_of(sites))

    def of_any(values: Values, chains: int, log_prior: PerChain) -> PerChain:
        return guide_terms(pair, batch, values, chains)

    def of_one(values: Values, chains: int, log_prior: PerChain) -> PerChain:
        ((name, site),) = sites.items()
        layout = Layout(chains, batch_size(batch))
        return layout.unfold(site.fn.log_prob(layout.fold(values[name])), 0)

    return of_one if len(sites) == 1 and ways(pair, batch).guide == OWN_DIM else of_any


def _prior_density(pair: nn.Module, batch: Batch) -> Density:
    return lambda values, chains, log_prior: log_prior


STARTS = {
    "guide": Start(run_guide, _guide_density),
    "prior": Start(lambda pair, batch: run_model(pair, batch, {}), _prior_density),
}


def draw_starts(pair: nn.Module, batch: Batch, start: str, count: int) -> Values:
    """Values [count, batch, *event] drawn from the start, one at a time: memory for one particle is enough."""
    draws = [STARTS[start].draw(pair, batch) for _ in range(count)]
    return {name: torch.cat([draw[name].value for draw in draws]) for name in latent_sites(pair, batch)}


def latent_sites(pair: nn.Module, batch: Batch) -> Sites:
    """The latent sites of the model at one draw of the guide.

    Raises:
        ContractError: the pair breaks the contract, its model has no density, or a latent is discrete; names it.
    """
    guide = run_guide(pair, batch)
    model = run_model(pair, batch, values_of(guide))
    check_sites(model, guide)
    check_per_datum(model, {})
    check_density(model, guide, of=["model"])
    latents = latent(model)
    for name, site in latents.items():
        if support_of(site).is_discrete:
            raise ContractError(
                f"site {name!r} is discrete, and annealing moves continuous latents only; use importance"
            )
    return latents


class Coordinates:
    """Unconstrained coordinates of all latent sites, side by side in the last dimension."""

    def __init__(self, latents: Sites):
        self.transforms = {name: biject_to(support_of(site)) for name, site in latents.items()}
        self.shapes = {name: self.transforms[name].inv(site.value).shape[2:] for name, site in latents.items()}

    def places(self, values: Values) -> Places:
        """The coordinates of values [chains, batch, *event]."""
        parts = [transform.inv(values[name]) for name, transform in self.transforms.items()]
        return torch.cat([part.reshape(*part.shape[:2], -1) for part in parts], -1)

    def values(self, places: Places) -> tuple[Values, PerChain]:
        """The values at coordinates, and log |d values / d coordinates|."""
        lead = places.shape[:2]
        parts = places.split([shape.numel() for shape in self.shapes.values()], -1)
        values, log_stretch = {}, places.new_zeros(lead)
        for (name, transform), part in zip(self.transforms.items(), parts, strict=True):
            part = part.reshape(*lead, *self.shapes[name])
            values[name] = transform(part)
            stretch = transform.log_abs_det_jacobian(part, values[name])
            log_stretch = log_stretch + stretch.reshape(*lead, -1).sum(-1)
        return values, log_stretch


def coordinates_of(pair: nn.Module, batch: Batch) -> Coordinates:
    """The coordinates of a batch's latents.

    Raises:
        ContractError: the support of a latent depends on another latent.
    """
    first, second = latent_sites(pair, batch), latent_sites(pair, batch)
    coordinates, others = Coordinates(first), Coordinates(second)
    places = coordinates.places(values_of(first))
    values, again = coordinates.values(places)[0], others.values(places)[0]
    for name, value in values.items():
        if not torch.allclose(value, again[name], equal_nan=True):
            raise ContractError(
                f"the support of site {name!r} depends on another latent, which annealing cannot follow; use importance"
            )
    return coordinates
