"""The log-likelihood of `burda`-preset VAEs on binarised MNIST, by every evaluator, beside published figures.

python reports/log_likelihood/run.py [--runs DIR]

trains (or continues, or reads) DIR/dynamic and DIR/static, evaluates what is not yet evaluated there, and writes
README.md and its figures. PYRO_VAE_DATA names the folder of the data.
"""

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

import pyro_vae as pv

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from machine import header, table  # noqa: E402
from measure import save_arrays  # noqa: E402

TITLES = {"dynamic": "Dynamic binarisation", "static": "Fixed binarisation (Larochelle & Murray)"}
EPOCHS = {"dynamic": 650, "static": 450}
ALL = 10_000
EVALUATIONS = [
    ("elbo", 1, ALL, {}),
    *[("importance", particles, ALL, {}) for particles in (1, 5, 50, 500, 5000)],
    ("latent", 10, 2000, {}),
    ("gaps", 500, 100, {}),
    ("ais", 8, 200, {"distributions": 500}),
    ("importance", 5000, 200, {}),
]
PUBLISHED = {
    "dynamic": [
        ["Burda, Grosse & Salakhutdinov 2016, VAE k = 1, L_5000", "86.76 (19 active)"],
        ["the same, VAE k = 50", "86.35 (20 active)"],
        ["the same, IWAE k = 50", "84.78 (25 active)"],
    ],
    "static": [
        ["Burda, Grosse & Salakhutdinov 2016, VAE k = 1, L_5000", "88.71"],
        ["the same, IWAE k = 50", "87.10"],
        ["pythae's reproduction, MLP 400, z = 40, VAE", "89.78"],
    ],
}


def settings(kind: str, root: str) -> dict[str, Any]:
    """What `pyro-vae train burda` was told."""
    file = str(Path(root) / "mnist_static_binarized.npz")
    data, binarize, options = {
        "dynamic": ("mnist", "dynamic", {"root": root, "valid": 400}),
        "static": ("static_mnist", "none", {"file": file}),
    }[kind]
    return {
        "pair": "burda",
        "data": data,
        "data_options": {"binarize": binarize, **options},
        "epochs": EPOCHS[kind],
        "batch_size": 100,
        "lr": 2e-3,
        "schedule": "cosine",
        "ema": 0.9995,
        "engine": "compiled",
    }


def ensure_trained(folder: Path, kind: str, root: str) -> None:
    """Train, or continue where an earlier call was stopped."""
    started = (folder / "last.pt").exists()
    if started and len(pv.load_run(folder).history) == EPOCHS[kind] and (folder / "best.pt").exists():
        return
    pv.train(**settings(kind, root), out=folder, resume=started)


def ensure_evaluated(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """Per-datum figures of every evaluation, computed where the run folder does not hold them."""
    figures = {}
    for name, particles, limit, options in EVALUATIONS:
        key = f"{name}_{particles}_{limit}"
        path = folder / f"{key}.npz"
        if not path.exists():
            data = pv.load_run(folder).data
            data = data if limit == ALL else in_random_order(data)
            result = pv.evaluate(folder, data, name, particles, limit, **options)
            save_arrays(result.estimate.per_datum, path)
        figures[key] = dict(np.load(path))
    return figures


def in_random_order(data: pv.Dataset) -> pv.Dataset:
    """The test images in an order that is always the same: the file of the fixed binarisation begins with zeros."""
    order = torch.randperm(data.test.size, generator=torch.Generator().manual_seed(0))
    return replace(data, test=pv.Split(data.test.fields, data.test.transform, order))


def entries(folder: Path) -> dict[str, dict]:
    """`evaluation.json` by evaluator, particles and number of data."""
    found = json.loads((folder / "evaluation.json").read_text())
    return {f"{entry['evaluator']}_{entry['particles']}_{entry['n']}": entry for entry in found}


def draw_pareto(figures: dict[str, dict[str, np.ndarray]], path: Path) -> None:
    """k-hat of every test image at 500 and 5000 particles."""
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    for particles in (500, 5000):
        axes.hist(
            figures[f"importance_{particles}_{ALL}"]["pareto_k"], bins=60, histtype="step", label=f"K = {particles}"
        )
    axes.axvline(0.7, color="black", linestyle=":", label="not reliable above 0.7")
    axes.set(xlabel="k-hat", ylabel="test images")
    axes.legend(frameon=False)
    pv.plots.save(figure, path)


def draw_bounds(found: dict[str, dict], path: Path) -> None:
    """The mean of L_K against K."""
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    particles = [1, 5, 50, 500, 5000]
    axes.semilogx(particles, [found[f"importance_{k}_{ALL}"]["nats"]["mean"] for k in particles], "o-", label="L_K")
    axes.semilogx(
        particles, [found[f"importance_{k}_{ALL}"]["jackknife"] or np.nan for k in particles], "s:", label="jackknife"
    )
    axes.set(xlabel="K", ylabel="nats per image")
    axes.legend(frameon=False)
    pv.plots.save(figure, path)


def negative(entry: dict) -> str:
    return f"{-entry['nats']['mean']:.2f} ± {entry['nats']['standard_error']:.2f}"


def section(kind: str, folder: Path, figures: dict[str, dict[str, np.ndarray]]) -> str:
    """All figures of one run."""
    found = entries(folder)
    history = pv.load_run(folder).history
    rows = [["-ELBO (analytic KL)", negative(found[f"elbo_1_{ALL}"]), "", ""]]
    for particles in (1, 5, 50, 500, 5000):
        entry = found[f"importance_{particles}_{ALL}"]
        share = entry["pareto_k"]["share_above_0.7"]
        error = entry["monte_carlo_error"]
        rows.append(
            [
                f"-L_{particles}",
                negative(entry),
                "" if error is None else f"{error:.3f}",
                "" if share is None else f"{share:.1%}",
            ]
        )
    ais, gaps, latent = found["ais_8_200"], found["gaps_500_100"], found["latent_10_2000"]
    same, last = found["importance_5000_200"], found[f"importance_5000_{ALL}"]
    draw_pareto(figures, HERE / f"{kind}_pareto_k.png")
    draw_bounds(found, HERE / f"{kind}_bounds.png")
    gap_means = {name: figures["gaps_500_100"][name].mean() for name in ("approximation_gap", "amortisation_gap")}
    text = f"""
## {TITLES[kind]}

`burda` preset (784-200-200-50, tanh), ELBO with analytic KL, Adam 2e-3 with cosine decay, batch 100,
{len(history)} epochs ({sum(row["seconds"] for row in history) / 60:.0f} minutes of training), averaged weights (decay
0.9995), best epoch by validation ELBO. Whole test set of {last["n"]} images unless said otherwise; nats per image,
± the standard error over images. Where it is some of the images, they were chosen at random.

{table(["", "nats", "Monte Carlo error of the mean", "share with k-hat > 0.7"], rows)}
From K = 2500 to 5000 the bound still rises by {last["gap_to_half"]:.3f} nats; the jackknife-corrected estimate of
-log p is {-last["jackknife"]:.2f}. Evaluating L_5000 took {last["seconds"]:.0f} s.

- AIS (500 distributions, 8 chains, from the guide), on {ais["n"]} of the images: {negative(ais)}; on the
  same images -L_5000 is {negative(same)}.
- Active units (variance of the posterior mean above 0.01), {latent["n"]} of the images: {latent["active_units"]} of 50.
- Gaps, {gaps["n"]} of the images: approximation {gap_means["approximation_gap"]:.2f}, amortisation
  {gap_means["amortisation_gap"]:.2f} nats.

Published, for comparison (nats per image):

{table(["", "-log p"], PUBLISHED[kind])}
![L_K against K]({kind}_bounds.png)
![k-hat]({kind}_pareto_k.png)
"""
    for warning in last["warnings"]:
        text += f"\nWhat `pyro-vae evaluate` says of L_5000: {warning}.\n"
    return text


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=Path, default=Path("runs/log_likelihood"))
    parser.add_argument("--only", choices=list(TITLES), help="one of the two")
    given = parser.parse_args()
    root = os.environ.get("PYRO_VAE_DATA")
    if not root:
        sys.exit("PYRO_VAE_DATA is not set; it names the folder of the data")
    command = "python reports/log_likelihood/run.py" + (f" --only {given.only}" if given.only else "")
    text = header("The log-likelihood of VAEs on binarised MNIST", command)
    for kind in [given.only] if given.only else TITLES:
        folder = given.runs / kind
        ensure_trained(folder, kind, root)
        text += section(kind, folder, ensure_evaluated(folder))
    for kind in set(TITLES) - {given.only} if given.only else ():
        text += f"\n## {TITLES[kind]}\n\nNot yet run.\n"
    (HERE / "README.md").write_text(text)


if __name__ == "__main__":
    main()
