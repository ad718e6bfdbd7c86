"""A run folder: its files, what may be written to it, and when."""

import csv
import io
import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import unquote

import yaml

from pyro_vae import files
from pyro_vae.engine import processes
from pyro_vae.errors import Doubt, RunError
from pyro_vae.runs.checkpoints import BEFORE, BEST, LAST, keep_before, read_state
from pyro_vae.runs.lock import Lock, locked
from pyro_vae.stops import STOPS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONFIG, METRICS, EVALUATION, REPORT = "config.yaml metrics.csv evaluation.json report.md".split()
RUN_FILES = (CONFIG, LAST, BEFORE, BEST, METRICS, EVALUATION, REPORT)
FIGURES = "figures"
LOCK, RESULTS_LOCK = ".lock", ".results.lock"

SAME = ("evaluator", "data", "split", "n", "particles")
"""The settings of a result that make it another one."""

PICTURE = re.compile(FIGURES + r"/([\w%.-]+\.png)")
"""How report.md and evaluation.json name the pictures that a run wrote."""


class RunFolder:
    """Where training writes its run. Without a path nothing is written; of several processes, the first writes.

    While it is entered its lock is held, and nobody else's run can be written there. A run that ends before its first
    save leaves no folder.

    Args:
        out: the folder, which need not exist yet, or None.
        resume: go on with the run that is there.
        overwrite: replace the run that is there, once there is something to replace it by.

    Attributes:
        path: the folder, or None.
        stored: the state to go on from, or None.
        resumable: whether it holds a state that this run goes on from.

    Raises:
        RunError: another process is writing it, it holds a run already and neither `resume` nor `overwrite` is set, or
            there is nothing to resume.
    """

    def __init__(self, out: str | Path | None = None, resume: bool = False, overwrite: bool = False):
        self.path = None if out is None else Path(out)
        self.resume, self.replace = resume, overwrite and not resume
        self.stored: dict[str, Any] | None = None
        self.config: Mapping[str, Any] | None = None
        self.resumable = self.begun = self.was_killed = False
        self.made: list[Path] = []
        if self.path is None:
            if resume:
                raise RunError("resume needs the run folder: say out=DIR")
            return
        self.lock = Lock(self.path / LOCK)
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path} is a file; choose another --out")
        if resume and not self._holds_a_state():
            there = ", and with --overwrite" if self.path.exists() and any(self.path.iterdir()) else ""
            raise RunError(
                f"nothing to resume: {self.path / LAST} does not exist; start the run without --resume{there}"
            )

    def __enter__(self) -> Self:
        if self.path is None:
            return self
        try:
            if processes.is_first():
                self._take()
                self._clean_up()
                if not (self.resume or self.replace) and self._others():
                    how = "continue it with --resume, " if self._holds_a_state() else ""
                    raise RunError(f"{self.path} exists; {how}replace it with --overwrite, or choose another --out")
            self.stored = read_state(self.path) if self.resume else None
        except BaseException:
            self._leave()
            raise
        self.resumable = self.stored is not None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.path is not None:
            if self.resumable and isinstance(problem, STOPS):
                problem.resumable = self.path  # type: ignore[attr-defined]
            self._leave()

    def begin(self, config: Mapping[str, Any] | None) -> None:
        """Say which settings the first save writes beside the state."""
        self.config = config

    def save(self, last: dict[str, Any], best: dict[str, Any] | None) -> None:
        """Write the state to go on from, the best epoch's where there has been one, and the history, a row an epoch.

        The first time, once the state is on the disk, what a run that is to be replaced left is taken away, and the
        settings are written. The state that was saved before is kept. A folder that was deleted is made again.

        Raises:
            RunError: the folder cannot be written.
        """
        if self.path is None or processes.rank() != 0:
            return
        if self.lock.is_lost():
            self.lock.release()
            self._take()
            self.begun = False
        files.save(self.path / LAST, last, then=self._make_way)
        self.resumable = True
        if best is not None:
            files.save(self.path / BEST, best)
        text, history = io.StringIO(), last["history"]
        if history:
            writer = csv.DictWriter(text, fieldnames=list(history[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(history)
        files.write_text(self.path / METRICS, text.getvalue())

    def _make_way(self) -> None:
        """What goes before a state takes its place."""
        if self.replace:
            self._take_away()
        else:
            keep_before(self.path)
        if not self.begun and self.config is not None:
            files.write_text(self.path / CONFIG, yaml.safe_dump(dict(self.config), sort_keys=False))
        self.begun, self.replace = True, False

    def _take_away(self) -> None:
        """Remove what another run left; its state itself is replaced."""
        try:
            for path in self._of_the_old_run():
                path.unlink(missing_ok=True)
        except OSError as problem:
            raise RunError(f"cannot write {self.path}: {problem.strerror}") from problem

    def _of_the_old_run(self) -> list[Path]:
        """The files that a run wrote, its pictures as its report and results name them, unless a link leads to them."""
        pictures = self.path / FIGURES
        texts = [self.path / name for name in (REPORT, EVALUATION) if (self.path / name).is_file()]
        named = {name for path in texts for name in PICTURE.findall(path.read_text(errors="replace"))}
        mine = [pictures / unquote(name) for name in sorted(named)] if not pictures.is_symlink() else []
        return [self.path / name for name in RUN_FILES if name != LAST] + [
            path for path in mine if path.parent == pictures
        ]

    def _take(self) -> None:
        """Make the folder and take its lock."""
        try:
            self.made = [p for p in (self.path, *self.path.parents) if not p.exists()]
            self.path.mkdir(parents=True, exist_ok=True)
            self.was_killed = self.lock.path.exists()
            taken = self.lock.take()
        except OSError as problem:
            raise RunError(f"cannot write {self.path}: {problem.strerror}") from problem
        if not taken:
            raise RunError(f"{self.path} is being written by another run; wait for it, or choose another --out")

    def _leave(self) -> None:
        """Give up the lock; where nothing was saved, also the settings that were written and the folders made."""
        if self.begun and not self.resumable:
            (self.path / CONFIG).unlink(missing_ok=True)
        self.lock.release()
        for folder in self.made if not self.resumable else ():
            with suppress(OSError):  # it holds something of someone else's
                folder.rmdir()

    def _clean_up(self) -> None:
        """Remove the temporary files of a run that was killed."""
        with locked(self.path / RESULTS_LOCK):
            pictures = () if (self.path / FIGURES).is_symlink() else (self.path / FIGURES).glob(".*")
            for path in (*self.path.iterdir(), *pictures):
                written = files.TEMPORARY.fullmatch(path.name)
                if written and (written[1] in RUN_FILES or path.parent != self.path):
                    path.unlink(missing_ok=True)

    def _others(self) -> list[str]:
        """What is in the folder beside the lock, and the settings of a run that was killed in its first save."""
        own = (LOCK, CONFIG) if self.was_killed else (LOCK,)
        return [path.name for path in self.path.iterdir() if path.name not in own]

    def _holds_a_state(self) -> bool:
        return (self.path / LAST).exists() or (self.path / BEFORE).exists()


def check_writable(folder: Path) -> None:
    """Raise `RunError` where no result can be kept in a folder, before hours go into one."""
    with locked(folder / RESULTS_LOCK):
        pass


def keep_result(folder: Path, entry: Mapping[str, Any], figures: Mapping[str, "Figure"]) -> None:
    """Put a result into `evaluation.json`, in place of one with the same settings, and its figures into `figures/`.

    Of several processes that do so at once, each waits for the other.

    Raises:
        RunError: the folder is not there any more, or cannot be written.
    """
    entry = dict(entry)
    with locked(folder / RESULTS_LOCK):
        for name, figure in figures.items():
            path = folder / FIGURES / f"{entry['evaluator']}_{name}.png"
            files.write_whole(path, lambda file, figure=figure: figure.savefig(file, format="png"))
            entry.setdefault("figures", []).append(str(path.relative_to(folder)))
        others = [old for old in read_results(folder) if any(old.get(key) != entry[key] for key in SAME)]
        files.write_text(folder / EVALUATION, json.dumps([*others, entry], indent=2) + "\n")


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The entries of `evaluation.json`; where it is damaged none, and it is set aside, with a warning."""
    path = folder / EVALUATION
    if not path.exists():
        return []
    try:
        files.check_regular(path)
        entries = json.loads(path.read_text())
        if not all(isinstance(entry, dict) and {*SAME, "seconds"} <= entry.keys() for entry in entries):
            raise ValueError("an entry is no result")
    except (OSError, ValueError, TypeError, RecursionError) as problem:
        return _set_aside(path, problem)
    return entries


def _set_aside(path: Path, problem: Exception) -> list[Any]:
    aside = path.with_suffix(".damaged" + path.suffix)
    try:
        os.replace(path, aside)
    except OSError as reason:
        raise RunError(f"{path} is damaged and cannot be set aside: {reason.strerror}") from problem
    said = " ".join(str(problem).split())[:100]
    warnings.warn(f"{path} is damaged ({said}) and is kept as {aside.name}; results go into a new one", Doubt, 3)
    return []


@contextmanager
def new_folder(name: str) -> Iterator[Path]:
    """The first of runs/NAME-1, runs/NAME-2, ... that does not exist.

    It is made at once, so that no other process takes it, and is taken away again where it stays empty.

    Raises:
        RunError: it cannot be made.
    """
    number, parent = 1, Path("runs")
    while True:
        folder = parent / f"{name}-{number}"
        try:
            folder.mkdir(parents=True)
            break
        except FileExistsError:
            number += 1
        except OSError as problem:
            raise RunError(f"cannot write {folder}: {problem.strerror}") from problem
    try:
        yield folder
    finally:
        for made in (folder, parent):
            with suppress(OSError):  # it is not empty
                made.rmdir()
