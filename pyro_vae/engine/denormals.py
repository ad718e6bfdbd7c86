"""Denormal numbers count as zero while we compute: the processor takes a hundred times longer for them.

A thread flushes them or not by a register of its own, and `torch.set_flush_denormal` sets the calling thread's alone.
The workers that OpenMP keeps are reached by GOMP_parallel, which is what libgomp's compilers call: it runs a function
once in each worker. Where no libgomp is loaded, only the calling thread flushes.
"""

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

for number in (np.float32, np.float64):
    np.finfo(number)  # numpy looks for its smallest denormal once, and must not find zero

FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
IMPORTED_BY = os.getpid()


@contextmanager
def flushed() -> Iterator[None]:
    """Denormal numbers are zero in this thread and its OpenMP workers, and what they were before afterwards."""
    before: dict[int, bool] = {}
    own, threads = flushes(), torch.get_num_threads()

    def flush() -> None:
        before[threading.get_ident()] = flushes()
        torch.set_flush_denormal(True)

    def restore() -> None:
        torch.set_flush_denormal(before.get(threading.get_ident(), own))

    _in_every_thread(flush, threads)
    try:
        yield
    finally:
        _in_every_thread(restore, max(threads, torch.get_num_threads()))


def flushes() -> bool:
    """Whether the calling thread takes denormal numbers for zero."""
    return sys.float_info.min / 2 == 0.0


def _in_every_thread(function: Callable[[], None], threads: int) -> None:
    """Call it in this thread, and in the `threads` - 1 workers of each libgomp."""
    function()
    if threads > 1:
        own = threading.get_ident()
        callback = FUNCTION(lambda _: None if threading.get_ident() == own else function())
        for library in libgomps():
            library.GOMP_parallel(callback, None, ctypes.c_uint(threads), ctypes.c_uint(0))


def libgomps() -> list[ctypes.CDLL]:
    """Every libgomp in this process: torch's, and that of the graphs that were compiled.

    None in a forked process: its parent's workers are not there, and GOMP_parallel would wait for them.
    """
    maps = Path("/proc/self/maps")
    if os.getpid() != IMPORTED_BY or not maps.exists():
        return []
    files = {line.split(maxsplit=5)[-1] for line in maps.read_text().splitlines()}
    return [
        ctypes.CDLL(file) for file in sorted(files) if Path(file).name.startswith("libgomp") and Path(file).exists()
    ]
