"""Run folders: what a finished training left, and how to get its pair back."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from pyro_vae import files, plugins
from pyro_vae.data.dataset import FIELDS_OF_FACTS
from pyro_vae.errors import DataError, RunError

CONFIG, LAST, BEST, METRICS, EVALUATION, REPORT = (
    "config.yaml",
    "last.pt",
    "best.pt",
    "metrics.csv",
    "evaluation.json",
    "report.md",
)
RUN_FILES = (CONFIG, LAST, BEST, METRICS, EVALUATION, REPORT)
FIGURES = "figures"


@dataclass(frozen=True)
class StoredRun:
    """A run folder that was read.

    Attributes:
        folder: where it is.
        pair: the pair with its best weights, under `eval()`.
        config: every setting, as `config.yaml` holds them.
        fields: shape and dtype of one datum of each field that the pair takes.
        history: a row an epoch.
    """

    folder: Path
    pair: nn.Module
    config: dict[str, Any]
    fields: dict[str, tuple[list[int], str]]
    history: list[dict[str, float]]


def build_model(name: str, facts: Mapping[str, Any], options: Mapping[str, Any], seed: int = 0) -> nn.Module:
    """Build a registered model: what its signature asks of the data comes from `facts`, the rest from `options`.

    Args:
        seed: fixes the initial weights; torch's global generator is left as it was.

    Raises:
        UnknownName: no such model.
        DataError: the data do not offer what the model asks for.
    """
    constructor = plugins.load("model", name)
    parameters = inspect.signature(constructor).parameters
    given = {key: value for key, value in facts.items() if key in parameters} | dict(options)
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in given:
            field = f", so data with a field {FIELDS_OF_FACTS[key]}" if key in FIELDS_OF_FACTS else ""
            raise DataError(f"model {name!r} needs {key}{field}; these data offer {', '.join(facts)}")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return constructor(**given)


def load_run(folder: str | Path, pair: nn.Module | None = None) -> StoredRun:
    """Read a run folder; the pair holds its best weights.

    Args:
        folder: the run folder.
        pair: where given, the weights are read into it; needed for a pair that no plugin registers.

    Raises:
        RunError: not a run folder, or the run of another model.
    """
    folder = Path(folder)
    best = files.load(folder / BEST)
    if pair is None:
        if "options" not in best:
            raise RunError(f"{folder} holds a pair that no plugin built; give it: load_run(folder, pair=...)")
        pair = build_model(best["model"], best["facts"], best["options"])
    load_weights(pair, best, folder)
    history = files.load(folder / LAST)["history"]
    return StoredRun(folder, pair.eval(), read_config(folder), best["fields"], history)


def load_weights(pair: nn.Module, checkpoint: Mapping[str, Any], folder: Path) -> None:
    """Put a checkpoint's weights into a pair; raises `RunError` where they are of another model."""
    try:
        pair.load_state_dict(checkpoint["pair"])
    except (RuntimeError, KeyError) as reason:
        detail = str(reason).splitlines()[-1].strip()
        raise RunError(f"{folder} is the run of another model than {type(pair).__name__}: {detail}") from reason


def run_files(folder: Path) -> list[Path]:
    """What runs write to their folder; pictures count only where there is a checkpoint beside them."""
    figures = (folder / FIGURES).glob("*.png") if (folder / LAST).exists() else ()
    return [*(folder / name for name in RUN_FILES), *figures]


def read_config(folder: Path) -> dict[str, Any]:
    """The settings of a run; empty for a run that was not started by the command line."""
    path = folder / CONFIG
    return read_settings(path) if path.exists() else {}


def read_settings(path: Path) -> dict[str, Any]:
    """Settings from a YAML file, by their present names; raises `RunError` where it cannot be read or is no mapping."""
    try:
        settings = yaml.safe_load(path.read_text())
    except OSError as problem:
        raise RunError(f"cannot read {path}: {problem.strerror}") from problem
    except (yaml.YAMLError, UnicodeDecodeError) as reason:
        raise RunError(f"{path} is not YAML: {' '.join(str(reason).split())}") from reason
    if not isinstance(settings, dict):
        raise RunError(f"{path} must hold settings, one `name: value` a line")
    return {name: plugins.current_name(name, value) for name, value in settings.items()}


def new_folder(name: str) -> Path:
    """The first of runs/NAME-1, runs/NAME-2, ... that does not exist."""
    number = 1
    while (folder := Path("runs") / f"{name}-{number}").exists():
        number += 1
    return folder
