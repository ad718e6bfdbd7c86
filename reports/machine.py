"""What stands at the head of every report: the command, the versions and the kind of machine."""

import os
import platform
from importlib.metadata import version

import torch

PACKAGES = ("torch", "pyro-ppl", "numpy", "arviz")


def header(title: str, command: str, data: str = "with the data of `PYRO_VAE_DATA`") -> str:
    """Title, command, versions and machine, as Markdown."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    threads = torch.get_num_threads()
    return (
        f"# {title}\n\nWritten by `{command}`, {data}.\n\n"
        f"Python {platform.python_version()}, {versions}. {os.cpu_count()} CPU cores ({platform.machine()}), "
        f"{threads} of them used by torch, {gpu}.\n"
    )


def table(columns: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows]) + "\n"
