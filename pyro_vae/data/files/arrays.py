"""NumPy arrays as tensors, and the check that none of their numbers is infinite."""

import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from pyro_vae.data.sparse import SparseRows, is_sparse, row_bytes
from pyro_vae.errors import DataError

CHUNK_BYTES = 2**26
"""How much of a tensor a check reads at a time, so that a memory map is never read whole."""

LARGEST_WHOLE = 2**63 - 1

_SIGNED = {"uint16": "int32", "uint32": "int64", "uint64": "int64"}


def to_tensor(array: Any, name: str) -> Shaped[Tensor, "..."] | SparseRows:
    """An array of numbers as a tensor; floats in torch's default dtype, but a memory map as it is, unread, and a sparse
    matrix as its rows.

    Raises:
        DataError: elements that are not real numbers, or that torch cannot map; says which array.
    """
    if array.dtype.kind not in "buif":
        raise DataError(f"{name} holds elements of type {array.dtype}; save it as an array of real numbers")
    if is_sparse(array):
        rows = array.tocsr()
        values = to_tensor(rows.data, name).numpy()
        return SparseRows(type(rows)((values, rows.indices, rows.indptr), shape=rows.shape))
    if isinstance(array, np.memmap):
        return _view(array, name)
    if array.dtype == np.uint64 and array.size and array.max() > LARGEST_WHOLE:
        place = np.unravel_index(array.argmax(), array.shape)
        listed = ", ".join(map(str, place))
        raise DataError(f"{name}[{listed}] is {array[place]}, more than 2^63 - 1; tensors hold no larger whole numbers")
    dtype = np.dtype(_SIGNED.get(array.dtype.name, array.dtype.name))
    if dtype.kind == "f":
        dtype = np.dtype(str(torch.get_default_dtype()).removeprefix("torch."))
    return torch.from_numpy(np.require(array, dtype, ["C", "W"]))


def fit_the_memory(arrays: Iterable[Any]) -> bool:
    """Whether arrays are in memory as they are: no memory map and no sparse matrix is."""
    return not any(isinstance(array, np.memmap) or is_sparse(array) for array in arrays)


def check_finite(field: Shaped[Tensor, "n ..."] | SparseRows, name: str, missing: bool = True) -> None:
    """Read a field in chunks.

    Args:
        missing: let NaN pass, which stands for a missing value; whoever takes the data says whether it may be there.

    Raises:
        DataError: a value is infinite, or NaN that may not pass; names the first by its index.
    """
    if not field.is_floating_point() or (isinstance(field, SparseRows) and field.is_finite()):
        return
    rows = max(1, CHUNK_BYTES // max(1, row_bytes(field)))
    for start in range(0, len(field), rows):
        values = field[start : start + rows].to_dense()
        wrong = values.isinf() if missing else ~values.isfinite()
        if wrong.any():
            first, *rest = wrong.nonzero()[0].tolist()
            value = values[(first, *rest)].item()
            raise DataError(f"{name}{[start + first, *rest]} is {value}; remove or replace what is not finite")


def _view(array: np.memmap, name: str) -> Shaped[Tensor, "..."]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        try:
            return torch.from_numpy(array)
        except (TypeError, ValueError) as reason:
            message = f"{name} of type {array.dtype} cannot be memory-mapped; save it in this machine's byte order"
            raise DataError(message) from reason
