"""Several draws for each datum: how a pair's programs are run so that every net gets the shape it was written for.

A net is written for [batch, ...]. Particles are therefore folded into the batch, unless the faster way, with the
particles in a dim of their own, was seen to give the same log-probabilities. What neither serves (latents outside the
data's plate, a plate of fixed size) runs its particles one after another.
"""

import weakref
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro
import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from pyro_vae.errors import ContractError, ProgramError, UserError, check_positive
from pyro_vae.pair.equality import same
from pyro_vae.pair.missing import with_gaps
from pyro_vae.pair.pair import (
    Programs,
    batch_size,
    drawing_apart,
    evaluating,
    first_rows,
    select_fields,
    validation_off,
)
from pyro_vae.pair.parameters import LocalParameters
from pyro_vae.pair.record import PARTICLES, Record
from pyro_vae.pair.sites import (
    Site,
    Sites,
    latent,
    point_masses,
    said,
    shortened,
    side_by_side,
    values_of,
)
from pyro_vae.pair.structure import Fields, structure_of

Values = Mapping[str, Shaped[Tensor, "particles batch ..."]]

OWN_DIM, FOLDED, LOOPED = "in a dim of their own", "folded into the batch", "one after another"
TRIED_DATA, TRIED_PARTICLES = 2, 3
OUTSIDE = "it has latents outside the data's plate"
MOVED = 0.1
"""How far weights are moved before two ways are compared: a net that starts at zero or one hides what it does."""


class Ways(NamedTuple):
    """How each program of a pair holds several particles, and why."""

    guide: str
    model: str
    reason: str

    @property
    def line(self) -> str:
        return f"particles: {self.model} ({self.reason})"

    def counts(self, particles: int) -> list[int]:
        """How many particles each run has, so that all runs together have `particles`."""
        return [1] * particles if self.model == LOOPED else [particles]


def run_program(
    program: Callable[..., Any],
    pair: nn.Module,
    batch: Fields,
    particles: int = 1,
    values: Values | None = None,
    way: str = OWN_DIM,
    *,
    like: str = "model",
    summing: bool = False,
    free: bool = False,
    settle: bool = False,
) -> Sites:
    """The sites of any program that takes the pair's fields, its latents at the given values where they are named;
    `free` and `settle` are those of `Record`.

    Args:
        like: whose plates the program has, those of the pair's "model" or of its "guide".
        summing: enumerate what the pair enumerates; else it is drawn, as any other site is.

    Raises:
        ContractError: the program breaks the contract of a pair, or raises an error of its own; names the site.
    """
    fields = select_fields(pair, batch)
    structure, program = structure_of(pair, fields), with_gaps(pair, like, program)
    layout = structure.layout(like, particles, batch_size(fields), way == FOLDED)
    given, plate = values or {}, getattr(structure, like)
    record = Record(layout, given, structure.dims, plate.name, structure.enumerated[like], free, settle)
    enumeration = structure.enumerating(like, given) if summing and structure.sums else nullcontext()
    own = nullcontext() if layout.own is None else pyro.plate(PARTICLES, particles, dim=layout.own)
    with said(like, lambda: record.last), validation_off(), LocalParameters(), record, enumeration, own:
        program(**{name: layout.repeat(field) for name, field in fields.items()})
    return {name: site for name, site in record.sites.items() if name not in structure.left_out}


def run_guide(pair: nn.Module, batch: Fields, particles: int = 1, summing: bool = False) -> Sites:
    """The sites of the guide at fresh draws. Several particles run at once where the pair's `ways` allow it.

    Args:
        summing: enumerate what the pair enumerates, in place of drawing it.
    """
    way = ways(pair, batch, particles).guide
    return run_program(pair.guide, pair, batch, particles, way=way, like="guide", summing=summing)


def run_model(pair: nn.Module, batch: Fields, values: Values, particles: int = 1, summing: bool = False) -> Sites:
    """The sites of the model where its latents have the given values, and draws of its own elsewhere; `summing` as for
    `run_guide`."""
    way = ways(pair, batch, particles).model
    return run_program(pair.model, pair, batch, particles, values, way, summing=summing)


def run_guide_at(
    pair: nn.Module, batch: Fields, values: Values, particles: int = 1, frozen: bool = False, summing: bool = False
) -> Sites:
    """The sites of the guide at given values; a point mass has the value that follows from the other sites.

    Args:
        frozen: hold its parameters fixed: the gradient of its log-probability reaches them only through the values
            (what sticking-the-landing and DReG need).
        summing: as for `run_guide`.

    Raises:
        ContractError: a site has a density at its own draws only, or is a point mass of a frozen guide.
    """
    way = ways(pair, batch, particles).guide
    tensors = {f"pair.{name}": parameter.detach() for name, parameter in pair.named_parameters()} if frozen else None
    guide, given = _program(pair, "guide", tensors), elsewhere(values)
    try:
        sites = run_program(
            guide, pair, batch, particles, given, way, like="guide", summing=summing, free=True, settle=True
        )
    except ProgramError as problem:
        if has_no_inverse(problem):
            raise ContractError(
                "the guide's density is known at its own draws only, because a flow of it has no inverse; "
                "use gradient='pathwise' in training, and evaluators or starts that do not need log q elsewhere "
                "(importance, ais with start=prior)"
            ) from problem
        raise
    if frozen:
        _refuse_points(sites)
    return sites


def _refuse_points(sites: Sites) -> None:
    """Raise `ContractError` where a point mass follows from parameters alone, which get no gradient where they are held
    fixed."""
    masses = point_masses(sites)
    if masses and not any(site.auxiliary for site in latent(sites).values()):
        raise ContractError(
            f"the guide's site {masses[0]!r} is a point mass, so with the guide held fixed its parameters would get no "
            "gradient; use gradient='pathwise'"
        )


def elsewhere(values: Values) -> dict[str, Tensor]:
    """The same values as new tensors: a flow knows its last draw by the very tensor, and must not know these."""
    return {name: value.view_as(value) for name, value in values.items()}


def has_no_inverse(problem: UserError) -> bool:
    """Whether a program failed because a flow of it cannot be inverted."""
    return isinstance(problem.__cause__, KeyError | NotImplementedError)


def _program(pair: nn.Module, name: str, tensors: Mapping[str, Tensor] | None) -> Callable[..., None]:
    """A program with these tensors in place of the pair's parameters. Run it with `settle`: the log-probabilities of a
    distribution that holds modules depend on them as well."""

    def program(**fields: Tensor) -> None:
        if tensors is None:
            getattr(pair, name)(**fields)
            return
        with LocalParameters(stand_ins=True):
            torch.func.functional_call(Programs(pair), dict(tensors), (name,), fields)

    program.__name__ = name
    return program


_SEEN: "weakref.WeakKeyDictionary[nn.Module, dict[tuple, Ways]]" = weakref.WeakKeyDictionary()
"""What was seen of a pair, by its modules and the shape of a datum; gone with the pair."""


def ways(pair: nn.Module, batch: Fields, particles: int = 2) -> Ways:
    """How the pair's programs hold several particles: compared once for a pair and a shape of its data.

    Raises:
        ContractError: fewer particles than one.
    """
    check_positive(ContractError, particles=particles)
    if particles == 1:
        return Ways(OWN_DIM, OWN_DIM, "one particle")
    key, seen = seen_as(pair, batch), _SEEN.setdefault(pair, {})
    if key not in seen:
        fields = select_fields(pair, batch)
        structure_of(pair, fields)  # seen on all data, before a few of them are tried
        with evaluating(pair), torch.no_grad(), drawing_apart(fields):
            seen[key] = _compare(pair, fields)
    return seen[key]


def seen_as(pair: nn.Module, batch: Fields) -> tuple:
    """The modules of a pair and the shape of its data: what was found of them once holds while they stay."""
    return tuple((name, field.shape[1:], field.dtype) for name, field in batch.items()), tuple(map(id, pair.modules()))


def _compare(pair: nn.Module, whole: Fields) -> Ways:
    """The ways of a pair on a few data under moved weights; where that fails, under its own, and then on all data."""
    few = first_rows(whole, TRIED_DATA)
    for trial in (_Trial(pair, few, _moved(pair)), _Trial(pair, few), _Trial(pair, whole, fixed=True)):
        try:
            return trial.ways()
        except UserError as problem:
            failed = problem
    raise failed


@dataclass(frozen=True)
class _Trial:
    """Compares the ways on some data.

    Attributes:
        tensors: what stands in place of the pair's parameters; None: nothing.
        fixed: the pair may have a plate of fixed size, which fits the whole batch only.
    """

    pair: nn.Module
    fields: Fields
    tensors: Mapping[str, Tensor] | None = None
    fixed: bool = False

    def ways(self) -> Ways:
        particles = TRIED_PARTICLES if TRIED_PARTICLES != batch_size(self.fields) else TRIED_PARTICLES - 1
        guides = [self._run("guide", 1) for _ in range(particles)]
        if _stands_outside(guides[0]):
            return Ways(LOOPED, LOOPED, OUTSIDE)
        drawn = [values_of(guide) for guide in guides]
        models = [self._run("model", 1, values) for values in drawn]
        if _stands_outside(latent(models[0])):
            return Ways(LOOPED, LOOPED, OUTSIDE)
        sites = [site for run in models + guides for site in run.values()]
        if self.tensors is not None and any(site.density.isnan().any() for site in sites):
            raise ProgramError("the log-probabilities are not numbers under moved weights")
        values = side_by_side(drawn)
        guide, why_guide = self._chosen("guide", values, guides)
        model, why_model = self._chosen("model", values, models)
        reason = "; ".join(filter(None, [why_guide, why_model])) or "its nets broadcast over them"
        return Ways(LOOPED, LOOPED, reason) if LOOPED in (guide, model) else Ways(guide, model, reason)

    def _chosen(self, name: str, values: Values, reference: list[Sites]) -> tuple[str, str]:
        """The way of one program, and why it is not the fastest."""
        why = ""
        for way in (OWN_DIM,) if self.fixed else (OWN_DIM, FOLDED):
            try:
                found = self._run(name, len(reference), values, way)
            except UserError as problem:
                if name == "guide" and has_no_inverse(problem):
                    return self._by_draws(len(reference))
                why = why or f"the {name} takes [batch, ...] only: {shortened(problem, 120)}"
                continue
            different = _difference(found, reference)
            if different is None:
                return way, why
            why = why or _differs(name, different)
        return LOOPED, "its plate has a fixed size" if self.fixed else why

    def _by_draws(self, particles: int) -> tuple[str, str]:
        """The way of a guide whose density is known at its own draws only, from draws at one seed."""
        own, folded = self._drawn(particles, OWN_DIM), self._drawn(particles, FOLDED)
        for name, site in folded.items():
            ours = own.get(name)
            if ours is None or not (same(ours.value, site.value) and same(of_datum(ours), of_datum(site))):
                return FOLDED, _differs("guide", name)
        return OWN_DIM, ""

    def _drawn(self, particles: int, way: str) -> Sites:
        torch.manual_seed(0)
        try:
            return self._run("guide", particles, None, way)
        except UserError:
            return {}

    def _run(self, name: str, particles: int, values: Values | None = None, way: str = OWN_DIM) -> Sites:
        program, guide = _program(self.pair, name, self.tensors), name == "guide"
        given = elsewhere(values) if guide and values is not None else values
        return run_program(
            program, self.pair, self.fields, particles, given, way, like=name, summing=True, free=guide, settle=True
        )


def _stands_outside(sites: Sites) -> bool:
    """Whether one stands outside the plate of the data."""
    return not all(site.in_plate for site in sites.values())


def _differs(program: str, site: str) -> str:
    return f"site {site!r} of the {program} differs with the particles in a dim of their own"


def _moved(pair: nn.Module) -> dict[str, Tensor]:
    """The pair's parameters and running statistics, each moved a little, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    moved = {}
    statistics = ("running_mean", "running_var")
    buffers = [(name, buffer) for name, buffer in pair.named_buffers() if name.split(".")[-1] in statistics]
    for name, tensor in (*pair.named_parameters(), *buffers):
        if tensor.is_floating_point():
            noise = torch.rand(2, *tensor.shape, generator=generator).to(tensor)
            moved[f"pair.{name}"] = tensor.detach() * (1 + MOVED * noise[0]) + MOVED * noise[1]
    return moved


def of_datum(site: Site) -> Tensor:
    """The log-probability of a site, with the dims of enumerations and of a datum's own plates."""
    return site.unfold(site.counting(), 0)


def _difference(found: Sites, reference: list[Sites]) -> str | None:
    """The first site whose log-probabilities are not those of the reference, particle by particle."""
    if list(found) != list(reference[0]):
        return next(iter(set(found) ^ set(reference[0])), "order")
    for name, site in found.items():
        if not site.in_plate:
            return name
        expected = torch.cat([of_datum(sites[name]) for sites in reference])
        if not same(of_datum(site), expected):
            return name
    return None
