"""Finite mixtures beside scikit-learn's and beside EM."""

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import table
from rows import Rows, cell, minutes
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from sklearn.naive_bayes import BernoulliNB
from torch import Tensor

import pyro_vae as pv

EPOCHS, LR, POINTS = 1000, 5e-3, 600
COVARIANCES = {"full": "gaussian_full", "diag": "gaussian_net"}
QUIET = {"progress": False, "engine": "eager", "device": "cpu"}
WANTED = 0.02
EM_STEPS = 2000


def planted() -> np.ndarray:
    """Points of three normals [n, 2] with covariances of their own, which overlap a little."""
    rng = np.random.default_rng(0)
    centres = np.array([[-2.0, 0.0], [1.5, 1.0], [0.5, -2.0]])
    shapes = np.array([[[0.8, 0.0], [0.5, 0.5]], [[0.5, 0.0], [-0.4, 0.9]], [[1.0, 0.0], [0.0, 0.4]]])
    kind = rng.choice(3, POINTS, p=[0.5, 0.3, 0.2])
    return centres[kind] + np.einsum("nij,nj->ni", shapes[kind], rng.normal(size=(POINTS, 2)))


def codes() -> np.ndarray:
    """The bundled digits in their first five principal components."""
    x = pv.load_data("digits").train["x"].flatten(1).double().numpy()
    return PCA(5, random_state=0).fit_transform(x)


def bits() -> tuple[Tensor, Tensor]:
    """The bundled digits, each pixel drawn once as a bit, [n, 64], and their labels."""
    train = pv.load_data("digits", binarize="static").train
    return train["x"].flatten(1).double(), train["label"]


NORMALS: Mapping[str, tuple[Callable[[], np.ndarray], int]] = {"made-up points": (planted, 3), "digits": (codes, 10)}


def at(fitted: GaussianMixture) -> pv.models.Mixture:
    """Our mixture, in float64, at the parameters of scikit-learn's."""
    components, size = fitted.means_.shape
    pair = pv.models.Mixture((size,), components, COVARIANCES[fitted.covariance_type]).double()
    loc = torch.from_numpy(fitted.means_).unsqueeze(1)
    if fitted.covariance_type == "full":
        tril = torch.linalg.cholesky(torch.from_numpy(fitted.covariances_))
        spread = tril.tril(-1) + torch.diag_embed(tril.diagonal(dim1=-2, dim2=-1).log())
    else:
        spread = torch.from_numpy(fitted.covariances_).log().unsqueeze(1) / 2
    pair.weights.set(torch.from_numpy(fitted.weights_).log())
    pair.emission.table.set(torch.cat([loc, spread], 1))
    return pair


def of_bits(weights: Tensor, logits: Tensor) -> pv.models.Mixture:
    """Our mixture of bits, in float64, at these log-weights [components] and logits [components, bits]."""
    pair = pv.models.Mixture((logits.shape[1],), len(weights)).double()
    pair.weights.set(weights)
    pair.emission.table.set(logits.unsqueeze(1))
    return pair


def log_p(pair: pv.models.Mixture, x: Tensor) -> Tensor:
    """log p(x) [n], which is exact."""
    result = pv.evaluate(pair, x, "importance", progress=False)
    assert result.kind == "exact"
    return result.log_likelihood.double()


def relative(found: Tensor, expected: np.ndarray) -> float:
    """The largest relative difference."""
    return np.abs((found.numpy() - expected) / expected).max().item()


def fitted_from(pair: pv.models.Mixture, x: Tensor, folder: Path) -> float:
    """Nats per datum after training on all of x at once."""
    how = {"batch_size": len(x), "lr": LR, "schedule": "cosine", "valid": x, "out": folder / "run"}
    resume = (folder / "run" / "last.pt").exists()
    run = pv.train(pair, x, EPOCHS, resume=resume, overwrite=not resume, **how, **QUIET)
    return log_p(run.pair, x).mean().item()


def of_normals(data: Callable[[], np.ndarray], components: int, kind: str, folder: Path) -> dict[str, Any]:
    """The figures of normals; the start is one step of EM from the centres that k-means finds."""
    x = data()
    how = {"n_components": components, "covariance_type": kind, "random_state": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        begun = GaussianMixture(max_iter=1, **how).fit(x)
    of_start = {"weights_init": begun.weights_, "means_init": begun.means_, "precisions_init": begun.precisions_}
    em = GaussianMixture(tol=1e-9, max_iter=EM_STEPS, **how, **of_start).fit(x)
    tensor = torch.from_numpy(x)
    return {
        "relative": relative(log_p(at(em), tensor), em.score_samples(x)),
        "start": begun.score(x),
        "em": em.score(x),
        "ours": fitted_from(at(begun), tensor, folder),
    }


def em_of_bits(pair: pv.models.Mixture, x: Tensor) -> float:
    """The mean log p(x) that EM ends with, from where the mixture is."""
    with torch.no_grad():
        log_weights, rates = pair.weights().log_softmax(0), pair.emission.table().sigmoid().squeeze(1)
    for _ in range(EM_STEPS):
        joint = log_weights + x @ rates.log().T + (1 - x) @ (1 - rates).log().T
        share = joint.softmax(1)
        log_weights, rates = share.mean(0).log(), (share.T @ x / share.sum(0)[:, None]).clamp(1e-9, 1 - 1e-9)
    return joint.logsumexp(1).mean().item()


def of_digits_as_bits(folder: Path) -> dict[str, Any]:
    """The figures of bits. scikit-learn's naive Bayes is a mixture of bits whose components are the labels; training
    and EM both start where our mixture does, around the mean of the data."""
    x, label = bits()
    bayes = BernoulliNB().fit(x.numpy(), label.numpy())
    theirs = np.logaddexp.reduce(bayes.predict_joint_log_proba(x.numpy()), 1)
    rates = torch.from_numpy(bayes.feature_log_prob_).exp()
    exact = of_bits(torch.from_numpy(bayes.class_log_prior_), rates.logit())
    torch.manual_seed(0)
    start = pv.models.Mixture(x.shape[1:], len(rates), data_mean=x.mean(0).float()).double()
    begun, em = log_p(start, x).mean().item(), em_of_bits(start, x)
    return {
        "relative": relative(log_p(exact, x), theirs),
        "start": begun,
        "em": em,
        "ours": fitted_from(start, x, folder),
    }


def makers() -> dict[str, Callable[[Path], dict[str, Any]]]:
    """Each row's name, and what makes it."""
    found: dict[str, Callable[[Path], dict[str, Any]]] = {}
    for name, (data, components) in NORMALS.items():
        for kind in COVARIANCES:
            words = "full covariances" if kind == "full" else "diagonal covariances"
            found[f"{components} normals, {words}, {name}"] = partial(of_normals, data, components, kind)
    return found | {"10 vectors of bits, digits": of_digits_as_bits}


def section(rows: Rows) -> str:
    """The table of mixtures."""
    lines, missed = [], []
    for name, make in makers().items():
        found = rows.get(f"mixtures, {name}", make)
        figures = [cell(found, key, form) for key, form in {"relative": ".1e", "start": ".4f", "em": ".4f"}.items()]
        difference = None if found is None else found["ours"] - found["em"]
        short = cell(found, "ours", ".4f"), "not run" if difference is None else f"{difference:+.4f}"
        lines.append([name, *figures, *short, minutes(found)])
        if difference is not None and difference < -WANTED:
            missed.append(name)
    head = ["", "relative difference of log p", "start", "EM", "ours", "ours - EM", "minutes"]
    words = f"Missed by: {'; '.join(missed)}." if missed else "No row that was run is further below."
    return f"""## Mixtures

The first figure is the largest relative difference of log p(x), in float64, between our mixture at the parameters that
scikit-learn found and scikit-learn's own (for bits, its naive Bayes, which is a mixture of bits whose components are
labels). The others are nats per datum of the training data: at the start, where EM ends from it (scikit-learn's, for
bits one by hand), and where {EPOCHS} steps of Adam end from it. Wanted is at most {WANTED} below EM.

{table(head, lines)}
{words} Where gradients end above EM, they have found a better local optimum from the same start.
"""
