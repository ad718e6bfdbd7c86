"""Sequences: the hidden Markov model and the deep Markov model, on chains that are known and on the chorales."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import linear_chains
import pyro_hmm
import torch
from kept import continued
from machine import table
from rows import Found, Rows, cell, minutes, seconds, verdict

import pyro_vae as pv
from pyro_vae.data.sets.planted_chains import law
from pyro_vae.evaluation.classify import confusion_counts, matching

SEEDS = (0, 1, 2)
PLANTED = {"epochs": 40, "batch_size": 200, "lr": 1e-2, "restarts": 5, "engine": "eager"}
LINEAR_SIZES = {"latent_dim": 1, "hidden": [], "transition_dim": 8, "rnn_dim": 16, "likelihood": "gaussian_learned"}
LINEAR = {"epochs": 60, "batch_size": 200, "lr": 1e-2, "schedule": "cosine", "engine": "eager"}
LINEAR_DATA, LINEAR_WANTED = 2000, 0.05
STATES = 16
HMM = {"epochs": 100, "batch_size": 20, "lr": 3e-3, "clip": 10.0, "restarts": 3, "engine": "eager"}
PYRO = {"steps": 600, "lr": 0.05, "batch_size": 20}
DMM_SIZES = {"latent_dim": 50, "hidden": [100, 100], "transition_dim": 100, "rnn_dim": 200}
DMM = {"epochs": 200, "batch_size": 20, "lr": 2e-3, "clip": 10.0, "kl_warmup": 50, "schedule": "cosine"}
DMM_DECAY = 0.1
DMM_WANTED, PARTICLES, DRAWS = 6.9, 100, 10


def planted_law() -> pv.models.HiddenMarkovModel:
    """The model that the planted chains follow."""
    first, moves, keys = law()
    pair = pv.models.HiddenMarkovModel((1, keys.shape[1]), len(first))
    pair.moves.set(torch.cat([moves, first[None]]).log())
    pair.emission.table.set(torch.logit(keys).unsqueeze(1))
    return pair


def of_planted(seed: int, folder: Path) -> dict[str, Any]:
    """Minus log p of new chains per time slice, which is exact, and the share of states that are found."""
    data = pv.load_data("planted_chains", seed=seed)
    run = continued("hmm", data, folder=folder / "run", seed=seed, **PLANTED)
    truth, found = (pv.evaluate(pair, data, "elbo", progress=False) for pair in (planted_law(), run.pair))
    chord, state = data.test["chord"], pv.encode(run)["state_most_probable"]
    there = chord >= 0
    label, guess = chord[there].long(), state[there].long()
    right = (matching(confusion_counts(label, guess, len(law().first)))[guess] == label).double().mean().item()
    return {
        "truth": -truth.per_time_slice,
        "found": -found.per_time_slice,
        "right": 100 * right,
        "seconds": seconds(run),
    }


def of_linear(seed: int, folder: Path) -> dict[str, Any]:
    """Minus the ELBO of new sequences of linear dynamics per time slice, beside minus log p of what drew them."""
    x, new = linear_chains.draw(LINEAR_DATA, 2 * seed), linear_chains.draw(LINEAR_DATA, 2 * seed + 1)
    held_out = pv.Split({"x": linear_chains.draw(LINEAR_DATA // 5, 100 + seed)})
    data = pv.Dataset("linear dynamics", pv.Split({"x": x}), held_out, pv.Split({"x": new}))
    run = continued("dmm", data, folder=folder / "run", seed=seed, model_options=LINEAR_SIZES, **LINEAR)
    bound = pv.evaluate(run, data, "elbo", DRAWS, progress=False).mean / linear_chains.STEPS
    truth = linear_chains.kalman(new).mean().item() / linear_chains.STEPS
    return {"truth": -truth, "found": -bound, "gap": truth - bound, "seconds": seconds(run)}


def chorales(root: Path) -> pv.Dataset:
    return pv.load_data("jsb", file=str(root / "jsb.npz"))


def of_hmm(root: Path, folder: Path) -> dict[str, Any]:
    """Nats per time slice of our hidden Markov model."""
    data = chorales(root)
    run = continued("hmm", data, folder=folder / "run", model_options={"states": STATES}, **HMM)
    found = {
        split: -pv.evaluate(run, data, "elbo", progress=False, split=split).per_time_slice
        for split in ("train", "valid", "test")
    }
    return {**found, "seconds": seconds(run)}


def of_pyro(root: Path, folder: Path) -> dict[str, Any]:
    """Nats per time slice of Pyro's."""
    whole = {name: split.take(slice(None)) for name, split in chorales(root).splits.items()}
    data = {name: {"x": each["x"].float(), "length": each["length"]} for name, each in whole.items()}
    return pyro_hmm.trained(data, STATES, **PYRO)


def of_dmm(root: Path, folder: Path) -> dict[str, Any]:
    """Nats per time slice of the deep Markov model, by the ELBO and by the importance-weighted bound."""
    data, decay = chorales(root), {"optimizer_options": {"weight_decay": DMM_DECAY}}
    run = continued("dmm", data, folder=folder / "run", model_options=DMM_SIZES, engine="eager", **DMM, **decay)
    found = {
        split: -pv.evaluate(run, data, "elbo", DRAWS, progress=False, split=split).per_time_slice
        for split in ("train", "valid", "test")
    }
    bound = pv.evaluate(run, data, "importance", PARTICLES, engine="eager", progress=False)
    return {**found, "weighted": -bound.per_time_slice, "seconds": seconds(run)}


def planted_table(rows: Rows) -> str:
    """What was planted, and what is found."""
    found = [rows.get(f"chains, planted, seed {seed}", partial(of_planted, seed)) for seed in SEEDS]
    lines = [
        [str(seed), cell(each, "truth", ".4f"), cell(each, "found", ".4f"), cell(each, "right", ".1f"), minutes(each)]
        for seed, each in zip(SEEDS, found, strict=True)
    ]
    return f"""Chains of a known hidden Markov model: minus log p of new chains, nats per time slice, exact, under
what drew them and under what is learned from the best of {PLANTED["restarts"]} starts; and how many of the states
behind them Viterbi's path has right, once the states are matched.

{table(["seed", "the truth", "learned", "states, %", "minutes"], lines)}"""


def linear_table(rows: Rows) -> str:
    """The deep Markov model beside the Kalman filter."""
    found = [rows.get(f"chains, linear dynamics, seed {seed}", partial(of_linear, seed)) for seed in SEEDS]
    lines = [
        [str(seed), cell(each, "truth", ".4f"), cell(each, "found", ".4f"), cell(each, "gap", ".4f"), minutes(each)]
        for seed, each in zip(SEEDS, found, strict=True)
    ]
    worst = None if None in found else max(each["gap"] for each in found)
    return f"""Linear dynamics with normal noise, {LINEAR_DATA:,} sequences of {linear_chains.STEPS} for training and as
many new ones: minus log p by the Kalman filter at the true parameters, and minus the ELBO of the deep Markov model that
was learned, nats per time slice.

{table(["seed", "Kalman filter", "deep Markov model", "gap", "minutes"], lines)}
Of the largest gap, {verdict(worst, LINEAR_WANTED, ".3f")}.
"""


def chorales_table(rows: Rows, root: Path) -> str:
    """All models of the chorales."""
    ours = f"hidden Markov model, {STATES} states"
    makers: dict[str, Callable[[Path], dict[str, Any]]] = {
        ours: partial(of_hmm, root),
        "the same in Pyro, point estimates": partial(of_pyro, root),
        "deep Markov model": partial(of_dmm, root),
    }
    found = {name: rows.get(f"chains, chorales, {name}", make) for name, make in makers.items()}
    lines = [
        [name, *(cell(each, split, ".3f") for split in ("train", "valid", "test")), weighted(each), minutes(each)]
        for name, each in found.items()
    ]
    deep = found["deep Markov model"]
    head = ["", "training", "validation", "test", f"test, L_{PARTICLES}", "minutes"]
    return f"""### Chorales

JSB chorales, nats per time slice: a sum over all sequences by the sum of their lengths. Those of hidden Markov models
are exact, that of the deep one is minus the ELBO ({DRAWS} draws), and beside it the importance-weighted bound. Our
hidden Markov model is trained {HMM["epochs"]} epochs, from the best of {HMM["restarts"]} starts, without priors on its
tables; Pyro's example (hmm.py, model 1) has priors on them and point estimates, here {PYRO["steps"]} steps of Adam on
{PYRO["batch_size"]} sequences each, of which the best on validation data is kept. The deep Markov model is trained
{DMM["epochs"]} epochs with latents of {DMM_SIZES["latent_dim"]} and a weight decay of {DMM_DECAY}. Pyro's tutorial
reports 6.87 by minus the ELBO, with latents of 100 and thousands of epochs, and the paper 6.93.

{table(head, lines)}
Of the deep Markov model's minus ELBO in test data, {verdict(deep and deep["test"], DMM_WANTED, ".3f")}.
{beside(*list(found.values())[:2])}"""


def weighted(found: Found | None) -> str:
    """The importance-weighted bound, where a row has one."""
    return cell(found, "weighted", ".3f") if found is None or "weighted" in found else ""


def beside(ours: Found | None, theirs: Found | None) -> str:
    """Both hidden Markov models, in a sentence."""
    if ours is None or theirs is None:
        return ""
    more = ours["test"] - theirs["test"]
    words = "more" if more > 0 else "fewer"
    return f"Our hidden Markov model needs {abs(more):.3f} nats {words} per time slice of the test data than Pyro's.\n"


def section(rows: Rows, root: Path | None) -> str:
    """Known chains, and the chorales where they are at hand."""
    left_out = "### Chorales\n\nLeft out: the chorales are read from `PYRO_VAE_DATA`, which is not set.\n"
    of_chorales = left_out if root is None else chorales_table(rows, root)
    return f"## Chains\n\n{planted_table(rows)}\n{linear_table(rows)}\n{of_chorales}"
