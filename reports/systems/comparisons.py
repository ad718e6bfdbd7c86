"""What one number of a system does, and which of two systems is the better one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from kept import continued
from machine import table
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.impute import KNNImputer, SimpleImputer
from torch import Tensor

import pyro_vae as pv

SIGMAS = (0.05, 0.1, 0.2, 0.4, 0.8)
PENALTIES = (0.01, 0.02, 0.05, 0.1, 0.2)
BETAS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
ALPHAS = (0.0, 0.5, 0.8, 0.9, 1.0)
EPOCHS = 200
PAIRED = {
    "normal posterior, prior N(0, I)": {},
    "IAF": {"posterior": "iaf"},
    "VampPrior": {"prior": "vamp", "prior_components": 500},
}
BASELINE = next(iter(PAIRED))
SEEDS, PAIRED_EPOCHS, DRAWS, IMAGES = (0, 1, 2), 30, 5000, 500
FIGURES = "figures.pt"
NET = {"hidden": (300, 300), "latent_dim": 40}
SETTINGS = {"objective": "trace_elbo", "batch_size": 100, "lr": 2e-3, "schedule": "cosine", "kl_warmup": 10}


def trained(data: pv.Dataset, model: str, options: Mapping[str, Any], **settings: Any) -> pv.Run:
    """A model trained on these digits."""
    return pv.train(model, data, EPOCHS, model_options=dict(options), progress=False, **settings)


def squared_error(run: pv.Run, data: pv.Dataset) -> float:
    """Mean squared error of a reconstructed element, on the test data."""
    return pv.evaluate(run, data, "reconstruction", progress=False).squared_error.mean().item()


def rate_and_distortion(run: pv.Run, data: pv.Dataset) -> tuple[float, float]:
    """KL and -log p(x|z), nats per test datum."""
    found = pv.evaluate(run, data, "elbo", 10, progress=False)
    return found.rate.mean().item(), found.distortion.mean().item()


def of_sigma(data: pv.Dataset) -> list[list[float]]:
    """Squared error and rate of a Gaussian VAE for each of its standard deviations."""
    found = []
    for sigma in SIGMAS:
        run = trained(data, "vae", {"likelihood": "gaussian", "likelihood_sigma": sigma, "latent_dim": 10})
        found.append([sigma, squared_error(run, data), rate_and_distortion(run, data)[0]])
    return found


def of_penalty(data: pv.Dataset) -> list[list[float]]:
    """Share of a sparse autoencoder's code that is exactly zero, and its squared error, for each weight of its
    penalty."""
    found = []
    for l1 in PENALTIES:
        run = trained(data, "sparse_autoencoder", {"l1": l1}, lr=3e-3)
        codes = pv.encode(run, data)["z_mean"]
        found.append([l1, (codes == 0).float().mean().item(), squared_error(run, data)])
    return found


def of_beta(data: pv.Dataset) -> dict[str, list[tuple[float, float]]]:
    """Rate and distortion over what weighs the rate."""
    ways: dict[str, list[dict[str, Any]]] = {
        "beta-VAE, beta = 1/4 to 8": [{"beta": beta} for beta in BETAS],
        "beta-TCVAE, beta = 1/4 to 8": [{"objective": "beta_tcvae", "beta": beta} for beta in BETAS],
        "InfoVAE, alpha = 0 to 1": [
            {"objective": "info_vae", "objective_options": {"alpha": alpha}} for alpha in ALPHAS
        ],
    }
    return {
        name: [rate_and_distortion(trained(data, "vae", {"latent_dim": 10}, **each), data) for each in settings]
        for name, settings in ways.items()
    }


def curves_figure(sigma: Sequence[Sequence[float]], penalty: Sequence[Sequence[float]], beta: Mapping) -> Figure:
    """The three of them side by side."""
    figure = Figure(figsize=(14, 3.8), layout="constrained")
    first, second, third = figure.subplots(1, 3)
    two_scales(first, sigma, "sigma", "squared error of a pixel", "rate (nats)")
    two_scales(second, penalty, "lambda", "share of exact zeros", "squared error of a pixel")
    for name, points in beta.items():
        third.plot(*zip(*points, strict=True), marker="o", label=name)
    third.set(xlabel="rate (nats per test datum)", ylabel="distortion (nats per test datum)")
    third.legend(frameon=False)
    return figure


def two_scales(axes: Axes, points: Sequence[Sequence[float]], x: str, left: str, right: str) -> None:
    """Two figures against a third one."""
    places, ones, others = zip(*points, strict=True)
    axes.plot(places, ones, marker="o", color="tab:blue")
    axes.set_xscale("log")
    axes.set_xticks(places, [f"{place:g}" for place in places])
    axes.minorticks_off()
    axes.set_xlabel(x)
    axes.set_ylabel(left, color="tab:blue")
    beside = axes.twinx()
    beside.plot(places, others, marker="s", color="tab:orange")
    beside.set_ylabel(right, color="tab:orange")


def of_missing(run: pv.Run, gaps: pv.Dataset, whole: Tensor, neighbours: int) -> dict[str, Any]:
    """Squared error of the missing pixels, by the VAE and by the usual ways, and its bounds on what is left.

    Only the first so many training data are the neighbours; the mean is that of all.
    """
    seen, known = gaps.test["x"], gaps.train["x"].flatten(1)
    missing = seen.isnan()
    filled = {"VAE": pv.impute(run, gaps, "test", draws=20)["x"].mean(0)}
    ways = {
        "mean of the pixel": SimpleImputer().fit(known),
        "nearest neighbour": KNNImputer(n_neighbors=1).fit(known[:neighbours]),
    }
    for name, way in ways.items():
        found = way.transform(seen.flatten(1))
        filled[name] = torch.from_numpy(found).to(whole).reshape(whole.shape)
    errors = {name: (values - whole)[missing].square().mean().item() for name, values in filled.items()}
    bound = pv.evaluate(run, gaps, "importance", 1000, progress=False)
    return {"errors": errors, "bound": bound.mean, "standard_error": bound.standard_error}


def place_of(folder: Path, name: str, seed: int) -> Path:
    """Where a contender's run and figures are kept."""
    return folder / f"{name}_{seed}".replace(" ", "_").replace("/", "_")


def pair_up(folder: Path, data: pv.Dataset) -> None:
    """Make the figures of every seed of every contender: the ELBO of the test images, L_5000 of the first of them."""
    for seed in SEEDS:
        for name, options in PAIRED.items():
            place = place_of(folder, name, seed)
            if not (place / FIGURES).exists():
                run = contender(place, data, options, seed)
                elbo = pv.evaluate(run, data, "elbo", 10, progress=False).elbo
                bound = pv.evaluate(run, data, "importance", DRAWS, IMAGES, progress=False).log_likelihood
                torch.save({"elbo": elbo, f"L_{DRAWS}": bound}, place / FIGURES)


def paired_section(folder: Path) -> str:
    """What is known of the contenders, of the seeds of which all are made; nothing where there is none."""
    places = {seed: {name: place_of(folder, name, seed) / FIGURES for name in PAIRED} for seed in SEEDS}
    made = [seed for seed, files in places.items() if all(file.exists() for file in files.values())]
    if not made:
        return ""
    found = {f"{name}, {seed}": torch.load(file) for seed in made for name, file in places[seed].items()}
    return f"""## Which posterior, which prior

Static MNIST, 784-300-300-40, {PAIRED_EPOCHS} epochs, of which the KL's weight rises in the first
{SETTINGS["kl_warmup"]}, batches of 100, the objective `trace_elbo` for all; {len(made)} of {len(SEEDS)} seeds are made.
"Better by" is the mean over the same images of the difference from the first rows of the same seed, with its standard
error; the ELBO of all 10,000 test images, L_{DRAWS} of the first {IMAGES:,}. The VampPrior has
{PAIRED["VampPrior"]["prior_components"]} pseudo-inputs.

{paired_table(found, made)}"""


def contender(place: Path, data: pv.Dataset, options: Mapping[str, Any], seed: int) -> pv.Run:
    """A training that goes on where it was stopped."""
    return continued("vae", data, PAIRED_EPOCHS, place, model_options=NET | options, seed=seed, **SETTINGS)


def paired_table(found: Mapping[str, Mapping[str, Tensor]], seeds: Sequence[int]) -> str:
    """Means, and the differences from the first contender of the same seed, image by image."""
    rows = []
    for name in PAIRED:
        for seed in seeds:
            figures, beside = found[f"{name}, {seed}"], found[f"{BASELINE}, {seed}"]
            cells = []
            for figure, values in figures.items():
                difference = (values - beside[figure]).double()
                error = difference.std() / len(difference) ** 0.5
                cells += [f"{values.double().mean():.2f}", f"{difference.mean():+.2f} ± {error:.2f}"]
            rows.append([name, str(seed), *(cells if name != BASELINE else [cells[0], "", cells[2], ""])])
    head = ["", "seed", "ELBO", "better by", f"L_{DRAWS}", "better by"]
    return table(head, rows) + "\n" + spread_of_seeds(found, seeds)


def spread_of_seeds(found: Mapping[str, Mapping[str, Tensor]], seeds: Sequence[int]) -> str:
    """How much better each contender is, over all seeds, in a sentence."""
    lines = []
    for name in PAIRED:
        if name == BASELINE:
            continue
        parts = []
        for figure in ("elbo", f"L_{DRAWS}"):
            means = torch.tensor(
                [(found[f"{name}, {s}"][figure] - found[f"{BASELINE}, {s}"][figure]).double().mean() for s in seeds]
            )
            what = "ELBO" if figure == "elbo" else figure
            parts.append(f"{means.mean():.2f} nats by {what} (seeds: {means.min():.2f} to {means.max():.2f})")
        lines.append(f"{name} is better by {' and by '.join(parts)}.")
    return " ".join(lines) + "\n"
