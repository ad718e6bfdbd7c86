"""The plane of a two-dimensional latent, decoded: neighbours look alike, and one digit turns into the next."""

import sys
from pathlib import Path

import torch

import pyro_vae as pv

EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 200

if __name__ == "__main__":
    torch.manual_seed(0)
    data = pv.load_data("digits")
    options = {"hidden": (256, 64), "activation": "elu", "likelihood": "continuous_bernoulli"}
    vae = pv.VAE((1, 8, 8), latent_dim=2, **options, data_mean=data.facts["data_mean"])
    run = pv.train(vae, data, EPOCHS, schedule="cosine", progress=False)
    pv.plots.save(pv.plots.manifold(vae, data.test.head(1).take(slice(None)), side=16), Path("manifold.png"))

    means = pv.encode(run)["z_mean"]
    print(f"{len(means)} test digits lie in the plane with standard deviations {means.std(0).tolist()}")
