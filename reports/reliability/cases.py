"""A case is a process of its own, forked from one that has imported everything; what came of it, and whether it is what
it has to be: success, or exit status 2 with one line."""

import os
import re
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HANG_SECONDS = 20
"""A process that says nothing for so long hangs."""

MEMORY = 8 * 2**30
"""What a case may allocate, so that one that wants too much does not take the machine along."""

PATIENCE_SECONDS = 600


@dataclass(frozen=True)
class Outcome:
    """How a process ended: its exit status (128 and the signal's number where one ended it), and what it said."""

    status: int
    out: str
    err: str
    seconds: float
    hung: bool

    @property
    def lines(self) -> list[str]:
        """What was said to a person: the last state of each line, progress bars left out."""
        last = [line.rsplit("\r", 1)[-1] for line in self.err.splitlines()]
        return [line for line in last if line.strip() and not re.search(r"\d+/\d+ \[|it/s|step/s|s/it|s/step", line)]

    def fault(self, folder: Path | None = None) -> str | None:
        """What is wrong with this end, in words; None where it is as it has to be.

        Args:
            folder: the run folder that a training was told to write.
        """
        refusals = [line for line in self.lines if line.startswith("pyro-vae: ") and "is now called" not in line]
        if self.hung:
            return f"silent for {HANG_SECONDS} s"
        if "Traceback" in self.err:
            return "traceback: " + self.err.strip().splitlines()[-1][:200]
        if self.status not in (0, 2):
            return f"exit status {self.status}"
        if self.status == 2 and (len(refusals) != 1 or self.lines[-1] != refusals[0]):
            return f"{len(refusals)} lines: {self.err[-300:]!r}"
        if folder is not None and folder.exists():
            names = {path.name for path in folder.iterdir()}
            if "last.pt" not in names or any(name.startswith(".") for name in names):
                return f"a half-made folder: {sorted(names)}"
        return None


def forked(function: Callable[[], Any], folder: Path) -> int:
    """Start a case in a folder, which is then its working directory; gives its process number. Its words are in the
    files `out` and `err` beside the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    child = os.fork()
    if child:
        return child
    status = 1
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell ignores for what runs in the background
    try:
        for stream, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{folder}.{name}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), stream)
        os.chdir(folder)
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", buffering=1, closefd=False)
        status = int(function() or 0)
    except SystemExit as stop:
        status = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush(), sys.stderr.flush()
        finally:
            os._exit(status)


def ended(child: int, folder: Path, began: float) -> Outcome:
    """Wait for a case; one that is silent for too long is killed."""
    said, last, hung, code = -1, began, False, None
    while code is None:
        done, found = os.waitpid(child, os.WNOHANG)
        if done:
            code = found
            break
        size = Path(f"{folder}.err").stat().st_size if Path(f"{folder}.err").exists() else 0
        if size != said:
            said, last = size, time.monotonic()
        if time.monotonic() - last > HANG_SECONDS * slowness() or time.monotonic() - began > PATIENCE_SECONDS:
            hung = True
            os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    status = os.waitstatus_to_exitcode(code)
    out, err = (Path(f"{folder}.{name}").read_text(errors="replace") for name in ("out", "err"))
    return Outcome(128 - status if status < 0 else status, out, err, time.monotonic() - began, hung)


def slowness() -> float:
    """How many times as long as alone things take here, where other work shares the cores."""
    return max(1.0, os.getloadavg()[0] / os.cpu_count())


def outcome(function: Callable[[], Any], folder: Path) -> Outcome:
    """A case from its start to its end."""
    began = time.monotonic()
    return ended(forked(function, folder), folder, began)
