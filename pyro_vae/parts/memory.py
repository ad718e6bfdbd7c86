"""How much memory there is, and the refusal of what would fill it."""

import os
from pathlib import Path

import torch

from pyro_vae.errors import UserError

GROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
"""What a container may use; the word "max" where it may use all that there is."""


def memory_of(device: torch.device) -> int:
    """The bytes that a device has in all, whether used or free; on the CPU at most what this container may use."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = GROUP_LIMIT.read_text().strip() if GROUP_LIMIT.exists() else ""
    return min(physical, int(limit)) if limit.isdecimal() else physical


def check_fits(error: type[UserError], needed: float, what: str, instead: str) -> None:
    """Raise this error where something would fill more than half of the memory.

    Args:
        needed: the bytes that it fills.
        what: what it is, and `instead`, what to do, in words.
    """
    limit = memory_of(torch.device("cpu")) // 2
    if needed > limit:
        sizes = f"{needed / 2**30:,.1f} GiB, and the limit is {limit / 2**30:,.1f} GiB, half of the memory here"
        raise error(f"{what} would fill {sizes}; {instead}")
