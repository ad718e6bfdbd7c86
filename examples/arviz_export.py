"""A trained pair in ArviZ: its usual summaries and plots, on draws of the guide."""

import warnings

import torch

import pyro_vae as pv

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import arviz as az

if __name__ == "__main__":
    torch.manual_seed(0)
    data = pv.load_data("digits", binarize="dynamic")
    vae = pv.VAE(data_shape=(1, 8, 8), latent_dim=2)
    pv.train(vae, data, epochs=20, progress=False)

    idata = pv.inference_data(vae, data, draws=200, limit=5)
    print(az.summary(idata, var_names=["z"], kind="stats"))
    print("log weights:", idata["sample_stats"]["log_weight"].shape, "[chain, draw, datum]")
