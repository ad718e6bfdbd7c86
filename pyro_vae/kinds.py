"""Values as the kinds that parameters declare: whole numbers, finite numbers, words, or lists of them."""

import functools
import inspect
import math
import operator
import reprlib
import types
import typing
from collections.abc import Callable
from typing import Any, TypeVar

from pyro_vae.errors import RunError

Function = TypeVar("Function", bound=Callable[..., Any])

LARGEST = 2**63 - 1
"""The largest whole number that a tensor holds."""

TRUTHS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
NAMES = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a word"}


def read(kind: Any, value: Any) -> Any:
    """A value, or the text of one, as a kind: bool, int, float, str, one of them or None, or a list of one of them.

    Whole numbers may be written as 1e3.

    Raises:
        ValueError: it is not of that kind: also NaN, what is infinite, and a whole number of more than 63 bits.
    """
    if typing.get_origin(kind) is list:
        (inner,) = typing.get_args(kind)
        items = value.strip("[]() ").split(",") if isinstance(value, str) else value
        items = items if isinstance(items, list | tuple) else [items]
        return [read(inner, item) for item in items if str(item).strip()]
    if _is_union(kind):
        kinds = typing.get_args(kind)
        if type(None) in kinds and (value is None or str(value).lower() in ("none", "null")):
            return None
        kind = kinds[0]
    try:
        return READERS[kind](value)
    except (TypeError, KeyError, OverflowError) as reason:
        raise ValueError(value) from reason


def words(kind: Any) -> str:
    """What a kind is called in a message."""
    if typing.get_origin(kind) is list:
        return f"comma-separated values, each {NAMES[typing.get_args(kind)[0]]}"
    return " or ".join(NAMES.get(one, "none") for one in (typing.get_args(kind) or (kind,)))


def needs(name: str, kind: Any, value: Any) -> str:
    """The line that says that a value is not of its kind."""
    limit = " of at most 63 bits" if "whole" in words(kind) and _is_large(value) else ""
    return f"{name} needs {words(kind)}{limit}, not {reprlib.repr(value)}"


def _is_large(value: Any) -> bool:
    try:
        return abs(float(value)) > LARGEST
    except (ValueError, TypeError, OverflowError):
        return isinstance(value, int)


def _whole(value: Any) -> int:
    if isinstance(value, bool):
        raise ValueError(value)
    if isinstance(value, str):
        value = int(value) if value.strip().lstrip("+-").isdecimal() else float(value)
    if isinstance(value, float):
        if not value.is_integer():
            raise ValueError(value)
        value = int(value)
    number = operator.index(value)
    if not -LARGEST <= number <= LARGEST:
        raise ValueError(value)
    return number


def _finite(value: Any) -> float:
    number = float(value)
    if isinstance(value, bool) or not math.isfinite(number):
        raise ValueError(value)
    return number


READERS: dict[type, Callable[[Any], Any]] = {
    bool: lambda value: TRUTHS[str(value).lower()],
    int: _whole,
    float: _finite,
    str: str,
}


def checked(function: Function) -> Function:
    """A function whose parameters that are annotated as numbers or truth values get these, and nothing else.

    A `float` takes any finite number, an `int` any whole one, NumPy's and torch's scalars too. Raises `RunError`, which
    names the parameter, for anything else.
    """
    signature = inspect.signature(function)

    declared = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    numbers = {name: kind for name, kind in declared.items() if _is_number(kind)}

    @functools.wraps(function)
    def call(*given: Any, **named: Any) -> Any:
        bound = signature.bind(*given, **named)
        for name, kind in numbers.items():
            if name in bound.arguments:
                bound.arguments[name] = _argument(name, kind, bound.arguments[name])
        return function(*bound.args, **bound.kwargs)

    return typing.cast(Function, call)


def _argument(name: str, kind: Any, value: Any) -> Any:
    try:
        return read(kind, value)
    except ValueError as reason:
        raise RunError(needs(name, kind, value)) from reason


def _is_number(kind: Any) -> bool:
    kinds = set(typing.get_args(kind)) if _is_union(kind) else {kind}
    return len(kinds - {type(None)}) == 1 and kinds <= {int, float, bool, type(None)}


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (typing.Union, types.UnionType)
