"""Chorales under a deep and a hidden Markov model, in nats a time slice, and what the deep one makes up.

The JSB chorales are taken from the folder that PYRO_VAE_DATA names; without it, made-up chords take their place.
"""

import os
import sys
from pathlib import Path

import torch

import pyro_vae as pv

EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 100
SHOWN, STEPS = 4, 40


def beginnings(split: pv.Split) -> pv.Split:
    """The first forty time slices of each sequence."""
    return pv.Split({"x": split["x"][:, :STEPS], "length": split["length"].clamp(max=STEPS)})


if __name__ == "__main__":
    folder = os.environ.get("PYRO_VAE_DATA")
    whole = pv.load_data("jsb", file=f"{folder}/jsb.npz") if folder else pv.load_data("planted_chains")
    data = pv.Dataset(whole.name, *map(beginnings, whole.splits.values()))
    how = {"epochs": EPOCHS, "batch_size": 20, "clip": 10.0, "progress": False}
    deep = {"latent_dim": 32, "hidden": (100,), "transition_dim": 100, "rnn_dim": 200} if folder else {}
    runs = {
        "hmm": pv.train("hmm", data, model_options={"states": 16 if folder else 4}, lr=3e-3, **how),
        "dmm": pv.train("dmm", data, model_options=deep, lr=3e-3, kl_warmup=EPOCHS // 4, **how),
    }
    for name, run in runs.items():
        result = pv.evaluate(run, data, "elbo", particles=10, progress=False)
        print(f"{name} on {data.name}: {result.per_time_slice:.3f} nats a time slice ({result.kind})")

    seen = pv.sample(runs["dmm"], n=SHOWN)["x"]
    chorales = data.test["x"][:SHOWN].to(seen)
    rolls = torch.stack([chorales.masked_fill(seen.isnan(), torch.nan), seen], 1).flatten(0, 1)
    pv.plots.save(pv.plots.piano_rolls(rolls, 2, (data.name, "draws of the deep Markov model")), Path("music.png"))
