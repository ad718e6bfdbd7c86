"""NumPy arrays as tensors, and the check that their numbers are finite."""

import warnings

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from pyro_vae.errors import DataError

CHUNK_BYTES = 2**26
"""How much of a tensor a check reads at a time, so that a memory map is never read whole."""

_SIGNED = {"uint16": "int32", "uint32": "int64", "uint64": "int64"}


def to_tensor(array: np.ndarray, name: str) -> Shaped[Tensor, "..."]:
    """An array of numbers as a tensor; floats in torch's default dtype, but a memory map as it is, unread.

    Raises:
        DataError: elements that are not real numbers, or that torch cannot map; says which array.
    """
    if array.dtype.kind not in "buif":
        raise DataError(f"{name} holds elements of type {array.dtype}; save it as an array of real numbers")
    if isinstance(array, np.memmap):
        return _view(array, name)
    dtype = np.dtype(_SIGNED.get(array.dtype.name, array.dtype.name))
    if dtype.kind == "f":
        dtype = np.dtype(str(torch.get_default_dtype()).removeprefix("torch."))
    return torch.from_numpy(np.require(array, dtype, ["C", "W"]))


def check_finite(field: Shaped[Tensor, "n ..."], name: str) -> None:
    """Read a field in chunks.

    Raises:
        DataError: a value is NaN or infinite; names the first by its index.
    """
    if not field.is_floating_point():
        return
    rows = max(1, CHUNK_BYTES // max(1, field[0].nbytes))
    for start in range(0, len(field), rows):
        wrong = ~torch.isfinite(field[start : start + rows])
        if wrong.any():
            first, *rest = wrong.nonzero()[0].tolist()
            value = field[(start + first, *rest)].item()
            raise DataError(f"{name}{[start + first, *rest]} is {value}; remove or replace what is not finite")


def _view(array: np.memmap, name: str) -> Shaped[Tensor, "..."]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        try:
            return torch.from_numpy(array)
        except (TypeError, ValueError) as reason:
            message = f"{name} of type {array.dtype} cannot be memory-mapped; save it in this machine's byte order"
            raise DataError(message) from reason
