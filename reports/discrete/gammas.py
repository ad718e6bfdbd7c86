"""The sparse gamma deep exponential family on digits: its bounds."""

from pathlib import Path
from typing import Any

import torch
from kept import continued
from machine import table
from rows import Rows, cell, minutes, seconds

import pyro_vae as pv

EPOCHS, LR, BATCH = 300, 3e-3, 128
PARTICLES, DRAWS = 100, 10


def poisson_alone(data: pv.Dataset) -> float:
    """Nats per test datum of one Poisson a pixel, at the mean of the training data."""
    mean = data.facts["data_mean"].double().clamp(min=1 / data.train.size)
    return torch.distributions.Poisson(mean).log_prob(data.test["x"].double()).flatten(1).sum(1).mean().item()


def of_digits(folder: Path) -> dict[str, Any]:
    """The bounds on the test data, given draws of the weights, and that of all of them together."""
    data = pv.load_data("digits", scale="raw")
    run = continued("sparse_gamma_def", data, EPOCHS, folder / "run", lr=LR, batch_size=BATCH, schedule="cosine")
    elbo = pv.evaluate(run, data, "elbo", 10, progress=False, global_draws=DRAWS)
    bound = pv.evaluate(run, data, "importance", PARTICLES, progress=False, global_draws=DRAWS)
    return {
        "poisson": poisson_alone(data),
        "elbo": elbo.mean,
        "elbo error": elbo.standard_error,
        "bound": bound.mean,
        "bound error": bound.standard_error,
        "whole elbo": elbo.data_set.nats,
        "whole bound": bound.data_set.nats,
        "test data": bound.n,
        "seconds": seconds(run),
    }


def section(rows: Rows) -> str:
    """The table of the gamma family."""
    found = rows.get("gammas, digits", of_digits)
    lines = [
        ["one Poisson a pixel, exact", cell(found, "poisson"), ""],
        ["ELBO given the weights", cell(found, "elbo"), cell(found, "elbo error")],
        [f"log predictive density, L_{PARTICLES} of each draw", cell(found, "bound"), cell(found, "bound error")],
        ["ELBO of all test data together", cell(found, "whole elbo", ",.0f"), ""],
        ["bound on all test data together", cell(found, "whole bound", ",.0f"), ""],
    ]
    return f"""## The sparse gamma deep exponential family

The bundled digits as counts from 0 to 16, the widths and nets that the model has by default, {EPOCHS} epochs
({minutes(found)} minutes). The figures of a datum are nats per test datum given {DRAWS} draws of the weights from the
guide; of all test data together they count the prior and the guide of the weights as well, so they are lower than the
sum. No bar was set.

{table(["", "nats", "standard error"], lines)}"""
