"""Does a pair take sequences as the data have them? What lies beyond a sequence's length must count nowhere."""

from collections.abc import Mapping

import torch
from jaxtyping import Int
from torch import Tensor, nn

from pyro_vae.data import Split
from pyro_vae.data.sequences import LENGTH, along_time, are_sequences, cut, lengths_of, shortened
from pyro_vae.data.stream import Stream
from pyro_vae.errors import ContractError, DataError, ProgramError, UserError
from pyro_vae.pair.equality import same
from pyro_vae.pair.pair import evaluating, select_fields
from pyro_vae.pair.particles import Fields, run_guide, run_guide_at, run_model
from pyro_vae.pair.sites import Sites, values_of
from pyro_vae.pair.terms import reduce_sites

MASK = "mask"


def cut_fields(pair: nn.Module, batch: Fields) -> dict[str, Tensor]:
    """The fields that a pair takes; sequences, where it takes their `length`, are cut. Raises as `select_fields`."""
    return cut(select_fields(pair, batch))


def sequence_lengths(pair: nn.Module, split: Split) -> Int[Tensor, " n"] | None:
    """The length of every sequence, None where the pair takes none; raises as `lengths_of`."""
    with torch.random.fork_rng():
        example = select_fields(pair, split.head(1).take(slice(None)))
    return lengths_of(split) if are_sequences(example) else None


def check_sequences(pair: nn.Module, split: Split) -> None:
    """Compare what a pair makes of the two shortest sequences, and of these with something else beyond their lengths,
    or less.

    Raises:
        DataError: a length that the data do not have; names the row.
        ContractError: sequences of different lengths in a pair that takes neither `length` nor `mask`, or a pair that
            counts what lies beyond a length; names the site.
    """
    with torch.random.fork_rng():
        example = split.head(1).take(slice(None))
    if not are_sequences(example):
        return
    taken = select_fields(pair, example)
    lengths = _lengths(split, required=LENGTH in taken)
    if LENGTH not in taken and MASK not in taken and lengths is not None and lengths.unique().numel() > 1:
        raise ContractError(
            f"the sequences have {lengths.min()} to {lengths.max()} time slices, but {type(pair).__name__} takes "
            f"neither {LENGTH!r} nor {MASK!r}, so what fills them up would count; name {LENGTH!r} in model and guide, "
            "and mask what lies beyond with poutine.mask(mask=t < length)"
        )
    if are_sequences(taken):
        with torch.random.fork_rng():
            known = split.take(slice(None))[LENGTH] if isinstance(split, Stream) else lengths
            order = known.argsort()
            for other in (0, min(1, len(order) - 1)):  # the shortest beside itself, and beside the next
                check_beyond(pair, select_fields(pair, split.take(order[[0, other]])))


def _lengths(split: Split, required: bool) -> Int[Tensor, " n"] | None:
    """The lengths; None where nobody needs them and the field is of something else."""
    try:
        return lengths_of(split)
    except DataError:
        if required:
            raise
        return None


def check_beyond(pair: nn.Module, fields: Fields) -> None:
    """Raise `ContractError` where the terms of a sequence change with what lies beyond its length, or with how much."""
    others = [_replaced(fields), shortened(fields, int(fields[LENGTH].max()))]
    with evaluating(pair), torch.no_grad():
        values = values_of(run_guide(pair, fields, summing=True))
        try:
            expected = _total(pair, fields, values)
        except UserError:
            return  # a density that is known at its own draws only
        try:
            wrong = [other for other in others if not same(_total(pair, other, values), expected)]
        except ProgramError as problem:
            raise ContractError(
                f"{type(pair).__name__} does not run on sequences that are cut to their length ({problem}); take the "
                "number of time slices from x.shape[1]"
            ) from problem
        if wrong:
            raise ContractError(
                f"{_site_at_fault(pair, fields, wrong[0])} counts, or depends on, what lies beyond the length of a "
                "sequence; mask it with poutine.mask(mask=t < length), and let no net read x there"
            )


def _replaced(fields: Fields) -> dict[str, Tensor]:
    """Beyond each length, the time slice of the sequence that is farthest from what stands there."""
    length, found = fields[LENGTH].long(), dict(fields)
    rows = torch.arange(len(length), device=length.device)
    for name in along_time(fields):
        field = fields[name]
        if name == MASK:
            continue
        time = torch.arange(field.shape[1], device=field.device).expand(len(field), -1)
        apart = (field.double() - field[:, -1:].double()).abs().reshape(*time.shape, -1).sum(2)
        farthest = apart.masked_fill(time >= length[:, None], -1.0).argmax(1)
        beyond = (time >= length[:, None]).reshape(*time.shape, *[1] * (field.dim() - 2))
        found[name] = torch.where(beyond, field[rows, farthest].unsqueeze(1), field)
    return found


def _runs(pair: nn.Module, fields: Fields, values: Mapping[str, Tensor], summing: bool) -> tuple[Sites, Sites]:
    """The sites of guide and model at these values, as far as the fields have time slices for them."""
    shapes = {name: value.shape for name, value in values_of(run_guide(pair, fields, summing=summing)).items()}
    kept = {name: value[tuple(map(slice, shapes.get(name, value.shape)))] for name, value in values.items()}
    guide = run_guide_at(pair, fields, kept, summing=summing)
    return guide, run_model(pair, fields, kept, summing=summing)


def _total(pair: nn.Module, fields: Fields, values: Mapping[str, Tensor]) -> Tensor:
    """log p(x|z), log p(z) and log q(z|x) of each sequence."""
    guide, model = _runs(pair, fields, values, summing=True)
    size = len(fields[LENGTH])
    terms = reduce_sites(model, guide, 1, size, as_loss=True, allow_shared=True)
    return torch.stack(terms[:3])


def _site_at_fault(pair: nn.Module, fields: Fields, other: Fields) -> str:
    """The first site whose log-probability differs, in words."""
    drawn = values_of(run_guide(pair, fields))
    values = drawn | values_of(run_model(pair, fields, drawn))
    before, after = (_runs(pair, given, values, summing=False) for given in (fields, other))
    for program, sites, others in zip(("guide", "model"), before, after, strict=True):
        for name, site in sites.items():
            if not site.in_plate or site.summed:
                continue
            found, expected = others.get(name), site.log_prob()
            if not same(torch.zeros_like(expected) if found is None else found.log_prob(), expected):
                return f"site {name!r} of the {program}"
    return "a site"
