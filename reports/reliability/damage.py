"""Files of a run that are damaged, and commands on that run: no number comes out that is another one."""

import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases import outcome
from kills import same

from pyro_vae import files
from pyro_vae.command_line.main import main
from pyro_vae.runs.checkpoints import LAST
from pyro_vae.training import by_name, loop

CHECKPOINTS = ("last.pt", "best.pt", "previous.pt")
OTHERS = ("config.yaml", "evaluation.json", "metrics.csv", "report.md")
TRAIN = "train --data digits --hidden 16 --quiet --engine eager"

COMMANDS = {
    "resume": "train --resume --out run --epochs 4 --quiet",
    "sample": "sample run -n 5 --out samples.npz",
    "encode": "encode run --limit 5 --out codes.npz",
    "evaluate": "evaluate run --limit 20 --quiet",
    "report": "report run",
}


def flip_a_bit(content: bytearray, draw: random.Random) -> bytes:
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    return bytes(content)


def overwrite_some(content: bytearray, draw: random.Random) -> bytes:
    place = draw.randrange(len(content))
    content[place : place + 20] = draw.randbytes(20)
    return bytes(content)


def zero_a_page(content: bytearray, draw: random.Random) -> bytes:
    place = draw.randrange(len(content))
    content[place : place + 4096] = bytes(len(content[place : place + 4096]))
    return bytes(content)


DAMAGE: dict[str, Callable[[bytearray, random.Random], bytes | None]] = {
    "a flipped bit": flip_a_bit,
    "twenty other bytes": overwrite_some,
    "zeros for a page": zero_a_page,
    "cut short": lambda content, draw: bytes(content[: draw.randrange(len(content))]),
    "empty": lambda content, draw: b"",
    "random bytes": lambda content, draw: draw.randbytes(500),
    "removed": lambda content, draw: None,
}
"""Each a way to damage the content of a file."""


def command(line: str, always_saving: bool = False) -> int:
    """A command in this process."""
    torch.set_num_threads(1)
    by_name.write_report = lambda *_: None
    if always_saving:
        loop.SAVE_EVERY_SECONDS, loop.PAUSE_BY_SAVE = -1.0, -1.0
    return main(line.split())


def sound(folder: Path) -> None:
    """A run of three epochs with all its files, and what each command gives on it, in folders of their own."""
    for line in (f"{TRAIN} --epochs 3 --out run", "report run"):
        made = outcome(partial(command, line, line.startswith("train")), folder)
        assert made.status == 0, made.err
    for name, line in COMMANDS.items():
        shutil.copytree(folder / "run", folder / name / "run")
        made = outcome(partial(command, line), folder / name)
        assert made.status == 0, made.err


def damaged(number: int, scratch: Path, good: Path) -> dict[str, Any]:
    """One damaged file, and one command: how it ended, and whether its numbers are those of the sound run."""
    draw = random.Random(f"damage {number}")
    name = draw.choice(CHECKPOINTS) if number % 4 else draw.choice(OTHERS)
    how, verb = draw.choice(list(DAMAGE)), draw.choice(list(COMMANDS))
    case = scratch / "case"
    shutil.rmtree(case, ignore_errors=True)
    shutil.copytree(good / "run", case / "run")
    path = case / "run" / name
    content = DAMAGE[how](bytearray(path.read_bytes()), draw)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    ended = outcome(partial(command, COMMANDS[verb]), case)
    fault = ended.fault(case / "run" if verb == "resume" and name not in CHECKPOINTS else None)
    if fault is None and ended.status == 0 and name in CHECKPOINTS and not same_numbers(verb, good / verb, case):
        fault = "other numbers, without a word"
    return {"file": name, "how": how, "command": verb, "ended": ended.status, "fault": fault, "said": ended.err[-300:]}


def same_numbers(verb: str, one: Path, other: Path) -> bool:
    """Whether a command gave the same numbers on two runs."""
    if verb == "resume":
        return same(*(files.load(folder / "run" / LAST) for folder in (one, other)))
    if verb in ("sample", "encode"):
        first, second = (np.load(next(folder.glob("*.npz"))) for folder in (one, other))
        return first.files == second.files and all(np.array_equal(first[name], second[name]) for name in first.files)
    return True
