"""Runs that are killed or stopped at a random moment, and go on: is the end the same, bit for bit?"""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cases import Outcome, ended, forked, outcome

import pyro_vae as pv
from pyro_vae import files
from pyro_vae.runs.checkpoints import BEST, LAST
from pyro_vae.training import by_name, loop

DIGITS = {"data": "digits", "seed": 1, "progress": False}
SMALL = {"model_options": {"hidden": [32]}, "epochs": 15, **DIGITS}

WAYS: dict[str, dict[str, Any]] = {
    "plain": {**SMALL},
    "schedules": {**SMALL, "schedule": "cosine", "lr_warmup": 3, "kl_warmup": 9, "clip": 5.0},
    "averaged weights": {**SMALL, "ema": 0.99},
    "accumulated, importance weighted": {**SMALL, "accumulate": 3, "objective": "iwae", "particles": 3},
    "baselines": {
        "pair": "sigmoid_belief_net",
        "objective": "trace_graph_elbo",
        "epochs": 6,
        "model_options": {"latent_dims": [8]},
        **DIGITS,
    },
    "with its report": {**SMALL, "epochs": 6},
    "compiled": {**SMALL, "epochs": 60, "engine": "compiled", "progress": True},
    "compiled, averaged weights": {**SMALL, "epochs": 60, "engine": "compiled", "progress": True, "ema": 0.99},
}
"""The settings of each kind of run."""

KILLS = {name: 7 for name in WAYS} | {"compiled": 4, "compiled, averaged weights": 4}
WRITES = ("plain", "averaged weights", "baselines", "schedules")
"""The kinds of which every other kill is within a write."""

STOPPED = ("plain", "averaged weights", "schedules", "with its report")
"""The kinds that are stopped by a signal."""

SAVE_EVERY = 0.1
"""Seconds; twenty in use. So that a save is a likely moment, also within an epoch."""


def trains(way: str, out: Path, resume: bool = False, dies: tuple[int, float] | None = None) -> None:
    """A training, which with `dies` kills itself within its save of that number, after that part of the bytes."""
    torch.set_num_threads(1)
    loop.SAVE_EVERY_SECONDS, loop.PAUSE_BY_SAVE = SAVE_EVERY, 0.0
    if way != "with its report":
        by_name.write_report = lambda *_: None
    if dies is not None:
        die_within(*dies)
    settings = dict(WAYS[way])
    pv.train(settings.pop("pair", "vae"), out=out, resume=resume, **settings)


def die_within(number: int, part: float) -> None:
    """SIGKILL within the save of this number: after a part of its bytes, or with a part beyond 1 at one of the moments
    after them, as the files take their places."""
    writes = 0
    link = os.link

    def die(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    class Dying:
        def __init__(self, file: Any, most: int):
            self.file, self.most, self.count = file, most, 0

        def write(self, data: Any) -> int:
            self.count += len(data)
            if self.count > self.most:
                self.file.write(bytes(data)[: len(data) // 2])
                self.file.flush()
                die()
            return self.file.write(data)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    def save(state: Any, file: Any, original: Callable[..., Any] = torch.save) -> Any:
        nonlocal writes
        writes += 1
        if writes != number:
            return original(state, file)
        if part <= 1:
            size = sum(value.nbytes for value in state["pair"].values()) * (4 if "optimizer" in state else 1)
            return original(state, Dying(file, int(part * size)))
        place = int(part * 10) % 3
        if place == 0:
            os.replace = die
        elif place == 1:
            os.link = die
        else:
            os.link = lambda *given: (link(*given), die())
        return original(state, file)

    torch.save = save


def killed(way: str, number: int, scratch: Path, whole: Path, seconds: float) -> dict[str, Any]:
    """One kill: when, what was saved, and whether the run that goes on ends as the one that nobody stopped."""
    draw = random.Random(f"kill {way} {number}")
    within = way in WRITES and number % 2 == 1
    case, folder = scratch / "case", scratch / "case" / "run"
    shutil.rmtree(case, ignore_errors=True)
    began = time.monotonic()
    dies = (draw.randint(1, 12), draw.uniform(0, 2)) if within else None
    child = forked(partial(trains, way, Path("run"), dies=dies), case)
    if not within:
        time.sleep(draw.uniform(0, seconds))
        os.kill(child, signal.SIGKILL)
    first = ended(child, case, began)
    saved = files.load(folder / LAST) if (folder / LAST).exists() else None
    left = [path.name for path in folder.rglob(".*")] if folder.exists() else []
    second = outcome(partial(trains, way, Path("run"), resume=saved is not None), case)
    return {
        "way": way,
        "moment": "within a write" if within else f"{first.seconds:.2f} s of {seconds:.2f}",
        "ended": first.status,
        "saved": place(saved),
        "left": len(left),
        "same": second.status == 0 and same_run(whole, folder),
        "clean": second.status == 0 and not [path for path in folder.rglob(".*")],
        "said": second.err[-300:] if second.status else "",
    }


def stopped(number: int, name: str, scratch: Path, whole: Path, seconds: float) -> dict[str, Any]:
    """One SIGINT or SIGTERM to the command: what is saved and said, and whether the command that it names goes on to
    the same end."""
    way = STOPPED[number % len(STOPPED)]
    draw, kind = random.Random(f"{name} {number}"), getattr(signal, name)
    case, folder = scratch / "case", scratch / "case" / "run"
    shutil.rmtree(case, ignore_errors=True)
    began = time.monotonic()
    child = forked(partial(commands, way, ["--out", "run"]), case)
    time.sleep(draw.uniform(0, seconds))
    os.kill(child, kind)
    first = ended(child, case, began)
    answered = time.monotonic()
    saved = files.load(folder / LAST) if (folder / LAST).exists() else None
    finished = first.status == 0
    named = "pyro-vae train --resume --out run" in first.err
    how = ["--out", "run"] if saved is None else ["--resume", "--out", "run"]
    second = first if finished else outcome(partial(commands, way, how), case)
    right = finished or (first.status == 128 + kind and named == (saved is not None) and first.err.count("\n") == 1)
    return {
        "way": way, "moment": f"{first.seconds:.2f} s of {seconds:.2f}", "ended": first.status, "saved": place(saved),
        "right": right, "same": second.status == 0 and same_run(whole, folder), "said": first.err[-300:],
        "seconds": round(answered - began, 2),
    }  # fmt: skip


def commands(way: str, how: list[str]) -> int:
    """The command line of a kind of run."""
    from pyro_vae.command_line.main import main

    torch.set_num_threads(1)
    loop.SAVE_EVERY_SECONDS = 1.0
    if way != "with its report":
        by_name.write_report = lambda *_: None
    words = ["train", "--quiet"]
    if "--resume" not in how:
        options = {**WAYS[way], **WAYS[way]["model_options"]}
        options["hidden"] = ",".join(map(str, options["hidden"]))
        del options["model_options"], options["progress"]
        words += [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return main([*words, *how])


def place(state: dict[str, Any] | None) -> str:
    """How far a saved state is."""
    if state is None:
        return "nothing"
    step = (state["within"] or {}).get("step", 0)
    return f"epoch {state['epoch']}" + (f", step {step}" if step else "")


def uninterrupted(way: str, folder: Path, command: bool = False) -> float:
    """A run that nobody stops, in `folder/run`; the seconds that it takes."""
    made: Outcome = outcome(
        partial(commands, way, ["--out", "run"]) if command else partial(trains, way, Path("run")), folder
    )
    if made.status:
        raise RuntimeError(made.err)
    return made.seconds


def same_run(one: Path, other: Path) -> bool:
    """Whether two folders hold the same numbers: weights, moments, averages, generators, history."""
    return all(same(files.load(one / name), files.load(other / name)) for name in (LAST, BEST))


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one if key != "seconds")
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other
