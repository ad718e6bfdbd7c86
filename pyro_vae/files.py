"""Files that are either whole or not there, and hold tensors and plain values but no code."""

import io
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from pyro_vae.errors import RunError

STREAMS = ("/dev/std", "/dev/fd/", "/proc/")
"""Paths that may lead to what another program holds open, a file that a shell redirects to among them."""


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

    Of a symbolic link, the file that it points to is replaced. A device, a pipe or /dev/stdout is written into.

    Raises:
        RunError: the disk is full or the path cannot be written; a file that was there before is untouched.
    """
    kept = "; what was saved before is kept" if os.path.isfile(path) else ""
    try:
        if _is_stream(path):
            whole = io.BytesIO()
            write(whole)
            with open(path, "ab") as stream:
                stream.write(whole.getbuffer())
        else:
            _replace(Path(os.path.realpath(path)), write)
    except (OSError, RuntimeError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else "the disk may be full"
        raise RunError(f"cannot write {path}: {reason}{kept}") from problem


def _is_stream(path: Path) -> bool:
    """Whether a path is something that takes what is written but is no file of its own, so must not be replaced."""
    return str(path.absolute()).startswith(STREAMS) or (os.path.exists(path) and not os.path.isfile(path))


def _replace(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            write(file)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
