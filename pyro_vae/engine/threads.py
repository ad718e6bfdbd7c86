"""One thread at a time: Pyro's handlers, torch's random generator and torch's settings belong to the whole process."""

import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from pyro_vae.errors import RunError

Function = TypeVar("Function", bound=Callable[..., Any])

LOCK = threading.RLock()


@contextmanager
def one_thread() -> Iterator[None]:
    """Raises `RunError` where another thread is within; the same thread may enter again."""
    if not LOCK.acquire(blocking=False):
        raise RunError(
            "another thread of this process trains, evaluates or draws, and Pyro and torch's random generator serve "
            "one thread at a time; wait for it, or use processes"
        )
    try:
        yield
    finally:
        LOCK.release()


def alone(function: Function) -> Function:
    """A function that one thread at a time is in; of a generator, whenever it computes its next value."""

    @functools.wraps(function)
    def call(*given: Any, **named: Any) -> Any:
        with one_thread():
            return function(*given, **named)

    @functools.wraps(function)
    def each(*given: Any, **named: Any) -> Iterator[Any]:
        values, end = function(*given, **named), object()
        while True:
            with one_thread():
                value = next(values, end)
            if value is end:
                return
            yield value

    return cast(Function, each if inspect.isgeneratorfunction(function) else call)
