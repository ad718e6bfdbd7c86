"""Data sets from files: NumPy's .npy and .npz, and folders of images."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pyro_vae.data.dataset import Dataset
from pyro_vae.data.files.assemble import assemble
from pyro_vae.data.files.images import read_folder
from pyro_vae.data.files.tables import read_csv
from pyro_vae.data.files.words import CSR, PARTS, bags_of_words, csr_matrix
from pyro_vae.data.forms import named_arrays
from pyro_vae.errors import DataError
from pyro_vae.files import check_regular
from pyro_vae.parts.memory import check_fits

MEMORY_LIMIT = 2 * 2**30
"""A .npy file of more bytes than this is memory-mapped, not loaded."""


def from_file(path: Path, /, seed: int = 0) -> Dataset:
    """The data set in a file or folder, with values as they are stored, divided by the seed where it is not.

    Raises:
        DataError: a path that is missing, unreadable or unfit; says which and why.
    """
    arrays = read_file(path)
    try:
        fields, vocabulary = bags_of_words(arrays)
        return replace(assemble(path.name, fields, seed), vocabulary=vocabulary)
    except DataError as reason:
        raise DataError(f"{path}: {reason}") from reason


def read_file(path: Path) -> dict[str, np.ndarray]:
    """The arrays in a .npy file (as "x"), a .npz file or a folder of images, by name.

    Raises:
        DataError: a path that is missing or unreadable; says which and why.
    """
    try:
        if path.is_dir():
            return read_folder(path)
        if not path.exists():
            raise DataError("no such file or folder")
        if not path.is_file():
            raise DataError("is a pipe or a device; save the data to a file")
        if path.suffix.lower() not in READERS:
            raise DataError(f"is not a folder of images, and not {' or '.join(READERS)}; save the data with numpy.save")
        return READERS[path.suffix.lower()](path)
    except DataError as reason:
        raise DataError(f"{path}: {reason}") from reason


def read_array(path: Path) -> np.ndarray:
    """The array in a .npy file; raises `DataError` where it cannot be read."""
    try:
        check_regular(path)
        array = np.load(path, allow_pickle=False)
    except Exception as reason:
        raise DataError(f"cannot be read ({' '.join(str(reason).split())})") from reason
    if not isinstance(array, np.ndarray):
        raise DataError("is an archive, not an array")
    return array


def _read_npy(path: Path) -> dict[str, np.ndarray]:
    array = _load(path, mmap_mode="r" if path.stat().st_size > MEMORY_LIMIT else None)
    if not isinstance(array, np.ndarray):
        raise DataError("is an archive, not an array; rename it to .npz")
    return {"x": array}


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    archive = _load(path)
    if isinstance(archive, np.ndarray):
        raise DataError("is an array, not an archive; rename it to .npy")
    with archive:
        unpacked = sum(member.file_size for member in archive.zip.infolist())
        check_fits(DataError, unpacked, "unpacked it", "save its arrays as .npy, which are read where they lie")
        arrays = {name: _readable(archive.__getitem__, name) for name in archive.files}
    if not ({"format", "shape", "data"} <= arrays.keys() or CSR <= arrays.keys()):
        return arrays
    matrix = _read_sparse(path) if "format" in arrays else csr_matrix(arrays)
    return {**named_arrays(matrix), **{name: array for name, array in arrays.items() if name not in PARTS}}


def _read_sparse(path: Path) -> Any:
    """A matrix that `scipy.sparse.save_npz` wrote."""
    from scipy import sparse

    return _readable(lambda: _well_formed(sparse.load_npz(path)))


def _well_formed(matrix: Any) -> Any:
    """A sparse matrix as it is; SciPy raises ValueError where an index of it is out of bounds."""
    if hasattr(matrix, "check_format"):
        matrix.check_format(full_check=True)
    return matrix


def _read_h5ad(path: Path) -> dict[str, np.ndarray]:
    try:
        import anndata
    except ImportError as reason:
        raise DataError("needs anndata: pip install 'pyro-vae[anndata]'") from reason
    data = _readable(partial(anndata.read_h5ad, backed="r"), path)
    try:
        return named_arrays(data)
    finally:
        data.file.close()


READERS: dict[str, Callable[[Path], dict[str, np.ndarray]]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".csv": read_csv,
    ".h5ad": _read_h5ad,
}


def _load(path: Path, mmap_mode: str | None = None) -> Any:
    return _readable(lambda: np.load(path, mmap_mode=mmap_mode, allow_pickle=False))


def _readable(read: Callable[..., Any], *arguments: Any) -> Any:
    """What NumPy reads; whatever it raises instead is the file's fault."""
    try:
        return read(*arguments)
    except Exception as reason:
        cause = " ".join(str(reason).split())
        raise DataError(f"cannot be read ({cause}); save arrays of numbers with numpy.save or savez") from reason
