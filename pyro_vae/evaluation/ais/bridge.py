"""The path from a pair's guide, or prior, to its posterior, in unconstrained coordinates."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import biject_to

from pyro_vae.errors import ContractError
from pyro_vae.pair.checks import check_density, check_per_datum, check_sites, check_supports, support_of
from pyro_vae.pair.pair import batch_size
from pyro_vae.pair.particles import OWN_DIM, Fields, run_guide, run_guide_at, run_model, ways
from pyro_vae.pair.sites import Sites, is_point_mass, latent, values_of
from pyro_vae.pair.structure import structure_of
from pyro_vae.pair.terms import guide_terms, model_terms

Places = Float[Tensor, "chains batch dim"]
PerChain = Float[Tensor, "chains batch"]
Values = dict[str, Tensor]

STARTS = ("guide", "prior", "laplace")


class State(NamedTuple):
    """Where the chains are, and the log densities of both ends of the bridge there, in nats."""

    place: Places
    start: PerChain
    end: PerChain

    def log_density(self, beta: float) -> PerChain:
        """start^(1-beta) end^beta."""
        return (1 - beta) * self.start + beta * self.end


class PairBridge:
    """log start and log p(x, z) of a batch, each with the log Jacobian of the coordinates, [chains, batch] in nats; so
    many data as `step` says are worked on at once."""

    def __init__(self, pair: nn.Module, batch: Fields, start: str, step: int):
        self.step = step
        self.chunks = [_Chunk(pair, fields, start) for fields in _split(batch, step, 0)]

    def places(self, values: Values) -> Places:
        """The coordinates of values [chains, batch, *event]."""
        parts = zip(self.chunks, _split(values, self.step, 1), strict=True)
        return torch.cat([chunk.coordinates.places(here) for chunk, here in parts], 1)

    def at(self, place: Places) -> State:
        """Both log densities."""
        ends = [chunk.ends(here) for chunk, here in zip(self.chunks, place.split(self.step, 1), strict=True)]
        start, end = (torch.cat(parts, 1) for parts in zip(*ends, strict=True))
        return State(place, start, end)

    def slope(self, place: Places, beta: float) -> Places:
        """The gradient of the log density at `beta`."""
        slopes = []
        for chunk, here in zip(self.chunks, place.split(self.step, 1), strict=True):
            with torch.enable_grad():
                here = here.detach().requires_grad_()
                density = State(here, *chunk.ends(here)).log_density(beta).sum()
            slopes += torch.autograd.grad(density, here)
        return torch.cat(slopes, 1)


def _split(tensors: Fields, step: int, dim: int) -> list[dict[str, Tensor]]:
    """Tensors by name in chunks of so many along a dim."""
    parts = zip(*[tensor.split(step, dim) for tensor in tensors.values()], strict=True)
    return [dict(zip(tensors, part, strict=True)) for part in parts]


class _Chunk:
    """The bridge of data that are worked on at once."""

    def __init__(self, pair: nn.Module, batch: Fields, start: str):
        self.pair, self.batch = pair, batch
        self.coordinates = coordinates_of(pair, batch)
        self.log_guide = None
        if start == "guide":
            check_guide_density(pair, batch)
            self.log_guide = guide_density(pair, batch)

    def ends(self, place: Places) -> tuple[PerChain, PerChain]:
        chains = len(place)
        values, log_stretch = self.coordinates.values(place)
        log_likelihood, log_prior = model_terms(self.pair, self.batch, values, chains)
        log_start = self.log_guide(values, chains) if self.log_guide else log_prior
        return log_start + log_stretch, log_likelihood + log_prior + log_stretch


def check_guide_density(pair: nn.Module, batch: Fields) -> None:
    """Raise `ContractError` where the guide has no density of the latents away from its own draws."""
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


def guide_density(pair: nn.Module, batch: Fields) -> Callable[[Values, int], PerChain]:
    """log q(z|x) of values and a number of chains; the encoder runs only once where the guide has one site."""
    sites = run_guide(pair, batch)
    structure = structure_of(pair, batch)
    if len(sites) != 1 or ways(pair, batch).guide != OWN_DIM or structure.depth > 1 or structure.enumerated["guide"]:
        return partial(guide_terms, pair, batch)
    ((name, site),) = sites.items()

    def of_one(values: Values, chains: int) -> PerChain:
        layout = structure.layout("guide", chains, batch_size(batch), folded=False)
        return layout.unfold(site.fn.log_prob(layout.fold(values[name])), 0)

    return of_one


def latent_sites(pair: nn.Module, batch: Fields) -> Sites:
    """The latent sites of the model at one draw of the guide; raises `ContractError` where they cannot be annealed."""
    guide = run_guide(pair, batch)
    model = run_model(pair, batch, values_of(guide))
    check_sites(model, guide)
    check_per_datum(model, {})
    check_density(model, guide, of=["model"])
    latents = {name: site for name, site in latent(model).items() if not site.summed}
    for name, site in latents.items():
        if support_of(site).is_discrete:
            raise ContractError(
                f"site {name!r} is discrete, and annealing moves continuous latents only; use importance"
            )
    return latents


class Coordinates:
    """Unconstrained coordinates of all latent sites, side by side in the last dimension.

    Attributes:
        dim: how many there are.
        dtype: their precision.
        are_values: whether they are the values themselves.
    """

    def __init__(self, latents: Sites):
        self.transforms = {name: biject_to(support_of(site)) for name, site in latents.items()}
        self.shapes = {name: self.transforms[name].inv(site.value).shape[2:] for name, site in latents.items()}
        self.dim = sum(shape.numel() for shape in self.shapes.values())
        self.dtype = next((site.value.dtype for site in latents.values()), torch.get_default_dtype())
        self.are_values = all(
            _same(self.transforms[name].inv(site.value), site.value) for name, site in latents.items()
        )

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


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def coordinates_of(pair: nn.Module, batch: Fields) -> Coordinates:
    """The coordinates of a batch's latents; raises `ContractError` where a support depends on another latent."""
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
