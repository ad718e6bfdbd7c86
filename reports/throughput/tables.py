"""What the measurements look like: tables, bars, figures."""

import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import growth
from contenders import CASES
from machine import header, table
from matplotlib.figure import Figure
from measure import log_log, median_ratio, spread
from peers import HAS_PYTHAE

LIMIT, COMPILED, EAGER = "by hand, fused Adam", "ours, compiled", "ours, eager"
ALIKE = "by hand, drawing as ours"
FIRST = "784-400-50, batch 128"
PRODUCTS = "matrix products alone"
Rates = dict[str, list[float]]


MISSING = "Not measured.\n"


def text(found: dict[str, Any], rounds: int, epochs: int, seconds: float, together: int = 0) -> str:
    """README.md; `together` processes measured parts of it side by side."""
    threads = " ".join(f"{key}={os.environ[key]}" for key in ("OMP_NUM_THREADS", "GOMP_SPINCOUNT") if key in os.environ)
    words = [Path(word).name for word in sys.argv[1:]]
    command = " ".join([threads, "python reports/throughput/run.py", *words]).strip()
    missing = "" if HAS_PYTHAE else "pythae is not installed and left out (`pip install '.[bench]'`). "
    train, growths = found["train"], found["growth"]
    profiles = found["shares"] or {}
    shares = [[name, *[f"{v:.2f}" for v in kinds.values()]] for name, kinds in profiles.items()]
    evaluated = [[name, spread(rates)] for name, rates in (found["evaluation"] or {}).items()]
    run = f"{together} processes side by side, each on cores of its own," if together else "One run"
    run += f" of {seconds / 60:.0f} minutes" + (" in all" if together else "")
    base = ", ".join(f"{name} {value:,}" for name, value in growth.BASE.items())
    largest = max((point["value"] for point in growths.get("images", [])), default=0) * 784 / 2**30
    head = header("What a pair costs", command, data="on random images")
    return f"""{head}
{run}; {rounds} interleaved rounds after a warm-up. {missing}Rows:

- by hand: the same net and loss in plain torch, fused Adam, images in memory, binarised by `torch.bernoulli` at every
  presentation; the same drawing as ours does; the same under `torch.compile`.
- Pyro SVI: the VAE of Pyro's examples, `pyro.optim.Adam`, `Trace_ELBO` (`RenyiELBO` for K = 50), images through PIL,
  `ToTensor` and a `DataLoader` as there; or images in memory.
- tutorial: `ToTensor`, `DataLoader`, Adam as it comes, a loss by hand.
- pythae: an epoch of its `BaseTrainer`.
- JAX, by hand, and NumPyro: an epoch is one jitted `fori_loop`, as in NumPyro's VAE example; the state is donated, the
  images are on the device; optax's Adam, `TraceMeanField_ELBO` (`RenyiELBO` for K = 50).
- ours: the loop of `pv.train` on a `pv.VAE`.

## Bars, {FIRST}

{table(["two CPU cores", "measured", "bar", ""], bars(found))}
## Training on the CPU

{training_section(train["cpu"], found["starts"]["cpu"])}
"Matrix products alone" are those of forward and backward pass by `torch.mm`, the floor of whoever uses them; compiled,
ours has them from oneDNN, which is faster on some processors.

### Trained weights, images of MNIST

{trained_section(found["trained"])}
## Where a step goes

Milliseconds a step under torch's profiler, which slows what runs between operations:

{table(["", *next(iter(profiles.values()))], shares) if profiles else MISSING}
What Pyro's handlers and distributions cost the eager engine, over a loop by hand that draws alike
(below zero: lost in the noise):
{overheads(train["cpu"]) or "not measured"}. For few images a step that is much; compiled, they ran once.

## Evaluation, samples through the decoder per second

`burda` net, L_K by `pv.evaluate(..., "importance")`; see [importance_speed](../importance_speed/README.md) for more.

{table(["", "samples per second, median (smallest to largest)"], evaluated) if evaluated else MISSING}
## Growth

Compiled training of a 784-400 net, one size varied at a time around {base}, a
process for each point: time a step, and the peak of the memory that the process holds itself (pages of a mapped file
are the system's). From {growth.MAPPED:,} images on they are mapped from a .npy, the largest of {largest:.0f} GiB on a
machine of {memory_of_the_machine() / 2**30:.0f} GiB; the time then includes reading.

![growth](growth.png)

{precision_section(found["precision"], epochs)}
## GPU

{gpu_section(found)}
"""


def overheads(train: dict[str, Rates]) -> str:
    """Milliseconds a step of the eager engine more than by hand."""
    found = []
    for name, rates in train.items():
        eager, alike = (1e3 * CASES[name].batch / statistics.median(rates[way]) for way in (EAGER, ALIKE))
        found.append(f"{eager - alike:.1f} ms ({name})")
    return ", ".join(found)


def memory_of_the_machine() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def bars(found: dict[str, Any]) -> list[list[str]]:
    """The bars for two CPU cores, and what was measured."""
    train, evaluation = found["train"]["cpu"].get(FIRST, {}), found["evaluation"] or {}

    def ratio(rates: Rates, above: str, below: str) -> float | None:
        return median_ratio(rates[above], rates[below]) if above in rates and below in rates else None

    rows: list[tuple[str, float | None, float]] = [
        ("ours compiled / by hand, fused Adam", ratio(train, COMPILED, LIMIT), 1.0),
        ("ours eager / the same", ratio(train, EAGER, LIMIT), 0.85),
        ("ours compiled / Pyro SVI with DataLoader", ratio(train, COMPILED, "Pyro SVI, DataLoader"), 2),
        ("ours compiled / the tutorial way", ratio(train, COMPILED, "tutorial"), 2),
        ("ours compiled / pythae, training", ratio(train, COMPILED, "pythae"), 2),
        ("ours compiled / pythae, evaluation", ratio(evaluation, COMPILED, "pythae"), 5),
        ("ours compiled / NumPyro", ratio(train, COMPILED, "NumPyro"), 1.0),
        ("evaluation / JAX by hand", ratio(evaluation, COMPILED, "JAX, by hand"), 1.5),
        ("evaluation / matrix products alone", ratio(evaluation, COMPILED, PRODUCTS), 0.6),
    ]
    lines = []
    for name, value, bar in rows:
        met = "not measured" if value is None else "met" if value >= bar else "**missed**"
        lines.append([name, "" if value is None else f"{value:.2f}", f"at least {bar}", met])
    seconds = found["help"]
    if seconds is None:
        return lines
    return [*lines, ["`pyro-vae --help`", f"{seconds:.2f} s", "under 0.7 s", "met" if seconds < 0.7 else "**missed**"]]


def over(rates: dict[str, Rates], peers: Sequence[str]) -> list[list[str]]:
    """Ours, compiled, over each peer: medians of the ratios within a round."""
    cells = lambda peer: [  # noqa: E731
        f"{median_ratio(case[COMPILED], case[peer]):.2f}" if COMPILED in case and peer in case else ""
        for case in rates.values()
    ]
    return [[f"ours, compiled / {peer}", *cells(peer)] for peer in peers]


def trained_section(rates: dict[str, Rates]) -> str:
    if not rates:
        return MISSING
    names = dict.fromkeys(name for case in rates.values() for name in case)
    speed = [
        [name, *[f"{statistics.median(case[name]):,.0f}" if name in case else "" for case in rates.values()]]
        for name in names
    ]
    return f"""Images per second, medians, and medians of the ratios within a round:

{table(["", *rates], speed + over(rates, [name for name in names if name != COMPILED]))}"""


def training_section(rates: dict[str, Rates], starts_of: dict[str, dict[str, dict[str, float]]]) -> str:
    if not rates:
        return MISSING
    names = list(dict.fromkeys(name for case in rates.values() for name in case))
    speed, ratios = [], []
    for name in names:
        cells = [case.get(name) for case in rates.values()]
        speed.append([name, *[f"{statistics.median(cell):,.0f}" if cell else "" for cell in cells]])
        of_limit = [case[LIMIT] for case in rates.values()]
        ratios.append([name, *[f"{median_ratio(c, r):.2f}" if c else "" for c, r in zip(cells, of_limit, strict=True)]])
    begin, peaks = [], []
    for name in dict.fromkeys(name for case in starts_of.values() for name in case):
        points = [case.get(name) for case in starts_of.values()]
        begin.append([name, *[f"{p['first']:.2f}" if p else "" for p in points]])
        if any(p and "again" in p for p in points):
            begin.append([f"{name}, in another process again", *[f"{p['again']:.2f}" if p else "" for p in points]])
        peaks.append([name, *[f"{p['bytes'] / 2**20:,.0f}" if p else "" for p in points]])
    return f"""Images per second, medians:

{table(["", *rates], speed)}
Over "{LIMIT}", medians of the ratios within a round:

{table(["", *rates], ratios)}
Over NumPyro and JAX, likewise (the bar is 1.0):

{table(["", *rates], over(rates, ["NumPyro", "JAX, by hand"]))}
Seconds from data in memory to the end of the first step (imports not counted, nothing compiled before), each in a
process of its own:

{table(["", *starts_of], begin)}
and the peak memory of these processes after an epoch, MiB:

{table(["", *starts_of], peaks)}"""


def growth_figure(growths: dict[str, list[dict[str, float]]]) -> Figure:
    """Time and memory against every size."""
    panels, axes = {}, {}
    for axis, points in growths.items():
        for what, key, unit in (("time", "seconds", 1e-3), ("memory", "bytes", 2**20)):
            panels[f"{what}, {axis}"] = {"compiled": [(p["value"], p[key] / unit) for p in points]}
            axes[f"{what}, {axis}"] = (axis, "ms a step" if what == "time" else "MiB")
    return log_log(panels, axes, columns=4)


def precision_section(found: dict[str, dict[str, float]] | None, epochs: int) -> str:
    if found is None:
        return "## Mixed precision\n\nNot measured: PYRO_VAE_DATA is not set.\n"
    rows = []
    for name, point in found.items():
        away = f"{point['away']:+.2f} ± {point['away_error']:.2f}"
        rows.append([name, f"{-point['l']:.2f}", away, f"{point['seconds']:.1f}", point["engine"]])
    return f"""## Mixed precision

The `burda` preset after {epochs} epochs of MNIST; L_5000 of the first 500 test images, and its difference from that of
the first row, ± the standard error over images. Two seeds differ as well.

{table(["precision", "-L_5000", "L_5000 away from the first", "seconds an epoch", "engine"], rows)}"""


def gpu_section(found: dict[str, Any]) -> str:
    if "cuda" not in found["train"]:
        return "Not yet run: no GPU was at hand. The same command adds these tables where torch sees one."
    train, rows = found["train"]["cuda"], []
    if FIRST in train:
        first, hand = train[FIRST], "by hand, CUDA graph"
        rows += [
            ["ours compiled / Pyro SVI", f"{median_ratio(first[COMPILED], first['Pyro SVI, DataLoader']):.1f}", "10"],
            ["ours compiled / by hand in a CUDA graph", f"{median_ratio(first[COMPILED], first[hand]):.2f}", "0.9"],
        ]
    for engine, measured in found["gpu"].items():
        if measured is not None:
            rows.append([f"L_5000 of 10,000 images, s, {engine}", f"{measured['seconds']:.2f}", "at most 2"])
    if "burda net, batch 20" in train:
        steps = statistics.median(train["burda net, batch 20"][COMPILED]) / 20
        rows.append(["steps per second, burda net, batch 20", f"{steps:,.0f}", "10,000"])
    if not rows:
        return MISSING
    return table(["", "measured", "bar"], rows) + "\n" + training_section(train, found["starts"]["cuda"])
