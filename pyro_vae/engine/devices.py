"""Devices and precisions by name."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from pyro_vae.engine import processes
from pyro_vae.errors import RunError, find

if TYPE_CHECKING:
    from lightning_fabric import Fabric

NVML_CHECK = "PYTORCH_NVML_BASED_CUDA_CHECK"

KINDS = ("cpu", "cuda", "mps")

TOLERANCES = {"32-true": 1e-5, "tf32": 2e-3, "bf16-mixed": 2e-2}
"""The precisions, and the relative difference that each explains between two ways to compute."""


def find_device(name: str) -> str:
    """ "auto" is the GPU where there is one, else the CPU.

    Raises:
        RunError: no such device, or it is not there.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as reason:
        raise RunError(f"unknown device {name!r}; use auto, cpu or cuda") from reason
    if device.type not in KINDS or (device.type != "cuda" and device.index is not None):
        raise RunError(f"unknown device {name!r}; use auto, cpu or cuda")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise RunError(f"device {name!r} is not there; use cpu or auto")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RunError(f"device {name!r} is not there: torch sees no GPU; use cpu or auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RunError(f"device {name!r} is not there: torch sees {torch.cuda.device_count()} GPUs, numbered from 0")
    return name


@contextmanager
def matrix_products(precision: str) -> Iterator[None]:
    """Matrix products and convolutions of float32 in this precision; torch's own settings are as they were afterwards.

    Left to itself torch convolves in tf32, which keeps three digits, also where nobody asked for it.
    """
    before, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if precision == "tf32" else before)
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        torch.backends.cudnn.allow_tf32 = convolutions


def cuda_devices(device: torch.device) -> list[int]:
    """What `torch.random.fork_rng` is told of a device."""
    return [device.index or 0] if device.type == "cuda" else []


def launch(device: str, precision: str = "32-true") -> "Fabric":
    """Fabric on the asked-for device; started by `torchrun`, one process of several.

    Raises:
        UnknownName: no such precision.
        RunError: no such device, or it does not have this precision.
    """
    find("precision", precision, TOLERANCES)
    accelerator = find_device(device)
    if precision == "tf32" and not accelerator.startswith("cuda"):
        raise RunError("precision 'tf32' is one of NVIDIA's GPUs; on a CPU use 32-true or bf16-mixed")
    fabric_type = _import_fabric()
    try:
        started = processes.started()
        on_this_machine = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        kind, _, index = accelerator.partition(":")
        fabric = fabric_type(
            accelerator=kind,
            devices=[int(index)] if kind == "cuda" and index else on_this_machine,
            num_nodes=max(1, started // on_this_machine),
            strategy="ddp" if started > 1 else "auto",
            precision="32-true" if precision == "tf32" else precision,
        )
    except (ValueError, RuntimeError) as problem:
        raise RunError(f"cannot use device {accelerator!r} with precision {precision!r}: {problem}") from problem
    if started > 1:
        fabric.launch()
    return fabric


def _import_fabric() -> type["Fabric"]:
    """Lightning's Fabric, imported where it is needed, because it takes seconds.

    Its import sets a variable by which torch looks for a GPU's driver at every step of Adam, a fifth of a millisecond
    where there is none; what the variable was stays.
    """
    before = os.environ.get(NVML_CHECK)
    from lightning_fabric import Fabric

    if before is None:
        os.environ.pop(NVML_CHECK, None)
    return Fabric
