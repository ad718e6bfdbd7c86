"""How many latent dimensions? Samples with 2 to 20, and the bound with 2 to 1,000: what is not needed costs little."""

import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torchvision.utils import make_grid

import pyro_vae as pv

EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 100
SHOWN, DIMS = (2, 5, 10, 20), (2, 5, 10, 20, 50, 200, 1000)

if __name__ == "__main__":
    data = pv.load_data("digits", binarize="dynamic")
    figure = Figure(figsize=(11, 4), layout="constrained")
    panels = figure.subplots(1, len(SHOWN) + 1, width_ratios=[1] * len(SHOWN) + [2])
    bounds = []
    for dim in DIMS:
        torch.manual_seed(0)
        vae = pv.VAE((1, 8, 8), latent_dim=dim, hidden=(200,), data_mean=data.facts["data_mean"])
        pv.train(vae, data, EPOCHS, progress=False)
        bounds.append(pv.evaluate(vae, data, "importance", particles=100, progress=False))
        active = pv.evaluate(vae, data, "latent", progress=False).entry()["active_units"]
        error = bounds[-1].standard_error
        print(f"{dim} dimensions, {active} of them active: L_100 = {bounds[-1].mean:.2f} ± {error:.2f} nats per image")
        if dim in SHOWN:
            with torch.no_grad():
                means = vae.likelihood(vae.decoder(torch.randn(32, dim))).mean
            axes = panels[SHOWN.index(dim)]
            axes.imshow(make_grid(means, nrow=4, padding=1)[0], cmap="gray")
            axes.set(title=f"{dim} dimensions", xticks=[], yticks=[])
    last = panels[-1]
    last.errorbar(DIMS, [bound.mean for bound in bounds], [bound.standard_error for bound in bounds], marker="o")
    last.set(xscale="log", xlabel="latent dimensions", ylabel="L_100 (nats per test image)")
    pv.plots.save(figure, Path("latent_dims.png"))
