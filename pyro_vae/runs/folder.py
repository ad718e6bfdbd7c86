"""A run folder: its files, what may be written to it, and when."""

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pyro_vae import files
from pyro_vae.engine import processes
from pyro_vae.errors import RunError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONFIG, LAST, BEST, METRICS, EVALUATION, REPORT = RUN_FILES = (
    "config.yaml last.pt best.pt metrics.csv evaluation.json report.md".split()
)
FIGURES = "figures"


class RunFolder:
    """Where training writes its run. Without a path nothing is written; of several processes, the first writes.

    Args:
        out: the folder, which need not exist yet, or None.
        resume: go on with the run that is there.
        overwrite: replace the run that is there.

    Attributes:
        path: the folder, or None.
        stored: the state to go on from, or None.

    Raises:
        RunError: it holds a run already and neither `resume` nor `overwrite` is set, or there is nothing to resume.
    """

    def __init__(self, out: str | Path | None = None, resume: bool = False, overwrite: bool = False):
        self.path = None if out is None else Path(out)
        if self.path is None:
            if resume:
                raise RunError("resume needs the run folder: say out=DIR")
        elif self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path} is a file; choose another --out")
        elif resume and not (self.path / LAST).exists():
            raise RunError(f"nothing to resume: {self.path / LAST} does not exist")
        elif self.path.exists() and any(self.path.iterdir()) and not (resume or overwrite):
            raise RunError(
                f"{self.path} exists; continue it with --resume, replace it with --overwrite, or choose another --out"
            )
        self.stored = files.load(self.path / LAST) if self.path and resume else None
        self.replace = overwrite and not resume

    def begin(self, config: Mapping[str, Any] | None) -> None:
        """Make the folder, take away what a run that is to be replaced left there, and write the settings; raises
        `RunError` where the folder cannot be written."""
        if not self._writes:
            return
        pictures = (self.path / FIGURES).glob("*.png") if (self.path / LAST).exists() else ()  # may be a user's own
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for path in (*(self.path / name for name in RUN_FILES), *pictures) if self.replace else ():
                path.unlink(missing_ok=True)
        except OSError as problem:
            raise RunError(f"cannot write {self.path}: {problem.strerror}") from problem
        if config is not None:
            files.write_text(self.path / CONFIG, yaml.safe_dump(dict(config), sort_keys=False))

    def save(self, last: dict[str, Any], best: dict[str, Any] | None) -> None:
        """Write the state to go on from, the best epoch's where there has been one, and the history, a row an epoch."""
        if not self._writes:
            return
        files.save(self.path / LAST, last)
        if best is not None:
            files.save(self.path / BEST, best)
        text, history = io.StringIO(), last["history"]
        if history:
            writer = csv.DictWriter(text, fieldnames=list(history[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(history)
        files.write_text(self.path / METRICS, text.getvalue())

    @property
    def _writes(self) -> bool:
        return self.path is not None and processes.rank() == 0


def keep_result(folder: Path, entry: Mapping[str, Any], figures: Mapping[str, "Figure"]) -> None:
    """Put a result into `evaluation.json`, in place of one with the same settings, and its figures into `figures/`."""
    entry = dict(entry)
    for name, figure in figures.items():
        path = folder / FIGURES / f"{entry['evaluator']}_{name}.png"
        files.write_whole(path, lambda file, figure=figure: figure.savefig(file, format="png"))
        entry.setdefault("figures", []).append(str(path.relative_to(folder)))
    same = ("evaluator", "data", "split", "n", "particles")
    others = [old for old in read_results(folder) if any(old.get(key) != entry[key] for key in same)]
    files.write_text(folder / EVALUATION, json.dumps([*others, entry], indent=2) + "\n")


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The entries of `evaluation.json`."""
    path = folder / EVALUATION
    return json.loads(path.read_text()) if path.exists() else []


def new_folder(name: str) -> Path:
    """The first of runs/NAME-1, runs/NAME-2, ... that does not exist."""
    number = 1
    while (folder := Path("runs") / f"{name}-{number}").exists():
        number += 1
    return folder
