"""Gives a pair that has no parameters yet its first data, and data an index where the guide needs one."""

from copy import copy
from dataclasses import replace

import torch
from torch import nn

from pyro_vae.data import Dataset, Split
from pyro_vae.data.stream import Stream
from pyro_vae.errors import DataError
from pyro_vae.pair.autoguides import INDEX
from pyro_vae.pair.pair import Pair


def make_ready(pair: nn.Module, split: Split, rows: int, seed: int = 0) -> None:
    """Give a pair its first data: so many rows of a split, or all where it asks for them. What it draws then follows
    from the seed."""
    if isinstance(pair, Pair):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            pair.prepare(split.take(slice(0, split.size if pair.remembers else min(rows, split.size))))


def ready_data(pair: nn.Module, dataset: Dataset, whole: Split, rows: int, seed: int) -> Dataset:
    """The data set that a pair is trained on, after it was made ready for them.

    Where its guide has parameters of each datum these are all training data, with their index, and the validation data
    are the same: there is nothing that such a guide could say of others.

    Args:
        whole: all training data, none held out.

    Raises:
        DataError: data of which only a batch is known at a time, where an index is needed.
    """
    make_ready(pair, whole, rows, seed)
    if not (isinstance(pair, Pair) and pair.indexed):
        return dataset
    if isinstance(whole, Stream):
        raise DataError("the guide has parameters of each datum, so it cannot be trained on a DataLoader; give tensors")
    train = with_index(whole)
    return replace(dataset, train=train, valid=train)


def with_index(split: Split) -> Split:
    """A split with the field `index`, the number of each datum, unless it has one."""
    if INDEX in split:
        return split
    known = copy(split)
    known.fields = {**split.fields, INDEX: torch.arange(len(next(iter(split.fields.values()))), device=split.device)}
    return known
