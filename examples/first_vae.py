"""The shortest way: load, train, evaluate, look."""

from pathlib import Path

import torch

import pyro_vae as pv

if __name__ == "__main__":
    torch.manual_seed(0)
    data = pv.load_data("digits", binarize="dynamic")
    vae = pv.VAE(data_shape=(1, 8, 8), latent_dim=2)
    run = pv.train(vae, data, epochs=30, progress=False)

    bound = pv.evaluate(vae, data, evaluator="elbo", progress=False)
    print(f"test ELBO: {bound.mean:.2f} ± {bound.standard_error:.2f} nats per image")

    pv.plots.save(pv.plots.manifold(vae, data.test.head(1).take(slice(None))), Path("manifold.png"))
    pv.plots.save(pv.plots.posterior_means(vae, data.test), Path("posterior_means.png"))
