"""The typed options of a plugin, read from its signature and its docstring."""

import argparse
import inspect
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from docstring_parser import parse

from pyro_vae import plugins
from pyro_vae.errors import UsageError

SIMPLE = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Option:
    """One option: its name, type, default and one line of help. `required` ones have no default."""

    name: str
    type: Any
    default: Any
    help: str
    required: bool = False


def options_of(plugin: Callable[..., Any], skip: Sequence[str] = ()) -> list[Option]:
    """The options that a class or function takes and a command line can give: numbers, strings, and lists of them.

    Args:
        skip: parameters that are not the user's to set.
    """
    function = plugin.__init__ if inspect.isclass(plugin) else plugin
    hints = typing.get_type_hints(function)
    docs = {p.arg_name: p.description or "" for p in parse(inspect.getdoc(plugin) or "").params}
    options = []
    for name, parameter in inspect.signature(plugin).parameters.items():
        kind = _plain_type(hints.get(name, str))
        variadic = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        if name in skip or kind is None or variadic:
            continue
        required = parameter.default is parameter.empty
        text = " ".join(docs.get(name, "").split())
        options.append(Option(name, kind, None if required else parameter.default, text, required))
    return options


def dataset_options(name: str) -> list[Option]:
    """The options of a registered data set; a file has none."""
    return options_of(plugins.load("dataset", name), skip=["seed"]) if name in plugins.names("dataset") else []


def _plain_type(hint: Any) -> Any:
    """What of a type hint a command line can express, or None."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        plain = [kind for kind in map(_plain_type, typing.get_args(hint)) if kind not in (None, type(None))]
        nullable = type(None) in typing.get_args(hint)
        return (plain[0] | None if nullable else plain[0]) if plain else None
    if origin in (list, tuple, Sequence):
        (inner, *_) = typing.get_args(hint)
        return list[inner] if inner in SIMPLE else None
    return hint if hint in SIMPLE else None


def parse_value(option: Option, value: Any) -> Any:
    """A value of an option from the command line (text) or a YAML file, as the option's type.

    Raises:
        UsageError: it is not of that type.
    """
    if value is None or (isinstance(value, str) and value.lower() in ("none", "null")):
        if option.default is None and not option.required:
            return None
    kind = next((k for k in typing.get_args(option.type) if k is not type(None)), option.type)
    if typing.get_origin(option.type) is list:
        items = value.strip("[]() ").split(",") if isinstance(value, str) else value
        items = items if isinstance(items, list | tuple) else [items]
        (inner,) = typing.get_args(option.type)
        return [_scalar(option, inner, item) for item in items if str(item).strip()]
    return _scalar(option, kind, value)


def _scalar(option: Option, kind: type, value: Any) -> Any:
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    try:
        if kind is bool:
            return words[str(value).lower()]
        return _whole(value) if kind is int else kind(value)
    except (ValueError, TypeError, KeyError) as reason:
        raise UsageError(f"--{option.name} needs {_words(option.type)}, not {value!r}") from reason


def _whole(value: Any) -> int:
    """A whole number, also where it is written as 1e3; raises ValueError where it is none."""
    if isinstance(value, float) or (isinstance(value, str) and not value.strip().lstrip("+-").isdecimal()):
        if not float(value).is_integer():
            raise ValueError(value)
        return int(float(value))
    return int(value)


def _words(kind: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}
    if typing.get_origin(kind) is list:
        return f"comma-separated values, each {names[typing.get_args(kind)[0]]}"
    return " or ".join(names.get(k, "none") for k in (typing.get_args(kind) or (kind,)))


def add_options(parser: argparse.ArgumentParser, options: Sequence[Option], title: str) -> None:
    """Add typed options to a parser, in a group of their own."""
    group = parser.add_argument_group(title) if options else parser
    for option in options:
        shown = " (default: %(default)s)" if option.default not in (None, "") else ""
        flag = {"nargs": "?", "const": True} if option.type is bool else {}
        group.add_argument(
            f"--{option.name}",
            type=partial(parse_value, option),
            default=option.default,
            required=option.required,
            metavar=option.name.upper(),
            help=option.help.replace("%", "%%") + shown,
            **flag,
        )
