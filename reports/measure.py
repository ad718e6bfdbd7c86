"""Time, memory and growth: interleaved repeats, peak memory of a process, figures on log axes."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

STATUS = Path("/proc/self/status")
Series = Mapping[str, Sequence[tuple[float, float]]]


def interleaved(contenders: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """The rate that each contender reports, in `rounds` rounds over all of them, after one that is thrown away.

    One that fails in that first round is left out, and stderr says why.
    """
    rates: dict[str, list[float]] = {}
    for name, run in contenders.items():
        try:
            run()
        except Exception as problem:
            print(f"{name} does not run here: {' '.join(str(problem).split())[:300]}", file=sys.stderr)
        else:
            rates[name] = []
    for _ in range(rounds):
        for name, found in rates.items():
            found.append(contenders[name]())
    return rates


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """The median over rounds of a ratio taken within each."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def spread(rates: Sequence[float]) -> str:
    """Median, and in brackets the smallest and the largest."""
    return f"{statistics.median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})"


def seconds_of(work: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def save_arrays(arrays: Mapping[str, Tensor], path: Path) -> None:
    """Write arrays as an .npz, whole or not at all."""
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.savez_compressed(file, **{name: value.detach().cpu().numpy() for name, value in arrays.items()})
    part.replace(path)


def answer_of(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Any:
    """What another Python process prints as JSON on its last line.

    Raises:
        RuntimeError: it failed; says what it printed.
    """
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def peak_bytes() -> int:
    """The largest resident set that this process has had; that of the program that started it is left out."""
    if STATUS.exists():
        return _status("VmHWM")
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def reset_peak() -> None:
    """Forget the largest resident set so far, where the system can."""
    if STATUS.exists():
        Path("/proc/self/clear_refs").write_text("5")


def peak_anonymous_bytes() -> int:
    """The peak without the pages of mapped files, which the system takes back at need."""
    return peak_bytes() - (_status("RssFile") if STATUS.exists() else 0)


def anonymous_bytes() -> int:
    """Memory that this process holds now, without the pages of mapped files."""
    return _status("RssAnon") if STATUS.exists() else peak_bytes()


def _status(key: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(key))
    return 1024 * int(line.split()[1])


def log_log(panels: Mapping[str, Series], axes: Mapping[str, tuple[str, str]], columns: int | None = None) -> Figure:
    """Panels in rows of `columns` (all in one where it is not given), each with named series of (x, y) on log axes;
    `axes` holds each panel's labels."""
    columns = columns or len(panels)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.8 * rows), layout="constrained")
    places = figure.subplots(rows, columns, squeeze=False).flat
    for axis, (title, series) in zip(places, panels.items(), strict=False):
        for (name, points), marker in zip(series.items(), "osD^vPX*" * len(series), strict=False):
            axis.plot(*zip(*points, strict=True), marker=marker, label=name)
        axis.set(xscale="log", yscale="log", title=title, xlabel=axes[title][0], ylabel=axes[title][1])
        axis.grid(alpha=0.3, which="both")
        axis.legend(fontsize="small")
    return figure
