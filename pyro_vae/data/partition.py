"""A seed's division of rows into parts."""

import torch
from jaxtyping import Int
from torch import Tensor

from pyro_vae.errors import DataError


def partition(size: int, held_out: tuple[int, ...], seed: int) -> list[Int[Tensor, " part"]]:
    """The rows 0..size-1 in an order drawn by the seed, divided: what remains first, then the parts held out.

    Raises:
        DataError: a part that is empty, or nothing remains.
    """
    remaining = size - sum(held_out)
    if min(remaining, *held_out) < 1:
        parts = " and ".join(map(str, held_out))
        raise DataError(f"cannot hold out {parts} of {size} data; every part needs at least 1")
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    return list(order.split([remaining, *held_out]))


def tenth(size: int) -> int:
    """A tenth of the data, at least one: what is held out where nothing else is said."""
    return max(1, size // 10)
