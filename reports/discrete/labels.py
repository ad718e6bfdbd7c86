"""Semi-supervised MNIST: M2 and M1+M2 with few labels, beside published figures and a classifier alone."""

import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kept import continued
from machine import table
from rows import NOT_RUN, Found, Rows, minutes, seconds, verdict
from sklearn.linear_model import LogisticRegression
from torch import nn

import pyro_vae as pv
from pyro_vae.data.labels import HIDDEN, hide_labels
from pyro_vae.plots.mosaic import mosaic

M1 = "labels, M1"
LABELS, DRAWS = (100, 3000), (0, 1, 2)
COPIES = {100: 50, 3000: 5}
EPOCHS = {"M1": 60, "M2": 20, "M1+M2": 40}
SIZES = {
    "M1": {"latent_dim": 50, "hidden": [500, 500]},
    "M2": {"latent_dim": 50, "hidden": [500]},
    "M1+M2": {"latent_dims": [50, 50], "hidden": [500]},
}
NAMES = {"M2": "m2", "M1+M2": "m1_m2"}
HOW = {"batch_size": 200, "lr": 1e-3, "schedule": "cosine"}
SHARE = 0.1
"""A known label weighs this, times the number of training data by that of labels (Kingma et al. 2014)."""

SETTINGS_IN_WORDS = f"""Sizes are those of Kingma et al. (2014) but for M1, whose layers have 500 units. A known label
weighs, as there, {SHARE} times the number of training data by that of labels, and stands in the training data several
times ({", ".join(f"{copies} times of {labels:,}" for labels, copies in COPIES.items())}), among which this weight is
divided. The epoch that is kept is that of the best ELBO on validation data whose labels are hidden; no label beyond
those of the row decided anything."""

STYLES, PARTICLES = 8, 10
WANTED = {("M2", 100): 7.0, ("M2", 3000): 4.2, ("M1+M2", 100): 5.0, ("M1+M2", 3000): 3.0}
PUBLISHED = {
    ("M2", 100): "6.81 ± 0.60 (Pyro's tutorial); 11.97 (Kingma et al. 2014, recalled)",
    ("M2", 3000): "4.18 (Pyro's tutorial)",
    ("M1+M2", 100): "3.33 (Kingma et al. 2014, recalled)",
    ("a classifier alone", 100): "22.88 (Pyro's tutorial, a net)",
}


def images(root: Path, binarize: str = "dynamic") -> pv.Dataset:
    """MNIST, 50,000 for training; the same of them for every draw of labels."""
    return pv.load_data("mnist", root=str(root), binarize=binarize)


def with_labels(root: Path, labels: int, draw: int, binarize: str = "dynamic") -> pv.Dataset:
    """These images with so many labels, as many of each class; those of validation and test are hidden."""
    return hide_labels(images(root, binarize), labels, draw, COPIES[labels])


def m1_in(rows: Rows, root: Path) -> Found | None:
    """The VAE that M1+M2 stands on, trained on all training images without labels."""

    def make(folder: Path) -> dict[str, Any]:
        how = {"model_options": SIZES["M1"], **HOW}
        return {"seconds": seconds(continued("vae", images(root), EPOCHS["M1"], folder / "run", **how))}

    return rows.get(M1, make)


def of_model(model: str, labels: int, *, draw: int, root: Path, m1: Path, folder: Path) -> dict[str, Any]:
    """The test error (%) of a model; its pictures lie in its folder."""
    data = with_labels(root, labels, draw)
    weight = SHARE * images(root).train.size / labels / COPIES[labels]
    options = {**SIZES[model], "classification": weight}
    if model == "M1+M2":
        options["m1"] = str(m1)
    run = continued(NAMES[model], data, EPOCHS[model], folder / "run", model_options=options, seed=draw, **HOW)
    result = pv.evaluate(run, data, "classify", PARTICLES if model == "M1+M2" else 1, progress=False)
    pv.plots.save(result.estimate.figures["confusion"], folder / "confusion.png")
    if model == "M2":
        save_styles(run.pair, folder / "styles.png")
    return {
        "error": 100 * result.mean,
        "epoch": int(np.argmin([row["valid_loss"] for row in run.history])) + 1,
        "elbo": -min(row["valid_loss"] for row in run.history),
        "seconds": seconds(run),
    }


@torch.no_grad()
def save_styles(m2: nn.Module, path: Path) -> None:
    """A picture of what each label looks like in each of some styles."""
    torch.manual_seed(0)
    labels, size = m2.num_labels, m2.prior().mean.shape[-1]
    z = torch.randn(STYLES, 1, size).expand(STYLES, labels, size)
    both = torch.cat([z, torch.eye(labels).expand(STYLES, labels, labels)], -1).flatten(0, 1)
    figure, _ = mosaic(m2.cpu().likelihood(m2.decoder(both)).mean, labels, (0.0, 1.0))
    pv.plots.save(figure, path)


def of_regression(labels: int, *, draw: int, root: Path, folder: Path) -> dict[str, Any]:
    """The test error (%) of logistic regression on the same labels, of grey images."""
    data = with_labels(root, labels, draw, "none")
    known = np.flatnonzero(data.train["label"] != HIDDEN)
    x, test = data.train["x"][known].flatten(1).numpy(), data.test["x"].flatten(1).numpy()
    fitted = LogisticRegression(max_iter=2000).fit(x, data.train["label"][known].numpy())
    return {"error": 100 * (fitted.predict(test) != data.test["truth"].numpy()).mean().item()}


def name_of(model: str, labels: int, draw: int) -> str:
    return f"labels, {model}, {labels} labels, draw {draw}"


def found_of(rows: Rows, root: Path, m1: Found | None) -> dict[tuple[str, int], list[Found | None]]:
    """What every model finds from every draw of labels. M1+M2 waits for M1."""
    found: dict[tuple[str, int], list[Found | None]] = {}
    place = rows.place(M1) / "run"
    for labels in LABELS:
        makers = {model: partial(of_model, model, labels, root=root, m1=place) for model in NAMES}
        makers["a classifier alone"] = partial(of_regression, labels, root=root)
        for model, make in makers.items():
            waits = model == "M1+M2" and m1 is None
            found[model, labels] = [
                None if waits else rows.get(name_of(model, labels, draw), partial(call, make, draw)) for draw in DRAWS
            ]
    return found


def call(make: Callable[..., dict[str, Any]], draw: int, folder: Path) -> dict[str, Any]:
    """What is made of a draw."""
    return make(draw=draw, folder=folder)


def mean_error(found: list[Found | None]) -> float | None:
    """The mean over draws, where all of them are there."""
    return None if None in found else statistics.mean(each["error"] for each in found)


def line(model: str, labels: int, found: list[Found | None]) -> list[str]:
    """A line of the table."""
    mean, there = mean_error(found), [each for each in found if each is not None]
    spread = NOT_RUN if mean is None else f"{mean:.2f} ± {statistics.stdev(each['error'] for each in found):.2f}"
    draws = ", ".join(NOT_RUN if each is None else f"{each['error']:.2f}" for each in found)
    epochs = ", ".join(str(each["epoch"]) for each in there if "epoch" in each)
    bar = verdict(mean, WANTED[model, labels]) if (model, labels) in WANTED else ""
    took = max(there, key=lambda each: each["seconds"], default=None)
    return [f"{labels:,}", model, spread, draws, PUBLISHED.get((model, labels), ""), bar, epochs, minutes(took)]


def pictures(rows: Rows, copy: Callable[[Path, str], str]) -> str:
    """Those of the first draw."""
    told = []
    for labels in LABELS:
        for model in NAMES:
            place, words = rows.place(name_of(model, labels, DRAWS[0])), f"{model}, {labels} labels"
            told.append(copy(place / "styles.png", f"{words}: a style in each row, a label in each column"))
            told.append(copy(place / "confusion.png", f"{words}: confusion matrix"))
    return "\n".join(filter(None, told))


def section(rows: Rows, root: Path | None, copy: Callable[[Path, str], str]) -> str:
    """The table of semi-supervised learning."""
    if root is None:
        return "## Few labels\n\nLeft out: MNIST is read from `PYRO_VAE_DATA`, which is not set.\n"
    m1 = m1_in(rows, root)
    found = found_of(rows, root, m1)
    head = ["labels", "", "test error, %", "draws", "published, %", "", "epoch that was kept", "minutes at most"]
    lines = [line(model, labels, each) for (model, labels), each in found.items()]
    return f"""## Few labels

MNIST, 50,000 images for training, which are all seen; as many of each class keep their label. Mean and standard
deviation are over {len(DRAWS)} draws of the labels, of which each has a start of its own. Pixels are drawn anew as bits
at each presentation. {SETTINGS_IN_WORDS}

{table(head, lines)}
M1 was trained once, {EPOCHS["M1"]} epochs ({minutes(m1)} minutes); M2 {EPOCHS["M2"]} epochs, M1+M2 {EPOCHS["M1+M2"]}.
The classifier alone is scikit-learn's logistic regression on the labelled images, grey. Published errors are by other
nets, other draws and far more epochs: Pyro's tutorial trains a classifier net alone in place of the regression.

{pictures(rows, copy)}"""
