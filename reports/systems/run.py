"""Every system on one page: what it is trained on, how well it does, what it looks like, what differs.

OMP_NUM_THREADS=2 python reports/systems/run.py [--runs DIR] [--only WORDS]

trains (or continues, or reads) each system in DIR on the bundled digits and, where PYRO_VAE_DATA names a folder that
holds them, on the MNIST digits, and writes README.md and its pictures. What was stopped goes on, row by row;
`--only` trains a part, and what is not made is then shown as not run.
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import pyro_vae as pv

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
import comparisons  # noqa: E402
from kept import continued, kept  # noqa: E402
from machine import header, table  # noqa: E402
from systems import BITS, CELLS, CHAINS, COUNTED, GAPS, GREY, LABELLED, SYSTEMS, TOPICS, WHOLE, System  # noqa: E402

SHOWN, SAMPLES, PARTICLES = 10, 16, 1000
ROW = "row.json"
QUANTITIES = {"elbo": "ELBO", "elbo_given_globals": "ELBO, given draws of what all data share,"}


@dataclass(frozen=True)
class Digits:
    """A set of digits in the forms that the systems take, and how long they are trained on it.

    Attributes:
        forms: a function that loads each form.
        epochs: passes over the training data.
        batch_size: data a step.
        kl_warmup: epochs over which the weight of the KL rises from 0.
        limit: how many test data the importance-weighted bound is taken of.
        neighbours: how many training data the nearest neighbour is looked for among.
    """

    forms: Mapping[str, Callable[[], pv.Dataset]]
    epochs: int
    batch_size: int
    kl_warmup: int
    limit: int | None
    neighbours: int


def with_gaps(data: pv.Dataset) -> pv.Dataset:
    """The same data, each pixel with probability one half replaced by NaN."""
    noise = torch.Generator().manual_seed(0)
    parts = [
        pv.Split({"x": x.masked_fill(torch.rand(x.shape, generator=noise) < 0.5, torch.nan)})
        for x in (data.train["x"], data.valid["x"], data.test["x"])
    ]
    return pv.Dataset(f"{data.name} with gaps", *parts)


def sets(root: str | None) -> dict[str, Digits]:
    """The sets that are at hand."""

    def digits(how: str) -> pv.Dataset:
        return pv.load_data("digits", binarize=how)

    found = {
        "digits": Digits(
            {
                GREY: lambda: digits("none"),
                BITS: lambda: digits("dynamic"),
                WHOLE: lambda: digits("static"),
                GAPS: lambda: with_gaps(digits("static")),
                LABELLED: lambda: pv.load_data("partly_labelled", binarize="dynamic"),
                COUNTED: lambda: pv.load_data("digits", scale="raw"),
            },
            300, 128, 0, None, 1000,
        ),
        "sequences, documents and cells": Digits(
            {
                CHAINS: lambda: pv.load_data("planted_chains"),
                TOPICS: lambda: pv.load_data("planted_topics"),
                CELLS: lambda: pv.load_data("planted_cells"),
            },
            30, 128, 0, None, 0,
        ),
    }  # fmt: skip
    if root and (file := Path(root) / "mnist_static_binarized.npz").exists():

        def static() -> pv.Dataset:
            return pv.load_data("static_mnist", file=str(file))

        def grey() -> pv.Dataset:
            return pv.load_data("mnist", root=root, binarize="none")

        found["MNIST"] = Digits(
            {GREY: grey, BITS: static, WHOLE: static, GAPS: lambda: with_gaps(static())}, 10, 200, 5, 500, 1000
        )  # fmt: skip
    return found


def trained(system: System, digits: Digits, data: pv.Dataset, folder: Path) -> pv.Run:
    """The run of a system, trained to its end."""
    settings = {"batch_size": digits.batch_size, "kl_warmup": digits.kl_warmup} | dict(system.training)
    return continued(system.model, data, digits.epochs, folder, model_options=dict(system.options), **settings)


def row_of(system: System, digits: Digits, folder: Path) -> dict[str, Any]:
    """The figures of a system, which are then kept; its picture lies beside them."""
    data = digits.forms[system.data]()
    run = trained(system, digits, data, folder)
    pv.reconstruct(run, SHOWN, out=folder / "reconstructions.png")
    pv.sample(run, SAMPLES, out=folder / "samples.png", ex_post="gmm" if system.ex_post else None)
    found = {"seconds": statistics.median(row["seconds"] for row in run.history), "limit": digits.limit}
    found["squared error"] = comparisons.squared_error(run, data)
    bound = pv.evaluate(run, data, "elbo", 10, progress=False)
    found |= {"quantity": bound.quantity, "mean": bound.mean, "error": bound.standard_error}
    if system.weighted and bound.quantity == "elbo":
        bound = pv.evaluate(run, data, "importance", PARTICLES, digits.limit, progress=False)
        found |= {"weighted": bound.mean, "weighted_error": bound.standard_error}
    return found


def cells(system: System, file: Path, place: str) -> list[str]:
    """A line of the table, from the figures in a file; a row that is not made says so."""
    if not file.exists():
        return [system.name, system.differs, f"`{system.objective}`", "not run", "", "", "", "", ""]
    found = json.loads(file.read_text())
    figure = f"{QUANTITIES.get(found['quantity'], found['quantity'])} {found['mean']:.2f} ± {found['error']:.2f}"
    weighted = f"{found['weighted']:.2f} ± {found['weighted_error']:.2f}" if "weighted" in found else ""
    error, seconds = f"{found['squared error']:.4f}", f"{found['seconds']:.2f}"
    return [
        system.name,
        system.differs,
        f"`{system.objective}`",
        figure,
        weighted,
        error,
        seconds,
        f"![]({place}/reconstructions.png)",
        f"![]({place}/samples.png)",
    ]


def make_rows(name: str, digits: Digits, runs: Path, only: str) -> None:
    """Train the systems of one set whose names have these words, where their rows are not kept."""
    for system in systems_of(digits):
        if only in system.name:
            folder = runs / name / system.stem
            found = kept(folder / ROW, lambda s=system, f=folder: row_of(s, digits, f))
            print(f"{name}, {system.name}: {json.dumps(found)}", flush=True)


def systems_of(digits: Digits) -> list[System]:
    """Those that have a form of the data here."""
    return [system for system in SYSTEMS if system.data in digits.forms]


def page_of(name: str, digits: Digits, runs: Path) -> str:
    """The rows of one set, as a table for each form of the data; nothing where none is made."""
    rows: dict[str, list[list[str]]] = {}
    for system in systems_of(digits):
        folder, place = runs / name / system.stem, HERE / name.replace(" ", "_") / system.stem
        for picture in folder.glob("*.png"):
            place.mkdir(parents=True, exist_ok=True)
            (place / picture.name).write_bytes(picture.read_bytes())
        line = cells(system, folder / ROW, place.relative_to(HERE).as_posix())
        rows.setdefault(system.data, []).append(line)
    if not any((runs / name / system.stem / ROW).exists() for system in systems_of(digits)):
        return ""
    weighted = f"L_{PARTICLES}" + (f" of {digits.limit}" if digits.limit else "")
    head = [
        "",
        "what differs",
        "objective",
        "nats per test datum",
        weighted,
        "squared error",
        "s an epoch",
        "reconstructions",
        "samples",
    ]
    tables = [f"### {name}, {form}\n\n{table(head, lines)}" for form, lines in rows.items()]
    warm = f", the weight of the KL rising in the first {digits.kl_warmup}" if digits.kl_warmup else ""
    return f"## {name[0].upper()}{name[1:]}, {digits.epochs} epochs{warm}\n\n" + "\n".join(tables)


def missing_file(name: str, runs: Path) -> Path:
    """Where the figures of the missing pixels are kept."""
    return runs / name / "missing" / "found.json"


def missing_table(name: str, digits: Digits, runs: Path) -> list[str]:
    """How well the missing pixels are found, beside the usual ways."""
    system = next(system for system in SYSTEMS if system.data == GAPS)
    file = missing_file(name, runs)

    def make() -> dict[str, Any]:
        gaps, whole = digits.forms[GAPS](), digits.forms[WHOLE]().test["x"]
        run = trained(system, digits, gaps, runs / name / system.stem)
        limit = pv.Dataset(gaps.name, gaps.train, gaps.valid, gaps.test.head(digits.limit))
        return comparisons.of_missing(run, limit, whole[: limit.test.size], digits.neighbours)

    found = kept(file, make)
    errors = [f"{found['errors'][way]:.4f}" for way in ("VAE", "mean of the pixel", "nearest neighbour")]
    return [name, *errors, f"{found['bound']:.2f} ± {found['standard_error']:.2f}"]


def curves(runs: Path, digits: Digits) -> None:
    """The figure of what sigma, lambda and beta do."""
    grey, bits = digits.forms[GREY], digits.forms[BITS]
    found = [
        kept(runs / "curves" / "sigma.json", lambda: comparisons.of_sigma(grey())),
        kept(runs / "curves" / "penalty.json", lambda: comparisons.of_penalty(grey())),
        kept(runs / "curves" / "beta.json", lambda: comparisons.of_beta(bits())),
    ]
    pv.plots.save(comparisons.curves_figure(*found), HERE / "curves.png")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/systems"))
    parser.add_argument("--only", default="", help="train only systems whose names have these words")
    parser.add_argument("--paired", action="store_true", help="train only the contenders of the paired comparison")
    return parser.parse_args()


def main() -> None:
    options = parse()
    root = os.environ.get("PYRO_VAE_DATA")
    at_hand = sets(root)
    if options.paired:
        comparisons.pair_up(options.runs / "paired", at_hand["MNIST"].forms[BITS]())
    else:
        for name, digits in at_hand.items():
            make_rows(name, digits, options.runs, options.only)
    whole = not options.paired and not options.only
    if whole:
        curves(options.runs, at_hand["digits"])
    with_missing = {name: digits for name, digits in at_hand.items() if GAPS in digits.forms}
    missing = table(
        ["", "VAE", "mean of the pixel", "nearest neighbour", f"L_{PARTICLES} of what is left, nats per datum"],
        [
            missing_table(name, digits, options.runs)
            for name, digits in with_missing.items()
            if whole or missing_file(name, options.runs).exists()
        ],
    )
    if whole and "MNIST" in at_hand:
        comparisons.pair_up(options.runs / "paired", at_hand["MNIST"].forms[BITS]())
    pages = [page for name, digits in at_hand.items() if (page := page_of(name, digits, options.runs))]
    write(options.runs, pages, missing, "MNIST" in at_hand)


def write(runs: Path, pages: Sequence[str], missing: str, with_data: bool) -> None:
    """The README of all that is made."""
    command = f"OMP_NUM_THREADS={torch.get_num_threads()} python reports/systems/run.py"
    paired = comparisons.paired_section(runs / "paired")
    without = "without `PYRO_VAE_DATA`, but for the paired comparison" if paired else "without `PYRO_VAE_DATA`"
    data = "with the data of `PYRO_VAE_DATA`" if with_data else without
    text = f"""{header("Systems", command, data)}
Each row is a pair, trained by the same loop, with the model's defaults but for what its words say. Where a pair has a
density, its figure is the ELBO on the test data (10 draws), and beside it the importance-weighted bound; where it has
none, the figure is its loss, which is comparable with no other row's. The squared error is that of a pixel
reconstructed from the code. Samples are drawn from the prior, or, for the pairs without a density, from a mixture of
normals fitted to the codes (`sample --ex_post gmm`). "What differs" is said of the row above. Seconds are the median
over epochs, validation included. "Not run" is a row that has not been made.

{chr(10).join(pages)}
## What sigma, lambda and beta do

On the bundled digits, {comparisons.EPOCHS} epochs each, 10 latents. Left, a Gaussian VAE: sigma weighs the two terms,
so that the rate falls and the error grows with it. Middle, a sparse autoencoder: how much of its code is exactly zero.
Right, rate against distortion.

![sigma, lambda and beta](curves.png)

## Half of the pixels gone

Squared error of the missing pixels (the mean of 20 imputations), and the bound on log p of those that are left. The
nearest neighbour is looked for among 1,000 training data.

{missing}
"""
    text += paired
    (HERE / "README.md").write_text(text)


if __name__ == "__main__":
    main()
