"""Sequences as a program has them: a site for each time slice, NAME_0, NAME_1, ..., masked beyond the length."""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Int, Shaped
from pyro import poutine
from torch import Tensor
from torch.distributions import constraints

from pyro_vae.data.sequences import LENGTH, are_sequences
from pyro_vae.errors import ContractError
from pyro_vae.pair.sites import Site

NUMBERED = re.compile(r"(.+)_(\d+)")
NONE = -1
"""What stands beyond the length of a sequence among whole numbers, as NaN does among others."""


def slice_shape(data_shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of a time slice of sequences [time, ...]; raises `ContractError` where there is no time."""
    if not data_shape or min(data_shape) < 1:
        raise ContractError(f"a sequence has the shape [time, ...], but the data have {list(data_shape)} each")
    return tuple(data_shape[1:])


def until(length: Int[Tensor, " batch"] | None, t: int) -> AbstractContextManager:
    """Leaves out the sites of a time slice that is beyond the length of a sequence; None: all are as long as x."""
    return nullcontext() if length is None else poutine.mask(mask=t < length)


def numbered(names: Iterable[str]) -> dict[str, list[str]]:
    """The names NAME_t that are there for each t from 0 or 1 to some last one, in order, by NAME."""
    found: dict[str, dict[int, str]] = {}
    for name in names:
        if match := NUMBERED.fullmatch(name):
            found.setdefault(match[1], {})[int(match[2])] = name
    ordered = {name: sorted(of.items()) for name, of in found.items()}
    return {
        name: [each for _, each in of]
        for name, of in ordered.items()
        if len(of) > 1 and of[0][0] <= 1 and of[-1][0] - of[0][0] == len(of) - 1
    }


def over_time(values: Mapping[str, Tensor], fields: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Values of sites [n, ...] of some data, those of a site for each time slice of x together as NAME [n, time, ...];
    beyond the length of a sequence they are NaN, or -1 where they are whole numbers.

    Sites are counted from 0; also from 1 where the data have a `length`.
    """
    found = dict(values)
    steps = fields["x"].shape[1] if "x" in fields and fields["x"].dim() > 1 else 0
    for name, slices in numbered(values).items():
        parts = [values[each] for each in slices]
        counted = slices[0].endswith("_0") or LENGTH in fields
        if len(slices) == steps and counted and len({(part.shape, part.dtype) for part in parts}) == 1:
            found = {each: value for each, value in found.items() if each not in slices}
            found[name] = torch.stack(parts, 1)
    return {name: without_padding(value, fields) for name, value in found.items()}


def without_padding(values: Shaped[Tensor, "n ..."], fields: Mapping[str, Tensor]) -> Shaped[Tensor, "n ..."]:
    """Values [n, time, ...] of sequences, NaN or -1 beyond their lengths; any other values as they are."""
    if not are_sequences(fields) or values.shape[:2] != fields["x"].shape[:2]:
        return values
    time = torch.arange(values.shape[1], device=values.device)
    beyond = time >= fields[LENGTH].to(values.device)[:, None]
    nothing = torch.nan if values.is_floating_point() else NONE
    return values.masked_fill(beyond.reshape(*beyond.shape, *[1] * (values.dim() - 2)), nothing)


@dataclass(frozen=True)
class Slices:
    """Observed sites that are the time slices of one sequence, as far as a picture of them needs one site."""

    sites: tuple[Site, ...]

    @property
    def support(self) -> constraints.Constraint | None:
        return self.sites[0].support

    @property
    def seen(self) -> Shaped[Tensor, "particles batch time ..."]:
        """What they observe."""
        return torch.stack([site.seen for site in self.sites], 2)

    def mean(self) -> Shaped[Tensor, "particles batch time ..."]:
        """Their means."""
        return torch.stack([site.mean() for site in self.sites], 2)
