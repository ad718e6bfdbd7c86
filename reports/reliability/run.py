"""Nothing lost, nothing let in: runs that are killed, stopped and damaged, odd input of every kind, and long use.

python reports/reliability/run.py SCRATCH [--interpreters PYTHON,PYTHON]

Each row is kept in SCRATCH, so that what was stopped goes on where it was.
"""

import argparse
import collections
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]
import damage  # noqa: E402
import drawn  # noqa: E402
import kills  # noqa: E402
import resources  # noqa: E402
from cases import MEMORY, forked, outcome  # noqa: E402
from kept import kept  # noqa: E402
from machine import header, table  # noqa: E402

DAMAGED = 200
STOPS = 25
SUITE = ["tests/runs/test_lock.py", "tests/runs/test_checkpoints.py", "tests/training/test_stops.py"]
PACKAGES = ("torch", "pyro-ppl", "numpy", "lightning-fabric", "arviz", "pandas", "scipy")

Rows = list[dict[str, Any]]


def import_all() -> None:
    """What commands import, before the processes are forked that need it."""
    torch.set_num_threads(1)
    import lightning_fabric  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import pandas  # noqa: F401
    import sklearn.datasets  # noqa: F401

    import pyro_vae.command_line.main
    import pyro_vae.evaluation.importance
    import pyro_vae.reporting.verbs
    import pyro_vae.testing
    import pyro_vae.training.train  # noqa: F401

    pyro_vae.load_data("digits")  # which imports what reads it


class Report:
    """The rows of the report, each kept in a folder as it is made."""

    def __init__(self, scratch: Path, only_kept: bool):
        self.scratch, self.only_kept = scratch.absolute(), only_kept
        self.case = self.scratch / "work"

    def whole(self, name: str, make: Callable[[Path], Any]) -> tuple[Path, Any]:
        """A run that nothing happens to, in a folder of its own, and what was noted as it was made."""
        folder = self.scratch / "whole" / name.replace(" ", "_").replace(",", "")
        return folder, kept(folder.with_suffix(".json"), lambda: make(folder))

    def rows(self, name: str, makes: list[Callable[[], Any]]) -> Rows:
        rows = []
        for number, make in enumerate(makes):
            path = self.scratch / name / f"{number:04}.json"
            if self.only_kept and not path.exists():
                continue
            rows.append(kept(path, make))
            print(f"{name} {number + 1} of {len(makes)}: {json.dumps(rows[-1])[:200]}", file=sys.stderr, flush=True)
        return rows

    def kills(self) -> Rows:
        makes = []
        for way, count in kills.KILLS.items():
            folder, seconds = self.whole(way, partial(kills.uninterrupted, way))
            makes += [partial(kills.killed, way, n, self.case, folder / "run", seconds) for n in range(count)]
        return self.rows("kills", makes)

    def stops(self, name: str) -> Rows:
        makes = []
        for number in range(STOPS):
            way = kills.STOPPED[number % len(kills.STOPPED)]
            folder, seconds = self.whole(f"command {way}", partial(kills.uninterrupted, way, command=True))
            makes.append(partial(kills.stopped, number, name, self.case, folder / "run", seconds))
        return self.rows(name, makes)

    def damaged(self) -> Rows:
        folder, _ = self.whole("sound", damage.sound)
        return self.rows("damaged", [partial(damage.damaged, n, self.case, folder) for n in range(DAMAGED)])

    def drawn(self, name: str) -> Rows:
        folder, _ = self.whole("sound", damage.sound)
        cases = kept(self.scratch / f"{name}.json", lambda: drawn.drawn(*drawn.STRATEGIES[name]))
        return self.rows(name, [partial(drawn.tried, name, case, self.case, folder / "run") for case in cases])

    def machine(self, make: Callable[[Path, Path], Rows]) -> Rows:
        folder, _ = self.whole(
            "three epochs", lambda folder: outcome(partial(resources.command, resources.TRAIN), folder).status
        )
        return self.made(make.__name__, lambda: make(self.case, folder / "run"))

    def long(self, make: Callable[[], Rows]) -> Rows:
        """Rows that a process of its own makes."""

        def written() -> Rows:
            folder = self.scratch / make.__name__
            child = forked(lambda: Path("rows.json").write_text(json.dumps(make())) and 0, folder)
            os.waitpid(child, 0)
            return json.loads((folder / "rows.json").read_text())

        return self.made(make.__name__, written)

    def made(self, name: str, make: Callable[[], Rows]) -> Rows:
        """Rows that are kept together."""
        path = self.scratch / f"{name}.json"
        return [] if self.only_kept and not path.exists() else kept(path, make)

    def versions(self, interpreters: list[str]) -> Rows:
        return self.rows("versions", [partial(passed, python) for python in interpreters])


def passed(python: str) -> dict[str, Any]:
    """The versions that an interpreter has, and the tests of runs that pass with them."""
    code = (
        "import sys, json; from importlib.metadata import version; "
        f"print(json.dumps({{'Python': sys.version.split()[0]}} | {{n: version(n) for n in {PACKAGES!r}}}))"
    )
    found = json.loads(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout)
    options = ["-o", "addopts=-q --strict-markers", "-p", "no:cacheprovider", *SUITE]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent.parent)}
    done = subprocess.run(
        [python, "-m", "pytest", *options], capture_output=True, text=True, cwd=HERE.parent.parent, env=environment
    )
    return {"versions": found, "ended": done.stdout.strip().splitlines()[-1].partition(" in ")[0]}


def share(rows: Rows, right: Callable[[dict[str, Any]], bool]) -> str:
    return f"{sum(map(right, rows))} of {len(rows)}"


def of_kills(rows: Rows) -> str:
    by_way: dict[str, Rows] = collections.defaultdict(list)
    for row in rows:
        by_way[row["way"]].append(row)
    cells = [
        [
            way,
            share(of, lambda row: row["ended"] == 137),
            str(sum(row["moment"] == "within a write" for row in of)),
            ", ".join(sorted({row["saved"].partition(",")[0] for row in of}, key=lambda s: (len(s), s))),
            share(of, lambda row: "step" in row["saved"]),
            share(of, lambda row: row["same"]),
            share(of, lambda row: row["clean"]),
        ]
        for way, of in by_way.items()
    ]
    head = [
        "kind of run",
        "killed",
        "within a write",
        "saved at",
        "within an epoch",
        "same end, bit for bit",
        "nothing left over",
    ]
    return table(head, cells)


def of_stops(named: dict[str, Rows]) -> str:
    cells = []
    for name, rows in named.items():
        cells.append(
            [
                name,
                str(collections.Counter(row["ended"] for row in rows)).removeprefix("Counter"),
                share(rows, lambda row: row["right"]),
                share([row for row in rows if row["ended"]], lambda row: row["saved"] != "nothing"),
                share(rows, lambda row: row["same"]),
                f"{max((row['seconds'] for row in rows), default=0):.2f} s",
            ]
        )
    head = [
        "signal",
        "exit statuses, and how often",
        "the line is right",
        "of those stopped, had saved",
        "same end, bit for bit",
        "longest to end",
    ]
    return table(head, cells)


def of_damage(rows: Rows) -> str:
    cells = []
    for kind in damage.DAMAGE:
        of = [row for row in rows if row["how"] == kind]
        done, refused = (sum(row["ended"] == status for row in of) for status in (0, 2))
        cells.append([kind, str(len(of)), str(done), str(refused), str(sum(row["fault"] is not None for row in of))])
    return table(["damage", "files", "the command succeeds", "one line and exit status 2", "anything else"], cells)


def of_drawn(named: dict[str, Rows]) -> str:
    cells = []
    for name, rows in named.items():
        done, refused = (sum(row["ended"] == status for row in rows) for status in (0, 2))
        faults = sum(row["fault"] is not None for row in rows)
        longest = max(row["seconds"] for row in rows)
        cells.append([name, str(len(rows)), str(done), str(refused), str(faults), f"{longest:.0f} s"])
    return table(["drawn", "cases", "success", "one line and exit status 2", "anything else", "longest"], cells)


def of_machine(rows: Rows) -> str:
    says = {True: "yes", False: "no", None: ""}
    cells = [
        [row["what"], str(row["ended"]), row["fault"] or "", says[row["same"]], row["said"].replace("|", "/")]
        for row in rows
    ]
    return table(["what", "exit status", "fault", "goes on to the same end", "last line"], cells)


def of_use(rows: Rows) -> str:
    if not rows:
        return "Not made yet.\n"
    names = list(rows[0])
    picked = rows[:1] + rows[1:-1][:: max(1, len(rows) // 5)] + rows[-1:]
    return table(names, [[f"{row[name]:,.0f}" for name in names] for row in picked])


def faults(*kinds: Rows) -> str:
    found = [row for rows in kinds for row in rows if row.get("fault")]
    return "\n".join(f"- `{json.dumps(row)[:400]}`" for row in found) or "None."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--interpreters", default="", help="Pythons of other environments, comma-separated")
    parser.add_argument("--kept", action="store_true", help="write the report of the rows that are kept, and make none")
    given = parser.parse_args()
    import_all()
    report = Report(given.scratch, given.kept)
    drawn_rows = {name: report.drawn(name) for name in drawn.STRATEGIES}
    damage_rows = report.damaged()
    machine_rows = [report.machine(make) for make in (resources.full_disks, resources.read_only, resources.deleted)]
    stop_rows = {name: report.stops(name) for name in ("SIGTERM", "SIGINT")}
    kill_rows = report.kills()
    steps, models = (report.long(make) for make in (resources.many_steps, resources.many_models))
    versions = report.versions([python for python in given.interpreters.split(",") if python])
    valid = sum(row["ended"] == 0 for rows in drawn_rows.values() for row in rows)
    cases = sum(map(len, drawn_rows.values()))
    told = [[", ".join(f"{name} {of}" for name, of in row["versions"].items()), row["ended"]] for row in versions]
    checked = [damage_rows, *drawn_rows.values(), *machine_rows]
    text = header(
        "Nothing lost, nothing let in",
        "python reports/reliability/run.py SCRATCH --interpreters LOWEST,NEWEST",
        "without data",
    )
    text += f"""
Each case is a process of its own, forked from one that has imported everything, with at most {MEMORY / 2**30:.0f} GiB.
It must end with success, or with exit status 2 and one line: no traceback, no silence of over 20 s (longer in
proportion where other work shares the cores), no half-made folder. What ended otherwise is listed at the end.

## Killed

{len(kill_rows)} runs on digits (of {sum(kills.KILLS.values())} that are planned) get SIGKILL at a random moment, or
within a write: after a part of the bytes of a save, or as its files take their places. They save every
{kills.SAVE_EVERY} s in place of every 20, so that a save is a likely
moment. Then the run goes on, or starts anew where nothing was saved, and its checkpoints are held against those of a
run that nobody stopped: weights, moments, averages, generators and history.

{of_kills(kill_rows)}
## Stopped

`pyro-vae train` gets a signal at a random moment, {STOPS} times each in the whole report. The exit status has to be
130 or 143, with one line that names the command that goes on if there is anything to go on with; then that command is
run.

{of_stops(stop_rows)}
## Damaged

A file of a finished run is damaged, three times in four a checkpoint, and a command is run on it:
`{"`, `".join(damage.COMMANDS.values())}`.
Where a checkpoint was damaged and the command succeeds, its numbers have to be those of the sound run, bit for bit.

{of_damage(damage_rows)}
## Drawn

{cases} command lines, configs and arrays that hypothesis draws; {valid} are valid ({100 * valid / cases:.0f}%).

{of_drawn(drawn_rows)}
## A full disk, a read-only folder, a folder that is deleted

The full disk is one that says so after so many bytes (`ENOSPC`); `/dev/full` is the system's. The read-only folder
belongs to another user.

{"".join(map(of_machine, machine_rows))}
## Long use

20,000 steps of one training, and 200 models that are made, trained for an epoch, evaluated and dropped.

{of_use(steps)}
{of_use(models)}
## Versions

The tests of locks, checkpoints and signals (`{" ".join(SUITE)}`) with other versions:

{table(["versions", "tests"], told) if told else "None."}
## Anything else

{faults(*checked)}
"""
    (HERE / "README.md").write_text(text)


if __name__ == "__main__":
    main()
