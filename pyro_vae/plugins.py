"""Models, data sets, objectives and evaluators, found by name through entry points.

Built-in ones are registered in this project's own `pyproject.toml`, under the groups that third parties use. Nothing
is imported until its name is first used, so a broken plugin never stops the others.
"""

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pyro_vae.errors import PluginError, UnknownName

GROUPS = {
    "model": "pyro_vae.models",
    "dataset": "pyro_vae.datasets",
    "objective": "pyro_vae.objectives",
    "evaluator": "pyro_vae.evaluators",
}


def names(kind: str) -> list[str]:
    """The registered names of a kind of plugin ("model", "dataset", "objective" or "evaluator"), sorted."""
    return sorted({entry.name for entry in entry_points(group=GROUPS[kind])})


def load(kind: str, name: str) -> Callable[..., Any]:
    """The class or function that a plugin registered under `name`.

    Raises:
        UnknownName: nothing is registered under this name; lists what is.
        PluginError: two packages registered it, or importing it fails; says which and why.
    """
    claims = {(entry.value, _package(entry)): entry for entry in entry_points(group=GROUPS[kind], name=name)}
    if not claims:
        raise UnknownName(kind, name, names(kind))
    if len(claims) > 1:
        packages = " and ".join(sorted(package for _, package in claims))
        raise PluginError(f"{kind} {name!r} is registered by {packages}; uninstall one of them")
    entry = next(iter(claims.values()))
    try:
        return entry.load()
    except Exception as reason:
        message = f"{kind} {name!r} of package {_package(entry)} is broken: {type(reason).__name__}: {reason}"
        raise PluginError(" ".join(message.split())) from reason


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else entry.module
