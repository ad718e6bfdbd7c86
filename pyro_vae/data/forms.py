"""Data as people hold them in memory, as named arrays: frames, sparse matrices, AnnData, torch's data sets."""

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from pyro_vae.data.files.tables import from_frame
from pyro_vae.data.sparse import DENSE_LIMIT, dense_where_it_fits, is_sparse
from pyro_vae.errors import DataError

COPIED_BYTES = 2**26
"""How much of a file is copied at a time."""

Arrays = dict[str, Tensor | np.ndarray]


def named_arrays(data: Any, names: Sequence[str] | None = None) -> Arrays:
    """The fields of data in memory, by name.

    Args:
        data: a tensor or array, which becomes the field `x`; a mapping of them; a pandas DataFrame (a column "label" is
            the label); a scipy sparse matrix of counts, which stays sparse where it would be too large; an AnnData (its
            X, the columns "label" and "library" of its obs, and as `context` the indicators of "batch"); a torch
            `Dataset` or `DataLoader`, whose items are tensors, mappings or tuples.
        names: what the members of an item that is a tuple are called: ("x", "label").

    Raises:
        DataError: something else, or items that cannot be put together; says what to give.
    """
    for is_form, read in FORMS:
        if is_form(data):
            return read(data, names)
    raise DataError(
        f"cannot take data of type {type(data).__name__}; give a tensor, an array, a mapping of them, a pandas "
        "DataFrame, a scipy sparse matrix, an AnnData, or a torch Dataset or DataLoader"
    )


def item_fields(item: Any, names: Sequence[str] | None) -> dict[str, Any]:
    """The fields of one item, or of one batch, of a torch `Dataset` or `DataLoader`, by name.

    Raises:
        DataError: a tuple without names for its members, or members that are no numbers.
    """
    if isinstance(item, Mapping):
        found = {str(name): value for name, value in item.items()}
    elif isinstance(item, list | tuple) and not all(isinstance(member, str | bytes) for member in item):
        if len(item) == 1 and names is None:
            names = ("x",)
        if names is None or len(names) != len(item):
            given = "none are given" if names is None else f"fields={tuple(names)!r}"
            raise DataError(
                f"an item of the data is a tuple of {len(item)}, but {given}; name its members: fields=('x', 'label')"
            )
        found = dict(zip(names, item, strict=True))
    else:
        found = {names[0] if names else "x": item}
    return {name: _as_tensor(name, value) for name, value in found.items()}


def _as_tensor(name: str, value: Any) -> Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as reason:
        raise DataError(
            f"{name} of an item of the data is {type(value).__name__}, not numbers; turn it into a tensor in the "
            "data set or its transform"
        ) from reason


def _from_mapping(data: Mapping[str, Any], names: Sequence[str] | None) -> Arrays:
    fields: Arrays = {}
    for name, value in data.items():
        try:
            fields[str(name)] = named_arrays(value)["x"]
        except DataError as reason:
            raise DataError(f"{name}: {reason}") from reason
    return fields


def _from_dataset(data: Dataset, names: Sequence[str] | None) -> Arrays:
    if isinstance(data, TensorDataset):
        return item_fields(data.tensors, names)
    if not hasattr(data, "__len__"):
        raise DataError(f"{type(data).__name__} does not say how long it is; give a DataLoader of it")
    return _together([item_fields(data[index], names) for index in range(len(data))], torch.stack)


def _from_loader(data: DataLoader, names: Sequence[str] | None) -> Arrays:
    return _together([item_fields(batch, names) for batch in data], torch.cat)


def _together(parts: list[dict[str, Tensor]], join: Callable[[list[Tensor]], Tensor]) -> Arrays:
    if not parts:
        raise DataError("there are no data: 0 rows")
    try:
        return {name: join([part[name] for part in parts]) for name in parts[0]}
    except (KeyError, RuntimeError) as reason:
        cause = " ".join(str(reason).split())
        raise DataError(f"the items of the data differ in their fields or shapes ({cause})") from reason


def _from_anndata(data: Any, names: Sequence[str] | None) -> Arrays:
    """Its X, and of `obs` the columns "label" and "library" where there are such, and the indicators of "batch"."""
    further = {}
    if "label" in data.obs:
        further["label"] = from_frame(data.obs[["label"]].assign(x=0))["label"]
    if "library" in data.obs:
        further["library"] = from_frame(data.obs[["library"]])["x"][:, 0]
    if "batch" in data.obs:
        further["context"] = _indicators(data.obs["batch"])
    return {"x": named_arrays(_in_memory(data.X) if data.isbacked else data.X)["x"], **further}


def _indicators(batch: Any) -> np.ndarray:
    """1 at the batch of each datum, the batches in alphabetical order [n, batches]."""
    names, places = np.unique(batch.to_numpy().astype(str), return_inverse=True)
    if batch.isna().any():
        raise DataError(
            f"row {int(batch.isna().to_numpy().argmax())}, column {batch.name!r} of obs is missing; fill it in"
        )
    return np.eye(len(names), dtype=np.float32)[places]


def _in_memory(stored: Any) -> Any:
    """The X of a backed AnnData: of a sparse one its rows, of a dense one that is too large a memory map."""
    if not isinstance(stored, sys.modules["h5py"].Dataset):
        return stored.to_memory()
    if stored.nbytes <= DENSE_LIMIT:
        return stored[:]
    with tempfile.TemporaryFile() as file:
        whole = np.memmap(file, stored.dtype, mode="w+", shape=stored.shape)
    rows = max(1, COPIED_BYTES * len(stored) // stored.nbytes)
    for start in range(0, len(stored), rows):
        whole[start : start + rows] = stored[start : start + rows]
    return whole


def _of(module: str, name: str) -> Callable[[Any], bool]:
    """Whether data are of a class of a package that whoever made them has imported already."""
    return lambda data: module in sys.modules and isinstance(data, getattr(sys.modules[module], name))


Read = Callable[[Any, Sequence[str] | None], Arrays]

FORMS: list[tuple[Callable[[Any], bool], Read]] = [
    (lambda data: isinstance(data, Tensor | np.ndarray), lambda data, names: {"x": data}),
    (_of("pandas", "DataFrame"), lambda data, names: from_frame(data)),
    (_of("pandas", "Series"), lambda data, names: {"x": from_frame(data.to_frame("x"))["x"][:, 0]}),
    (_of("anndata", "AnnData"), _from_anndata),
    (is_sparse, lambda data, names: {"x": dense_where_it_fits(data)}),
    (lambda data: isinstance(data, Mapping), _from_mapping),
    (lambda data: isinstance(data, DataLoader), _from_loader),
    (lambda data: isinstance(data, Dataset), _from_dataset),
]
"""How each form is known, and how it is read."""
