"""Other data scored by log p(x) of a model of digits: noise and a photograph stand out, digits upside down do not."""

import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_sample_image

import pyro_vae as pv

EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 100


def patches(n: int) -> torch.Tensor:
    """Pieces [n, 1, 8, 8] of a photograph: grey levels in [0, 1], drawn black or white."""
    photograph = torch.from_numpy(load_sample_image("china.jpg").mean(2) / 255).float()
    pieces = photograph.unfold(0, 8, 8).unfold(1, 8, 8).reshape(-1, 1, 8, 8)
    return torch.bernoulli(pieces[torch.randperm(len(pieces))[:n]])


if __name__ == "__main__":
    torch.manual_seed(0)
    data = pv.load_data("digits", binarize="static")
    vae = pv.VAE((1, 8, 8), latent_dim=10, hidden=(200,), data_mean=data.facts["data_mean"])
    pv.train(vae, data, EPOCHS, patience=20, progress=False)
    digits = data.test["x"]
    sets = {
        "digits": digits,
        "digits upside down": digits.flip(-2),
        "a photograph": patches(len(digits)),
        "noise": torch.bernoulli(torch.full_like(digits, 0.5)),
        "an empty page": torch.zeros_like(digits[:1]),
    }
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    known = None
    for name, x in sets.items():
        found = pv.evaluate(vae, x, "importance", particles=100, progress=False).log_likelihood
        known = found if known is None else known
        less = (found.unsqueeze(1) < known).double().mean()
        print(f"{name}: log p = {found.mean():.1f} nats; less probable than a test digit in {less:.0%} of all pairs")
        if len(found) > 1:
            axes.hist(found.numpy(), bins=40, alpha=0.6, density=True, label=name)
        else:
            axes.axvline(found.item(), color="black", label=name)
    axes.set(xlabel="log p(x), nats", ylabel="density")
    axes.legend(frameon=False)
    pv.plots.save(figure, Path("anomaly.png"))
