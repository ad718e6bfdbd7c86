"""A denoising autoencoder points back to the data: r(x) - x is a field whose arrows lead to the curve."""

import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure

import pyro_vae as pv

EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 150
NOISE = 0.15


def curve(t: torch.Tensor) -> torch.Tensor:
    """Points [n, 2] of an S in the plane, t from 0 to 1."""
    angle = 3 * torch.pi * (t - 0.5)
    return torch.stack([angle.sin(), angle.sign() * (angle.cos() - 1)], 1)


def back(pair: pv.Pair, x: torch.Tensor) -> torch.Tensor:
    """r(x) - x at points [n, 2]."""
    with torch.no_grad():
        return pair.decoder(pair.posterior.code(pair.encoder(x))).squeeze(1) - x


if __name__ == "__main__":
    torch.manual_seed(0)
    x = curve(torch.rand(4000))
    options = {"latent_dim": 16, "hidden": (128, 128), "activation": "tanh", "noise": NOISE}
    pair = pv.models.denoising_autoencoder((2,), **options)
    pv.train(pair, x, EPOCHS, batch_size=200, lr=5e-3, schedule="cosine", progress=False)
    t = torch.linspace(0.02, 0.98, 500)
    tangent = torch.nn.functional.normalize(curve(t + 1e-3) - curve(t - 1e-3))
    normal = tangent.flip(1) * torch.tensor([1.0, -1.0])
    for distance in (0.5, 1, 2):
        away = distance * NOISE * torch.cat([normal, -normal])
        cosine = torch.nn.functional.cosine_similarity(back(pair, curve(t).repeat(2, 1) + away), -away).mean()
        print(f"{distance} standard deviations of the noise beside the curve: cosine with the way back {cosine:.3f}")
    dense = curve(torch.linspace(0, 1, 2000))
    grid = torch.cartesian_prod(torch.linspace(-1.6, 1.6, 28), torch.linspace(-2.6, 2.6, 40))
    grid = grid[torch.cdist(grid, dense).min(1).values < 4 * NOISE]
    figure = Figure(figsize=(5, 6.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(*dense.T, color="black", linewidth=1)
    axes.quiver(*grid.T, *back(pair, grid).T, angles="xy", scale_units="xy", scale=1, width=0.003, color="tab:blue")
    axes.set(aspect="equal", xticks=[], yticks=[], title="r(x) - x")
    pv.plots.save(figure, Path("denoising_field.png"))
