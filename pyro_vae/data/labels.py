"""Labels of data, some of which are hidden from a pair: the field `label` is then -1."""

from copy import copy
from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

from pyro_vae.data.dataset import Dataset
from pyro_vae.data.split import Split
from pyro_vae.errors import DataError, check_positive

HIDDEN = -1
"""What `label` is where it is hidden."""

TRUTH = "truth"
"""The field that holds every label, for scoring; no pair is handed it unless it asks for a field of this name."""


def hide_labels(data: Dataset, labels: int, seed: int = 0, copies: int = 1, shown: bool = False) -> Dataset:
    """The data set with `label` [n] hidden, save for some of the training data, as many of each class, and with all
    labels as `truth` [n].

    Args:
        labels: how many of the training data keep theirs.
        seed: draws which.
        copies: how often each of these stands in the training data.
        shown: validation and test keep all labels: a pair that observes them then gives log p(x, label), not log p(x).

    Raises:
        DataError: labels that are not there, are not whole numbers or are hidden already; a number of labels that is no
            multiple of the number of classes, or more than there are of a class.
    """
    check_positive(DataError, copies=copies)
    for name, split in data.splits.items():
        _check(f"{data.name}: {name}", split)
    known = _balanced(data.train["label"], labels, seed)
    train = _labelled(data.train, known)
    if copies > 1:
        again = torch.cat([torch.arange(train.size), known.repeat(copies - 1)])
        rows = again if train.rows is None else train.rows[again]
        origin = train.origin if train.rows is None else None  # else the rows themselves
        train = Split(train.fields, train.transform, rows, train.resident, origin)
    held_out = {
        name: _labelled(split, torch.arange(split.size if shown else 0))
        for name, split in data.splits.items()
        if name != "train"
    }
    return replace(data, name=f"{data.name}-{labels}-labels", train=train, **held_out)


def _check(where: str, split: Split) -> None:
    if "label" not in split:
        raise DataError(f"{where} has no field label; it has {', '.join(split)}")
    label = split["label"]
    if label.ndim != 1 or label.is_floating_point():
        raise DataError(f"{where} label must be one whole number a datum, not {label.dtype} {list(label.shape[1:])}")
    if label.long().min() < 0:
        raise DataError(
            f"{where} label holds {int(label.min())}, so labels are hidden already; give a source that has all"
        )


def _balanced(label: Int[Tensor, " n"], count: int, seed: int) -> Int[Tensor, " count"]:
    """The places of so many labels, as many of each class, in an order drawn by the seed."""
    classes, sizes = label.unique(return_counts=True)
    if count < 1 or count % len(classes):
        raise DataError(
            f"labels must be a multiple of the {len(classes)} classes, such as {10 * len(classes)}, not {count}"
        )
    each = count // len(classes)
    if each > sizes.min():
        scarce = int(classes[sizes.argmin()])
        raise DataError(f"labels={count} asks for {each} of each class, but class {scarce} has {int(sizes.min())} data")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(label), generator=generator)
    return torch.cat([order[label[order] == value][:each] for value in classes])


def _labelled(split: Split, known: Int[Tensor, " known"]) -> Split:
    """The split with the labels at these places, the others hidden, and with all of them as `truth`."""
    truth = split.fields["label"].to(torch.int64)
    rows = known if split.rows is None else split.rows[known]
    label = torch.full_like(truth, HIDDEN).index_copy(0, rows, truth[rows])
    found = copy(split)
    found.fields = {**split.fields, "label": label, TRUTH: truth}
    return found
