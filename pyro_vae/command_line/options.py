"""Options on a command line: what is typed becomes a value of its type."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from pyro_vae import kinds
from pyro_vae.errors import UsageError
from pyro_vae.runs.options import Option, options_of

__all__ = ["Option", "add_flags", "add_options", "add_shared_options", "options_of", "own_values", "parse_value"]


def parse_value(option: Option, value: Any) -> Any:
    """A value of an option from the command line (text) or a YAML file, as the option's type.

    Raises:
        UsageError: it is not of that type.
    """
    if str(value).lower() in ("none", "null") and option.default is None and not option.required:
        return None
    try:
        return kinds.read(option.type, value)
    except ValueError as reason:
        raise UsageError(kinds.needs(f"--{option.name}", option.type, value)) from reason


def add_options(parser: argparse.ArgumentParser, options: Sequence[Option], title: str) -> None:
    """Add typed options to a parser, in a group of their own."""
    group = parser.add_argument_group(title) if options else parser
    for option in options:
        text = option.help.replace("%", "%%") + _default(option, "%(default)s")
        _add_option(group, option, help=text, default=option.default, required=option.required)


def add_flags(group: Any, option: Option, dest: str, flags: Sequence[str]) -> None:
    """Add an option under several flags, of which the help shows the first; nothing is set where none is given."""
    text = (option.help + _default(option, str(option.default))).replace("%", "%%")
    for flag in flags:
        told = text if flag == flags[0] else argparse.SUPPRESS
        _add_option(group, replace(option, name=flag), help=told, default=argparse.SUPPRESS, dest=dest)


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
