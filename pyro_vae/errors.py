"""Exceptions that a user can act on: each message is one line that says what to do."""

import sys
import warnings
from collections.abc import Iterable, Mapping
from difflib import SequenceMatcher
from pathlib import Path
from typing import TypeVar

Found = TypeVar("Found")


class UserError(Exception):
    """Base class: a mistake in the input, never a fault of the library."""


class DataError(UserError):
    """The data cannot be used as they are."""


class ContractError(UserError):
    """A (model, guide) pair breaks the contract that the library relies on."""


class UnfitPair(ContractError):
    """A pair that was handed to the constructor of a model, as `parameter`, is not what the model needs."""

    def __init__(self, parameter: str, reason: str):
        super().__init__(f"{parameter}: {reason}")
        self.parameter, self.reason = parameter, reason


class ProgramError(ContractError):
    """A model or guide raised an error of its own."""


class RunError(UserError):
    """A run folder cannot be written, read or continued."""


class DamagedError(RunError):
    """A file of a run is not as it was written."""


class DivergenceError(UserError):
    """Training produced a number that is not finite."""


class UsageError(UserError):
    """The arguments of a command do not fit it."""


class PluginError(UserError):
    """A plugin is broken, or two of them claim one name."""


class Renamed(FutureWarning):
    """An old name was given; the message says which name it has now."""


class Changed(UserWarning):
    """The file of the pair of a run is no longer what it was; the message says which, and what follows."""


class Doubt(UserWarning):
    """What came out should not be trusted without a thought; the message says why."""


def warn_user(message: str, category: type[Warning]) -> None:
    """Warn of the line outside this package that called it."""
    here, frame, level = str(Path(__file__).parent), sys._getframe(), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(here):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


class UnknownName(UserError):
    """A name that nothing answers to; the message lists the known ones, the nearest first."""

    def __init__(self, kind: str, name: str, known: Iterable[str]):
        ranked = nearest_first(name, known)
        super().__init__(f"unknown {kind} {name!r}; known: {', '.join(ranked) or 'none'}")
        self.known = ranked


LACKS = ("can't allocate memory", "out of memory", "not enough memory", "size calculation overflowed")


def is_lack_of_memory(problem: BaseException) -> bool:
    """Whether an error of Python's, NumPy's or torch's says that something is larger than the memory."""
    said = str(problem)
    return isinstance(problem, MemoryError) or (isinstance(problem, RuntimeError) and any(w in said for w in LACKS))


def find(kind: str, name: str, table: Mapping[str, Found]) -> Found:
    """What a table of this kind of thing holds under a name; raises `UnknownName` where it holds nothing."""
    if name not in table:
        raise UnknownName(kind, name, table)
    return table[name]


def check_positive(error: type[UserError], **counts: int | None) -> None:
    """Raise this error where a count, by name, is less than one; None passes."""
    for name, count in counts.items():
        if count is not None and count < 1:
            raise error(f"{name} must be at least 1, not {count}")


def nearest_first(name: str, known: Iterable[str]) -> list[str]:
    """The known names, most similar to `name` first."""
    return sorted(known, key=lambda other: (-SequenceMatcher(None, name.lower(), other.lower()).ratio(), other))
