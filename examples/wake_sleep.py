"""A net of bits learns without a gradient through them: from dreams of its own it learns to tell code from digit."""

import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torchvision.utils import make_grid

import pyro_vae as pv

EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 100
WAYS = {
    "wake-sleep": {"objective": "wake_sleep"},
    "reweighted wake-sleep": {"objective": "reweighted_wake_sleep", "particles": 5},
    "reweighted, half at dreams": {
        "objective": "reweighted_wake_sleep",
        "objective_options": {"insomnia": 0.5},
        "particles": 5,
    },
    "VIMCO": {"objective": "iwae", "objective_options": {"gradient": "vimco"}, "particles": 5},
}

if __name__ == "__main__":
    data = pv.load_data("digits", binarize="static")
    shown = {"data": data.test["x"][:36]}
    curves = {}
    for name, how in WAYS.items():
        torch.manual_seed(0)
        net = pv.models.SigmoidBeliefNet((1, 8, 8), latent_dims=(64, 32), data_mean=data.facts["data_mean"])
        run = pv.train(net, data, EPOCHS, lr=3e-3, progress=False, **how)
        bound = pv.evaluate(run, data.test, "importance", particles=500, progress=False)
        print(f"{name}: log p(x) of test digits at least {bound.mean:.2f} ± {bound.standard_error:.2f} nats")
        curves[name] = [row["valid_elbo"] for row in run.history]
        shown[f"{name}\n{bound.mean:.1f} nats"] = pv.sample(run, n=36)["x"]

    figure = Figure(figsize=(12, 4.6), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1, 1))
    for axes, (title, images) in zip(above.subplots(1, len(shown)), shown.items(), strict=True):
        axes.imshow(make_grid(images, nrow=6, padding=1)[0], cmap="gray")
        axes.set_title(title, fontsize="small")
        axes.set(xticks=[], yticks=[])
    axes = below.subplots()
    for name, values in curves.items():
        axes.plot(range(1, len(values) + 1), values, label=name)
    axes.set(xlabel="epoch", ylabel="validation ELBO, nats")
    axes.legend(frameon=False, fontsize="small")
    pv.plots.save(figure, Path("wake_sleep.png"))
