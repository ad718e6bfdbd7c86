"""Files that are either whole or not there, and hold tensors and plain values but no code."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from pyro_vae.errors import RunError


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint of tensors, numbers, strings, lists and dicts; see `write_whole`."""
    write_whole(path, lambda file: torch.save(state, file))


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; nothing in the file is executed.

    Raises:
        RunError: the file is missing or is not a checkpoint.
    """
    if not path.exists():
        raise RunError(f"{path} does not exist; is {path.parent} a run folder?")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as reason:
        raise RunError(f"{path} is not a checkpoint of pyro_vae, or is damaged") from reason


def write_text(path: Path, text: str) -> None:
    """Write a text file; see `write_whole`."""
    write_whole(path, lambda file: file.write(text.encode()))


def write_whole(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write to a temporary file beside `path`, then rename it: a reader sees the old file or the new one.

    Raises:
        RunError: the disk is full or the folder cannot be written; what was there before is untouched.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            write(file)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else "the disk may be full"
        raise RunError(f"cannot write {path}: {reason}; what was saved before is kept") from problem
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
