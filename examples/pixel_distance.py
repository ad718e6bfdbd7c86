"""Squared error takes a shifted digit for a worse one than a spoiled digit, unless sigma is small (Doersch 2016)."""

from pathlib import Path

import torch
from matplotlib.figure import Figure

import pyro_vae as pv

NATS = 20.0
"""How much less probable than a perfect copy an image has to be, so that the model hardly ever makes it."""

if __name__ == "__main__":
    data = pv.load_data("digits")
    digit = data.test["x"][data.test["label"] == 0][0]
    spoiled = digit.clone()
    spoiled[:, 3:5, 5:7] = 0.0  # a gap in the stroke: no longer a zero
    images = {"a digit": digit, "spoiled": spoiled, "shifted by a pixel": digit.roll(1, -1)}
    squared = {name: (image - digit).square().sum().item() for name, image in images.items()}
    for name, distance in squared.items():
        print(f"{name}: squared distance {distance:.2f}")

    sigma = (squared["spoiled"] / (2 * NATS)) ** 0.5
    likelihood = pv.likelihoods.Gaussian(digit.shape, sigma)(digit.unsqueeze(0))
    lost = likelihood.log_prob(digit) - likelihood.log_prob(images["shifted by a pixel"])
    print(f"sigma has to be {sigma:.2f} or less to make the spoiled one {NATS:.0f} nats less probable than a copy;")
    print(f"the shifted one, which any reader takes, is then {lost:.0f} nats less probable: the model has to learn it")

    figure = Figure(figsize=(9, 3), layout="constrained")
    *pictures, curve = figure.subplots(1, 4, width_ratios=(1, 1, 1, 1.6))
    for axes, (name, image) in zip(pictures, images.items(), strict=True):
        axes.imshow(image[0], cmap="gray_r")
        axes.set(title=f"{name}: {squared[name]:.2f}", xticks=[], yticks=[])
    sigmas = torch.logspace(-1.3, 0.3, 60)
    for name in ("spoiled", "shifted by a pixel"):
        curve.loglog(sigmas, squared[name] / (2 * sigmas**2), label=name)
    curve.axhline(NATS, color="grey", linewidth=0.8)
    curve.set(xlabel="sigma", ylabel="nats below a perfect copy")
    curve.legend(frameon=False)
    pv.plots.save(figure, Path("pixel_distance.png"))
