"""As sigma falls, a VAE in one dimension comes as near to the true density as one likes (Doersch 2016, appendix A)."""

import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch.distributions import Categorical, MixtureSameFamily, Normal

import pyro_vae as pv

EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 40
SIGMAS = (1.0, 0.5, 0.2, 0.1)
TRUTH = MixtureSameFamily(
    Categorical(torch.tensor([0.4, 0.6])), Normal(torch.tensor([-1.0, 1.0]), torch.tensor([0.3, 0.6]))
)
GRID = torch.linspace(-4, 4, 400)
QUANTILES = Normal(0.0, 1.0).icdf((torch.arange(4000) + 0.5) / 4000)


def log_density(vae: pv.VAE) -> torch.Tensor:
    """log p(x) of a VAE on the grid: the mean of p(x|z) over all quantiles of z."""
    with torch.no_grad():
        given_z = vae.likelihood(vae.decoder(QUANTILES.unsqueeze(1)))
        return given_z.log_prob(GRID.reshape(-1, 1, 1)).logsumexp(1) - torch.tensor(len(QUANTILES)).log()


if __name__ == "__main__":
    torch.manual_seed(0)
    x = TRUTH.sample((4000, 1))
    true = TRUTH.log_prob(GRID)
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(GRID, true.exp(), color="black", linewidth=2.5, label="true density")
    vae = pv.VAE((1,), latent_dim=1, hidden=(64, 64), activation="tanh", likelihood="gaussian")
    for sigma in SIGMAS:
        vae.likelihood.sigma.fill_(sigma)  # each training starts from the one before
        pv.train(vae, x, EPOCHS, batch_size=100, lr=3e-3, schedule="cosine", progress=False)
        found = log_density(vae)
        distance = (true.exp() * (true - found)).sum() * (GRID[1] - GRID[0])
        print(f"sigma {sigma}: KL(true || model) = {distance:.3f} nats")
        axes.plot(GRID, found.exp(), label=f"VAE, sigma = {sigma}: {distance:.3f} nats away")
    axes.set(xlabel="x", ylabel="density")
    axes.legend(frameon=False)
    pv.plots.save(figure, Path("one_dimension.png"))
