"""A run -> report.md with its figures: what was run, on what, how well it did, and what it looks like."""

import math
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyro
import torch
from torch import nn

from pyro_vae import plots
from pyro_vae.data import Dataset
from pyro_vae.errors import RunError, UserError
from pyro_vae.evaluation.result import NATS
from pyro_vae.files import write_text
from pyro_vae.pair.topics import top_words, topics_of
from pyro_vae.runs.folder import CONFIG, FIGURES, REPORT, read_results
from pyro_vae.runs.run import Run

RELAXED = "loss, not a log-likelihood"
PLACED = (
    "evaluator model data split n particles seconds quantity kind nats nats_per_time_slice bits_per_dim "
    "bits_per_dim_note warnings figures given data_set unit"
).split()
"""The keys of an entry that have a place of their own in the report; all others are listed as they are."""

TOP_WORDS = 10

NAMES = {"jackknife": "jackknife (an estimate of log p(x), no bound)"}

SHOWN = {
    "loss": "Training and validation loss of each epoch ({bound}), and the rate (KL) and distortion of the latter.",
    "state_paths": "Test data, and below each the states that are most probable together, and one joint draw.",
    "reconstructions": "Test data, and below each (beside it, for sequences) the mean of p(x|z) at its posterior mean.",
    "samples": "Means of p(x|z) at draws of z from the prior.",
    "class_conditional": "Means of p(x|z, y): a column for each label or cluster y, a row for each draw of the rest.",
    "manifold": "Means of p(x|z) over the plane of z, at standard-normal quantiles from 0.025 to 0.975.",
    "posterior_means": "Where the guide places the test data: the mean of q(z|x) of each, coloured by label where "
    "there is one.",
    "topics": "The most probable words of each topic, and how probable each is.",
}
"""What each figure shows."""


def write_report(run: Run) -> Path:
    """Write `report.md` and its figures under `figures/` into the folder of a run; returns the path of report.md.

    The evaluations are those of the folder's evaluation.json; with the setting `relaxed` their numbers are called a
    loss, never a log-likelihood. A figure that does not apply to the pair is left out; one that cannot be drawn is
    replaced by the reason. torch's generators are left as they were.

    Raises:
        RunError: the run has no folder, or the folder cannot be written.
    """
    if run.out is None:
        raise RunError("the run has no folder to write its report to; train it with out=DIR")
    results, relaxed, notes = read_results(run.out), run.relaxed, [*run.remarks, *run.notes]
    sections = [
        f"# {_line(run.model_name)} on {_line(run.data.name)}",
        *_overview(run.data, run.history),
        *_settings(run.out, run.config),
        *_evaluation(results, relaxed),
        *_topics(run.pair),
        *_figures(run, relaxed),
        *_evaluator_figures(run.out, results),
        *(["## Notes", "\n".join(f"- {_line(note)}" for note in notes)] if notes else []),
        "## Versions and machine",
        _machine(),
    ]
    path = _place(run.out, REPORT)
    write_text(path, "\n\n".join(sections) + "\n")
    return path


def _place(folder: Path, name: str) -> Path:
    """Where a file of the report goes; raises `RunError` where the folder was deleted, which would be made again
    without its run."""
    if not folder.is_dir():
        raise RunError(f"{folder} is not there any more")
    return folder / name


def _overview(data: Dataset, history: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    sizes = ", ".join(f"{split.size:,} {name}" for name, split in data.splits.items())
    fields = ", ".join(f"{_code(name)} {list(field.shape[1:])}" for name, field in data.train.fields.items())
    yield f"Data: {sizes}; fields {fields}."
    if history:
        best = min(history, key=lambda row: row["valid_loss"])
        yield (
            f"Trained for {len(history)} epochs in {_seconds(sum(row['seconds'] for row in history))}; the smallest "
            f"validation loss is {_number(best['valid_loss'], 2)} nats per datum, at epoch {int(best['epoch'])}."
        )


def _evaluation(results: Sequence[Mapping[str, Any]], relaxed: bool) -> Iterator[str]:
    yield "## Evaluation"
    if not results:
        yield "Nothing has been evaluated."
        return
    if relaxed:
        yield f"The data are grey values under a Bernoulli: every number here is a {RELAXED}."
    yield "\n".join(f"- {_headline(entry, relaxed)}" for entry in results if entry.get("nats"))
    yield "± is the standard error of the mean over data."
    head = ("evaluator", "data", "n", "particles", NATS, "bits per dim", "time")
    if any(entry.get("nats_per_time_slice") is not None for entry in results):
        yield "A datum is a sequence. Per time slice: the sum over all sequences by the sum of their lengths."
    yield _table(head, map(_row, results))
    for entry in results:
        if entry.get("given"):
            together = entry.get("data_set")
            whole = f" All {entry['n']} data together: {_value(together)}." if together else ""
            yield f"The figures of a datum by {_code(entry['evaluator'])} are {_line(entry['given'])}.{whole}"
        details = {key: value for key, value in entry.items() if key not in PLACED}
        if details:
            listed = "\n".join(f"- {_line(NAMES.get(key, key))}: {_value(value)}" for key, value in details.items())
            yield f"Further numbers of {_code(entry['evaluator'])}:\n\n{listed}"
    for entry in results:
        for warning in entry.get("warnings") or []:
            yield f"**Warning** ({_code(entry['evaluator'])}): {_line(warning)}"


def _headline(entry: Mapping[str, Any], relaxed: bool) -> str:
    quantity = entry.get("quantity") or "log_likelihood"
    if relaxed or quantity == "loss":
        said = RELAXED
    else:
        said = quantity.replace("_", " ") + (f", a {entry['kind']}" if entry.get("kind") else "")
    name = f"{str(entry['split']).capitalize()} {_code(entry['evaluator'])}"
    by_slice = entry.get("nats_per_time_slice")
    if by_slice is None:
        return f"{name}: **{_with_error(entry)} {entry.get('unit', NATS)}** ({said})"
    return f"{name}: **{_with_error(entry)} nats per sequence**, {_number(by_slice, 3)} nats per time slice ({said})"


def _row(entry: Mapping[str, Any]) -> list[str]:
    bits, note = entry.get("bits_per_dim"), entry.get("bits_per_dim_note")
    return [
        _code(entry["evaluator"]),
        f"{entry['data']}, {entry['split']}",
        _value(entry["n"]),
        _value(entry["particles"]),
        f"{_with_error(entry)} {entry.get('unit', '')}".strip(),
        _number(bits, 3) if bits is not None else f"none: {note}" if note else "none",
        _seconds(entry["seconds"]),
    ]


def _topics(pair: nn.Module) -> Iterator[str]:
    topics = topics_of(pair)
    if topics is not None:
        yield "## Topics"
        yield _table(("topic", "most probable words"), enumerate(map(", ".join, top_words(pair, topics, TOP_WORDS))))


def _evaluator_figures(folder: Path, results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for entry in results:
        for name in entry.get("figures") or []:
            if (folder / name).exists():
                yield _image(Path(name).stem, name, f"From the evaluator {_code(entry['evaluator'])}.")
            else:
                yield f"The figure {_code(name)} of {_code(entry['evaluator'])} is missing."


def _figures(run: Run, relaxed: bool) -> Iterator[str]:
    yield "## Figures"
    for name, draw in plots.drawings(run.pair, run.data, run.history).items():
        title = name.replace("_", " ").capitalize()
        try:
            figure = draw()
        except (UserError, NotImplementedError) as reason:
            yield f"{title}: not drawn, {_line(reason) or type(reason).__name__}."
            continue
        if figure is not None:
            relative = f"{FIGURES}/{name}.png"
            plots.save(figure, _place(run.out, relative))
            yield _image(
                title, relative, SHOWN[name].format(bound=f"here a {RELAXED}" if relaxed else "minus the ELBO")
            )


def _settings(folder: Path, config: Mapping[str, Any]) -> Iterator[str]:
    if not config:
        return
    yield "## Settings"
    if (folder / CONFIG).exists():
        yield f"`pyro-vae train --config {CONFIG} --out NEW_FOLDER`, said in this folder, repeats the run."
    yield _table(("setting", "value"), ([_code(key), _value(value)] for key, value in _flat(config)))


def _machine() -> str:
    facts = {
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "Pyro": pyro.__version__,
        "CPU cores": os.cpu_count(),
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }
    return _table(("", ""), facts.items())


def _image(title: str, relative: str, shows: str) -> str:
    return f"![{title}]({quote(relative)})\n\n{shows}"


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    cells = [[_line(cell).replace("|", "\\|") for cell in row] for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _line(text: Any) -> str:
    return " ".join(str(text).split())


def _code(text: Any) -> str:
    return f"`{_line(text)}`"


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Entries of nested mappings under dotted names."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _value(value: Any) -> str:
    """A setting, a number or numbers under names, in words; long lists are cut."""
    if isinstance(value, Mapping):
        return ", ".join(f"{_line(name)} {_value(number)}" for name, number in _flat(value))
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}".replace("-", "−")
    text = _line(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 120 else f"{text[:119]}…"


def _with_error(entry: Mapping[str, Any]) -> str:
    """Mean ± standard error, with as many digits as the error warrants."""
    nats = entry.get("nats") or {}
    mean, error = nats.get("mean"), nats.get("standard_error")
    if mean is None:
        return "not a finite number" if nats else "none"
    if error is None or not 0.0 < error < math.inf:
        return _number(mean, 2)
    decimals = max(0, -math.floor(math.log10(error)))
    return f"{_number(mean, decimals)} ± {_number(error, decimals)}"


def _number(value: float, decimals: int) -> str:
    return f"{value:.{decimals}f}".replace("-", "−")


def _seconds(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
