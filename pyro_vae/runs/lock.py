"""A lock on a folder, which dies with its process."""

import errno
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pyro_vae.errors import Doubt, RunError

try:
    import fcntl
except ImportError:  # a system that has no such locks
    fcntl = None

WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""What a file system says that has no locks."""


class Lock:
    """A file that one process at a time holds; it is removed when it is released.

    The lock is the operating system's (`fcntl.lockf`), so that it ends with the process however that ends, is not
    inherited by the process's children, and is seen through NFS. A file that a killed process left is taken over. On
    a file system without locks nothing is locked, and that is said.
    """

    def __init__(self, path: Path):
        self.path = path
        self.handle: int | None = None

    def take(self, wait: bool = False) -> bool:
        """Whether it could be taken; with `wait`, only once it is free.

        Raises:
            OSError: the file cannot be made.
        """
        while self.handle is None:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                self._lock(handle, wait)
                if self._is_at_its_path(handle):  # else whoever held it has removed it meanwhile
                    self.handle, handle = handle, -1
            except (BlockingIOError, PermissionError):
                return False
            finally:
                if handle >= 0:
                    os.close(handle)
        return True

    def _lock(self, handle: int, wait: bool) -> None:
        try:
            if fcntl is None:
                raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
            fcntl.lockf(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as problem:
            if problem.errno not in WITHOUT_LOCKS:
                raise
            line = f"{self.path.parent} is on a file system without locks, so nothing keeps a second run out of it"
            warnings.warn(line, Doubt, stacklevel=2)

    def is_lost(self) -> bool:
        """Whether it was taken, and its file has been removed since, as with the whole folder."""
        return self.handle is not None and not self._is_at_its_path(self.handle)

    def release(self) -> None:
        """Give it up, if it is held."""
        if self.handle is not None:
            if not self.is_lost():
                with suppress(OSError):  # whoever comes next takes it over
                    self.path.unlink()
            os.close(self.handle)
            self.handle = None

    def _is_at_its_path(self, handle: int) -> bool:
        try:
            return os.path.samestat(os.fstat(handle), os.stat(self.path))
        except FileNotFoundError:
            return False


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock, once it is free; raises `RunError` where its folder is not there or cannot be written."""
    lock = Lock(path)
    try:
        lock.take(wait=True)
    except OSError as problem:
        raise RunError(f"cannot write {path.parent}: {problem.strerror}") from problem
    try:
        yield
    finally:
        lock.release()
