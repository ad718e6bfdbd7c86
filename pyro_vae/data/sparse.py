"""Rows of a sparse matrix that would be too large as a dense one."""

import sys
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

DENSE_LIMIT = 2 * 2**30
"""A sparse matrix that would fill more bytes than this is kept sparse."""


class SparseRows:
    """A field of a split that is kept sparse: of its rows, those that are asked for become a dense tensor.

    It answers what a split asks of a stored tensor [n, width].

    Args:
        matrix: a SciPy matrix in CSR format, of the dtype that the tensors are to have.
    """

    device = torch.device("cpu")
    requires_grad = False

    def __init__(self, matrix: Any):
        self.matrix = matrix
        self.shape = torch.Size(matrix.shape)
        self.ndim = len(self.shape)
        self.dtype = torch.from_numpy(matrix.data[:0]).dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> "SparseRows":
        return SparseRows(self.matrix[rows])

    def is_floating_point(self) -> bool:
        return self.dtype.is_floating_point

    def index_select(self, dim: int, rows: Int[Tensor, " rows"]) -> Shaped[Tensor, "rows width"]:
        """These rows as a dense tensor."""
        return torch.from_numpy(self.matrix[rows.numpy()].toarray())

    def to_dense(self) -> Shaped[Tensor, "n width"]:
        """All rows as a dense tensor."""
        return torch.from_numpy(self.matrix.toarray())

    @property
    def row_bytes(self) -> int:
        """What a dense row fills."""
        return self.shape[1] * self.dtype.itemsize

    @property
    def bytes(self) -> int:
        """What the sparse rows fill."""
        return sum(part.nbytes for part in (self.matrix.data, self.matrix.indices, self.matrix.indptr))

    def is_finite(self) -> bool:
        """Whether every number is."""
        return bool(np.isfinite(self.matrix.data).all())


def is_sparse(data: Any) -> bool:
    """Whether data are a sparse matrix or array of SciPy's, which whoever made it has imported."""
    return "scipy.sparse" in sys.modules and sys.modules["scipy.sparse"].issparse(data)


def dense_where_it_fits(matrix: Any) -> Any:
    """A sparse matrix as a dense array, unless that would be too large."""
    fits = np.prod(matrix.shape, dtype=float) * torch.get_default_dtype().itemsize <= DENSE_LIMIT
    return matrix.toarray() if fits else matrix.tocsr()


def row_bytes(field: Shaped[Tensor, "n ..."] | SparseRows) -> int:
    """What a row of a field fills as a dense tensor."""
    return field.row_bytes if isinstance(field, SparseRows) else field[0].nbytes
