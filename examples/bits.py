"""Description length: minus the ELBO in bits is what a real code takes, bits back, and it is read without loss."""

import sys
from math import log
from pathlib import Path

import torch
from matplotlib.figure import Figure

import pyro_vae as pv

EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 60
IMAGES = 1000

if __name__ == "__main__":
    torch.manual_seed(0)
    data = pv.load_data("digits", binarize="static")
    vae = pv.VAE((1, 8, 8), latent_dim=8, hidden=(200,), data_mean=data.facts["data_mean"])
    pv.train(vae, data, EPOCHS, progress=False)
    x = data.train["x"][:IMAGES]

    elbo = pv.evaluate(vae, x, "elbo", particles=20, progress=False)
    rate, distortion = (values.sum().item() / log(2) for values in (elbo.rate, elbo.distortion))
    coder = pv.bits_back.BitsBack(vae)
    message = coder.compress(x)
    assert torch.equal(coder.restore(message), x), "every image comes back as it was"
    ratio = message.net_bits / (rate + distortion)
    print(f"minus the ELBO: {rate:.0f} bits for the codes (KL) + {distortion:.0f} for what they leave open")
    print(f"a message of {len(x)} images: {message.net_bits} bits net of {message.initial_bits} that it began with,")
    print(f"which is {ratio:.4f} of minus the ELBO, and {message.net_bits / x.numel():.3f} bits a pixel")

    mean = x.mean(0).clamp(1e-3, 1 - 1e-3)
    alone = -torch.distributions.Bernoulli(mean).log_prob(x).sum().item() / log(2)
    bars = {"a bit a pixel": x.numel(), "pixels alone": alone, "-ELBO": rate + distortion, "message": message.net_bits}
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    axes.barh(list(bars), [bits / len(x) for bits in bars.values()], color="tab:blue")
    axes.barh("-ELBO", rate / len(x), color="tab:orange", label="of it KL")
    axes.set(xlabel="bits an image")
    axes.invert_yaxis()
    axes.legend(frameon=False)
    pv.plots.save(figure, Path("bits.png"))
