"""What a machine does to a run: a full disk, a folder that may not be written or is deleted, and long use."""

import errno
import gc
import os
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cases import ended, forked, outcome
from kills import same_run

import pyro_vae as pv
from pyro_vae import files
from pyro_vae.command_line.main import main
from pyro_vae.training import by_name, loop

TRAIN = "train --data digits --hidden 16 --quiet --engine eager --epochs 3 --out run"
NOBODY = 65534


def command(line: str, report: bool = True) -> int:
    """A command in this process, which saves after each step."""
    torch.set_num_threads(1)
    loop.SAVE_EVERY_SECONDS, loop.PAUSE_BY_SAVE = -1.0, -1.0
    if not report:
        by_name.write_report = lambda *_: None
    return main(line.split())


def command_on_a_full_disk(line: str, room: int) -> int:
    """The same where the disk is full after so many bytes that were written to temporary files."""
    replace = files._replace

    def limited(path: Path, write: Callable[[Any], Any]) -> None:
        replace(path, lambda file: write(Limited(file)))

    class Limited:
        left = room

        def __init__(self, file: Any):
            self.file = file

        def write(self, data: Any) -> int:
            Limited.left -= len(data)
            if Limited.left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.file.write(data)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    files._replace = limited
    return command(line, report=False)


def full_disks(scratch: Path, good: Path) -> list[dict[str, Any]]:
    """A disk that is full after more and more bytes, and a device that is full; then there is room, and it goes on."""
    rows = []
    for room in (0, 2_000, 20_000, 60_000, 150_000, 400_000, 900_000, 1_600_000):
        case = scratch / "case"
        shutil.rmtree(case, ignore_errors=True)
        first = outcome(partial(command_on_a_full_disk, TRAIN, room), case)
        fault = first.fault(case / "run")
        words = "No space left" in first.err
        there = (case / "run").exists()
        again = outcome(partial(command, TRAIN.replace("train", "train --resume") if there else TRAIN, False), case)
        same = again.status == 0 and same_run(good, case / "run")
        rows.append(
            row(f"full after {room:,} bytes", first, fault if words or first.status == 0 else "no word of it", same)
        )
    case = scratch / "case"
    for verb in ("evaluate run --limit 5 --quiet --json /dev/full", "list models > /dev/full"):
        shutil.rmtree(case, ignore_errors=True)
        shutil.copytree(good, case / "run")
        full = partial(to_a_full_stdout, verb.split(" > ")[0]) if ">" in verb else partial(command, verb)
        done = outcome(full, case)
        fault = done.fault() or (None if done.status == 2 and "No space left" in done.err else "no word of it")
        rows.append(row(f"`pyro-vae {verb}`", done, fault, None))
    return rows


def to_a_full_stdout(line: str) -> int:
    import sys

    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    status = command(line)
    sys.stdout = open(os.devnull, "w")
    return status


def as_nobody(line: str) -> int:
    """A command of a user who may write nothing here."""
    os.environ["MPLCONFIGDIR"] = "/tmp"
    if os.getuid() == 0:
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    return command(line)


def read_only(scratch: Path, good: Path) -> list[dict[str, Any]]:
    """A run in a folder that may be read and not written, by a user without rights."""
    case = scratch / "case"
    shutil.rmtree(case, ignore_errors=True)
    shutil.copytree(good, case / "run")
    for path in (case, *case.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    for above in (scratch, *scratch.parents):
        if above.stat().st_uid == os.getuid() and not above.stat().st_mode & 0o001:
            above.chmod(above.stat().st_mode | 0o011)
    before = contents(case)
    verbs = {
        "train --quiet --epochs 1 --hidden 4 --out new": 2, f"{TRAIN} --resume": 2, f"{TRAIN} --overwrite": 2,
        "evaluate run --limit 5 --quiet": 2, "report run": 2, "sample run -n 2": 2, "encode run --limit 3": 2,
        "sample run -n 2 --out /tmp/pyro-vae-of-nobody.npz": 0,
    }  # fmt: skip
    rows = []
    for verb, expected in verbs.items():
        done = outcome(partial(as_nobody, verb), case)
        changed = "something was changed" if contents(case) != before else None
        wrong = None if done.status == expected else f"exit status {done.status}: {done.err[-200:]}"
        rows.append(row(f"`pyro-vae {verb}` on a read-only folder", done, done.fault() or wrong or changed, None))
    for path in (case, *case.rglob("*")):
        path.chmod(0o755)
    Path("/tmp/pyro-vae-of-nobody.npz").unlink(missing_ok=True)
    return rows


def deleted(scratch: Path, good: Path) -> list[dict[str, Any]]:
    """A folder that is deleted while it is used: a training makes it again whole, nothing else makes half of one."""
    case, rows = scratch / "case", []
    for seconds in (0.3, 0.6, 1.0, 1.5, 2.0, 3.0):
        shutil.rmtree(case, ignore_errors=True)
        began = time.monotonic()
        child = forked(partial(command, TRAIN.replace("--epochs 3", "--epochs 12")), case)
        time.sleep(seconds)
        shutil.rmtree(case / "run", ignore_errors=True)
        done = ended(child, case, began)
        fault = done.fault(case / "run")
        if fault is None and done.status == 0 and not (case / "run" / "config.yaml").exists():
            fault = "a half-made folder"
        rows.append(row(f"training, after {seconds} s", done, fault, None))
    for verb in ("evaluate run --with importance --particles 2000 --quiet", "report run"):
        for seconds in (0.2, 0.5, 1.0):
            shutil.rmtree(case, ignore_errors=True)
            shutil.copytree(good, case / "run")
            began = time.monotonic()
            child = forked(partial(command, verb), case)
            time.sleep(seconds)
            shutil.rmtree(case / "run", ignore_errors=True)
            done = ended(child, case, began)
            rows.append(row(f"`pyro-vae {verb}`, after {seconds} s", done, done.fault(case / "run"), None))
    return rows


def row(what: str, done: Any, fault: str | None, same: bool | None) -> dict[str, Any]:
    last = done.lines[-1] if done.lines else ""
    return {"what": what, "ended": done.status, "fault": fault, "same": same, "said": last[:200]}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def used() -> dict[str, float]:
    """What this process holds: MiB of memory, open files, and Python's objects."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    held = {"MiB": pages * os.sysconf("SC_PAGE_SIZE") / 2**20, "files": len(os.listdir("/proc/self/fd"))}
    return held | {"objects": len(gc.get_objects())}


def many_steps() -> list[dict[str, float]]:
    """20,000 steps of one training, saved as it goes; what is held every 2,000 steps."""
    torch.set_num_threads(1)
    data = pv.load_data("digits", binarize="dynamic")
    per_epoch = -(-data.train.size // 64)
    rows: list[dict[str, float]] = []

    def look(epoch: dict[str, float]) -> None:
        if epoch["epoch"] * per_epoch // 2000 > len(rows) - 1:
            rows.append({"steps": epoch["epoch"] * per_epoch, **used()})

    pair = pv.VAE((1, 8, 8), hidden=(32,))
    epochs = -(-20_000 // per_epoch)
    pv.train(pair, data, epochs, 64, out=Path("run"), on_epoch=look, progress=False, engine="eager")
    return rows


def many_models(count: int = 200) -> list[dict[str, float]]:
    """Models that are made, trained, evaluated and dropped; what is held after every twentieth."""
    torch.set_num_threads(1)
    data = pv.load_data("digits", binarize="dynamic")
    rows = []
    for number in range(1, count + 1):
        pair = pv.VAE((1, 8, 8), hidden=(32,), prior="mixture" if number % 2 else "standard_normal")
        pv.train(pair, data, epochs=1, batch_size=250, out=Path("run"), overwrite=True, progress=False, engine="eager")
        pv.evaluate(pair, data, limit=50, progress=False)
        del pair
        if number % 20 == 0:
            rows.append({"models": number, **used()})
    return rows
