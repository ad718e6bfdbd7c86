"""Load a data set by name, or from a file or folder, scaled and binarised."""

import inspect
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pyro_vae import plugins
from pyro_vae.data.binarize import BINARIZATIONS, SCALES
from pyro_vae.data.dataset import Dataset
from pyro_vae.data.files.read import READERS, from_file
from pyro_vae.errors import DataError, PluginError, find
from pyro_vae.files import at_home
from pyro_vae.kinds import checked


@checked
def load_data(
    name_or_file: str | Path, binarize: str = "none", seed: int = 0, scale: str = "unit", **options: Any
) -> Dataset:
    """A data set in three splits, each a mapping of tensors [n, ...]; leaves torch's global generator alone.

    Args:
        name_or_file: a registered name ("digits", "mnist", ...), a .npy or .npz file, or a folder of images.
        binarize: "none"; "static": each x drawn once; "dynamic": the training x drawn anew in every batch.
        seed: decides the splits that the data set leaves open, and what is drawn once.
        scale: "unit": grey levels in [0, 1]; "raw": as they are stored. Counts and floats are never scaled.
        options: the data set's own (`root`, `valid`, ...).

    Raises:
        DataError: data that are missing, unreadable or unfit, or options that the data set does not take.
        UnknownName: a name, binarisation or scale that is not known; lists those that are.
    """
    rescale = find("scale", scale, SCALES)
    redraw = find("binarization", binarize, BINARIZATIONS)
    data = redraw(rescale(stored(name_or_file, seed, options)), seed)
    if data.derive is None:
        return data
    splits = {name: split.then(data.derive) for name, split in data.splits.items()}
    undrawn = None if data.undrawn is None else data.undrawn.then(data.derive)
    return replace(data, **splits, undrawn=undrawn, derive=None)


def stored(name_or_file: str | Path, seed: int, options: dict[str, Any]) -> Dataset:
    """The data set with values as they are stored; raises as `load_data` does."""
    source = _source(name_or_file)
    signature = inspect.signature(source)
    try:
        signature.bind(seed=seed, **options)
    except TypeError as reason:
        known = ", ".join(name for name in signature.parameters if name != "seed") or "none"
        raise DataError(f"{name_or_file}: {reason}; its options: {known}") from reason
    data = source(seed=seed, **options)
    if not isinstance(data, Dataset) or "x" not in data.train:
        raise PluginError(f"dataset {str(name_or_file)!r} is broken: it returns no Dataset with a field x")
    return data


def _source(name_or_file: str | Path) -> Callable[..., Dataset]:
    """What loads it. A registered name goes before a folder of that name, which "./name" reaches."""
    name, path = str(name_or_file), at_home(name_or_file)
    is_path = isinstance(name_or_file, Path) or {"/", os.sep} & set(name) or path.suffix.lower() in READERS
    if is_path or (path.exists() and name not in plugins.names("dataset")):
        return partial(from_file, path)
    return plugins.load("dataset", name)
