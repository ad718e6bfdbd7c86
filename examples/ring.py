"""A normal in the plane becomes a ring (Doersch 2016, figure 2): here the map is learned from the ring alone."""

import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure

import pyro_vae as pv

EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 60


def ring(n: int) -> torch.Tensor:
    """z / 10 + z / |z| of normal z: points [n, 2] whose radius is 1.12 in the mean."""
    z = torch.randn(n, 2)
    return z / 10 + z / z.norm(dim=1, keepdim=True)


if __name__ == "__main__":
    torch.manual_seed(0)
    x = ring(4000)
    nets = {"hidden": (64, 64), "activation": "tanh"}
    vae = pv.VAE((2,), latent_dim=2, **nets, likelihood="gaussian_learned", likelihood_sigma=0.2)
    run = pv.train(vae, x, EPOCHS, lr=3e-3, schedule="cosine", progress=False)

    drawn = pv.sample(run, n=4000)
    radius = {name: points.norm(dim=1) for name, points in (("data", x), ("samples", drawn["x"]))}
    for name, values in radius.items():
        print(f"radius of the {name}: {values.mean():.3f} ± {values.std():.3f}")

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    angle = torch.atan2(*drawn["z"].T)
    panels = {"z, from N(0, I)": drawn["z"], "x, from p(x|z)": drawn["x"], "data": x}
    for axes, (title, points) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        color = {"color": "grey"} if title == "data" else {"c": angle, "cmap": "twilight"}
        axes.scatter(*points.T, s=2, **color)
        axes.set(title=title, aspect="equal")
    pv.plots.save(figure, Path("ring.png"))
