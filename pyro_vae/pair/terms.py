"""`log_terms`: log p(x|z), log p(z) and log q(z|x) of each datum at draws from the guide.

Every bound, objective and diagnostic is a reduction of what it returns, so the library has one log-likelihood. Nothing
here reads a tensor's value on the host, so a whole training step can be captured as one graph.
"""

import math
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_vae.errors import ContractError
from pyro_vae.pair.checks import check_auxiliary, check_density, check_per_datum, check_sites
from pyro_vae.pair.enumeration import Enumeration, enumerates
from pyro_vae.pair.kl import closed_forms, kl_of, kl_parts, summed
from pyro_vae.pair.pair import batch_size, select_fields
from pyro_vae.pair.particles import FOLDED, Fields, Values, run_guide, run_guide_at, run_model, run_program, ways
from pyro_vae.pair.sites import Site, Sites, latent, observed, point_masses, side_by_side, values_of

T = TypeVar("T", bound=tuple)


class LogTerms(NamedTuple):
    """Log-probabilities in nats, each [particles, batch], at z ~ q(z|x).

    What is enumerated is summed out. Where the model enumerates y, log p(z) is log sum_y p(y, z), and log p(x|z) is
    log sum_y p(x, y, z) - log p(z). Where the guide does, each term is its mean under q(y|x).

    The next three fields serve training: `score` sums log q over the sites that cannot be reparameterised (None where
    all can, and under `no_grad`), `shared` [particles] is log p - log q of latents outside the data plate and `extra`
    [particles, batch] what the guide observes or factors in, which enters no bound (None where there are none).
    `weight` is the importance weight's logarithm where the guide enumerates; elsewhere it is the sum of the terms.
    """

    log_likelihood: Float[Tensor, "particles batch"]
    log_prior: Float[Tensor, "particles batch"]
    log_guide: Float[Tensor, "particles batch"]
    score: Float[Tensor, "particles batch"] | None = None
    shared: Float[Tensor, " particles"] | None = None
    extra: Float[Tensor, "particles batch"] | None = None
    weight: Float[Tensor, "particles batch"] | None = None

    @property
    def log_weight(self) -> Float[Tensor, "particles batch"]:
        """log p(x, z) - log q(z|x); log sum_y p(x, y, z_y) / q(z_y) where the guide enumerates y."""
        return self.log_likelihood + self.log_prior - self.log_guide if self.weight is None else self.weight

    @property
    def kl(self) -> Float[Tensor, "particles batch"]:
        """log q(z|x) - log p(z), whose mean is KL(q(z|x) || p(z))."""
        return self.log_guide - self.log_prior


class ElboTerms(NamedTuple):
    """What an ELBO is made of, in nats, each [particles, batch]: `kl` is KL(q(z|x) || p(z)) in closed form wherever one
    is known, else log q - log p at the draws. `kl_parts` is what it is the sum of, by site: [particles, batch], or
    [particles, batch, *event] where it was asked for by dimension. The other fields are those of `LogTerms`."""

    log_likelihood: Float[Tensor, "particles batch"]
    kl: Float[Tensor, "particles batch"]
    score: Float[Tensor, "particles batch"] | None = None
    shared: Float[Tensor, " particles"] | None = None
    extra: Float[Tensor, "particles batch"] | None = None
    kl_parts: dict[str, Float[Tensor, "particles batch ..."]] | None = None


def log_terms(
    pair: nn.Module,
    batch: Fields,
    particles: int = 1,
    *,
    frozen_guide: bool = False,
    as_loss: bool = False,
    allow_shared: bool = False,
) -> LogTerms:
    """log p(x|z), log p(z) and log q(z|x) in nats, each [particles, batch], at z ~ q(z|x).

    Args:
        pair: a model and a guide on one module.
        batch: named tensors, the batch first.
        particles: draws of z for each datum.
        frozen_guide: evaluate log q with the guide's parameters held fixed, so that gradients reach them only
            through z (Roeder, Wu & Duvenaud 2017).
        as_loss: the terms are those of a training loss: what is no density (a scale, a factor, a point mass) counts as
            the pair has it.
        allow_shared: accept latents outside the data plate, which have no per-datum bound, and give their
            log p - log q as `shared` [particles].

    Raises:
        ContractError: the pair breaks the contract, or has no density of one datum; names the site.
        DataError: a field that the pair needs is missing.
    """
    size = batch_size(select_fields(pair, batch))
    parts = []
    for count in counts(pair, batch, particles):
        guide = run_guide(pair, batch, count, summing=True)
        if not as_loss and any(site.auxiliary for site in latent(guide).values()):
            check_auxiliary(pair, batch)
        if frozen_guide:
            guide = run_guide_at(pair, batch, values_of(guide), count, frozen=True, summing=True)
        model = run_model(pair, batch, values_of(guide), count, summing=True)
        parts.append(reduce_sites(model, guide, count, size, as_loss=as_loss, allow_shared=allow_shared))
    return joined(LogTerms, parts)


def elbo_terms(
    pair: nn.Module,
    batch: Fields,
    particles: int = 1,
    *,
    as_loss: bool = False,
    allow_shared: bool = False,
    by_dimension: bool = False,
) -> ElboTerms:
    """log p(x|z) at z ~ q(z|x), and KL(q(z|x) || p(z)); arguments and errors are those of `log_terms`.

    Args:
        by_dimension: give the KL of each dimension as `kl_parts`, not that of each site.
    """
    size = batch_size(select_fields(pair, batch))
    parts = []
    for count in counts(pair, batch, particles):
        guide, model = run_both(pair, batch, count, summing=True)
        how = {"as_loss": as_loss, "allow_shared": allow_shared, "by_dimension": by_dimension}
        parts.append(reduce_to_elbo(model, guide, count, size, **how))
    return joined(ElboTerms, parts)


def run_both(pair: nn.Module, batch: Fields, particles: int, summing: bool = False) -> tuple[Sites, Sites]:
    """The sites of guide and model at the same draws, held alike, so that their distributions can be compared.

    Args:
        summing: as for `run_guide`.
    """
    known = ways(pair, batch, particles)
    way = FOLDED if FOLDED in (known.guide, known.model) else known.guide
    guide = run_program(pair.guide, pair, batch, particles, way=way, like="guide", summing=summing)
    return guide, run_program(pair.model, pair, batch, particles, values_of(guide), way, summing=summing)


def counts(pair: nn.Module, batch: Fields, particles: int) -> list[int]:
    """How many particles each run has: all of them at once, or one after another."""
    return ways(pair, batch, particles).counts(particles)


def by_run(values: Values, runs: Sequence[int]) -> Iterator[tuple[dict[str, Tensor], int]]:
    """The values of each run, and how many particles it has."""
    first = 0
    for count in runs:
        yield {name: value[first : first + count] for name, value in values.items()}, count
        first += count


def joined(kind: Callable[..., T], parts: Sequence[T]) -> T:
    """Terms of several runs, one after another along the particles."""
    if len(parts) == 1:
        return parts[0]
    return kind(*map(_column, zip(*parts, strict=True)))


def _column(values: Sequence[Any]) -> Any:
    """The values of one term in several runs, one after another along the particles."""
    if values[0] is None:
        return None
    return side_by_side(values) if isinstance(values[0], dict) else torch.cat(values)


def model_terms(
    pair: nn.Module, batch: Fields, values: Values, particles: int
) -> tuple[Float[Tensor, "particles batch"], Float[Tensor, "particles batch"]]:
    """log p(x|z) and log p(z) where the latents have these values [particles, batch, *event]; at draws of the model's
    own where there are none."""
    size = batch_size(select_fields(pair, batch))
    parts = []
    for here, count in by_run(values, counts(pair, batch, particles)):
        sites = run_model(pair, batch, here, count, summing=True)
        if enumerates(sites):
            parts.append(Enumeration(sites, {}, count, size).model_terms(drawn=not values))
        else:
            sums = _Sums(count, size)
            sums.add_model(sites)
            parts.append((sums.total("log_likelihood"), sums.total("log_prior")))
    return joined(lambda *both: both, parts)


def guide_terms(pair: nn.Module, batch: Fields, values: Values, particles: int) -> Float[Tensor, "particles batch"]:
    """log q(z|x) at these values [particles, batch, *event]; -inf where a point mass is elsewhere.

    Raises:
        ContractError: the guide has no density there.
    """
    size = batch_size(select_fields(pair, batch))
    parts = []
    for here, count in by_run(values, counts(pair, batch, particles)):
        guide = run_guide_at(pair, batch, here, count, summing=True)
        parts.append(_none_beside_masses(reduce_guide(guide, count, size), guide, here))
    return torch.cat(parts)


def _none_beside_masses(
    log_guide: Float[Tensor, "particles batch"], guide: Sites, values: Values
) -> Float[Tensor, "particles batch"]:
    """-inf where a point mass that follows no auxiliary site is elsewhere than at its value."""
    if any(site.auxiliary for site in latent(guide).values()):
        return log_guide
    for name in values.keys() & set(point_masses(guide)):
        beside = (guide[name].value != values[name]).reshape(*log_guide.shape, -1).any(2)
        log_guide = log_guide.masked_fill(beside, -math.inf)
    return log_guide


def reduce_sites(
    model: Sites, guide: Sites, particles: int, size: int, *, as_loss: bool = False, allow_shared: bool = False
) -> LogTerms:
    """Sum the sites of a model and a guide that ran on the same draws into `LogTerms`."""
    sums = _checked_sums(model, guide, particles, size, as_loss, allow_shared)
    sums.add_shared(model, guide)
    if enumerates(model, guide):
        found = Enumeration(model, guide, particles, size)
        of_model, score = found.model_terms(), sums.totals.get("score")
        return LogTerms(*of_model, found.log_guide(), score, sums.shared, found.extra(), found.log_weight())
    sums.add_model(model)
    sums.add_guide(guide)
    return sums.terms(LogTerms, "log_likelihood", "log_prior", "log_guide")


def reduce_to_elbo(
    model: Sites,
    guide: Sites,
    particles: int,
    size: int,
    *,
    as_loss: bool = False,
    allow_shared: bool = False,
    by_dimension: bool = False,
) -> ElboTerms:
    """Sum the sites of a model and a guide that ran on the same draws into `ElboTerms`."""
    sums = _checked_sums(model, guide, particles, size, as_loss, allow_shared)
    sums.add_shared(model, guide, closed_forms(model, guide))
    if enumerates(model, guide):
        if by_dimension:
            raise ContractError("where sites are enumerated, free bits are counted by site: free_bits_per='site'")
        found = Enumeration(model, guide, particles, size)
        parts, score = found.kl_parts(closed_forms(model, guide)), sums.totals.get("score")
        kl = sum(parts.values(), found.zero)
        return ElboTerms(found.model_terms()[0], kl, score, sums.shared, found.extra(), parts)
    sums.add_model(observed(model))
    sums.add_guide(observed(guide))
    parts = kl_parts(model, guide, by_dimension)
    for part in parts.values():
        sums.add_term("kl", summed(part))
    return sums.terms(ElboTerms, "log_likelihood", "kl")._replace(kl_parts=parts)


def reduce_guide(guide: Mapping[str, Site], particles: int, size: int) -> Float[Tensor, "particles batch"]:
    """log q(z|x) of a guide's sites, all of them in the data plate; what it enumerates is summed out, and what it
    observes is no part of it."""
    if enumerates(guide):
        return Enumeration({}, guide, particles, size).log_marginal()
    sums = _Sums(particles, size)
    sums.add_guide(latent(guide))
    return sums.total("log_guide")


def _checked_sums(model: Sites, guide: Sites, particles: int, size: int, as_loss: bool, allow_shared: bool) -> "_Sums":
    """Sums that hold the score and no term yet; raises `ContractError` where the sites break the contract."""
    check_sites(model, guide)
    if allow_shared:
        summed = [{n: site for n, site in sites.items() if site.enumerated is not None} for sites in (model, guide)]
        check_per_datum(observed(model) | summed[0], summed[1])
    else:
        check_per_datum(model, guide)
    if not as_loss:
        check_density(model, guide)
    sums = _Sums(particles, size)
    if torch.is_grad_enabled():
        for site in latent(guide).values():
            drawn = site.enumerated is None and not getattr(site.fn, "has_rsample", False)
            if drawn and not site.depends_on_enumeration:
                sums.add_score(site)
    return sums


class _Sums:
    """Running sums of per-datum terms [particles, batch] by name, and of the terms outside the plate [particles]."""

    def __init__(self, particles: int, size: int):
        self.particles, self.size = particles, size
        self.totals: dict[str, Tensor] = {}
        self.shared: Tensor | None = None

    def add(self, name: str, site: Site) -> None:
        """What stands inside the plate."""
        if site.in_plate:
            site.check_shape()
            self.add_term(name, site.log_prob())

    def add_shared(self, model: Sites, guide: Sites, closed_form: Container[str] = ()) -> None:
        """What stands outside the plate: log p - log q at the draws, or the KL of the latents that have it in closed
        form."""
        for name, site in model.items():
            if not site.in_plate:
                closed = name in closed_form
                self._add_outside(-kl_of(guide[name], site, closed_form=True) if closed else site.log_prob())
        for name, site in guide.items():
            if not site.in_plate and name not in closed_form:
                self._add_outside(-site.log_prob())

    def _add_outside(self, term: Tensor) -> None:
        term = term.reshape(self.particles)
        self.shared = term if self.shared is None else self.shared + term

    def add_model(self, sites: Sites) -> None:
        for site in sites.values():
            self.add("log_likelihood" if site.observed else "log_prior", site)

    def add_guide(self, sites: Sites) -> None:
        for site in sites.values():
            self.add("extra" if site.observed else "log_guide", site)

    def add_score(self, site: Site) -> None:
        if not site.in_plate:
            raise ContractError(
                f"site {site.name!r} is outside the data plate and cannot be reparameterised; "
                "use objective='trace_graph_elbo'"
            )
        self.add_term("score", site.score())

    def total(self, name: str) -> Float[Tensor, "particles batch"]:
        like = next(iter(self.totals.values()), torch.zeros(()))
        return self.totals.get(name, like.new_zeros(self.particles, self.size))

    def terms(self, kind: Callable[..., T], *names: str) -> T:
        """The named totals, and what serves training."""
        return kind(*map(self.total, names), self.totals.get("score"), self.shared, self.totals.get("extra"))

    def add_term(self, name: str, term: Float[Tensor, "particles batch"]) -> None:
        self.totals[name] = self.totals[name] + term if name in self.totals else term
