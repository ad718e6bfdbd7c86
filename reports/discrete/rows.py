"""Rows of tables that are kept in a folder, so that what was stopped goes on where it was."""

import json
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from kept import kept

import pyro_vae as pv

NOT_RUN = "not run"

Found = dict[str, Any]


class Rows:
    """The rows of one section.

    Args:
        folder: where they are kept.
        only: rows whose names lack one of these words are read, but not made.
    """

    def __init__(self, folder: Path, only: str = ""):
        self.folder, self.only = folder, only.split()

    def place(self, name: str) -> Path:
        """The folder of a row."""
        return self.folder / name.replace(",", "").replace(" ", "_")

    def get(self, name: str, make: Callable[[Path], Mapping[str, Any]]) -> Found | None:
        """What is kept under a name, or else what is made in a folder of this name, and then kept; None where it is not
        to be made."""
        folder = self.place(name)
        file = folder / "row.json"
        if not file.exists() and not all(word in name for word in self.only):
            return None
        return kept(file, partial(_made, name, make, folder))


def _made(name: str, make: Callable[[Path], Mapping[str, Any]], folder: Path) -> Found:
    """What is made, and how long it took."""
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    found = dict(make(folder))
    found.setdefault("seconds", time.perf_counter() - start)
    print(f"{name}: {json.dumps(found)}", flush=True)
    return found


def seconds(*runs: pv.Run) -> float:
    """How long these were trained, validation included."""
    return sum(row["seconds"] for run in runs for row in run.history)


def cell(found: Found | None, key: str, form: str = ".2f") -> str:
    """A figure of a row."""
    return NOT_RUN if found is None else format(found[key], form)


def minutes(found: Found | None) -> str:
    """How long a row took."""
    return NOT_RUN if found is None else f"{found['seconds'] / 60:.1f}"


def verdict(value: float | None, bar: float, form: str = ".2f", at_least: bool = False) -> str:
    """Whether a figure is where it is wanted, in words."""
    words = f"at {'least' if at_least else 'most'} {bar:{form}} was wanted"
    if value is None:
        return f"{words}: {NOT_RUN}"
    reached = value >= bar if at_least else value <= bar
    return f"{words}, and {'reached' if reached else f'missed by {abs(value - bar):{form}}'}"
