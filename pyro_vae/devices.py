"""Devices by name."""

import torch

from pyro_vae.errors import RunError


def find_device(name: str) -> str:
    """ "auto" is the GPU where there is one, else the CPU.

    Raises:
        RunError: no such device, or it is not there.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as reason:
        raise RunError(f"unknown device {name!r}; use auto, cpu or cuda") from reason
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RunError(f"device {name!r} is not there: torch sees no GPU; use cpu or auto")
    return name
