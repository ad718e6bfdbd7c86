"""A split that is read from a torch `DataLoader`, batch by batch, anew at each pass."""

from collections.abc import Collection, Iterator, Sequence
from copy import copy

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import DataLoader

from pyro_vae.data.files.arrays import check_finite
from pyro_vae.data.forms import item_fields
from pyro_vae.data.split import Batch, Split
from pyro_vae.errors import DataError


class Stream(Split):
    """The batches of a `DataLoader`, in its order and of its size; only one of them is held at a time.

    The first batch is kept as an example of the data: it is what `take`, `head` and the mapping know. Every other use
    passes over the loader, so nothing that needs a datum by its place works on a stream.
    A value may be missing (NaN) in the fields that `allowing` names.

    Args:
        loader: yields tensors, mappings, or tuples.
        names: what the members of a tuple are called.

    Raises:
        DataError: no batch, or items that are no numbers.
    """

    def __init__(self, loader: DataLoader, names: Sequence[str] | None = None):
        self.loader, self.names, self.allowed = loader, names, frozenset()
        with torch.random.fork_rng(devices=[]):
            first = next(iter(loader), None)
            if first is None:
                raise DataError("the DataLoader yields no batch")
            super().__init__(item_fields(first, names))
            self.batch_size = self.size
            self.size, self.count = self._sizes()

    def _sizes(self) -> tuple[int, int]:
        """Data and batches in a pass; counted in one where the loader does not know them."""
        try:
            batches, data = len(self.loader), len(self.loader.dataset)
        except TypeError:
            sizes = [_size(item_fields(batch, self.names)) for batch in self.loader]
            return sum(sizes), len(sizes)
        if self.loader.drop_last and self.loader.batch_size:
            data -= data % self.loader.batch_size
        return data, batches

    @property
    def placed(self) -> int:
        """The data of the first batch."""
        return self.batch_size

    def to(self, device: torch.device | str) -> "Stream":
        moved = copy(self)
        moved.device = torch.device(device)
        moved.fields = {name: field.to(device) for name, field in self.fields.items()}
        return moved

    def allowing(self, names: Collection[str]) -> "Stream":
        allowed = copy(self)
        allowed.allowed = frozenset(names)
        return allowed

    def head(self, limit: int | None) -> Split:
        """The first data, at most those of the first batch."""
        example = Split(self.fields, self.transform)
        return example.head(limit)

    def between(self, start: int, stop: int) -> Split:
        raise DataError("the data of a DataLoader have no fixed places; give the data set itself")

    def take(self, positions: Int[Tensor, " batch"] | slice) -> Batch:
        """Data of the first batch."""
        return Split(self.fields, self.transform).take(positions)

    def num_batches(self, batch_size: int) -> int:
        """The loader's own, whatever the batch size."""
        return self.count

    def cost(self, batch_size: int) -> str:
        return "the data come from a DataLoader in an order of its own: a stopped run resumes inexactly"

    def batches(self, batch_size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """One pass over the loader, which decides size and order of the batches.

        Raises:
            DataError: a batch that is no numbers, or holds one that is not finite; says which.
        """
        for number, batch in enumerate(self.loader, start=1):
            fields = item_fields(batch, self.names)
            for name, field in fields.items():
                check_finite(field, f"batch {number} of the DataLoader: {name}", missing=name in self.allowed)
            yield Split(fields, self.transform).to(self.device).take(slice(None))

    def scan(self) -> Iterator[tuple[slice, Batch]]:
        first = 0
        for batch in self.batches(0):
            yield slice(first, first + _size(batch)), batch
            first += _size(batch)


def _size(batch: Batch) -> int:
    return len(next(iter(batch.values())))
