"""What is seen of a pair before its numbers are taken: which plate is the data's, how deep plates are nested, and which
sites are enumerated. It is looked at once for a pair and a shape of its data.

Pyro's `EnumMessenger` gives each enumerated site a dim of its own, to the left of all plates, which `pyro.markov` lets
later sites use again, and each enumeration a number.
"""

import math
import warnings
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _ENUM_ALLOCATOR
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor, nn

from pyro_vae.errors import ContractError, ProgramError
from pyro_vae.pair.bounded import Bounded
from pyro_vae.pair.equality import same
from pyro_vae.pair.layout import Layout
from pyro_vae.pair.missing import with_gaps
from pyro_vae.pair.obs_mask import left_out
from pyro_vae.pair.pair import Pair, batch_size, drawing_apart, evaluating, first_rows, validation_off
from pyro_vae.pair.parameters import LocalParameters
from pyro_vae.pair.sites import OF_A_PROGRAM, elements, said, shortened, unwrapped
from pyro_vae.pair.trace import At, Trace

Fields = Mapping[str, Tensor]
PROGRAMS = ("guide", "model")

MOST_STATES = 2**22
"""How many joint states of enumerated sites a site may be asked for, for each datum."""

MOST_DIMS = 56
"""How many dims plates and enumerations may take; a tensor has 64, some of them for the event."""


class DataPlate(NamedTuple):
    """The plate of the data as a program has it; no name where there is none."""

    name: str | None = None
    dim: int = -1


class Reserved(NamedTuple):
    """What the enumerations of the guide leave to the model: the next free dim and number, and the dims that stay."""

    dim: int
    number: int
    throughout: dict[int, int]


@dataclass(frozen=True)
class Structure:
    """See the module.

    Attributes:
        guide, model: the data's plate in each program.
        depth: how many dims plates take.
        enumerated: the enumerated sites of each program; those of the guide are enumerated in the model as well.
        dims: for each site of the guide, the dims of enumerations that its value has, with their numbers.
        states: how many joint values the guide's enumerations have.
        left_out: latents of Pyro's `obs_mask` that the guide lacks and nothing depends on: they are left out.
        reserved: None where the guide enumerates nothing.
        outside: the latent sites that stand outside the plate of the data in one of the programs.
    """

    guide: DataPlate = DataPlate()
    model: DataPlate = DataPlate()
    depth: int = 1
    enumerated: Mapping[str, frozenset[str]] = field(default_factory=lambda: dict.fromkeys(PROGRAMS, frozenset()))
    dims: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    states: int = 1
    reserved: Reserved | None = None
    outside: frozenset[str] = frozenset()
    left_out: frozenset[str] = frozenset()

    def layout(self, program: str, particles: int, size: int, folded: bool) -> Layout:
        """How one of the two programs holds so many particles of so many data."""
        return Layout(particles, size, folded, getattr(self, program).dim, self.depth)

    @property
    def sums(self) -> bool:
        """Whether any site is enumerated."""
        return any(self.enumerated.values())

    def enumerating(self, program: str, given: Collection[str]) -> AbstractContextManager:
        """Enumerates what the program enumerates, except the sites whose values are given."""
        names = self.enumerated[program] - set(given)
        if not names:
            return nullcontext()
        if program == "guide":
            return Enumerate(-self.depth - 2, names)
        places = {name: self.dims[name] for name in self.enumerated["guide"]}
        return Enumerate(-self.depth - 2, names, places, self.reserved)


class Enumerate(EnumMessenger):
    """Enumerates the named sites and no others, whatever they are marked with.

    Args:
        first: the first dim that it may use.
        places: dims and numbers of sites that another program has enumerated before.
        reserved: what that program has used.
    """

    def __init__(
        self,
        first: int,
        names: Collection[str],
        places: Mapping[str, Mapping[int, int]] | None = None,
        reserved: Reserved | None = None,
    ):
        super().__init__(first)
        self.names, self.places, self.reserved = names, places or {}, reserved

    def __enter__(self) -> "Enumerate":
        super().__enter__()
        if self.reserved:
            _ENUM_ALLOCATOR.next_available_dim = self.reserved.dim
            _ENUM_ALLOCATOR.next_available_id = self.reserved.number
            _ENUM_ALLOCATOR.dim_to_id = dict(self.reserved.throughout)
        return self

    def _pyro_sample(self, msg: dict) -> None:
        if isinstance(msg["fn"], _Subsample):
            return
        chosen = msg["name"] in self.names and not msg["is_observed"]
        placed = self.places.get(msg["name"]) if chosen else None
        msg["infer"] = {key: value for key, value in msg["infer"].items() if key not in ("enumerate", "expand")}
        if chosen:
            check_enumerable(msg)
        if chosen and not placed:
            msg["infer"]["enumerate"] = "parallel"
        super()._pyro_sample(msg)
        if msg["infer"].get("_enumerate_dim", 0) < -MOST_DIMS:
            raise ContractError(
                f"site {msg['name']!r} needs more dims than the {MOST_DIMS} that a tensor has for enumeration; put "
                "what follows one another under pyro.markov"
            )
        if placed:
            self._place(msg, *next(iter(placed.items())))

    def _place(self, msg: dict, dim: int, number: int) -> None:
        """All values of a site, at the dim that another program has given it."""
        values = msg["fn"].enumerate_support(expand=False)
        msg["value"] = values.reshape(len(values), *[1] * (-1 - dim), *msg["fn"].event_shape)
        msg["infer"] |= {"_enumerate_dim": dim, "_dim_to_id": {dim: number}}
        msg["done"] = True


def check_enumerable(msg: dict) -> None:
    """Raise `ContractError` where a site has infinitely many values, or more than can be held."""
    fn, name = msg["fn"], msg["name"]
    if msg["infer"].get("num_samples") is not None:
        raise ContractError(
            f"site {name!r} asks for num_samples of Tensor Monte Carlo, which is not offered; leave num_samples out: "
            "the site is then enumerated, or drawn once for each particle"
        )
    if not getattr(elements(fn), "has_enumerate_support", False):
        raise ContractError(
            f"site {name!r} is marked to be enumerated, but a {type(unwrapped(fn)).__name__} has infinitely many "
            "values, or none that can be listed; leave infer={'enumerate': ...} out and draw it in the guide"
        )
    try:
        values = math.prod(fn.enumerate_support(expand=False).shape[:1])
    except NotImplementedError as problem:
        raise ContractError(
            f"site {name!r} is marked to be enumerated, but the values of its elements together cannot be listed "
            f"({problem}); make each element a site of its own, or draw it in the guide"
        ) from problem
    plates = {frame.dim for frame in msg["cond_indep_stack"] if frame.vectorized}
    lead = fn.batch_shape
    before = math.prod(size for place, size in enumerate(lead) if place - len(lead) not in plates)
    if values * before > MOST_STATES:
        raise ContractError(
            f"site {name!r} would be enumerated in {values * before:,} joint states for each datum, which is more than "
            f"{MOST_STATES:,}; put what follows one another under pyro.markov, or draw it in the guide"
        )


_SEEN: "weakref.WeakKeyDictionary[nn.Module, dict[tuple, Structure]]" = weakref.WeakKeyDictionary()


def structure_of(pair: nn.Module, fields: Fields) -> Structure:
    """What is seen of a pair; `fields` are those that it takes.

    Raises:
        ContractError: it cannot be told which plate is the data's, or which site is enumerated.
    """
    seen = _SEEN.get(pair)
    if seen is None:
        seen = _SEEN[pair] = {}
    key = (tuple((name, value.shape[1:]) for name, value in fields.items()), tuple(map(id, pair.children())))
    if key not in seen:
        if isinstance(pair, Pair):
            pair.prepare(fields)
        with _buffers_kept(pair):
            seen[key] = _look(pair, fields)
    return seen[key]


@contextmanager
def _buffers_kept(pair: nn.Module) -> Iterator[None]:
    """Put back what the pair writes into its buffers."""
    kept = [(buffer, buffer.detach().clone()) for buffer in pair.buffers()]
    yield
    with torch.no_grad():
        for buffer, value in kept:
            if not torch.equal(buffer, value):
                buffer.copy_(value)


FEW = (2, 3)
"""So many data show which plate is the data's: the one that is as long as they are, both times."""


def _look(pair: nn.Module, whole: Fields) -> Structure:
    """Run the programs on a few data; on all data where a plate does not follow the batch."""
    with drawing_apart(whole), torch.no_grad(), evaluating(pair):
        for batches in ([first_rows(whole, size) for size in FEW], [whole]):
            try:
                traces = [_traces(pair, batch) for batch in batches]
            except ProgramError as problem:
                failed = problem
                continue
            plates = [_plates(pair, program, batches) for program in zip(*traces, strict=True)]
            if plates[-1] or batches == [whole]:  # a guide may draw nothing but what all data share
                found = [_the_one(names, whole) for names in plates]
                return _structure(pair, batches[0], dict(zip(PROGRAMS, found, strict=True)), *traces[0])
    raise failed


def _traces(pair: nn.Module, fields: Fields) -> tuple[Trace, Trace]:
    """The guide as it runs on some data, and the model at its draws."""
    guide = _tried(pair, "guide", fields)
    return guide, _tried(pair, "model", fields, At(guide.values))


def _tried(pair: nn.Module, program: str, fields: Fields, handler: AbstractContextManager | None = None) -> Trace:
    """The trace of a program; raises `ProgramError` where it raises an error of its own, and says after which site."""
    seen = Trace()
    with said(program, lambda: seen.last):
        return _trace(with_gaps(pair, program, getattr(pair, program)), fields, handler, seen)


def _trace(
    program: Callable[..., Any],
    fields: Fields,
    handler: AbstractContextManager | None = None,
    seen: Trace | None = None,
) -> Trace:
    """The trace of a program; `seen` is what it is written into."""
    seen = Trace() if seen is None else seen
    with validation_off(), LocalParameters(), seen, handler or nullcontext():
        program(**fields)
    return seen


def _run_again(pair: nn.Module, fields: Fields, handler: Messenger) -> dict[str, dict]:
    """The sites of the model as it runs under a handler."""
    return _tried(pair, "model", fields, handler).sites


def _frames(trace: Trace) -> dict[str, Any]:
    """The plates of a trace that have a dim, by name."""
    stacks = [node["cond_indep_stack"] for node in trace.sites.values()]
    return {frame.name: frame for stack in stacks for frame in stack if frame.vectorized}


def _plates(pair: nn.Module, traces: Sequence[Trace], batches: Sequence[Fields]) -> list[DataPlate]:
    """The plates of one program that could be the data's; one without a name where the program has no site."""
    if not traces[0].sites:
        return [DataPlate()]
    frames = _frames(traces[0])
    named = getattr(pair, "data_plate", None)
    if named is not None:
        return [DataPlate(named, frames[named].dim)] if named in frames else [DataPlate()]
    for trace, batch in zip(traces, batches, strict=True):
        here = _frames(trace)
        frames = {n: f for n, f in frames.items() if n in here and here[n].size in (batch_size(batch), -1)}
    return [DataPlate(name, frame.dim) for name, frame in frames.items()]


def _the_one(plates: list[DataPlate], whole: Fields) -> DataPlate:
    """The data's plate; raises `ContractError` where several could be."""
    if len(plates) > 1:
        listed = " and ".join(repr(plate.name) for plate in plates)
        raise ContractError(
            f"the plates {listed} are both as long as the batch of {batch_size(whole)}, so either could be the data's; "
            f"say which: data_plate = {plates[0].name!r} as an attribute of the pair"
        )
    return plates[0] if plates else DataPlate()


def _structure(
    pair: nn.Module, fields: Fields, plates: Mapping[str, DataPlate], guide: Trace, model: Trace
) -> Structure:
    """What two traces show, and the enumerations of the guide."""
    frames = {**_frames(guide), **_frames(model)}
    depth = max([1, *(-frame.dim for frame in frames.values())])
    by_guide, by_model = _marked(guide), _marked(model)
    drawn = {name for name, node in guide.sites.items() if not node["is_observed"]}
    for name in sorted((by_model & drawn) - by_guide):
        raise ContractError(
            f"site {name!r} is enumerated by the model and drawn by the guide; leave it out of the guide, or mark it "
            "there with infer={'enumerate': 'parallel'} as well"
        )
    for name in sorted(by_guide & model.sites.keys()):
        ours, other = (_value_count(trace.sites[name]["fn"]) for trace in (model, guide))
        if None not in (ours, other) and ours != other:
            raise ContractError(f"site {name!r} has {ours} values in the model and {other} in the guide")
    enumerated = {"guide": by_guide, "model": by_guide | by_model}
    outside = _outside(plates["guide"], guide) | _outside(plates["model"], model)
    again = partial(_run_again, pair, fields)
    spare = left_out(model.sites, guide.sites, enumerated["model"], again)
    found = Structure(**plates, depth=depth, enumerated=enumerated, outside=outside - spare, left_out=spare)
    if not found.sums:
        return found
    trace = _summing(pair, "guide", fields, found, guide, {})
    if by_guide:
        found = _with_places(found, trace)
    values = {name: node["value"] for name, node in trace.sites.items() if name not in by_guide}
    _summing(pair, "model", fields, found, model, values)
    return found


def _outside(plate: DataPlate, trace: Trace) -> frozenset[str]:
    """The latent sites outside the plate of the data."""
    latents = {name: node for name, node in trace.sites.items() if not node["is_observed"]}
    stacks = {name: [f.name for f in node["cond_indep_stack"] if f.vectorized] for name, node in latents.items()}
    return frozenset(name for name, stack in stacks.items() if plate.name not in stack)


def _with_places(found: Structure, trace: Trace) -> Structure:
    """The same, with the enumerations of the guide as it ran."""
    dims = {name: _value_dims(node) for name, node in trace.sites.items()}
    used = [dim for places in dims.values() for dim in places]
    reserved = Reserved(min(used) - 1, _ENUM_ALLOCATOR.next_available_id, dict(_ENUM_ALLOCATOR.dim_to_id))
    return replace(found, dims=dims, reserved=reserved, states=max(map(_states, trace.sites.values())))


def _summing(
    pair: nn.Module, program: str, fields: Fields, found: Structure, plain: Trace, values: Mapping[str, Tensor]
) -> Trace:
    """A program with its sites enumerated, the others at these values.

    Raises:
        ContractError: it fails, or a log-probability is not the one that it has where each enumerated site is given its
            last value: then a net takes the dim of an enumeration for another.
    """
    run, names = with_gaps(pair, program, getattr(pair, program)), found.enumerated[program]
    try:
        with At(values), Bounded():
            trace = _trace(run, fields, found.enumerating(program, ()))
        last = {
            name: _last(node["value"], found.depth, plain.nodes[name]["value"].shape, node["fn"].event_dim)
            for name, node in trace.sites.items()
            if not node["is_observed"]
        }
        alone = _trace(run, fields, At(last)).sites
        differs = [name for name, node in trace.sites.items() if _differ(node, alone[name], found.depth)]
    except OF_A_PROGRAM as problem:
        raise ProgramError(
            f"the {program} raised {type(problem).__name__} with {min(names)!r} enumerated, whose values have dims of "
            f"their own to the left of the batch; count dims from the right (dim=-1): {shortened(problem, 300)}"
        ) from problem
    if differs:
        raise ContractError(
            f"site {differs[0]!r} of the {program} has another log-probability with {min(names)!r} enumerated than "
            "with its value given; nets must broadcast over dims to the left of the batch (dim=-1 in place of dim=1)"
        )
    return trace


def _differ(enumerated: dict, given: dict, depth: int) -> bool:
    """Whether a site has two log-probabilities; not where a flow without an inverse gives none of a value."""
    try:
        both = [node["fn"].log_prob(node["value"]) for node in (enumerated, given)]
    except (KeyError, NotImplementedError):
        return False
    return not same(_last(both[0], depth, both[1].shape), both[1])


def _last(tensor: Tensor, depth: int, shape: torch.Size, event_dims: int = 0) -> Tensor:
    """A tensor where all enumerations have their last value, in the shape that it has without them."""
    last = tensor[(-1,) * max(0, tensor.dim() - event_dims - depth)]
    return last[(0,) * max(0, last.dim() - len(shape))].expand(shape)


def _marked(trace: Trace) -> frozenset[str]:
    """The sites that a program asks to enumerate."""
    marked = {n: node["infer"].get("enumerate") for n, node in trace.sites.items() if not node["is_observed"]}
    for name, mark in marked.items():
        if mark == "sequential":
            warnings.warn(f"site {name!r} is enumerated in parallel, not sequentially", stacklevel=2)
    return frozenset(name for name, mark in marked.items() if mark)


def _value_count(fn: Any) -> int | None:
    """How many values a distribution has, or None where they cannot be listed."""
    try:
        return len(fn.enumerate_support(expand=False))
    except NotImplementedError:
        return None


def _value_dims(node: dict) -> dict[int, int]:
    """The dims of enumerations that a site's value has, with their numbers."""
    dims, own = node["infer"].get("_dim_to_id", {}), node["infer"].get("_enumerate_dim")
    if own is not None:
        return {own: dims[own]}
    lead = node["value"].shape[: node["value"].dim() - node["fn"].event_dim]
    return {dim: number for dim, number in dims.items() if -dim <= len(lead) and lead[dim] > 1}


def _states(node: dict) -> int:
    """How many joint values of enumerations a site has."""
    lead = node["value"].shape[: node["value"].dim() - node["fn"].event_dim]
    return math.prod(lead[dim] for dim in _value_dims(node) if -dim <= len(lead))
