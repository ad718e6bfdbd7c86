"""A data set: three splits, and the facts about them that a model's constructor may ask for."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from pyro_vae.data.files.arrays import check_finite, fit_the_memory, to_tensor
from pyro_vae.data.forms import named_arrays
from pyro_vae.data.missing import mean_of, observed_sum
from pyro_vae.data.sparse import SparseRows
from pyro_vae.data.split import Batch, Split, Step
from pyro_vae.errors import DataError

UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)

ALL = "all"
"""What stands for all splits of a data set together."""

FIELDS_OF_FACTS = {
    "data_shape": "x",
    "data_mean": "x",
    "log_library": "x",
    "context_shape": "context",
    "num_labels": "label",
    "vocabulary": "x",
}
"""What a model's constructor may ask for, and the field that tells it; see `Dataset.facts`."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """A named data set in three splits.

    A plugin returns one with values as they are stored; `load_data` returns one that presents them scaled and
    binarised.

    Attributes:
        name: what reports call it.
        train, valid, test: the splits, all with the same fields.
        levels: the largest value that a stored integer x can take, by which the scale "unit" divides it;
            None: 255 for uint8, and other integers are counts, which are never divided.
        derive: computes further fields of each presented batch, after scaling and binarisation; `load_data`
            applies it.
        undrawn: the training split without the draws of a dynamic binarisation; None where nothing is drawn.
        vocabulary: of bags of words x [n, vocabulary], the words in the order of x.
    """

    name: str
    train: Split
    valid: Split
    test: Split
    levels: int | None = None
    derive: Step | None = None
    undrawn: Split | None = None
    vocabulary: tuple[str, ...] | None = None

    @property
    def splits(self) -> dict[str, Split]:
        """The three splits by name."""
        return {"train": self.train, "valid": self.valid, "test": self.test}

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What a model's constructor may ask for: those of the following that these data have.

        `data_shape`: shape of one presented x. `data_mean`: mean of the training x [*data_shape], of each element where
        it is observed, without the draws of a dynamic binarisation. `log_library`: mean and standard deviation of the
        log of the sums of the training x, where these are positive. `num_labels`: one more than the largest `label`.
        `context_shape`: shape of one presented `context`. `vocabulary`: the words that x counts.
        """
        source = self.train if self.undrawn is None else self.undrawn
        with torch.random.fork_rng(devices=[source.device] if source.device.type == "cuda" else []):
            batch = source.take(slice(0, 1))
            facts: dict[str, Any] = {}
            if "x" in batch:
                facts |= {"data_shape": tuple(batch["x"].shape[1:]), **_moments(source)}
        if "context" in batch:
            facts["context_shape"] = tuple(batch["context"].shape[1:])
        if self.vocabulary is not None:
            facts["vocabulary"] = self.vocabulary
        if "label" in batch and "label" in source and batch["label"].dtype == torch.int64:
            facts["num_labels"] = 1 + max(int(split["label"].max()) for split in self.splits.values())
        return facts


def as_split(data: Any, fields: Sequence[str] | None = None) -> Split:
    """Data in memory as a split; see `named_arrays` for the forms that they may have. A Split is returned as it is.

    Nothing is scaled. Tensors keep their dtype; floats in NumPy arrays become torch's default dtype. A `numpy.memmap`
    is never read whole, and a sparse matrix that would be too large as a dense one stays sparse.

    Args:
        fields: what the members of an item that is a tuple are called.

    Raises:
        DataError: not data, fields of differing lengths, no rows, or a value that is infinite. NaN is a missing value.
    """
    if isinstance(data, Split):
        return data
    named = named_arrays(data, fields)
    stored = {name: _as_tensor(value, name) for name, value in named.items()}
    resident = fit_the_memory(named.values())
    split = Split(stored, resident=resident)
    for name, field in split.fields.items():
        check_finite(field, name)
    return split if resident else split.then(_in_default_dtype)


def _as_tensor(value: Any, name: str) -> Tensor | SparseRows:
    """A tensor as it is, but of a dtype that torch does not compute with as NumPy's array is taken."""
    if not isinstance(value, Tensor):
        return to_tensor(value, name)
    return to_tensor(value.cpu().numpy(), name) if value.is_complex() or value.dtype in UNSIGNED else value


def choose_split(data: Any, name: str) -> Split:
    """The split of a `Dataset` by its name, or "all" of them together; any other data as one split (see `as_split`).

    Raises:
        DataError: a `Dataset` has no split of this name.
    """
    if not isinstance(data, Dataset):
        return as_split(data)
    if name == ALL:
        return together(list(data.splits.values()))
    if name not in data.splits:
        raise DataError(f"no split {name!r}; there are {', '.join(data.splits)}, and {ALL}")
    return data.splits[name]


def together(parts: Sequence[Split]) -> Split:
    """The data of several splits, each split once, in the order of what they were made of where that is known; else one
    split after another."""
    parts = list({id(part): part for part in parts}.values())
    order = None
    if all(part.origin is not None for part in parts):
        numbers = torch.cat([part.origin for part in parts])
        order = numbers.argsort() if len(numbers.unique()) == len(numbers) else None
    stored = {tuple(map(id, part.fields.values())) for part in parts}
    if len(stored) == 1 and all(part.rows is not None for part in parts):
        rows = torch.cat([part.rows for part in parts])
        return Split(parts[0].fields, parts[0].transform, rows if order is None else rows[order], resident=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)  # what is drawn anew in every batch is drawn once
        batches = [part.take(slice(None)) for part in parts]
    fields = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    return Split(fields if order is None else {name: field[order] for name, field in fields.items()})


def _in_default_dtype(batch: Batch) -> Batch:
    default = torch.get_default_dtype()
    return {name: field.to(default) if field.is_floating_point() else field for name, field in batch.items()}


def log_library(x: Shaped[Tensor, "n ..."]) -> tuple[float, float]:
    """Mean and standard deviation of the log of each datum's number of counts, its library size; data without counts
    are left out.

    Raises:
        DataError: no datum has counts.
    """
    found = _of_sums(_sums(x))
    if found is None:
        raise DataError("no datum has counts, so there are no library sizes; give counts")
    return found


def _moments(split: Split) -> dict[str, Any]:
    """`data_mean`, and `log_library` where a sum is positive, in one pass."""
    total, count, sums = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.int64), []
    for _, batch in split.scan():
        of_chunk, counted = observed_sum(batch["x"])
        total, count = total + of_chunk, count + counted
        sums.append(_sums(batch["x"]))
    found = _of_sums(torch.cat(sums))
    return {"data_mean": mean_of(total, count)} | ({} if found is None else {"log_library": found})


def _sums(x: Shaped[Tensor, "n ..."]) -> Float[Tensor, " n"]:
    return x.reshape(len(x), -1).sum(1, dtype=torch.float64).cpu()


def _of_sums(sums: Float[Tensor, " n"]) -> tuple[float, float] | None:
    logs = sums[sums > 0].log()
    return (logs.mean().item(), logs.std(correction=0).item()) if len(logs) else None
