"""The log-likelihood to a tolerance beside the usual L_5000: what it costs, what it certifies, and whether that holds.

python reports/bounds/run.py [--images N] [--reference N] [--epochs N] [--runs DIR]

trains (or reads) the VAE of reports/log_likelihood in DIR, evaluates what is not yet evaluated there, some images at a
time and both ways in turn, and writes README.md and its picture. PYRO_VAE_DATA names the folder of the data.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

import pyro_vae as pv

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "log_likelihood")]
from gaussians import LOST, UNIMODAL, Gaussians  # noqa: E402
from kept import kept  # noqa: E402
from machine import header, table  # noqa: E402

AT_ONCE = 500
TOLERANCE, BUDGET = 0.1, 20_000
OF_CLOSED_FORM = 200
WORK = 20
"""How many times the work of the evaluation the reference gets: its tolerance is smaller by the root of it."""


def trained(folder: Path, epochs: int, root: str) -> pv.Run:
    """The VAE of reports/log_likelihood on dynamically binarised MNIST."""
    started = (folder / "last.pt").exists()
    if not started or len(pv.load_run(folder).history) < epochs:
        options = {"binarize": "dynamic", "root": root, "valid": 400}
        how = {"schedule": "cosine", "ema": 0.9995, "engine": "compiled", "batch_size": 100, "lr": 2e-3}
        pv.train("burda", "mnist", data_options=options, epochs=epochs, out=folder, resume=started, **how)
    return pv.load_run(folder)


def shuffled(run: pv.Run) -> pv.Split:
    """The test images in an order that is always the same."""
    test = run.data.test
    return pv.Split(test.fields, test.transform, torch.randperm(test.size, generator=torch.Generator().manual_seed(0)))


def some(split: pv.Split, first: int, count: int) -> pv.Split:
    """Some of the images."""
    return split.between(first, first + count)


def measured(pair: Any, data: Any, evaluator: str, particles: int = 1, **options: Any) -> dict[str, Any]:
    """The figures of an evaluation, and how long it took."""
    began = time.perf_counter()
    result = pv.evaluate(pair, data, evaluator, particles, progress=False, **options)
    figures = {name: values.double().tolist() for name, values in result.estimate.per_datum.items()}
    return {"seconds": time.perf_counter() - began, "summary": result.entry(), "figures": figures}


def both_ways(run: pv.Run, images: int, folder: Path) -> list[dict[str, Any]]:
    """The evaluation and L_5000 of the same images, `AT_ONCE` at a time, one after the other."""
    split, found = shuffled(run), []
    for first in range(0, images, AT_ONCE):
        part = some(split, first, min(AT_ONCE, images - first))

        def of_part(part: pv.Split = part) -> dict[str, Any]:
            ours = measured(run.pair, part, "log_likelihood", tolerance=TOLERANCE, budget=BUDGET, engine="compiled")
            return {"ours": ours, "usual": measured(run.pair, part, "importance", 5000, engine="compiled")}

        found.append(kept(folder / f"both_{first}_{part.size}.json", of_part))
    return found


def column(parts: list[dict[str, Any]], which: str, name: str) -> torch.Tensor:
    """A figure of all images."""
    return torch.tensor([value for part in parts for value in part[which]["figures"][name]], dtype=torch.float64)


def of_mnist(parts: list[dict[str, Any]], reference: dict[str, Any]) -> str:
    """What both ways found on MNIST."""
    bound, usual = column(parts, "ours", "log_likelihood"), column(parts, "usual", "log_likelihood")
    certified, cost = column(parts, "ours", "certified"), column(parts, "ours", "cost")
    way, names = column(parts, "ours", "way"), ["guide", "local", "adapted", "ais"]
    seconds = [sum(part[which]["seconds"] for part in parts) for which in ("ours", "usual")]
    known = torch.tensor(reference["figures"]["log_likelihood"], dtype=torch.float64)
    count = len(known)
    rows = [
        ["mean, nats", f"{bound.mean():.3f}", f"{usual.mean():.3f}"],
        [f"mean of {count} of the images", f"{bound[:count].mean():.3f}", f"{usual[:count].mean():.3f}"],
        ["the same, with " + f"{WORK} times the work", f"{known.mean():.3f}", ""],
        [
            "certified, or k-hat below 0.7",
            f"{certified.mean():.1%}",
            f"{(column(parts, 'usual', 'pareto_k') < 0.7).double().mean():.1%}",
        ],
        ["model evaluations of an image", f"{cost.mean():,.0f}", "5,000"],
        ["seconds in all", f"{seconds[0]:,.0f}", f"{seconds[1]:,.0f}"],
    ]
    ways = [
        [
            name,
            f"{(way == number).sum():,}",
            f"{certified[way == number].mean():.1%}",
            f"{cost[way == number].mean():,.0f}",
        ]
        for number, name in enumerate(names)
        if (way == number).any()
    ]
    return (
        f"{len(bound)} test images in random order, one core, compiled, {AT_ONCE} at a time and both ways in turn; the "
        "seconds include compiling, once for each of these parts and each way.\n\n"
        + table(["", f"log_likelihood, tolerance {TOLERANCE}", "L_5000 from the guide"], rows)
        + "\n"
        + table(["way", "images", "certified", "evaluations of an image"], ways)
    )


def of_closed_forms(folder: Path) -> str:
    """Certified figures against log p(x), guide by guide."""
    rows = []
    for dim in (2, 10):
        for name, options in {**UNIMODAL, **LOST}.items():
            found = kept(
                folder / f"closed_{dim}_{name.replace(' ', '_')}.json", lambda d=dim, o=options: against_exact(d, o)
            )
            rows.append(
                [
                    name,
                    dim,
                    f"{found['certified']:.1%}",
                    found["wrong"],
                    f"{found['outside']:.1%}",
                    f"{found['largest']:.3f}",
                    f"{found['cost']:,.0f}",
                ]
            )
    columns = [
        "the guide",
        "dims",
        "certified",
        "certified and wrong by 0.2 nats",
        "outside 3 errors and 0.02 nats",
        "largest error",
        "evaluations",
    ]
    return table(columns, rows)


def against_exact(dim: int, options: dict[str, Any]) -> dict[str, Any]:
    """Errors of the certified figures of one pair."""
    pair = Gaussians(dim, **options)
    x = pair.draw(OF_CLOSED_FORM)
    result = pv.evaluate(pair, x, "log_likelihood", progress=False, tolerance=TOLERANCE, budget=BUDGET)
    with torch.no_grad():
        error = (result.log_likelihood - pair.log_marginal(x)).abs()
    certified = result.certified
    outside = error > torch.maximum(3 * result.monte_carlo_error, torch.tensor(0.02))
    return {
        "certified": certified.double().mean().item(),
        "wrong": int((certified & (error > 0.2)).sum()),
        "outside": outside[certified].double().mean().item(),
        "largest": error[certified].max().item(),
        "cost": result.cost.mean().item(),
    }


def draw(parts: list[dict[str, Any]], run: pv.Run, reference: dict[str, Any], folder: Path) -> str:
    """Error against work: the mean of bounds below the reference, for each way that has a number of draws."""
    count = len(reference["figures"]["log_likelihood"])
    split, known = some(shuffled(run), 0, count), torch.tensor(reference["figures"]["log_likelihood"])
    lines: dict[str, list[tuple[float, float]]] = {"L_K from the guide": [], "L_K from the local proposal": []}
    for draws in (50, 500, 5000):
        for name, options in (("L_K from the guide", {}), ("L_K from the local proposal", {"proposal": "laplace"})):
            path = folder / f"work_{name.replace(' ', '_')}_{draws}_{count}.json"
            found = kept(path, lambda d=draws, o=options: measured(run.pair, split, "importance", d, **o))
            gap = (known - torch.tensor(found["figures"]["log_likelihood"])).mean().item()
            lines[name].append((draws, max(gap, 1e-3)))
    ours = torch.tensor([part for block in parts for part in block["ours"]["figures"]["log_likelihood"]])[:count]
    cost = torch.tensor([part for block in parts for part in block["ours"]["figures"]["cost"]])[:count].mean().item()
    lines["log_likelihood"] = [(cost, max((known - ours).mean().item(), 1e-3))]
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    for (name, points), marker in zip(lines.items(), "os*", strict=True):
        axes.plot(*zip(*points, strict=True), marker=marker, label=name)
    axes.set(
        xscale="log", yscale="log", xlabel="draws, or model evaluations, of an image", ylabel="nats below the reference"
    )
    axes.legend(frameon=False)
    pv.plots.save(figure, HERE / "work.png")
    rows = [[name, f"{work:,.0f}", f"{gap:.3f}"] for name, points in lines.items() for work, gap in points]
    return table(["way", "draws or evaluations", f"nats below the reference, mean of {count} images"], rows)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=Path, default=Path("runs/bounds"))
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--reference", type=int, default=500, help="images with 20 times the work")
    parser.add_argument("--epochs", type=int, default=650)
    parser.add_argument("--only", choices=["mnist", "closed"], help="keep the figures of one part, and write nothing")
    given = parser.parse_args()
    root = os.environ.get("PYRO_VAE_DATA")
    if not root:
        sys.exit("PYRO_VAE_DATA is not set; it names the folder of the data")
    figures = given.runs / "figures_of_bounds"
    if given.only == "closed":
        of_closed_forms(figures)
        return
    run = trained(given.runs / f"dynamic_{given.epochs}", given.epochs, root)
    parts = both_ways(run, given.images, figures)
    if given.only:
        return
    options = {"tolerance": TOLERANCE / WORK**0.5, "budget": WORK * BUDGET}
    reference = kept(
        figures / f"reference_{given.reference}.json",
        lambda: measured(run.pair, some(shuffled(run), 0, given.reference), "log_likelihood", **options),
    )
    command = (
        f"python reports/bounds/run.py --images {given.images} --reference {given.reference} --epochs {given.epochs}"
    )
    text = header("Bounds that repair themselves", command)
    text += f"\n## MNIST, 784-200-200-50, {given.epochs} epochs\n\n" + of_mnist(parts, reference)
    text += "\n## Error against work\n\n" + draw(parts, run, reference, figures) + "\n![error against work](work.png)\n"
    text += "\n## Closed forms, and guides that are wrong on purpose\n\n"
    text += f"{OF_CLOSED_FORM} data of each pair.\n\n" + of_closed_forms(figures)
    (HERE / "README.md").write_text(text)


if __name__ == "__main__":
    main()
