"""Files that are either whole or not there, and hold tensors and plain values but no code."""

import errno
import io
import os
import re
import stat
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from pyro_vae.errors import DamagedError, RunError

STREAMS = ("/dev/std", "/dev/fd/", "/proc/")
"""Paths that may lead to what another program holds open, a file that a shell redirects to among them."""


TEMPORARY = re.compile(r"\.(.+)\.[a-z0-9_]{8}")
"""The names of temporary files, which a process that was killed leaves behind."""


def save(path: Path, state: dict[str, Any], then: Callable[[], Any] = lambda: None) -> None:
    """Write a checkpoint of tensors, numbers, strings, lists and dicts; see `write_whole`.

    Args:
        then: is called when all of it is on the disk, before it takes the place of the one that is there.
    """

    def write(file: BinaryIO) -> None:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
        then()

    write_whole(path, write)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; nothing in the file is executed.

    A checkpoint is a zip archive with a CRC-32 of each of its members, which torch writes but does not compare.

    Raises:
        RunError: the file is missing.
        DamagedError: it is not a checkpoint, or not as it was written.
    """
    if not path.exists():
        raise RunError(f"{path} does not exist; is {path.parent} a run folder?")
    try:
        check_regular(path)
        with open(path, "rb") as file:
            _compare_checksums(file)
            file.seek(0)
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as reason:
        raise DamagedError(f"{path} is not a checkpoint of pyro_vae, or is damaged") from reason
    if not isinstance(state, dict):
        raise DamagedError(f"{path} is not a checkpoint of pyro_vae: it holds no settings by name")
    return state


def _compare_checksums(file: BinaryIO) -> None:
    """Raise `ValueError` unless each member of the archive is stored as it is and has its checksum."""
    with zipfile.ZipFile(file) as archive:
        packed = [member.filename for member in archive.infolist() if member.compress_type != zipfile.ZIP_STORED]
        wrong = archive.testzip() if not packed else packed[0]
    if wrong is not None:
        raise ValueError(f"{wrong} is not what was written")


def at_home(path: str | Path) -> Path:
    """A path, `~` being the user's home; as it is where there is no such user."""
    return Path(os.path.expanduser(path))


def check_regular(path: Path) -> None:
    """Raise `OSError` where a path is a pipe or a device, from which reading may never end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is a folder, a pipe or a device, not a file")


def read_text(path: Path, limit: int) -> str:
    """A text file, or what comes through a pipe that a shell opened.

    Raises:
        OSError: it is no file, or cannot be read.
        ValueError: it is longer than `limit` bytes, or not in UTF-8.
    """
    if not str(path).startswith(STREAMS):
        check_regular(path)
    with open(path, "rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"it is larger than {limit:,} bytes")
    return content.decode()


def print_or_write(path: str | Path, text: str) -> None:
    """Write a text to a file, or print it where the path is -."""
    if str(path) == "-":
        print(text)
    else:
        write_text(Path(path), text + "\n")


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
