"""From values as they are stored to values as a pair is given them: scaled, then binarised."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from pyro_vae.data.dataset import Dataset
from pyro_vae.data.split import Batch, Split
from pyro_vae.errors import DataError


def unit(data: Dataset) -> Dataset:
    """Integer grey levels divided by the data set's `levels`; counts, bits and floats as they are."""
    return _scaled(data, _divisor(data))


def raw(data: Dataset) -> Dataset:
    """Values as they are stored, as floats."""
    return _scaled(data, 1)


def grey(data: Dataset, seed: int) -> Dataset:
    """No binarisation."""
    return data


def static(data: Dataset, seed: int) -> Dataset:
    """Each x of each split drawn once, as a Bernoulli variable with its value as probability, by the seed.

    Raises:
        DataError: a value outside [0, 1].
    """
    seen = _look(data)
    if seen.binary:
        return data
    return replace(data, **{name: _draw_once(split, name, seed, seen.gaps) for name, split in data.splits.items()})


def dynamic(data: Dataset, seed: int) -> Dataset:
    """The training x drawn anew in each batch, by torch's global generator on its device; the others once.

    The held-out data are those that `static` draws by the same seed, so that figures compare between epochs.

    Raises:
        DataError: a value outside [0, 1].
    """
    seen = _look(data)
    if seen.binary:
        return data
    held_out = {name: _draw_once(data.splits[name], name, seed, seen.gaps) for name in ("valid", "test")}
    draw = _draw_around_gaps if seen.gaps else _draw_anew
    return replace(data, train=data.train.then(draw), undrawn=data.train, **held_out)


SCALES: dict[str, Callable[[Dataset], Dataset]] = {"unit": unit, "raw": raw}
BINARIZATIONS: dict[str, Callable[[Dataset, int], Dataset]] = {"none": grey, "static": static, "dynamic": dynamic}


def _divisor(data: Dataset) -> float:
    stored = data.train.fields["x"].dtype
    if stored.is_floating_point or stored == torch.bool:
        return 1
    if data.levels is not None:
        return data.levels
    return 255 if stored == torch.uint8 and not _are_bits(data) else 1


def _are_bits(data: Dataset) -> bool:
    """Whether no stored integer exceeds 1, so that dividing by 255 would be wrong."""
    return all((batch["x"] <= 1).all() for split in data.splits.values() for _, batch in split.scan())


def _scaled(data: Dataset, divisor: float) -> Dataset:
    """The data set with one more step of presentation, taken now if it is the first and the rows are in memory."""
    splits = {}
    for name, split in data.splits.items():
        scaled = split.then(partial(_scale, divisor))
        settled = split.resident and split.transform is None
        splits[name] = Split(scaled.take(slice(None)), origin=split.origin) if settled else scaled
    return replace(data, **splits)


def _scale(divisor: float, batch: Batch) -> Batch:
    x = batch["x"].to(torch.get_default_dtype())
    return {**batch, "x": x if divisor == 1 else x / divisor}


class _Seen(NamedTuple):
    """Whether each presented x is 0 or 1, so that there is nothing to draw; and whether some are missing (NaN)."""

    binary: bool
    gaps: bool


def _look(data: Dataset) -> _Seen:
    """What x holds; raises `DataError` for a value outside [0, 1]."""
    binary, gaps = True, False
    for name, split in data.splits.items():
        for _, batch in split.scan():
            x = batch["x"]
            missing = x.isnan()
            if missing.any():
                gaps, x = True, x[~missing]
            if not x.numel():
                continue
            lowest, highest = x.aminmax()
            if lowest < 0 or highest > 1:
                raise DataError(
                    f"binarizing needs values in [0, 1], but {name} x holds {lowest:g} to {highest:g}; "
                    "use binarize='none' for counts, scale='unit' for grey levels, or scale the data beforehand"
                )
            binary = binary and bool(((x == 0) | (x == 1)).all())
    return _Seen(binary, gaps)


def _draw_anew(batch: Batch) -> Batch:
    """By comparison with uniform numbers: on a CPU in a quarter of the time that `torch.bernoulli` takes."""
    x = batch["x"]
    return {**batch, "x": torch.lt(torch.rand_like(x), x, out=torch.empty_like(x))}


def _draw_around_gaps(batch: Batch) -> Batch:
    """The same, where values are missing: they stay so."""
    x = batch["x"]
    return {**batch, "x": torch.where(x.isnan(), x, _draw_anew(batch)["x"])}


def _draw_once(split: Split, name: str, seed: int, gaps: bool) -> Split:
    """The split with each x drawn; those of a memory-mapped split are kept in an unnamed temporary file.

    Args:
        gaps: some x are missing, and stay so.
    """
    generator = torch.Generator().manual_seed((3 * seed + ("train", "valid", "test").index(name)) % 2**63)
    fields: dict[str, Tensor] = {}
    for positions, batch in split.scan():
        missing = batch["x"].isnan()
        drawn = torch.bernoulli(batch["x"].masked_fill(missing, 0), generator=generator)
        drawn = drawn.masked_fill_(missing, torch.nan) if split.resident or gaps else drawn.to(torch.uint8)
        for field, value in {**batch, "x": drawn}.items():
            if field not in fields:
                fields[field] = _room(split, value)
            fields[field][positions] = value
    return Split(fields, resident=split.resident, origin=split.origin)


def _room(split: Split, like: Shaped[Tensor, "chunk ..."]) -> Shaped[Tensor, "size ..."]:
    shape = (split.size, *like.shape[1:])
    if split.resident:
        return torch.empty(shape, dtype=like.dtype)
    dtype = np.dtype(str(like.dtype).removeprefix("torch."))
    with tempfile.TemporaryFile() as file:
        return torch.from_numpy(np.memmap(file, dtype, mode="w+", shape=shape))
