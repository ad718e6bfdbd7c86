"""Reports and examples are written as users write: with `import pyro_vae as pv` and what is reached from it."""

import ast
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import pyro_vae as pv

ROOT = Path(__file__).parent.parent
FILES = sorted(path for folder in ("examples", "reports") for path in (ROOT / folder).rglob("*.py"))

FORKED = "each case is a process forked from one that has imported everything"
WITHIN = "runs are stopped within a write"

INNER = {
    "reports/discrete/chains.py": {
        "data.sets.planted_chains": "the law that the made-up chains follow",
        "evaluation.classify": "states are matched as clusters are",
    },
    "reports/discrete/clusters.py": {"evaluation.classify": "scikit-learn's clusters are matched as ours are"},
    "reports/discrete/documents.py": {"data.sets.planted_topics": "the topics that were planted"},
    "reports/discrete/labels.py": {
        "data.labels": "other labels are hidden in images that stay the same",
        "plots.mosaic": "a picture of its own",
    },
    "reports/kept.py": {"files": "what is made is kept whole or not at all"},
    "reports/reliability/damage.py": {
        "command_line.main": FORKED,
        "files": WITHIN,
        "runs.checkpoints": "the names of the files that are damaged or compared",
        "training": "how often a run is saved",
    },
    "reports/reliability/drawn.py": {
        "command_line.main": FORKED,
        "errors": "what a refusal is",
        "training": "how often a run is saved",
    },
    "reports/reliability/kills.py": {
        "command_line.main": FORKED,
        "files": WITHIN,
        "runs.checkpoints": "the names of the files that are damaged or compared",
        "training": "how often a run is saved",
    },
    "reports/reliability/resources.py": {
        "command_line.main": FORKED,
        "files": WITHIN,
        "training": "how often a run is saved",
    },
    "reports/reliability/run.py": {
        "command_line.main": FORKED,
        "evaluation.importance": FORKED,
        "reporting.verbs": FORKED,
        "testing": FORKED,
        "training.train": FORKED,
    },
    "reports/sampling.py": {
        "evaluation.blocks": "the size of the blocks, so that the matrix products alone are timed in the same shape",
        "evaluation.chunks": "how many rows are computed at a time, for the same reason",
    },
    "reports/importance_speed/run.py": {"evaluation.blocks": "the size of a block, which the report tells"},
    "reports/throughput/contenders.py": {
        "data.binarize": "data that are drawn anew in each batch, from images that no file holds",
        "engine.devices": "what the loop is made with",
        "training.loop": "the steps of an epoch without its validation and its files",
    },
    "reports/throughput/enumerated.py": {
        "engine.devices": "what the loop is made with",
        "training.loop": "the steps of an epoch without its validation and its files",
    },
    "reports/throughput/run.py": {"files": "what is measured is kept whole, or as it was"},
    "reports/throughput/growth.py": {
        "data.split": "how much of a memory-mapped split is read at a time, for the steps that this takes",
        "engine.devices": "what the loop is made with",
        "training.loop": "the steps of an epoch without its validation and its files",
    },
}
"""What a report may import because it measures an inner part, by file and module, and why."""


def inner_imports(text: str) -> Iterator[str]:
    """The modules of pyro_vae, below its door, that a program imports; a door is imported by name from the package."""
    for node in ast.walk(ast.parse(text)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module == "pyro_vae":
            names = [f"pyro_vae.{alias.name}" for alias in node.names if alias.name not in dir(pv)]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        yield from (name.removeprefix("pyro_vae.") for name in names if name.startswith("pyro_vae."))


def test_there_are_reports_and_examples():
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == {"examples", "reports"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_report_or_example_uses_the_public_doors(path):
    """What is allowed has to be used as well."""
    assert set(inner_imports(path.read_text())) == set(INNER.get(path.relative_to(ROOT).as_posix(), {}))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_it_reaches_from_the_package_is_there(path):
    """Every `pv.NAME`, and `pv.DOOR.NAME` where the first is a module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "pv":
            assert hasattr(pv, node.attr), f"pv.{node.attr}"
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value).startswith("pv."):
            door = getattr(pv, ast.unparse(node.value).split(".")[1].split("(")[0])
            if isinstance(door, ModuleType) and ast.unparse(node.value).count(".") == 1:
                assert hasattr(door, node.attr), ast.unparse(node)


@pytest.mark.parametrize(
    "text, found",
    {
        "import pyro_vae as pv": [],
        "from pyro_vae import plots, VAE": [],
        "from pyro_vae import plugins": ["plugins"],
        "def f():\n    from pyro_vae.training.loop import Trainer": ["training.loop"],
        "import pyro_vae.engine.step": ["engine.step"],
        "from pyro import poutine": [],
    }.items(),
)
def test_the_walk_finds_what_is_below_the_door(text, found):
    assert list(inner_imports(text)) == found
