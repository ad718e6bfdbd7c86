"""Names that are imported when they are first used, so that `import pyro_vae` and a command's help cost little."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def late(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of a package.

    Args:
        package: its name.
        homes: the module of each public name; for a name that is a module itself, `MODULE:`, and for one that has
            another name there, `MODULE:NAME`.
    """

    def attribute(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home, colon, other = homes[name].partition(":")
        module = import_module(home)
        return module if colon and not other else getattr(module, other or name)

    return attribute, lambda: sorted(homes)
