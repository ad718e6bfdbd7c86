"""Several processes that work on one thing, as `torchrun` starts them; one process is the ordinary case."""

import os
from typing import Any

import torch.distributed as dist
from torch import Tensor


def started() -> int:
    """How many processes were started together, before they are connected."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is the first of the processes that were started together, before they are connected."""
    return os.environ.get("RANK", "0") == "0"


def rank() -> int:
    """Which of the connected processes this is, from 0."""
    return dist.get_rank() if _connected() else 0


def world_size() -> int:
    """How many processes are connected."""
    return dist.get_world_size() if _connected() else 1


def gather(mine: Any) -> list[Any]:
    """What each process has, in the order of their ranks; every process must call it."""
    if not _connected():
        return [mine]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, mine)
    return found


def mean(mine: Tensor) -> Tensor:
    """The mean of the tensors of all processes; every process must call it."""
    if not _connected():
        return mine
    total = mine.clone()
    dist.all_reduce(total)
    return total / world_size()


def wait_for_all() -> None:
    """Return once every process has come here."""
    if _connected():
        dist.barrier()


def _connected() -> bool:
    return dist.is_available() and dist.is_initialized()
