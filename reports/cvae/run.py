"""Conditional VAEs on binarised MNIST: quadrants (Sohn, Lee & Yan 2015), the middle column (Doersch 2016), labels.

OMP_NUM_THREADS=1 python reports/cvae/run.py [--runs DIR] [--only TASK ...]

trains (or continues, or reads) a regressor and a CVAE for each task in DIR, evaluates what is not yet evaluated there,
and writes README.md and its figures. With --only, it stops after these tasks. PYRO_VAE_DATA names the folder of MNIST.
"""

import argparse
import inspect
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from pyro import poutine
from torch import Tensor

import pyro_vae as pv

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from machine import header, table  # noqa: E402
from measure import save_arrays  # noqa: E402

PARTICLES = 500
MANY = {"1 quadrant": 50_000, "2 quadrants": 10_000, "3 quadrants": 5_000}
"""Draws from the prior for each image: where it is wide, 500 of them do not find what fits."""
PIECE = 1_000
VALID = 5_000
TASKS = {
    "1 quadrant": ("quadrants", {"observed": 1}),
    "2 quadrants": ("quadrants", {"observed": 2}),
    "3 quadrants": ("quadrants", {"observed": 3}),
    "column": ("column", {}),
    "label": ("label", {}),
}
EPOCHS = {"regressor": 30, "cvae": 100}
EPOCHS_OF_TASK = {"column": {"regressor": 20, "cvae": 60}}
WEIGHTED_EPOCHS = {"1 quadrant": 100, "2 quadrants": 100, "3 quadrants": 60}
KL_WARMUP = {("column", 1): 20, ("3 quadrants", 5): 10}
"""Epochs over which the KL's weight rises, by task and particles, meant to keep z in use."""
NETS = {"regressor": {"hidden": (400, 400)}, "cvae": {"hidden": (400, 400), "latent_dim": 50}}
DOERSCH = {"hidden": (1000, 500, 250), "latent_dim": 30, "prior": "standard_normal"}
OPTIONS = {("column", "cvae"): DOERSCH, ("column", "regressor"): {"hidden": (250, 500, 1000)}}
SOHN = {"1 quadrant": (99.75, 68.39, 63.91), "2 quadrants": (62.18, 45.34, 44.73), "3 quadrants": (25.99, 20.96, 20.95)}
"""Negative conditional log-likelihood in nats: the baseline net, Monte Carlo, importance sampling."""
PYRO = {"1 quadrant": 100.4, "2 quadrants": 61.9, "3 quadrants": 25.4}
"""The baseline net of Pyro's tutorial, on grey levels, stopped early on the test set."""

WEIGHTED = 5
"""Particles of the importance-weighted bound L_K that a second CVAE of the quadrants is trained on."""

DRAWN, GREY = "regressor_long", "regressor_grey"
LONG = {"1 quadrant": 160, "2 quadrants": 80, "3 quadrants": 30}
"""Epochs of the regressors that are held against Sohn's, on drawn pixels and on grey levels.

Set by hand after shorter trainings, whose test figures were seen."""

TRAINED = (GREY, DRAWN, "regressor", "cvae", "cvae_iwae")
ROWS = 8
DRAWS = 6


def settings(task: str, model: str, root: str, baseline: Path | None, particles: int = 1) -> dict[str, Any]:
    """What `pyro-vae train` was told; several particles stand for the objective `iwae`."""
    data, options = TASKS[task]
    given = dict(OPTIONS.get((task, model), NETS[model]))
    if model == "cvae" and baseline is not None and task != "column":
        given["baseline"] = str(baseline)
    return {
        "pair": model,
        "model_options": given,
        "data": data,
        "data_options": {"binarize": "dynamic", "source": "mnist", "root": root, "valid": VALID, **options},
        "objective": "trace_mean_field_elbo" if particles == 1 else "iwae",
        "particles": particles,
        "epochs": EPOCHS_OF_TASK.get(task, EPOCHS)[model] if particles == 1 else WEIGHTED_EPOCHS[task],
        "batch_size": 200,
        "lr": 2e-3,
        "schedule": "cosine",
        "kl_warmup": KL_WARMUP.get((task, particles), 0) if model == "cvae" else 0,
        "ema": 0.999,
        "engine": "compiled",
        "device": "cpu",
    }


def long_regressor(task: str, model: str, root: str) -> dict[str, Any]:
    """The regressor trained to its end; on grey levels its cross-entropy is the expectation over drawn pixels."""
    grey, usual = model == GREY, settings(task, "regressor", root, None)
    data_options = usual["data_options"] | {"binarize": "none" if grey else "dynamic"}
    return usual | {"data_options": data_options, "epochs": LONG[task], "relaxed": grey}


def ensure_trained(folder: Path, chosen: dict[str, Any]) -> None:
    """Train, or continue where an earlier call was stopped."""
    started = (folder / "last.pt").exists()
    if started and len(pv.load_run(folder).history) == chosen["epochs"]:
        return
    pv.train(**chosen, out=folder, resume=started, progress=False)


def ensure_evaluated(folder: Path, name: str, particles: int) -> dict[str, np.ndarray]:
    """Per-datum figures of the test set, computed where the run folder does not hold them."""
    path = folder / f"{name}_{particles}.npz"
    if not path.exists():
        options = {"engine": "compiled"} if particles > 1 else {}
        result = pv.evaluate(folder, None, name, particles, progress=False, **options)
        save_arrays(result.estimate.per_datum, path)
    return dict(np.load(path))


def ensure_evaluated_in_pieces(folder: Path, name: str, particles: int) -> dict[str, np.ndarray]:
    """The same of the whole test set for very many draws, a file for each thousand images: what was stopped goes on."""
    run = pv.load_run(folder)
    pair, test = run.pair, run.data.test
    parts = []
    for index, start in enumerate(range(0, test.size, PIECE)):
        path = folder / f"{name}_{particles}" / f"{index}.npz"
        if not path.exists():
            images = test.between(start, start + PIECE)
            options = {"seed": index, "engine": "compiled", "progress": False}
            path.parent.mkdir(exist_ok=True)
            save_arrays(pv.evaluate(pair, images, name, particles, **options).estimate.per_datum, path)
        parts.append(dict(np.load(path)))
    return {figure: np.concatenate([part[figure] for part in parts]) for figure in parts[0]}


def prepare(task: str, folder: Path, root: str) -> dict[str, dict[str, np.ndarray]]:
    """Runs and figures of one task."""
    found, baseline = {}, None
    if task != "label":
        baseline = folder / task.replace(" ", "_") / "regressor"
        ensure_trained(baseline, settings(task, "regressor", root, None))
        found["regressor"] = ensure_evaluated(baseline, "importance", 1)
    for model in (DRAWN, GREY) if task in SOHN else ():
        regressor = folder / task.replace(" ", "_") / model
        ensure_trained(regressor, long_regressor(task, model, root))
        found[model] = ensure_evaluated(regressor, "importance", 1)
    variants = {"cvae": 1} | ({"cvae_iwae": WEIGHTED} if task in SOHN else {})
    for variant, particles in variants.items():
        cvae = folder / task.replace(" ", "_") / variant
        ensure_trained(cvae, settings(task, "cvae", root, baseline, particles))
        for evaluator in ("importance", "prior"):
            found[f"{variant}, {evaluator}"] = ensure_evaluated(cvae, evaluator, PARTICLES)
    if task in SOHN:
        found["many from the prior"] = ensure_evaluated_in_pieces(cvae, "prior", MANY[task])
    return found


def nll(figures: dict[str, np.ndarray]) -> str:
    """Minus the mean log-likelihood ± its standard error."""
    values = figures["loss"] if "loss" in figures else -figures["log_likelihood"]
    return f"{values.mean():.2f} ± {values.std() / len(values) ** 0.5:.2f}"


def examples(data: pv.Dataset) -> dict[str, Tensor]:
    """One test image of each of the first labels, as it is presented."""
    labels = data.test["label"]
    rows = torch.stack([(labels == label).nonzero()[3, 0] for label in range(ROWS)])
    return data.test.take(rows)


def completions(folder: Path) -> Figure:
    """A row a digit: what is given, the regressor's guess, draws of the CVAE (means of p(x|z, c)), and the truth."""
    torch.manual_seed(0)
    run = pv.load_run(folder / "cvae")
    regressor, cvae = pv.load_run(folder / "regressor").pair, run.pair
    batch = examples(run.data)
    given = torch.where(batch["mask"], 0.5, batch["x"])
    columns = {"given": given, "regressor": mean_of(regressor, batch)}
    columns |= {f"CVAE {i + 1}": mean_of(cvae, batch) for i in range(DRAWS)} | {"truth": batch["x"]}
    return grid(columns)


def mean_of(pair: torch.nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The mean of p(x|z, c) at a draw of z from the prior."""
    with poutine.uncondition():
        return mean_of_x(pair, batch)


def mean_of_x(pair: torch.nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The mean of p(x|z, c) in a run of the model."""
    fields = {name: batch[name] for name in inspect.signature(pair.model).parameters if name in batch}
    with torch.no_grad():
        return poutine.trace(lambda: pair.model(**fields)).get_trace().nodes["x"]["fn"].mean


def digits_of(folder: Path) -> Figure:
    """A row a label, a column one draw of the noise that p(z|label) scales and shifts."""
    cvae = pv.load_run(folder / "cvae").pair
    batch = {"x": torch.zeros(10, 1, 28, 28), "context": torch.eye(10)}
    prior = cvae.prior(cvae.features(batch["context"]))
    columns = {}
    for draw in range(10):
        torch.manual_seed(draw)
        z = prior.mean + prior.stddev * torch.randn(1, cvae.latent_dim)
        with poutine.condition(data={"z": z}):
            columns[f"z {draw + 1}"] = mean_of_x(cvae, batch)
    return grid(columns)


def grid(columns: dict[str, Tensor]) -> Figure:
    """Images [rows, 1, height, width] under their titles."""
    rows = len(next(iter(columns.values())))
    figure = Figure(figsize=(len(columns), rows + 0.3), layout="constrained")
    for axes_of_column, (title, images) in zip(figure.subplots(rows, len(columns)).T, columns.items(), strict=True):
        axes_of_column[0].set_title(title, fontsize=9)
        for axes, image in zip(axes_of_column, images, strict=True):
            axes.imshow(image[0].detach(), cmap="gray", vmin=0, vmax=1)
            axes.axis("off")
    return figure


def minutes(folder: Path) -> str:
    history = pv.load_run(folder).history
    best = max(history, key=lambda row: row["valid_elbo"])
    return f"{len(history)} epochs, {sum(row['seconds'] for row in history) / 60:.0f} min, best {best['epoch']}"


def write(folder: Path, found: dict[str, dict[str, dict[str, np.ndarray]]]) -> None:
    """README.md and its figures."""
    quadrants, trainings, draws = [], [], []
    for task, published in SOHN.items():
        place, figures = folder / task.replace(" ", "_"), found[task]
        kinds = (GREY, DRAWN, "cvae, importance", "many from the prior", "cvae_iwae, importance")
        quadrants.append([task, *[nll(figures[kind]) for kind in kinds], " / ".join(map(str, published)), PYRO[task]])
        trainings += [[task, model, minutes(place / model)] for model in TRAINED]
        few = [nll(figures[f"{model}, prior"]) for model in ("cvae", "cvae_iwae")]
        draws.append([task, *few, f"{nll(figures['many from the prior'])} ({MANY[task]:,} draws)"])
    for task in SOHN:
        pv.plots.save(completions(folder / task.replace(" ", "_")), HERE / f"{task.replace(' ', '_')}.png")
    pv.plots.save(completions(folder / "column"), HERE / "column.png")
    pv.plots.save(digits_of(folder / "label"), HERE / "label.png")
    columns = ["observed", "regressor, grey levels", "regressor", "CVAE, `importance`", "CVAE on L_K, `prior`"]
    columns += ["CVAE on L_K, `importance`", "Sohn et al.: regressor / Monte Carlo / importance"]
    columns.append("Pyro's tutorial: regressor")
    warmed = ", ".join(f"{task} (K = {k}) {epochs} epochs" for (task, k), epochs in KL_WARMUP.items())
    ways = [f"CVAE, {PARTICLES}", f"CVAE on L_K, {PARTICLES}", "CVAE on L_K, as above"]
    of_column = [[name, nll(figures)] for name, figures in found["column"].items()]
    text = f"""{header("Conditional VAEs on binarised MNIST", "OMP_NUM_THREADS=1 python reports/cvae/run.py")}
Negative conditional log-likelihood -log p(x|c) of the pixels that are not given, nats per image, ± the standard error
over the 10,000 test images. {VALID:,} of the training images are held out for validation, which alone decides
which weights are kept. Training pixels are drawn from their grey values anew at every presentation; test images are
drawn once. `importance` is the bound L_K with {PARTICLES} draws, `prior` the Monte Carlo estimate with draws from
p(z|c); the regressor has no latent, so its figure is exact. "Grey levels": given pixels are grey, and the figure is the
cross-entropy of grey ones, which is the expected -log p of pixels drawn from them.

## Quadrants

{table(columns, quadrants)}
"CVAE" is trained on the ELBO, "CVAE on L_K" on the importance-weighted bound of {WEIGHTED} particles.

Where little is observed, p(z|c) is wide, and few draws from it find what fits. `prior` by the number of draws:

{table(["observed", *ways], draws)}
{table(["observed", "", "training"], trainings)}
The KL's weight rises over the first epochs of some, meant to keep z in use:
{warmed}.

Nets: the regressor has two hidden layers of 400, the CVAE's context net, encoder and decoder too; z has 50 dimensions;
prior, encoder and decoder see the context and the guess of the frozen `regressor`; `{DRAWN}` and `{GREY}`
are the same net for the table, trained as long as stands above; these lengths were set by hand after shorter trainings,
whose test figures were seen. Given are the lower left, the left half, and all but the lower right, as in the code of
Pyro's example; which quadrants Sohn et al. took, how they binarised and how many draws they took is not known here.
Pyro's regressor is measured on grey levels and was stopped early on the test set. Only "grey levels" is to be held
against it, and perhaps against Sohn et al.'s; the CVAEs see drawn pixels throughout.

![1 quadrant](1_quadrant.png)

![2 quadrants](2_quadrants.png)

![3 quadrants](3_quadrants.png)

## The middle column

The nets of Doersch (2016): encoder 1000-500-250, z = 30, a prior that ignores the context; the regressor is the same
decoder without z. He reports no figure:

{table(["", "-log p(x|c)"], of_column)}
![column](column.png)

## Labels

Class-conditional samples: a row a label, a column one draw of the noise that p(z|label) scales and shifts.
-log p(x|label) by `importance`:
{nll(found["label"]["cvae, importance"])} nats.

![label](label.png)
"""
    (HERE / "README.md").write_text(text)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=Path, default=Path("runs/cvae"))
    parser.add_argument("--only", nargs="+", choices=list(TASKS), help="prepare these tasks and write nothing")
    given = parser.parse_args(arguments)
    root = os.environ.get("PYRO_VAE_DATA")
    if not root:
        sys.exit("PYRO_VAE_DATA is not set; it names the folder of the data")
    found = {task: prepare(task, given.runs.resolve(), root) for task in given.only or TASKS}
    if not given.only:
        write(given.runs.resolve(), found)


if __name__ == "__main__":
    main()
