"""A data set in three splits, made of named arrays as files hold them."""

from collections.abc import Mapping

import numpy as np
import torch

from pyro_vae.data.dataset import Dataset
from pyro_vae.data.files.arrays import check_finite, fit_the_memory, to_tensor
from pyro_vae.data.partition import partition, tenth
from pyro_vae.data.split import Split
from pyro_vae.errors import DataError

SPLITS = ("train", "valid", "test")


def assemble(name: str, arrays: Mapping[str, np.ndarray], seed: int, levels: int | None = None) -> Dataset:
    """A data set from named arrays, with values as they are stored.

    Args:
        name: what reports call it.
        arrays: "x" and fields of the same length, divided 80/10/10 by the seed; or ready splits: "train",
            "valid" and "test" for x, or "x_train", "label_train", and so on; without "valid" a tenth of
            "train" is held out. A single array of any name is x. Grey images [n, height, width] of uint8
            become [n, 1, height, width], unless there is a "length": then they are sequences [n, time, ...], and
            zeros fill the splits up to one number of time slices.
        seed: divides what is not divided.
        levels: see `Dataset`.

    Raises:
        DataError: no x, shapes that do not fit, no rows, or values that are infinite or no real numbers. (NaN is a
            missing value.)
    """
    if not arrays:
        raise DataError("holds no arrays")
    if len(arrays) == 1:
        arrays = {"x": next(iter(arrays.values()))}
    grouped: dict[str, dict[str, np.ndarray]] = {}
    for key, array in arrays.items():
        field, split = _field_and_split(key)
        grouped.setdefault(split, {})[field] = array
    if set(grouped) == {""}:
        whole = _split(grouped[""])
        splits = _parts(whole, SPLITS, (tenth(whole.size), tenth(whole.size)), seed)
    else:
        splits = _ready_splits(grouped, seed)
    return Dataset(name, **splits, levels=levels)


def _field_and_split(key: str) -> tuple[str, str]:
    """("x", "train") for "x_train" and for "train"; ("x", "") for "x"."""
    field, _, split = key.rpartition("_")
    return (field or "x", split) if split in SPLITS else (key, "")


def _ready_splits(grouped: Mapping[str, Mapping[str, np.ndarray]], seed: int) -> dict[str, Split]:
    missing = {"train", "test"} - set(grouped)
    if missing or "" in grouped:
        listed = ", ".join(sorted(f"{field} ({split or 'all'})" for split in grouped for field in grouped[split]))
        raise DataError(f"holds {listed}; give x alone, or train and test (and valid) for each field")
    splits = {name: _split(fields, f"_{name}") for name, fields in _filled_up(grouped).items()}
    shapes = [{field: value.shape[1:] for field, value in split.fields.items()} for split in splits.values()]
    if any(other != shapes[0] for other in shapes):
        listed = "; ".join(f"{name}: {split}" for name, split in splits.items())
        raise DataError(f"splits differ in their fields or shapes ({listed})")
    if "valid" not in splits:
        splits |= _parts(splits["train"], ("train", "valid"), (tenth(splits["train"].size),), seed)
    return splits


def _filled_up(grouped: Mapping[str, Mapping[str, np.ndarray]]) -> Mapping[str, Mapping[str, np.ndarray]]:
    """The splits, those of sequences with zeros up to the longest array."""
    if not all("length" in fields and fields.get("x", np.empty(0)).ndim > 1 for fields in grouped.values()):
        return grouped
    longest = max(fields["x"].shape[1] for fields in grouped.values())
    found = {split: dict(fields) for split, fields in grouped.items()}
    for fields in found.values():
        steps = fields["x"].shape[1]
        for field, array in fields.items():
            if array.ndim > 1 and array.shape[1] == steps:
                fields[field] = np.pad(array, [(0, 0), (0, longest - steps), *[(0, 0)] * (array.ndim - 2)])
    return found


def _parts(whole: Split, names: tuple[str, ...], held_out: tuple[int, ...], seed: int) -> dict[str, Split]:
    parts = zip(names, partition(whole.size, held_out, seed), strict=True)
    return {name: Split(whole.fields, rows=rows, resident=whole.resident) for name, rows in parts}


def _split(arrays: Mapping[str, np.ndarray], suffix: str = "") -> Split:
    if "x" not in arrays:
        raise DataError(f"holds {', '.join(arrays)}; name the data x")
    fields = {name: to_tensor(array, name + suffix) for name, array in arrays.items()}
    x = fields["x"]
    if x.ndim < 2 or 0 in x.shape:
        raise DataError(f"x{suffix} has shape {list(x.shape)}; it must be [n, ...], a row a datum, and not be empty")
    if x.dtype == torch.uint8 and x.ndim == 3 and "length" not in fields:
        fields["x"] = x.unsqueeze(1)
    split = Split(fields, resident=fit_the_memory(arrays.values()))
    for name, field in fields.items():
        check_finite(field, name + suffix)
    return split
