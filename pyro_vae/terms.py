"""`log_terms`: log p(x|z), log p(z) and log q(z|x) of each datum at draws from the guide.

This is the only place that runs a pair under Pyro's effect handlers for a number. Every bound, objective and diagnostic
is a reduction of what it returns, so the library has one log-likelihood. Nothing here reads a tensor's value on the
host, so a whole training step can be captured as one graph.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro
import torch
from jaxtyping import Float
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor, nn
from torch.distributions import Distribution, kl_divergence

from pyro_vae.errors import ContractError
from pyro_vae.pair import LocalParameters, select_fields

PARTICLES = "_particles"
ONE_PLATE = (
    "a pair has one plate, of the data at dim=-1, and what a datum has several of belongs in the event dims (.to_event)"
)


class LogTerms(NamedTuple):
    """Log-probabilities in nats, each [particles, batch], at z ~ q(z|x).

    The fields after the first three serve training: `score` sums log q over the sites that cannot be reparameterised
    (None where all can, and under `no_grad`), `shared` [particles] is log p - log q of latents outside the data plate
    (None where there are none).
    """

    log_likelihood: Float[Tensor, "particles batch"]
    log_prior: Float[Tensor, "particles batch"]
    log_guide: Float[Tensor, "particles batch"]
    score: Float[Tensor, "particles batch"] | None = None
    shared: Float[Tensor, " particles"] | None = None

    @property
    def log_weight(self) -> Float[Tensor, "particles batch"]:
        """log p(x, z) - log q(z|x)."""
        return self.log_likelihood + self.log_prior - self.log_guide

    @property
    def kl(self) -> Float[Tensor, "particles batch"]:
        """log q(z|x) - log p(z), whose mean is KL(q(z|x) || p(z))."""
        return self.log_guide - self.log_prior


class ElboTerms(NamedTuple):
    """What an ELBO is made of, in nats, each [particles, batch]: `kl` is KL(q(z|x) || p(z)) in closed form wherever one
    is known, else log q - log p at the draws. The other fields are those of `LogTerms`."""

    log_likelihood: Float[Tensor, "particles batch"]
    kl: Float[Tensor, "particles batch"]
    score: Float[Tensor, "particles batch"] | None = None
    shared: Float[Tensor, " particles"] | None = None


@dataclass(frozen=True)
class Site:
    """One sample statement as it ran: the distribution, expanded over the plates, and the value.

    `observed` holds for a site that the model observes, also where `poutine.uncondition` made it draw.
    """

    name: str
    fn: Any
    value: Tensor
    observed: bool
    in_plate: bool
    scale: Any
    mask: Any
    auxiliary: bool

    def log_prob(self) -> Tensor:
        return scale_and_mask(self.fn.log_prob(self.value), self.scale, self.mask)


class _Record(Messenger):
    """Records the sample sites of a program, giving the named ones the values they are told to have."""

    def __init__(self, values: Mapping[str, Tensor] | None = None):
        super().__init__()
        self.values = values or {}
        self.sites: dict[str, Site] = {}

    def _pyro_sample(self, msg: dict) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            msg["value"], msg["done"] = self.values[msg["name"]], True

    def _pyro_post_sample(self, msg: dict) -> None:
        if isinstance(msg["fn"], _Subsample):
            return
        _check_plates(msg)
        infer = msg["infer"] or {}
        self.sites[msg["name"]] = Site(
            name=msg["name"],
            fn=msg["fn"],
            value=msg["value"],
            observed=msg["is_observed"] or "was_observed" in infer,
            in_plate=any(frame.dim == -1 for frame in msg["cond_indep_stack"]),
            scale=msg["scale"],
            mask=msg["mask"],
            auxiliary=bool(infer.get("is_auxiliary")),
        )


def _check_plates(msg: dict) -> None:
    for frame in msg["cond_indep_stack"]:
        if frame.dim != -1 and frame.name != PARTICLES:
            raise ContractError(f"site {msg['name']!r} is inside plate {frame.name!r} at dim {frame.dim}; {ONE_PLATE}")


@contextmanager
def validation_off() -> Iterator[None]:
    """Pyro's and torch's checks of arguments off, and as they were afterwards."""
    torch_default = Distribution._validate_args
    try:
        with pyro.validation_enabled(False):
            yield
    finally:
        Distribution.set_default_validate_args(torch_default)


def run_guide(pair: nn.Module, batch: Mapping[str, Tensor], particles: int = 1) -> dict[str, Site]:
    """The sites of the guide at `particles` fresh draws; values are [particles, batch, *event], or [batch, *event]
    for one particle."""
    return run_program(lambda **fields: pair.guide(**fields), pair, batch, particles)


def run_model(
    pair: nn.Module, batch: Mapping[str, Tensor], values: Mapping[str, Tensor], particles: int = 1
) -> dict[str, Site]:
    """The sites of the model where its latents have the given values, as `run_guide` shapes them."""
    return run_program(pair.model, pair, batch, particles, values)


def rerun_guide_frozen(
    pair: nn.Module, batch: Mapping[str, Tensor], values: Mapping[str, Tensor], particles: int = 1
) -> dict[str, Site]:
    """The sites of the guide at given values with its parameters held fixed: the gradient of its log-probability
    reaches the parameters only through the values (what sticking-the-landing and DReG need)."""
    fixed = {f"pair.{name}": parameter.detach() for name, parameter in pair.named_parameters()}

    def program(**fields: Tensor) -> None:
        with LocalParameters(stand_ins=True):
            torch.func.functional_call(_GuideOnly(pair), fixed, args=(), kwargs=fields)

    return run_program(program, pair, batch, particles, values)


class _GuideOnly(nn.Module):
    def __init__(self, pair: nn.Module):
        super().__init__()
        self.pair = pair

    def forward(self, **fields: Tensor) -> Any:
        return self.pair.guide(**fields)


def run_program(
    program: Any,
    pair: nn.Module,
    batch: Mapping[str, Tensor],
    particles: int = 1,
    values: Mapping[str, Tensor] | None = None,
) -> dict[str, Site]:
    """The sites of any program that takes the pair's fields, its latents at the given values where they are named."""
    if particles < 1:
        raise ContractError(f"particles must be at least 1, not {particles}")
    fields = select_fields(pair, batch)
    plate = pyro.plate(PARTICLES, particles, dim=-2) if particles > 1 else nullcontext()
    try:
        with validation_off(), LocalParameters(), _Record(values) as record, plate:
            program(**fields)
    except ValueError as problem:
        if PARTICLES not in str(problem):
            raise
        raise ContractError(f"a plate of the pair is at dim=-2, where the particles are; {ONE_PLATE}") from problem
    return record.sites


def log_terms(
    pair: nn.Module,
    batch: Mapping[str, Tensor],
    particles: int = 1,
    *,
    frozen_guide: bool = False,
    allow_shared: bool = False,
) -> LogTerms:
    """log p(x|z), log p(z) and log q(z|x) in nats, each [particles, batch], at z ~ q(z|x).

    Args:
        pair: a model and a guide on one module.
        batch: named tensors, the batch first.
        particles: draws of z for each datum, vectorised in a plate at dim -2.
        frozen_guide: evaluate log q with the guide's parameters held fixed, so that gradients reach them only
            through z (Roeder, Wu & Duvenaud 2017).
        allow_shared: accept latents outside the data plate, which have no per-datum bound, and give their
            log p - log q as `shared` [particles].

    Raises:
        ContractError: the pair breaks the contract; names the site.
        DataError: a field that the pair needs is missing.
    """
    guide = run_guide(pair, batch, particles)
    values = {name: site.value for name, site in guide.items()}
    model = run_model(pair, batch, values, particles)
    if frozen_guide:
        guide = rerun_guide_frozen(pair, batch, values, particles)
    return reduce_sites(model, guide, particles, batch_size(pair, batch), allow_shared=allow_shared)


def elbo_terms(
    pair: nn.Module, batch: Mapping[str, Tensor], particles: int = 1, *, allow_shared: bool = False
) -> ElboTerms:
    """log p(x|z) at z ~ q(z|x), and KL(q(z|x) || p(z)); arguments and errors are those of `log_terms`."""
    guide = run_guide(pair, batch, particles)
    model = run_model(pair, batch, {name: site.value for name, site in guide.items()}, particles)
    return reduce_to_elbo(model, guide, particles, batch_size(pair, batch), allow_shared=allow_shared)


def batch_size(pair: nn.Module, batch: Mapping[str, Tensor]) -> int:
    """Number of data in a batch."""
    return next(iter(select_fields(pair, batch).values())).shape[0]


def reduce_sites(
    model: Mapping[str, Site], guide: Mapping[str, Site], particles: int, size: int, *, allow_shared: bool = False
) -> LogTerms:
    """Sum the sites of a model and a guide that ran on the same draws into `LogTerms`."""
    sums = _checked_sums(model, guide, particles, size, allow_shared)
    for site in model.values():
        sums.add("log_likelihood" if site.observed else "log_prior", site)
    for site in guide.values():
        sums.add("log_guide", site, shared_sign=-1.0)
    totals = [sums.total(name) for name in ("log_likelihood", "log_prior", "log_guide")]
    return LogTerms(*totals, score=sums.totals.get("score"), shared=sums.shared)


def reduce_to_elbo(
    model: Mapping[str, Site], guide: Mapping[str, Site], particles: int, size: int, *, allow_shared: bool = False
) -> ElboTerms:
    """Sum the sites of a model and a guide that ran on the same draws into `ElboTerms`."""
    sums = _checked_sums(model, guide, particles, size, allow_shared)
    closed_form = prior_before_guide(model, guide)
    for site in model.values():
        if site.observed:
            sums.add("log_likelihood", site)
        elif site.in_plate:
            sums.add_kl(guide[site.name], site, closed_form[site.name])
        else:
            sums.add("kl", site)
    for site in guide.values():
        if site.name not in model or not site.in_plate:
            sums.add("kl", site, shared_sign=-1.0)
    totals = [sums.total(name) for name in ("log_likelihood", "kl")]
    return ElboTerms(*totals, score=sums.totals.get("score"), shared=sums.shared)


def reduce_model(
    model: Mapping[str, Site], particles: int, size: int
) -> tuple[Float[Tensor, "particles batch"], Float[Tensor, "particles batch"]]:
    """log p(x|z) and log p(z) of a model's sites, all of them in the data plate."""
    sums = _Sums(particles, size)
    for site in model.values():
        sums.add("log_likelihood" if site.observed else "log_prior", site)
    return sums.total("log_likelihood"), sums.total("log_prior")


def reduce_guide(guide: Mapping[str, Site], particles: int, size: int) -> Float[Tensor, "particles batch"]:
    """log q(z|x) of a guide's sites, all of them in the data plate."""
    sums = _Sums(particles, size)
    for site in guide.values():
        sums.add("log_guide", site)
    return sums.total("log_guide")


def _checked_sums(
    model: Mapping[str, Site], guide: Mapping[str, Site], particles: int, size: int, allow_shared: bool
) -> "_Sums":
    """Nothing but the score, of sites that keep the contract."""
    check_sites(model, guide)
    if allow_shared:
        check_per_datum({name: site for name, site in model.items() if site.observed}, {})
    else:
        check_per_datum(model, guide)
    sums = _Sums(particles, size)
    if torch.is_grad_enabled():
        for site in guide.values():
            if not getattr(site.fn, "has_rsample", False):
                sums.add_score(site)
    return sums


class _Sums:
    """Running sums of per-datum terms [particles, batch] by name, and of the terms outside the plate [particles]."""

    def __init__(self, particles: int, size: int):
        self.particles, self.size = particles, size
        self.lead = (size,) if particles == 1 else (particles, size)
        self.totals: dict[str, Tensor] = {}
        self.shared: Tensor | None = None

    def add(self, name: str, site: Site, shared_sign: float = 1.0) -> None:
        if site.in_plate:
            self._check_value(site)
            self._add(name, self._per_datum(site, site.log_prob()))
        else:
            term = shared_sign * site.log_prob().reshape(self.particles, -1).sum(-1)
            self.shared = term if self.shared is None else self.shared + term

    def add_score(self, site: Site) -> None:
        if not site.in_plate:
            raise ContractError(
                f"site {site.name!r} is outside the data plate and cannot be reparameterised; "
                "use objective='trace_graph_elbo'"
            )
        self._add("score", self._per_datum(site, site.fn.log_prob(site.value)))

    def total(self, name: str) -> Float[Tensor, "particles batch"]:
        like = next(iter(self.totals.values()), torch.zeros(()))
        return self.totals.get(name, like.new_zeros(self.particles, self.size))

    def add_kl(self, guide: Site, model: Site, closed_form: bool) -> None:
        self._check_value(guide)
        if closed_form:
            try:
                kl = kl_divergence(guide.fn, model.fn)
            except NotImplementedError:
                pass
            else:
                return self._add("kl", self._per_datum(guide, scale_and_mask(kl, guide.scale, guide.mask)))
        self._add("kl", self._per_datum(guide, guide.log_prob()) - self._per_datum(model, model.log_prob()))

    def _add(self, name: str, term: Tensor) -> None:
        self.totals[name] = self.totals[name] + term if name in self.totals else term

    def _per_datum(self, site: Site, term: Tensor) -> Float[Tensor, "particles batch"]:
        if tuple(term.shape) != self.lead:
            raise self._misfit(site)
        return term if self.particles > 1 else term.unsqueeze(0)

    def _check_value(self, site: Site) -> None:
        """A value that misses a dim could broadcast against the particles unnoticed."""
        lead = tuple(site.value.shape[: site.value.dim() - len(site.fn.event_shape)])
        if lead not in ((self.size,), self.lead):
            raise self._misfit(site)

    def _misfit(self, site: Site) -> ContractError:
        return ContractError(
            f"site {site.name!r}: a value of shape {list(site.value.shape)} under a distribution of batch shape "
            f"{list(site.fn.batch_shape)} and event shape {list(site.fn.event_shape)} does not give one "
            f"log-probability for each of the {self.size} data; make the value [{self.size}, *event shape], and call "
            ".to_event() for the dims of one datum"
        )


def prior_before_guide(model: Mapping[str, Site], guide: Mapping[str, Site]) -> dict[str, bool]:
    """Whether each latent's prior is settled before the guide draws it: the guide has drawn all that precede it in the
    model. Only then is KL(q || p) of the two distributions the expectation of log q - log p over its draw; a guide
    that draws a hierarchy bottom up is the other case."""
    place = {name: i for i, name in enumerate(guide)}
    settled, latest = {}, -1
    for name in (site.name for site in model.values() if not site.observed):
        settled[name] = place[name] > latest
        latest = max(latest, place[name])
    return settled


def check_sites(model: Mapping[str, Site], guide: Mapping[str, Site]) -> None:
    """Raise `ContractError` where a latent site of the model lacks a guide, or the guide has a site of its own."""
    latent = {site.name for site in model.values() if not site.observed}
    for name in latent - guide.keys():
        raise ContractError(f"the model's latent site {name!r} is not in the guide; sample it there")
    for name in guide.keys() - latent:
        if not guide[name].auxiliary:
            where = "observes" if name in model else "lacks"
            raise ContractError(
                f"the guide samples {name!r}, which the model {where}; remove it from the guide, or mark it with "
                "infer={'is_auxiliary': True}"
            )


def check_supports(model: Mapping[str, Site], guide: Mapping[str, Site]) -> None:
    """Raise `ContractError` where guide and prior of a site do not reach each other's draws: then importance weights
    leave out part of the posterior, or are zero. Reads values, so it is for the start of an evaluation."""
    for name, proposal in guide.items():
        if name not in model:
            continue
        prior = model[name].fn
        for what, support, value in (
            ("guide cannot draw all that the prior", proposal.fn.support, prior.sample()),
            ("prior has no density where the guide", prior.support, proposal.value),
        ):
            if not support.check(value).all():
                raise ContractError(
                    f"site {name!r}: the {what} draws (supports {proposal.fn.support} and {prior.support}); "
                    "choose a guide distribution with the prior's support"
                )


def check_per_datum(model: Mapping[str, Site], guide: Mapping[str, Site]) -> None:
    """Raise `ContractError` where a site stands outside the data plate: it has no bound of one datum."""
    for site in [*model.values(), *guide.values()]:
        if not site.in_plate:
            raise ContractError(
                f"site {site.name!r} is outside the data plate, so no bound of a single datum exists; move it inside "
                "`with pyro.plate('data', n, dim=-1):`, or make it a torch.nn.Parameter"
            )
