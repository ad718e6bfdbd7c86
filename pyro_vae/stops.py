"""Signals that ask a process to stop, as exceptions that can be put off until what is at hand is whole."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Stopped(SystemExit):
    """A signal other than Ctrl-C asked the process to stop; where nobody catches it, the exit status is 128 + it."""

    def __init__(self, number: int):
        super().__init__(128 + number)


STOPS = (KeyboardInterrupt, Stopped)


class Stops:
    """While it is entered, Ctrl-C raises `KeyboardInterrupt`, and SIGTERM and SIGHUP raise `Stopped`.

    Where `held` is set, the first signal only leaves a mark, which `check` raises; a second one is raised at once, and
    in a process that was forked from this one the first. A signal that the user's program handles itself or ignores,
    as `nohup` does, is left to it, and so are all signals in a thread that is not the main one.
    """

    def __init__(self, held: bool = False):
        self.held = held
        self.asked: int | None = None
        self.process = os.getpid()
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            found = {number: signal.getsignal(number) for number in SIGNALS}
            self.before = {number: handler for number, handler in found.items() if _is_usual(handler)}
            for number in self.before:
                signal.signal(number, self._received)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if kind is None:
            self.check()

    def check(self) -> None:
        """Raise for the signal that was put off, if there was one."""
        if self.asked is not None:
            number, self.asked = self.asked, None
            _raise(number)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Meanwhile signals are not put off."""
        held, self.held = self.held, False
        try:
            self.check()
            yield
        finally:
            self.held = held

    def _received(self, number: int, frame: FrameType | None) -> None:
        if self.held and self.asked is None and os.getpid() == self.process:
            self.asked = number
        else:
            _raise(number)


def status_of(stop: BaseException) -> int:
    """The exit status of a command that was stopped: 128 and the signal's number."""
    return int(stop.code) if isinstance(stop, Stopped) else 128 + signal.SIGINT


def _raise(number: int) -> None:
    raise KeyboardInterrupt if number == signal.SIGINT else Stopped(number)


def _is_usual(handler: Any) -> bool:
    """Whether a signal is handled as Python does by itself, or as we do."""
    ours = isinstance(getattr(handler, "__self__", None), Stops)
    return ours or handler in (signal.SIG_DFL, signal.default_int_handler)
