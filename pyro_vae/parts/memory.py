"""How much memory there is."""

import os

import torch


def memory_of(device: torch.device) -> int:
    """The bytes that a device has in all, whether used or free."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
