"""A data set in three splits, made of named arrays as files hold them."""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from pyro_vae.data.dataset import Dataset
from pyro_vae.data.files.arrays import check_finite, to_tensor
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
            become [n, 1, height, width].
        seed: divides what is not divided.
        levels: see `Dataset`.

    Raises:
        DataError: no x, shapes that do not fit, no rows, or values that are not finite real numbers.
    """
    if not arrays:
        raise DataError("holds no arrays")
    if len(arrays) == 1:
        arrays = {"x": next(iter(arrays.values()))}
    grouped: dict[str, dict[str, np.ndarray]] = {}
    for key, array in arrays.items():
        field, split = _field_and_split(key)
        grouped.setdefault(split, {})[field] = array
    divided = _divide_all if set(grouped) == {""} else _divide_ready
    return Dataset(name, **divided(grouped, seed), levels=levels)


def _field_and_split(key: str) -> tuple[str, str]:
    """("x", "train") for "x_train" and for "train"; ("x", "") for "x"."""
    field, _, split = key.rpartition("_")
    return (field or "x", split) if split in SPLITS else (key, "")


def _divide_all(grouped: Mapping[str, Mapping[str, np.ndarray]], seed: int) -> dict[str, Split]:
    whole = _split(grouped[""])
    return _parts(whole, SPLITS, (tenth(whole.size), tenth(whole.size)), seed)


def _divide_ready(grouped: Mapping[str, Mapping[str, np.ndarray]], seed: int) -> dict[str, Split]:
    missing = {"train", "test"} - set(grouped)
    if missing or "" in grouped:
        listed = ", ".join(sorted(f"{field} ({split or 'all'})" for split in grouped for field in grouped[split]))
        raise DataError(f"holds {listed}; give x alone, or train and test (and valid) for each field")
    splits = {name: _split(fields, f"_{name}") for name, fields in grouped.items()}
    kinds = {
        tuple((field, *value.shape[1:]) for field, value in sorted(split.fields.items())) for split in splits.values()
    }
    if len(kinds) > 1:
        listed = "; ".join(f"{name}: {split}" for name, split in splits.items())
        raise DataError(f"splits differ in their fields or shapes ({listed})")
    held_out = (
        {} if "valid" in splits else _parts(splits["train"], ("train", "valid"), (tenth(splits["train"].size),), seed)
    )
    return splits | held_out


def _parts(whole: Split, names: tuple[str, ...], held_out: tuple[int, ...], seed: int) -> dict[str, Split]:
    rows = partition(whole.size, held_out, seed)
    return {
        name: Split(whole.fields, rows=part, resident=whole.resident) for name, part in zip(names, rows, strict=True)
    }


def _split(arrays: Mapping[str, np.ndarray], suffix: str = "") -> Split:
    if "x" not in arrays:
        raise DataError(f"holds {', '.join(arrays)}; name the data x")
    fields = {name: to_tensor(array, name + suffix) for name, array in arrays.items()}
    fields["x"] = _data(fields["x"], "x" + suffix)
    split = Split(fields, resident=not any(isinstance(array, np.memmap) for array in arrays.values()))
    for name, field in fields.items():
        check_finite(field, name + suffix)
    return split


def _data(x: Shaped[Tensor, "..."], name: str) -> Shaped[Tensor, "n ..."]:
    if x.ndim < 2 or x.numel() == 0:
        raise DataError(f"{name} has shape {list(x.shape)}; it must be [n, ...], a row a datum, and not be empty")
    return x.unsqueeze(1) if x.dtype == torch.uint8 and x.ndim == 3 else x
