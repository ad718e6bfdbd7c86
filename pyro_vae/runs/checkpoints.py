"""The checkpoints of a run: read with their checksums, held against what they must contain, and replaced by another
where one is damaged."""

import os
import shutil
import typing
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from pyro_vae import files
from pyro_vae.errors import DamagedError, Doubt, RunError, UserError

LAST, BEFORE, BEST = "last.pt", "previous.pt", "best.pt"

Fields = dict[str, tuple[list[int], str]]
Weights = dict[str, Tensor]

PAIR = {"pair": Weights, "epoch": int, "fields": Fields}
"""What every checkpoint holds, with its kind."""

STATE = PAIR | {
    "history": list[dict[str, float]],
    "optimizer": dict[str, Any],
    "objective": Any,
    "order": Tensor,
    "rng": Tensor,
}
"""What the state holds that a run goes on from."""

OPTIONAL = {
    "model": str,
    "facts": dict[str, Any],
    "options": dict[str, Any],
    "identity": dict[str, Any],
    "source": dict[str, str],
    "means": Weights,
    "size": int,
    "average": dict[str, Any] | None,
    "scheduler": dict[str, Any] | None,
    "within": dict[str, Any] | None,
    "cuda_rng": Tensor | None,
    "best": dict[str, Any],
}
"""What a checkpoint may hold; what it holds beside this is not read."""

BEST_EPOCH = {"epoch": int, "elbo": float, "pair": Weights | None}
"""What a state holds of the best epoch so far."""

COLUMNS = ("epoch", "loss", "valid_loss", "seconds")
"""What each row of a history has."""


def read_state(folder: Path) -> dict[str, Any]:
    """The state that the run in a folder goes on from: last.pt; where that is damaged, the save before, with a warning.

    Raises:
        RunError: there is none.
        DamagedError: none that is whole.
    """
    try:
        return _checked(folder / LAST, STATE)
    except RunError as problem:
        if not (folder / BEFORE).exists():
            raise
        state = _checked(folder / BEFORE, STATE)
        _say(f"{problem}; {folder / BEFORE}, the save before it, is used, of epoch {state['epoch']}")
        return state


def read_best(folder: Path) -> dict[str, Any]:
    """The checkpoint of a run's best epoch: best.pt; where that is damaged, what last.pt holds of it, with a warning.

    Raises:
        RunError: there is none, since no epoch was finished or the folder is no run's.
        DamagedError: none that is whole.
    """
    try:
        return _checked(folder / BEST, PAIR)
    except DamagedError as problem:
        state = read_state(folder)
        best = {**state, **state.get("best", {})}
        _check(folder / LAST, best, PAIR)
        _say(f"{problem}; its weights are taken from {LAST}")
        return best
    except RunError as problem:
        if (folder / LAST).exists():
            line = f"{folder / BEST} does not exist, since no epoch was finished; continue the run with --resume"
            raise RunError(line) from problem
        raise


def keep_before(folder: Path) -> None:
    """Keep last.pt as the save before the one that will replace it; at no moment is there no last.pt."""
    last, before = folder / LAST, folder / BEFORE
    if not last.exists():
        return
    try:
        before.unlink(missing_ok=True)
        os.link(last, before)
    except OSError:  # a file system without hard links
        with open(last, "rb") as source:
            files.write_whole(before, lambda file: shutil.copyfileobj(source, file))


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """What goes wrong as the contents of a checkpoint are used is the checkpoint's fault: raises `DamagedError`."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as problem:
        said = " ".join(str(problem).split())[:200]
        line = f"{path} holds something else than a checkpoint of this run ({type(problem).__name__}: {said})"
        raise DamagedError(line) from problem


def _checked(path: Path, required: Mapping[str, Any]) -> dict[str, Any]:
    state = files.load(path)
    _check(path, state, required)
    return state


def _check(path: Path, state: Mapping[str, Any], required: Mapping[str, Any]) -> None:
    """Raise `DamagedError` where something is missing or of another kind."""
    for name, kind in {**required, **OPTIONAL}.items():
        if name not in state and name in required:
            raise DamagedError(f"{path} is no checkpoint of a run: it holds no {name}")
        if name in state and not _is_a(state[name], kind):
            raise DamagedError(f"{path} is no checkpoint of a run: its {name} is not what a run has there")
    best = state.get("best", {"epoch": 0, "elbo": 0.0, "pair": None})
    if not all(_is_a(best.get(name, ""), kind) for name, kind in BEST_EPOCH.items()):
        raise DamagedError(f"{path} is no checkpoint of a run: its best is not what a run has there")
    history = state.get("history", [])
    if "history" in required and len(history) != state["epoch"]:
        raise DamagedError(f"{path} is no checkpoint of a run: it has {len(history)} rows for {state['epoch']} epochs")
    if any(column not in row for row in history for column in COLUMNS):
        raise DamagedError(f"{path} is no checkpoint of a run: its history lacks one of {', '.join(COLUMNS)}")


def _is_a(value: Any, kind: Any) -> bool:
    """Whether a value is of a kind, and what it contains of the kinds that are named for it."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return True
    if origin is dict:
        return isinstance(value, dict) and all(_is_a(k, inner[0]) and _is_a(v, inner[1]) for k, v in value.items())
    if origin is list:
        return isinstance(value, list | tuple) and all(_is_a(item, inner[0]) for item in value)
    if origin is tuple:
        fits = isinstance(value, list | tuple) and len(value) == len(inner)
        return fits and all(map(_is_a, value, inner))
    if origin is not None:  # one of several kinds
        return any(_is_a(value, one) for one in inner)
    if kind in (int, float):
        return isinstance(value, int | kind) and not isinstance(value, bool) and (kind is float or value >= 0)
    return isinstance(value, kind)


def _say(line: str) -> None:
    warnings.warn(line, Doubt, stacklevel=3)
