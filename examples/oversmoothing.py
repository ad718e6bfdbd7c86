"""Why samples are smooth: what a likelihood takes for noise is missing in its means, the more so the wider it is."""

import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torchvision.utils import make_grid

import pyro_vae as pv

EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 100
LIKELIHOODS = {
    "squared error (sigma = 1)": {"likelihood": "gaussian"},
    "gaussian, sigma = 0.3": {"likelihood": "gaussian", "likelihood_sigma": 0.3},
    "gaussian, sigma = 0.1": {"likelihood": "gaussian", "likelihood_sigma": 0.1},
    "gaussian, sigma learned": {"likelihood": "gaussian_learned"},
    "continuous Bernoulli": {"likelihood": "continuous_bernoulli"},
}


def sharpness(images: torch.Tensor) -> float:
    """The mean difference of neighbouring pixels."""
    return images.diff(dim=-1).abs().mean().item() + images.diff(dim=-2).abs().mean().item()


if __name__ == "__main__":
    data = pv.load_data("digits")
    figure = Figure(figsize=(11, 2.6), layout="constrained")
    panels = figure.subplots(1, len(LIKELIHOODS) + 1)
    shown = {"data": data.test["x"]}
    for name, options in LIKELIHOODS.items():
        torch.manual_seed(0)
        vae = pv.VAE((1, 8, 8), latent_dim=10, **options, data_mean=data.facts["data_mean"])
        pv.train(vae, data, EPOCHS, progress=False)
        with torch.no_grad():
            shown[name] = vae.likelihood(vae.decoder(torch.randn(250, 10))).mean
    for axes, (name, images) in zip(panels, shown.items(), strict=True):
        share = sharpness(images) / sharpness(shown["data"])
        print(f"{name}: sharpness {share:.2f} of the data's")
        axes.imshow(make_grid(images[:36], nrow=6, padding=1)[0], cmap="gray", vmin=0, vmax=1)
        axes.set_title(f"{name}\n{share:.2f}", fontsize="small")
        axes.set(xticks=[], yticks=[])
    pv.plots.save(figure, Path("oversmoothing.png"))
