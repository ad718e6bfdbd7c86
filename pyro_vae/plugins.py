"""Models and their parts, data sets, objectives, evaluators and trackers, found by name through entry points.

Built-in ones are registered in this project's own `pyproject.toml`, under the groups that third parties use. Nothing
is imported until its name is first used, so a broken plugin never stops the others.
"""

import ast
import inspect
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from pyro_vae import scripts
from pyro_vae.errors import PluginError, Renamed, UnknownName, find, warn_user

GROUPS = {
    "model": "pyro_vae.models",
    "dataset": "pyro_vae.datasets",
    "objective": "pyro_vae.objectives",
    "evaluator": "pyro_vae.evaluators",
    "tracker": "pyro_vae.trackers",
    "likelihood": "pyro_vae.likelihoods",
    "prior": "pyro_vae.priors",
    "context_prior": "pyro_vae.context_priors",
    "posterior": "pyro_vae.posteriors",
    "net": "pyro_vae.nets",
}

PACKAGE = Path(__file__).parent

DEFINITIONS = (ast.ClassDef, ast.FunctionDef)

RENAMED = {("model", "iwae"): "burda", ("schedule", "iwae"): "burda_steps"}
"""What something is called now, by its kind and its old name, which goes on working."""

RENAMED_OPTIONS = {"sigma": "likelihood_sigma", "components": "prior_components"}
"""What an option of a model's part is called now, by its old name, which goes on working."""


def names(kind: str) -> list[str]:
    """The registered names of a kind of plugin ("model", "dataset", "objective" or "evaluator"), sorted."""
    return sorted({entry.name for entry in entry_points(group=GROUPS[kind])})


def homes(kind: str) -> dict[str, str]:
    """The module of each class or function that is registered as a kind of plugin, by its Python name."""
    return {entry.attr: entry.module for entry in entry_points(group=GROUPS[kind])}


def current_name(kind: str, name: Any, warn: bool = False) -> Any:
    """What the thing of this old name is called now; any other name, or value, as it is.

    Args:
        warn: with a `Renamed` warning: for names that a user gives, not for those that a stored run holds.
    """
    if not isinstance(name, str):
        return name
    current = RENAMED.get((kind, name), name)
    if warn and current != name:
        warn_user(f"the {kind} {name!r} is now called {current!r}", Renamed)
    return current


def load(kind: str, name: str) -> Callable[..., Any]:
    """The class or function that a plugin registered under `name`, or under what the old name `name` became.

    A model may also be in a file, `my_model.py:MyPair`, which is then run; see `scripts.load`.

    Raises:
        UnknownName: nothing is registered under this name; lists what is.
        PluginError: two packages registered it, or importing it fails; says which and why.
    """
    if kind == "model" and scripts.in_file(name):
        return scripts.load(name)
    return _loaded(kind, _claimed(kind, current_name(kind, name)))


def name_of(kind: str, plugin: Any) -> str | None:
    """The name under which a class or function is registered, or None."""
    value = f"{plugin.__module__}:{plugin.__qualname__}"
    return next((entry.name for entry in entry_points(group=GROUPS[kind]) if entry.value == value), None)


def build(kind: str, name: str, options: Mapping[str, Any]) -> Any:
    """What a plugin makes when it is called with these options.

    Raises:
        UnknownName: no such plugin, or it has no such option; lists those that it has.
    """
    plugin = load(kind, name)
    known = inspect.signature(plugin).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        for option in options:
            if option not in known:
                raise UnknownName("option", option, known)
    return plugin(**options)


def installed(kind: str | None = None) -> dict[str, dict[str, str]]:
    """What is installed: of each kind the names, and of each name the first line of its docstring.

    Built-in plugins are not imported: their docstrings are read from their source. Of a plugin that cannot be imported
    the line says so, and why.

    Args:
        kind: "models", "datasets", "objectives", ...; None: all of them.

    Raises:
        UnknownName: no such kind.
    """
    plural = {f"{each}s": each for each in GROUPS}
    chosen = plural if kind is None else {kind: find("kind of plugin", kind, plural)}
    return {many: {name: _first_line(one, name) for name in names(one)} for many, one in chosen.items()}


def _first_line(kind: str, name: str) -> str:
    try:
        entry = _claimed(kind, name)
        text = _read_docstring(entry) if entry.module.startswith(f"{PACKAGE.name}.") else None
        return (text or _loaded(kind, entry).__doc__ or "").strip().split("\n")[0]
    except PluginError as problem:
        return f"BROKEN: {problem}"


def _read_docstring(entry: EntryPoint) -> str | None:
    """The docstring in the source of a built-in class or function; None where the source does not show it."""
    source = PACKAGE.parent.joinpath(*entry.module.split(".")).with_suffix(".py")
    if not source.exists():
        return None
    defined = (node for node in ast.parse(source.read_text("utf-8")).body if isinstance(node, DEFINITIONS))
    return next((ast.get_docstring(node) for node in defined if node.name == entry.attr), None)


def _claimed(kind: str, name: str) -> EntryPoint:
    """The one entry point of a name; raises as `load` does."""
    claims = {(entry.value, _package(entry)): entry for entry in entry_points(group=GROUPS[kind], name=name)}
    if not claims:
        raise UnknownName(kind.replace("_", " "), name, names(kind))
    if len(claims) > 1:
        packages = " and ".join(sorted(package for _, package in claims))
        raise PluginError(f"{kind} {name!r} is registered by {packages}; uninstall one of them")
    return next(iter(claims.values()))


def _loaded(kind: str, entry: EntryPoint) -> Callable[..., Any]:
    try:
        return entry.load()
    except Exception as reason:
        message = f"{kind} {entry.name!r} of package {_package(entry)} is broken: {type(reason).__name__}: {reason}"
        raise PluginError(" ".join(message.split())) from reason


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else entry.module
