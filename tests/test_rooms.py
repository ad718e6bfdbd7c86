"""The house: a room imports only from its own files and from rooms below it, in functions and for types as well."""

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import pyro_vae

HOUSE = Path(pyro_vae.__file__).parent
README = Path(__file__).parent.parent / "README.md"

ROOMS = [
    ["__init__"],
    ["command_line"],
    ["testing"],
    ["training"],
    ["reporting"],
    ["evaluation"],
    ["runs"],
    ["plots"],
    ["objectives"],
    ["engine"],
    ["models"],
    ["pair"],
    ["data"],
    ["parts"],
    ["plugins", "scripts", "files", "kinds", "stops", "errors", "late", "arviz_adapter"],
]
"""The rooms from the top down; what stands side by side may import each other."""

FAMILIES = {"vae": "vae", "presets": "vae"}
"""Files of one model family, by the family's name; any other file of `models` is a family by itself."""


class Import(NamedTuple):
    """An import of one of our modules by another: their names below `pyro_vae`, and the line."""

    importer: str
    imported: str
    line: int

    @property
    def place(self) -> str:
        return f"pyro_vae/{self.importer.replace('.', '/')}.py:{self.line}"


def module_of(path: Path, house: Path = HOUSE) -> str:
    """`engine.step` for engine/step.py, `engine` for engine/__init__.py, `__init__` for the package itself."""
    parts = path.relative_to(house).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def modules_of(house: Path = HOUSE) -> dict[str, Path]:
    return {module_of(path, house): path for path in sorted(house.rglob("*.py"))}


def imports_of(house: Path = HOUSE) -> list[Import]:
    """All imports of our own modules, wherever in a file they stand."""
    modules = modules_of(house)
    return [
        Import(name, target, node.lineno)
        for name, path in modules.items()
        for node in ast.walk(ast.parse(path.read_text()))
        for target in _targets(node, name, path, modules)
        if target != name
    ]


def _targets(node: ast.AST, name: str, path: Path, modules: dict[str, Path]) -> Iterator[str]:
    """The modules that an import statement names: `from pyro_vae.pair import terms` names `pair.terms`."""
    if isinstance(node, ast.Import):
        named = [alias.name for alias in node.names if alias.name.partition(".")[0] == "pyro_vae"]
        yield from (full.removeprefix("pyro_vae").removeprefix(".") or "__init__" for full in named)
    elif isinstance(node, ast.ImportFrom):
        base = _base(node, name, path)
        for alias in node.names if base is not None else ():
            inner = f"{base}.{alias.name}".removeprefix(".")
            yield inner if inner in modules else base or "__init__"


def _base(node: ast.ImportFrom, name: str, path: Path) -> str | None:
    """The package that a statement imports from, below `pyro_vae` and "" for itself; None: one that is not ours."""
    if node.level == 0:
        first, _, rest = (node.module or "").partition(".")
        return rest if first == "pyro_vae" else None
    own = [] if name == "__init__" else name.split(".")
    above = own if path.name == "__init__.py" else own[:-1]
    kept = above[: len(above) + 1 - node.level]
    return ".".join([*kept, *filter(None, [node.module])])


def room_of(module: str) -> str:
    return module.partition(".")[0]


def height_of(module: str) -> int:
    return -next(i for i, rooms in enumerate(ROOMS) if room_of(module) in rooms)


def uphill(imports: list[Import]) -> list[str]:
    """The imports from a room above, each with its place and both rooms."""
    return [
        f"{i.place}: {room_of(i.importer)} imports pyro_vae.{i.imported}, and {room_of(i.imported)} is above it"
        for i in imports
        if height_of(i.imported) > height_of(i.importer)
    ]


def between_families(imports: list[Import]) -> list[str]:
    """The imports of one model family by another."""
    return [
        f"{i.place}: the family {_family(i.importer)} imports the family {_family(i.imported)}"
        for i in imports
        if room_of(i.importer) == room_of(i.imported) == "models" and _family(i.importer) != _family(i.imported)
    ]


def _family(module: str) -> str:
    name = (module.split(".") + ["models"])[1]
    return FAMILIES.get(name, name)


def circle(imports: list[Import]) -> list[str]:
    """Modules that import each other in a circle, each the next; empty where there is none."""
    graph: dict[str, set[str]] = {}
    for i in imports:
        graph.setdefault(i.importer, set()).add(i.imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as found:
        return found.args[1]
    return []


def test_every_module_is_in_a_room():
    known = [room for rooms in ROOMS for room in rooms]
    assert sorted({room_of(module) for module in modules_of()}) == sorted(known)


def test_the_readme_lists_the_rooms_from_the_top_down():
    section = README.read_text().partition("## Where things are")[2].partition("\n## ")[0]
    named = [room for row in section.splitlines() for room in re.findall(r"`(\w+)(?:/|\.py)`", row.split(" | ")[0])]
    named.remove("pyro_vae")
    assert named == [room for rooms in ROOMS for room in rooms if room != "__init__"]


def test_imports_go_only_downhill():
    assert not uphill(imports_of()), "\n".join(uphill(imports_of()))


def test_model_families_do_not_import_each_other():
    assert not between_families(imports_of()), "\n".join(between_families(imports_of()))


def test_no_modules_import_each_other_in_a_circle():
    assert not circle(imports_of()), " imports ".join(circle(imports_of()))


UPHILL = {
    "at the top": "from pyro_vae.training.train import train",
    "in a function": "def f():\n    from pyro_vae.training import train",
    "for types": "if TYPE_CHECKING:\n    import pyro_vae.training.train",
    "a module of a package": "from pyro_vae import training",
    "the package itself": "import pyro_vae as pv",
    "a name of the package": "from pyro_vae import VAE",
    "relative": "from ..training import train",
}


@pytest.fixture
def small_house(tmp_path):
    """A house with a room for pairs and one for training, and a writer of their files."""
    for room in ("pair", "training", "models"):
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").touch()
    (tmp_path / "__init__.py").touch()

    def write(module: str, text: str) -> Path:
        (tmp_path / f"{module.replace('.', '/')}.py").write_text(text)
        return tmp_path

    write("training.train", "from pyro_vae.pair import terms\nfrom pyro_vae.pair.terms import LogTerms\nimport torch")
    write("pair.terms", "")
    return write


@pytest.mark.parametrize("statement", UPHILL.values(), ids=UPHILL)
def test_the_walk_finds_an_import_from_a_room_above(small_house, statement):
    (found,) = uphill(imports_of(small_house("pair.terms", statement)))
    assert found.startswith(f"pyro_vae/pair/terms.py:{len(statement.splitlines())}: pair imports pyro_vae.")
    assert found.endswith(("and training is above it", "and __init__ is above it"))


def test_the_walk_finds_circles_and_families_that_know_each_other(small_house):
    assert not circle(imports_of(small_house("pair.sites", "from pyro_vae.pair import terms")))
    assert set(circle(imports_of(small_house("pair.terms", "from .sites import x")))) == {"pair.terms", "pair.sites"}
    small_house("models.presets", "from pyro_vae.models.vae import VAE")
    small_house("models.vae", "")
    house = small_house("models.cvae", "from pyro_vae.models import vae")
    assert between_families(imports_of(house)) == ["pyro_vae/models/cvae.py:1: the family cvae imports the family vae"]
