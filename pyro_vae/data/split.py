"""One split of a data set: named tensors, and how a batch of them is presented to a pair."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from copy import copy
from functools import partial

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from pyro_vae.data.sparse import SparseRows, row_bytes
from pyro_vae.errors import DataError, check_positive

Batch = dict[str, Tensor]
Field = Shaped[Tensor, "n ..."] | SparseRows
Step = Callable[[Batch], Batch]

WHOLE = ("label", "length")
"""The fields that are whole numbers, however they are stored."""

PAGE_BYTES = 2**20
"""A memory-mapped split is shuffled in pages, which are neighbouring rows of about this size."""

CHUNK_BYTES = 2**28
"""How much of a memory-mapped split is in memory at a time. A chunk of pages is shuffled again, row by row."""


class Split(Mapping[str, Tensor]):
    """Named tensors with one first dimension, and how a batch of them is presented.

    As a mapping it holds the fields as they are stored; `take` and `batches` present them: uint8 fields and a bool `x`
    as floats (`label` and `length` as int64; other bool fields stay bool), then changed by `transform`. Sparse tensors
    become dense ones, and no gradient goes back to what was given.

    Args:
        fields: the stored tensors, each [n, ...]; or rows that are kept sparse, which become dense when they are read.
        transform: applied to every batch that is presented; it returns a mapping and writes to no tensor.
        rows: the stored rows [size] that this split consists of, in its order; None: all.
        resident: False where a field is a memory map too large for memory, or kept sparse: batches are then read from
            it as they are asked for, and only they go to another device.
        origin: the number [n] of each stored row in what the split was made of; None: its place.

    Raises:
        DataError: no field, a field that is a single number, no rows, or fields of differing lengths.
    """

    def __init__(
        self,
        fields: Mapping[str, Field],
        transform: Step | None = None,
        rows: Int[Tensor, " size"] | None = None,
        resident: bool = True,
        origin: Int[Tensor, " n"] | None = None,
    ):
        fields = {name: _plain(field) for name, field in fields.items()}
        length = _common_length(fields)
        if rows is not None and resident:
            fields = {name: field.index_select(0, rows.to(field.device)) for name, field in fields.items()}
        self.fields = dict(fields)
        self.transform = transform
        self.rows = None if resident else rows
        self.origin = origin if rows is None else rows if origin is None else origin[rows]
        self.resident = resident
        self.device = next(iter(self.fields.values())).device
        self.size = length if rows is None else len(rows)
        if self.size == 0:
            raise DataError("there are no data: 0 rows")

    def __getitem__(self, name: str) -> Shaped[Tensor, "size ..."]:
        """A field as it is stored; where the split is not resident this reads all of the field's rows."""
        field = self.fields[name]
        return field.to_dense() if self.rows is None else field.index_select(0, self.rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self.fields)

    def __len__(self) -> int:
        """The number of fields; the number of data is `size`."""
        return len(self.fields)

    def __contains__(self, name: object) -> bool:
        return name in self.fields

    def __repr__(self) -> str:
        fields = ", ".join(f"{name} {list(field.shape[1:])}" for name, field in self.fields.items())
        return f"Split({self.size} data: {fields})"

    @property
    def placed(self) -> int:
        """How many of the data, from the first, can be taken by their place."""
        return self.size

    def to(self, device: torch.device | str) -> "Split":
        """The same split presented on a device: resident fields move whole, memory maps batch by batch."""
        moved = copy(self)
        if self.resident:
            moved.fields = {name: field.to(device) for name, field in self.fields.items()}
        moved.device = torch.device(device)
        return moved

    def then(self, step: Step) -> "Split":
        """The same split with one more step of presentation, after those that it has."""
        longer = copy(self)
        longer.transform = step if self.transform is None else partial(_in_turn, self.transform, step)
        return longer

    def head(self, limit: int | None) -> "Split":
        """The first `limit` data; all of them where there are fewer, or where it is None."""
        if limit is None or limit >= self.size:
            return self
        if limit < 1:
            raise DataError(f"a limit of {limit} leaves no data; give 1 or more")
        return self.between(0, limit)

    def between(self, start: int, stop: int) -> "Split":
        """The data from `start` up to `stop`, in their order."""
        shorter = copy(self)
        shorter.size = min(stop, self.size) - start
        if self.rows is None:
            shorter.fields = {name: field[start:stop] for name, field in self.fields.items()}
        else:
            shorter.rows = self.rows[start:stop]
        shorter.origin = None if self.origin is None else self.origin[start:stop]
        return shorter

    def allowing(self, names: Collection[str]) -> "Split":
        """The same data; those that are checked as they are read may lack values of these fields."""
        return self

    def take(self, positions: Int[Tensor, " batch"] | slice) -> Batch:
        """The data at these positions as a pair is given them: fields [batch, ...] on the split's device."""
        batch = {name: _presentable(name, field) for name, field in self._read(positions).items()}
        return batch if self.transform is None else self.transform(batch)

    def num_batches(self, batch_size: int) -> int:
        """The number of batches in one pass; the last may be smaller."""
        check_positive(DataError, batch_size=batch_size)
        return -(-self.size // batch_size)

    def cost(self, batch_size: int) -> str | None:
        """What it costs that the data are not in memory as they are presented; None where they are."""
        if self.resident:
            return None
        if not self._sparse:
            return (
                f"the data stay in their file: {CHUNK_BYTES >> 20} MiB of neighbouring rows are read at a time and "
                "shuffled, so batches wait for the disk and are less mixed than in memory"
            )
        began = time.perf_counter()
        self._read(torch.arange(min(batch_size, self.size)) * self.size // min(batch_size, self.size))
        took = 1000 * (time.perf_counter() - began)
        (name, field), *_ = self._sparse.items()
        sizes = f"{field.bytes / 2**20:,.1f} MiB instead of {len(field) * field.row_bytes / 2**20:,.1f} MiB"
        return f"{name} stays sparse ({sizes}): each batch is made dense when it is needed, in {took:.1f} ms here"

    def batches(self, batch_size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """One pass over the data, each datum once; the last batch may be smaller.

        Args:
            batch_size: data in a batch.
            generator: where given, the order is drawn with it, on its device: one permutation of a resident
                split. A memory-mapped one is read page by page in a drawn order; a chunk of pages is in memory
                at a time and is shuffled row by row. None: the split's own order.
        """
        count = self.num_batches(batch_size)
        if generator is None:
            yield from (self.take(slice(i * batch_size, (i + 1) * batch_size)) for i in range(count))
        elif not self._in_pages:
            order = _permutation(self.size, generator).to(self.device)
            yield from (self.take(positions) for positions in order.split(batch_size))
        else:
            for chunk in self._chunks(batch_size, generator):
                yield from chunk.batches(batch_size, generator)

    def scan(self) -> Iterator[tuple[Int[Tensor, " chunk"] | slice, Batch]]:
        """Each datum once: positions and batch, in chunks of bounded size, in the fastest order to read."""
        chunk = self._rows_in(CHUNK_BYTES // 8)
        order = self.rows.argsort() if self._in_pages and self.rows is not None else None
        for start in range(0, self.size, chunk):
            positions = slice(start, start + chunk)
            positions = positions if order is None else order[positions]
            yield positions, self.take(positions)

    @property
    def _in_pages(self) -> bool:
        """Whether rows are read fast only beside each other, as those of a memory map are."""
        return not (self.resident or self._sparse)

    @property
    def _sparse(self) -> dict[str, SparseRows]:
        return {name: field for name, field in self.fields.items() if isinstance(field, SparseRows)}

    def _chunks(self, batch_size: int, generator: torch.Generator) -> Iterator["Split"]:
        """A memory-mapped split in chunks of pages in a drawn order; each chunk but the last holds whole batches."""
        rows = torch.arange(self.size) if self.rows is None else self.rows.sort().values
        page = self._rows_in(PAGE_BYTES)
        starts = page * _permutation(-(-self.size // page), generator).cpu()
        order = (starts[:, None] + torch.arange(page)).flatten()
        order = order[order < self.size]
        for positions in order.split(batch_size * -(-self._rows_in(CHUNK_BYTES) // batch_size)):
            in_file_order = rows[positions.sort().values]
            fields = {name: field.index_select(0, in_file_order) for name, field in self.fields.items()}
            yield Split(fields, self.transform).to(self.device)

    def _read(self, positions: Int[Tensor, " batch"] | slice) -> Batch:
        """Stored rows on the split's device, never a view of a memory map, which must not be written to."""
        if self.rows is not None:
            positions = self.rows[positions if isinstance(positions, slice) else positions.cpu()]
        if not isinstance(positions, slice):
            return {
                name: field.index_select(0, positions.to(field.device)).to(self.device)
                for name, field in self.fields.items()
            }
        views = {name: field[positions].to_dense() for name, field in self.fields.items()}
        return views if self.resident else {name: view.clone().to(self.device) for name, view in views.items()}

    def _rows_in(self, memory: int) -> int:
        """How many rows fit in so many bytes, at least one."""
        return max(1, memory // max(1, sum(map(row_bytes, self.fields.values()))))


def _plain(field: Field) -> Field:
    """A dense tensor without a gradient; rows that are kept sparse as they are."""
    if isinstance(field, SparseRows):
        return field
    field = field if field.layout is torch.strided else field.to_dense()
    return field.detach() if field.requires_grad else field


def _common_length(fields: Mapping[str, Field]) -> int:
    if not fields:
        raise DataError("there are no data: give at least one named tensor")
    for name, field in fields.items():
        if field.ndim == 0:
            raise DataError(f"{name} is a single number; its first dimension must count the data")
    lengths = {name: len(field) for name, field in fields.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise DataError(f"fields differ in length ({listed}); each needs one row a datum")
    return next(iter(lengths.values()))


def _presentable(name: str, field: Tensor) -> Tensor:
    if field.dtype == torch.uint8 or (field.dtype == torch.bool and name == "x"):
        return field.to(torch.int64 if name in WHOLE else torch.get_default_dtype())
    is_number = not field.is_floating_point() and field.dtype != torch.bool
    return field.to(torch.int64) if name in WHOLE and is_number else field


def _permutation(size: int, generator: torch.Generator) -> Int[Tensor, " size"]:
    return torch.randperm(size, generator=generator, device=generator.device)


def _in_turn(first: Step, second: Step, batch: Batch) -> Batch:
    return second(first(batch))
