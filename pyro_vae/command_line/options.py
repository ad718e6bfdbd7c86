"""The typed options of a plugin, read from its signature and its docstring."""

import argparse
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from docstring_parser import parse

from pyro_vae.errors import UsageError
from pyro_vae.pair.pair import Pair

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
    """The options that a class or function takes and a command line can give: numbers, strings, and lists of them, and
    of another pair the folder of its run.

    Args:
        skip: parameters that are not the user's to set.
    """
    function = plugin.__init__ if inspect.isclass(plugin) else plugin
    hints = _parameter_hints(function)
    docs = _help_texts(plugin)
    options = []
    for name, parameter in inspect.signature(plugin).parameters.items():
        kind = _plain_type(hints.get(name, str))
        if parameter.kind is parameter.VAR_KEYWORD:
            options += _passed_on(hints.get(name))
        elif name not in skip and kind is not None and parameter.kind is not parameter.VAR_POSITIONAL:
            required = parameter.default is parameter.empty
            default = None if required else parameter.default
            if kind is float and default is not None:
                default = float(default)  # torch writes 0 where it means a number
            options.append(Option(name, kind, default, docs.get(name, ""), required))
    return options


def _parameter_hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The type hints of parameters; what a function gives may be of a library that is imported only to make it."""
    function = inspect.unwrap(function)
    taken = {name: hint for name, hint in inspect.get_annotations(function).items() if name != "return"}
    return typing.get_type_hints(types.SimpleNamespace(__annotations__=taken), getattr(function, "__globals__", {}))


def _passed_on(hint: Any) -> list[Option]:
    """The options of `**options: Unpack[SomeTypedDict]`, which a plugin passes on; None where they are not given."""
    if typing.get_origin(hint) is not typing.Unpack:
        return []
    (fields,) = typing.get_args(hint)
    docs = _help_texts(fields)
    return [Option(n, _plain_type(kind), None, docs.get(n, "")) for n, kind in typing.get_type_hints(fields).items()]


def _help_texts(documented: Any) -> dict[str, str]:
    return {p.arg_name: " ".join((p.description or "").split()) for p in parse(inspect.getdoc(documented) or "").params}


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
    if inspect.isclass(hint) and issubclass(hint, Pair):
        return str
    return hint if hint in SIMPLE else None


def parse_value(option: Option, value: Any) -> Any:
    """A value of an option from the command line (text) or a YAML file, as the option's type.

    Raises:
        UsageError: it is not of that type.
    """
    if str(value).lower() in ("none", "null") and option.default is None and not option.required:
        return None
    if typing.get_origin(option.type) is list:
        (kind,) = typing.get_args(option.type)
        items = value.strip("[]() ").split(",") if isinstance(value, str) else value
        items = items if isinstance(items, list | tuple) else [items]
        return [_scalar(option, kind, item) for item in items if str(item).strip()]
    (kind, *_) = typing.get_args(option.type) or (option.type,)
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
    if isinstance(value, str) and not value.strip().lstrip("+-").isdecimal():
        value = float(value)
    if isinstance(value, float) and not value.is_integer():
        raise ValueError(value)
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
        text = option.help.replace("%", "%%") + _default(option, "%(default)s")
        _add_option(group, option, help=text, default=option.default, required=option.required)


def add_shared_options(parser: argparse.ArgumentParser, owners: Mapping[str, Sequence[Option]]) -> None:
    """Add the options of several plugins, each name once, in a group that names the plugins that have it.

    The parser sets no default, since each plugin has its own; `own_values` puts them in.
    """
    groups: dict[str, Any] = {}
    for name in dict.fromkeys(option.name for options in owners.values() for option in options):
        having = {owner: option for owner, options in owners.items() for option in options if option.name == name}
        title = f"options of {' and '.join(having)}"
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        required = any(option.required for option in having.values())
        text = _help_of_each(having).replace("%", "%%")
        first = next(iter(having.values()))
        _add_option(groups[title], first, help=text, default=argparse.SUPPRESS, required=required)


def own_values(given: argparse.Namespace, options: Sequence[Option]) -> dict[str, Any]:
    """The values of a plugin's options: what is given, as the plugin's own type, and else the plugin's own default."""
    return {o.name: parse_value(o, getattr(given, o.name)) if o.name in given else o.default for o in options}


def _help_of_each(having: Mapping[str, Option]) -> str:
    """An option's help with its default; each owner's by itself where they differ."""
    texts = {owner: o.help + _default(o, str(o.default)) for owner, o in having.items()}
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return "; ".join(f"{owner}: {text}" for owner, text in texts.items())


def _default(option: Option, shown: str) -> str:
    return f" (default: {shown})" if not option.required and option.default not in (None, "") else ""


def _add_option(group: Any, option: Option, **how: Any) -> None:
    flag = {"nargs": "?", "const": True} if option.type is bool else {}
    dashes = "-" if len(option.name) == 1 else "--"
    group.add_argument(
        f"{dashes}{option.name}", type=partial(parse_value, option), metavar=option.name.upper(), **how, **flag
    )
