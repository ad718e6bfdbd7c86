"""A pair is an ordinary Pyro model and guide: Pyro's own SVI, or its ELBO with a torch optimizer, trains it as well."""

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO

import pyro_vae as pv

if __name__ == "__main__":
    torch.manual_seed(0)
    data = pv.load_data("digits", binarize="static")
    x = data.train["x"]

    vae = pv.VAE(data_shape=(1, 8, 8), latent_dim=2)
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    for _ in range(100):
        loss = svi.step(x)
    print(f"SVI: {loss / len(x):.2f} nats per image")

    elbo = TraceMeanField_ELBO()(vae.model, vae.guide)
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-3)
    for _ in range(100):
        loss = elbo(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"torch optimizer: {loss.item() / len(x):.2f} nats per image")
