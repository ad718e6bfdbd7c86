"""Bags of words as files hold them: a sparse matrix of counts, its vocabulary, and the split of each document."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pyro_vae.errors import DataError

VOCABULARY, SPLIT = "vocabulary", "split"
CSR = {"data", "indices", "indptr", "shape"}
PARTS = CSR | {"format", "row", "col", "coords", "offsets", "_is_array"}
"""The arrays that a sparse matrix is kept as, by the names that SciPy gives them."""

SPLITS = {"train": "train", "valid": "valid", "val": "valid", "validation": "valid", "test": "test"}
"""What the splits may be called."""

Arrays = dict[str, Any]


def csr_matrix(parts: Mapping[str, np.ndarray]) -> Any:
    """The matrix that these arrays make.

    Raises:
        DataError: they make none.
    """
    from scipy import sparse

    try:
        arrays = tuple(parts[name] for name in ("data", "indices", "indptr"))
        matrix = sparse.csr_matrix(arrays, shape=tuple(map(int, parts["shape"])))
        matrix.check_format()
    except (ValueError, TypeError) as reason:
        raise DataError(f"data, indices, indptr and shape make no CSR matrix ({reason})") from reason
    return matrix


def bags_of_words(arrays: Mapping[str, Any]) -> tuple[Arrays, tuple[str, ...] | None]:
    """The arrays of a file for `assemble`, and its vocabulary; as they are where there is none.

    Counts of 8 bits become wider, so that they are taken for no grey levels. Where `split` says "train", "valid" or
    "test" of each document the fields are divided. Other arrays of words name something, and are left out.

    Raises:
        DataError: a vocabulary that is no list of different words or is as long as no x, or a split of another name or
            length.
    """
    if VOCABULARY not in arrays:
        return dict(arrays), None
    words = arrays[VOCABULARY]
    if words.ndim != 1 or words.dtype.kind != "U" or len(set(words.tolist())) != len(words):
        raise DataError("the vocabulary must be a list of words [vocabulary], each once: numpy.array(words)")
    text = {name for name, array in arrays.items() if array.dtype.kind in "US"}
    fields = {name: array for name, array in arrays.items() if name not in text}
    for name, x in fields.items():
        if name.split("_")[0] == "x" and x.shape[1:] != words.shape:
            raise DataError(f"the vocabulary has {len(words)} words, but {name} has shape {list(x.shape)}")
        fields[name] = x.astype(np.int32) if x.dtype == np.uint8 and name.split("_")[0] == "x" else x
    divided = _divided(fields, arrays[SPLIT]) if SPLIT in arrays else fields
    return divided, tuple(words.tolist())


def _divided(fields: Arrays, split: np.ndarray) -> Arrays:
    unknown = sorted(set(split.tolist()) - SPLITS.keys())
    if unknown:
        raise DataError(f"split calls a document {unknown[0]!r}; say train, valid or test of each")
    lengths = {name: array.shape[0] for name, array in fields.items()}
    if any(length != len(split) for length in lengths.values()):
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise DataError(f"split says a word of {len(split)} documents, but the fields have other lengths ({listed})")
    called = np.array([SPLITS[name] for name in split.tolist()])
    parts = dict.fromkeys(called.tolist())
    return {f"{name}_{part}": array[np.flatnonzero(called == part)] for name, array in fields.items() for part in parts}
