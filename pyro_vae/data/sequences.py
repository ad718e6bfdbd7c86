"""Sequences: x [n, time, ...], filled up to one length, beside the `length` [n] of each. A batch is cut to the next of
a few lengths, so that little is computed beyond the end, and a compiled graph serves each of them.
"""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Int
from torch import Tensor

from pyro_vae.data.split import Batch, Split
from pyro_vae.errors import DataError

LENGTH = "length"
CUTS = 4
"""To how many lengths batches are cut, at most."""
AT_ONCE = 4096


def are_sequences(fields: Mapping[str, Tensor]) -> bool:
    """Whether fields are x [n, time, ...] and `length`."""
    return LENGTH in fields and "x" in fields and fields["x"].dim() > 1


def along_time(fields: Mapping[str, Tensor]) -> list[str]:
    """The fields that run along time: their second dim is as long as that of x."""
    steps = fields["x"].shape[1]
    return [name for name, field in fields.items() if field.dim() > 1 and field.shape[1] == steps]


def cuts(steps: int) -> list[int]:
    """The lengths to which batches of data of so many time slices are cut."""
    return sorted({-(-steps * part // CUTS) for part in range(1, CUTS + 1)})


def cut_for(longest: int, steps: int) -> int:
    """The smallest of these lengths that holds a sequence of length `longest`."""
    return next((cut for cut in cuts(steps) if cut >= longest), steps)


def cut(fields: Mapping[str, Tensor]) -> Batch:
    """A batch whose fields along time end soon after its longest sequence; other data than sequences as they are.

    Reads the lengths, so it is for where batches are made, and once for each.
    """
    if not are_sequences(fields):
        return dict(fields)
    return shortened(fields, cut_for(int(fields[LENGTH].max()), fields["x"].shape[1]))


def shortened(fields: Mapping[str, Tensor], steps: int) -> Batch:
    """Fields whose first time slices alone are kept."""
    running = along_time(fields)
    return {name: field[:, :steps].contiguous() if name in running else field for name, field in fields.items()}


def lengths_of(split: Split) -> Int[Tensor, " n"]:
    """The length of every sequence of a split, in one pass over the data.

    Raises:
        DataError: a length that is no whole number from 1 to the number of time slices of x; names the row.
    """
    found, first = [], 0
    with torch.random.fork_rng():
        for batch in split.batches(AT_ONCE):
            found.append(_checked(batch[LENGTH].cpu(), batch["x"].shape[1], first))
            first += len(found[-1])
    return torch.cat(found)


def _checked(lengths: Tensor, steps: int, first: int) -> Int[Tensor, " batch"]:
    if lengths.dim() != 1:
        raise DataError(f"{LENGTH} has shape {list(lengths.shape)}; it must be [n], the time slices of each sequence")
    wrong = (lengths < 1) | (lengths > steps) | (lengths != lengths.long())
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise DataError(
            f"{LENGTH}[{first + row}] is {lengths[row].item():g}, but x has {steps} time slices: the length of a "
            f"sequence is a whole number from 1 to {steps}; leave out what is empty, and rename a field that is no "
            "length"
        )
    return lengths.long()


def shares(lengths: Int[Tensor, " n"], steps: int, batch_size: int) -> dict[int, float]:
    """Which share of batches, drawn without replacement, is to be expected at each length that they are cut to."""
    found, before, count = {}, 0.0, len(lengths)
    for kept in cuts(steps):
        within = int((lengths <= kept).sum())
        upto = math.comb(within, batch_size) / math.comb(count, batch_size)
        found[kept], before = upto - before, upto
    return found
