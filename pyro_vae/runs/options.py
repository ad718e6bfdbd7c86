"""The typed options of a plugin, read from its signature and its docstring, and those of a model's parts."""

import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from docstring_parser import parse

from pyro_vae import plugins
from pyro_vae.data.dataset import FIELDS_OF_FACTS
from pyro_vae.pair.pair import Pair
from pyro_vae.parts.build import hints_of, part_kinds

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
    of another pair the folder of its run. A parameter without a type hint is of the type of its default.

    Args:
        skip: parameters that are not the user's to set.
    """
    hints = hints_of(plugin)
    docs = (_help_texts(plugin.__init__) if inspect.isclass(plugin) else {}) | _help_texts(plugin)
    options = []
    for name, parameter in inspect.signature(plugin).parameters.items():
        kind = _plain_type(hints[name]) if name in hints else _type_of(parameter.default)
        if parameter.kind is parameter.VAR_KEYWORD:
            options += _passed_on(hints.get(name))
        elif name not in skip and kind is not None and parameter.kind is not parameter.VAR_POSITIONAL:
            required = parameter.default is parameter.empty
            default = None if required else parameter.default
            if kind is float and default is not None:
                default = float(default)  # torch writes 0 where it means a number
            options.append(Option(name, kind, default, docs.get(name, ""), required))
    return options


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
    if origin is typing.Annotated:
        return _plain_type(typing.get_args(hint)[0])
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


def _type_of(default: Any) -> Any:
    """The same for a parameter without a type hint: a word, unless its default is something else."""
    if default is inspect.Parameter.empty:
        return str
    if default is None:
        return str | None
    if isinstance(default, list | tuple):
        return _plain_type(list[type(default[0])]) if default else list[str]
    return _plain_type(type(default))


def model_options(model: Callable[..., Any], chosen: Mapping[str, Any]) -> list[Option]:
    """The options of a model's own, then those of its parts, where it takes them as `**part_options`: they are named
    after the model's parameter, such as `prior_components`.

    Args:
        chosen: values of options; of the parameters that are parts, which part; where none is given, the default.
    """
    kinds = part_kinds(model)
    passes_on = any(asked.kind is asked.VAR_KEYWORD for asked in inspect.signature(model).parameters.values())
    options = {option.name: option for option in options_of(model, FIELDS_OF_FACTS)}
    for parameter, kind in kinds.items():
        option = options[parameter]
        told = f"{option.help} Installed: {', '.join(plugins.names(kind.plugin))}."
        options[parameter] = replace(option, help=told)
        part = chosen.get(parameter) or option.default
        if isinstance(part, str) and passes_on:
            for own in options_of(plugins.load(kind.plugin, part), kind.handed):
                name = f"{parameter}_{own.name}"
                options[name] = replace(own, name=name)
    return list(options.values())


def current_options(model: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Stored options of a model by their present names; one of a part that was not chosen is left out, since old runs
    held the options of every part."""
    own = inspect.signature(model).parameters
    known = {option.name for option in model_options(model, options)}
    renamed = {n: plugins.RENAMED_OPTIONS[n] for n in options if n in plugins.RENAMED_OPTIONS and n not in own}
    kept = {name: value for name, value in options.items() if name not in renamed}
    return kept | {new: options[old] for old, new in renamed.items() if new in known}
