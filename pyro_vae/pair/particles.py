"""Several draws for each datum: how a pair's programs are run so that every net gets the shape it was written for.

A net is written for [batch, ...]. Particles are therefore folded into the batch, unless the faster way, with the
particles in a dim of their own, was seen to give the same log-probabilities. What neither serves (latents outside the
data's plate, a plate of fixed size) runs its particles one after another.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import pyro
import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_vae.errors import ContractError, ProgramError, UserError
from pyro_vae.pair.pair import LocalParameters, evaluating, select_fields
from pyro_vae.pair.sites import ONE_PLATE, PARTICLES, Layout, Record, Sites, latent

Fields = Mapping[str, Tensor]
Values = Mapping[str, Shaped[Tensor, "particles batch ..."]]

OWN_DIM, FOLDED, LOOPED = "in a dim of their own", "folded into the batch", "one after another"
TRIED_DATA, TRIED_PARTICLES = 2, 3
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
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
        """The particles of each run that makes up so many."""
        return [1] * particles if self.model == LOOPED else [particles]


class Programs(nn.Module):
    """A pair's programs as one module, so that both can run with other tensors in place of its parameters."""

    def __init__(self, pair: nn.Module):
        super().__init__()
        self.pair = pair

    def forward(self, program: str, **fields: Tensor) -> Any:
        return getattr(self.pair, program)(**fields)


@contextmanager
def validation_off() -> Iterator[None]:
    """Pyro's and torch's checks of arguments off, and as they were afterwards."""
    torch_default = Distribution._validate_args
    try:
        with pyro.validation_enabled(False):
            yield
    finally:
        Distribution.set_default_validate_args(torch_default)


def batch_size(pair: nn.Module, batch: Fields) -> int:
    """Number of data in a batch."""
    return next(iter(select_fields(pair, batch).values())).shape[0]


def run_program(
    program: Callable[..., Any],
    pair: nn.Module,
    batch: Fields,
    particles: int = 1,
    values: Values | None = None,
    way: str = OWN_DIM,
    **recording: bool,
) -> Sites:
    """The sites of any program that takes the pair's fields, its latents at the given values where they are named.

    Raises:
        ContractError: the program breaks the contract of a pair, or raises an error of its own; names the site.
    """
    if particles < 1:
        raise ContractError(f"particles must be at least 1, not {particles}")
    fields = select_fields(pair, batch)
    layout = Layout(particles, next(iter(fields.values())).shape[0], way == FOLDED and particles > 1)
    given = {name: layout.fold(value) for name, value in (values or {}).items()}
    own_dim = particles > 1 and not layout.folded
    plate = pyro.plate(PARTICLES, particles, dim=-2) if own_dim else nullcontext()
    record = Record(layout, given, getattr(pair, "data_plate", None), **recording)
    with validation_off(), LocalParameters(), record, _explained(program, record), plate:
        program(**{name: layout.repeat(field) for name, field in fields.items()})
    return record.sites()


@contextmanager
def _explained(program: Callable[..., Any], record: Record) -> Iterator[None]:
    """What a program raises, with the site at which it did."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, IndexError, KeyError, TypeError, AssertionError) as problem:
        if PARTICLES in str(problem):
            raise ContractError(f"a plate of the pair is at dim=-2, where the particles are; {ONE_PLATE}") from problem
        name = getattr(program, "__name__", "program")
        detail = " ".join(str(problem).split())[:300]
        raise ProgramError(f"the {name} raised {type(problem).__name__} {record.last}: {detail}") from problem


def run_guide(pair: nn.Module, batch: Fields, particles: int = 1) -> Sites:
    """The sites of the guide at fresh draws. More than one particle at once where the pair's `ways` allow it."""
    return run_program(pair.guide, pair, batch, particles, way=ways(pair, batch, particles).guide)


def run_model(pair: nn.Module, batch: Fields, values: Values, particles: int = 1) -> Sites:
    """The sites of the model where its latents have the given values, and draws of its own elsewhere."""
    return run_program(pair.model, pair, batch, particles, values, ways(pair, batch, particles).model)


def run_guide_at(
    pair: nn.Module, batch: Fields, values: Values, particles: int = 1, frozen: bool = False, way: str | None = None
) -> Sites:
    """The sites of the guide at given values; point masses follow from the others.

    Args:
        frozen: hold its parameters fixed: the gradient of its log-probability reaches them only through the values
            (what sticking-the-landing and DReG need).

    Raises:
        ContractError: a site has a density at its own draws only.
    """
    way = way or ways(pair, batch, particles).guide
    tensors = {f"pair.{name}": parameter.detach() for name, parameter in pair.named_parameters()} if frozen else None
    try:
        return _run_with(tensors, "guide", pair, batch, particles, elsewhere(values), way, free=True)
    except ProgramError as problem:
        if has_no_inverse(problem):
            raise ContractError(
                "the guide's density is known at its own draws only, because a flow of it has no inverse; "
                "use gradient='pathwise' in training, and evaluators or starts that do not need log q elsewhere "
                "(importance, ais with start=prior)"
            ) from problem
        raise


def elsewhere(values: Values) -> dict[str, Tensor]:
    """The same values as tensors of their own, which no flow takes for its own last draw."""
    return {name: value.view_as(value) for name, value in values.items()}


def has_no_inverse(problem: UserError) -> bool:
    """Whether a program failed because a flow of it cannot be inverted."""
    return isinstance(problem.__cause__, KeyError | NotImplementedError)


def _run_with(
    tensors: Mapping[str, Tensor] | None,
    name: str,
    pair: nn.Module,
    batch: Fields,
    particles: int,
    values: Values | None,
    way: str,
    **recording: bool,
) -> Sites:
    """A program's sites with these tensors in place of the pair's parameters, log-probabilities included: those of a
    distribution that holds modules depend on them as well."""

    def program(**fields: Tensor) -> None:
        if tensors is None:
            getattr(pair, name)(**fields)
            return
        with LocalParameters(stand_ins=True):
            torch.func.functional_call(Programs(pair), dict(tensors), (name,), fields)

    program.__name__ = name
    return run_program(program, pair, batch, particles, values, way, settle=True, **recording)


# --- which way ----------------------------------------------------------------------------------------------

_SEEN: "weakref.WeakKeyDictionary[nn.Module, dict[tuple, Ways]]" = weakref.WeakKeyDictionary()
"""What was seen of a pair, by its modules and the shape of a datum; gone with the pair."""


def ways(pair: nn.Module, batch: Fields, particles: int = 2) -> Ways:
    """How the pair's programs hold several particles: compared once for a pair and a shape of its data."""
    if particles == 1:
        return Ways(OWN_DIM, OWN_DIM, "one particle")
    shape = tuple((name, field.shape[1:], field.dtype) for name, field in batch.items())
    key = (shape, tuple(map(id, pair.modules())))
    seen = _SEEN.setdefault(pair, {})
    if key not in seen:
        fields = select_fields(pair, batch)
        with evaluating(pair), torch.no_grad(), torch.random.fork_rng(devices=_devices(fields)):
            seen[key] = _Trial(pair, fields).ways()
    return seen[key]


def _devices(fields: Fields) -> list[int]:
    return sorted({field.device.index for field in fields.values() if field.device.type == "cuda"})


class _Trial:
    """Compares the ways on a few data of a batch.

    Args:
        fields: those that the pair takes.
    """

    def __init__(self, pair: nn.Module, fields: Fields):
        self.pair, self.whole = pair, dict(fields)
        self.size = next(iter(fields.values())).shape[0]

    def ways(self) -> Ways:
        rows = torch.arange(TRIED_DATA) % self.size
        few = {name: field[rows.to(field.device)] for name, field in self.whole.items()}
        for fields, tensors in ((few, _moved(self.pair)), (few, None), (self.whole, None)):
            try:
                return self._compared(fields, tensors, fixed=fields is self.whole)
            except UserError as problem:
                failed = problem
        raise failed

    def _compared(self, fields: Fields, tensors: Mapping[str, Tensor] | None, fixed: bool) -> Ways:
        size = next(iter(fields.values())).shape[0]
        particles = TRIED_PARTICLES if TRIED_PARTICLES != size else TRIED_PARTICLES - 1
        guides = [self._run(tensors, "guide", fields, 1) for _ in range(particles)]
        if self._stands_outside(guides[0], fixed):
            return Ways(LOOPED, LOOPED, OUTSIDE)
        values = {name: torch.cat([guide[name].value for guide in guides]) for name in guides[0]}
        models = [
            self._run(tensors, "model", fields, 1, {name: value[i : i + 1] for name, value in values.items()})
            for i in range(particles)
        ]
        if self._stands_outside(latent(models[0]), fixed):
            return Ways(LOOPED, LOOPED, OUTSIDE)
        if tensors is not None and (_has_nan(models) or _has_nan(guides)):
            raise ProgramError("the log-probabilities are not numbers under moved weights")
        chosen, reasons = {}, []
        for name, reference in (("guide", guides), ("model", models)):
            chosen[name], reason = self._chosen(tensors, name, fields, values, reference, fixed)
            reasons += [reason] if reason else []
        if LOOPED in chosen.values():
            return Ways(LOOPED, LOOPED, "; ".join(reasons))
        return Ways(chosen["guide"], chosen["model"], "; ".join(reasons) or "its nets broadcast over them")

    def _stands_outside(self, sites: Sites, fixed: bool) -> bool:
        """Whether one stands outside the plate of the data; a plate of fixed size is seen on the whole batch only."""
        outside = [site for site in sites.values() if not site.in_plate]
        if not fixed and any(site.plate is not None for site in outside):
            raise ProgramError("a plate does not follow the batch")
        return bool(outside)

    def _chosen(
        self,
        tensors: Mapping[str, Tensor] | None,
        name: str,
        fields: Fields,
        values: Values,
        reference: list[Sites],
        fixed: bool,
    ) -> tuple[str, str]:
        """The way of one program, and why it is not the fastest."""
        why = ""
        for way in (OWN_DIM,) if fixed else (OWN_DIM, FOLDED):
            try:
                found = self._run(tensors, name, fields, len(reference), values, way)
            except UserError as problem:
                if name == "guide" and has_no_inverse(problem):
                    return self._by_draws(tensors, fields, len(reference))
                why = why or f"the {name} takes [batch, ...] only: {_short(problem)}"
                continue
            different = _difference(found, reference)
            if different is None:
                return way, why
            why = why or f"site {different!r} of the {name} differs with the particles in a dim of their own"
        return LOOPED, "its plate has a fixed size" if fixed else why

    def _run(
        self,
        tensors: Mapping[str, Tensor] | None,
        name: str,
        fields: Fields,
        particles: int,
        values: Values | None = None,
        way: str = OWN_DIM,
    ) -> Sites:
        given = values if values is None or name == "model" else elsewhere(values)
        return _run_with(tensors, name, self.pair, fields, particles, given, way, free=name == "guide")

    def _by_draws(self, tensors: Mapping[str, Tensor] | None, fields: Fields, particles: int) -> tuple[str, str]:
        """The way of a guide whose density is known at its own draws only, from draws at one seed."""
        runs = []
        for way in (OWN_DIM, FOLDED):
            torch.manual_seed(0)
            try:
                runs.append(self._run(tensors, "guide", fields, particles, None, way))
            except UserError:
                runs.append({})
        own, folded = runs
        for name, site in folded.items():
            if (
                name not in own
                or not same(own[name].value, site.value)
                or not same(own[name].log_prob(), site.log_prob())
            ):
                return FOLDED, f"site {name!r} of the guide differs with the particles in a dim of their own"
        return OWN_DIM, ""


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


def _has_nan(runs: list[Sites]) -> bool:
    return any(site.density.isnan().any() for sites in runs for site in sites.values())


def _difference(found: Sites, reference: list[Sites]) -> str | None:
    """The first site whose log-probabilities are not those of the reference, particle by particle."""
    if list(found) != list(reference[0]):
        return next(iter(set(found) ^ set(reference[0])), "order")
    for name, site in found.items():
        expected = torch.cat([sites[name].log_prob() for sites in reference])
        if not site.in_plate or not same(site.log_prob(), expected):
            return name
    return None


def same(found: Tensor, expected: Tensor) -> bool:
    """Whether two sets of log-probabilities are equal up to rounding."""
    tolerance = TOLERANCE.get(expected.dtype, 1e-2)
    scale = expected.nan_to_num(posinf=0.0, neginf=0.0).abs().max().clamp(min=1.0).item()
    return found.shape == expected.shape and torch.allclose(
        found, expected, rtol=tolerance, atol=tolerance * scale, equal_nan=True
    )


def _short(problem: Exception) -> str:
    return " ".join(str(problem).split())[:120]
