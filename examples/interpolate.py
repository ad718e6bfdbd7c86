"""From one digit to another: through the pixels two pictures fade into each other, through the codes one changes."""

import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torchvision.utils import make_grid

import pyro_vae as pv

EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 200
PAIRS, STEPS = ((0, 1), (3, 8), (4, 9), (2, 7)), 9

if __name__ == "__main__":
    torch.manual_seed(0)
    data = pv.load_data("digits")
    vae = pv.VAE((1, 8, 8), latent_dim=8, likelihood="continuous_bernoulli", data_mean=data.facts["data_mean"])
    run = pv.train(vae, data, EPOCHS, schedule="cosine", progress=False)

    codes, x, label = pv.encode(run)["z_mean"], data.test["x"], data.test["label"]
    share = torch.linspace(0, 1, STEPS).unsqueeze(1)
    rows = {"pixels": [], "codes": []}
    for pair in PAIRS:
        first, second = ((label == kind).nonzero()[0, 0] for kind in pair)
        z = (1 - share) * codes[first] + share * codes[second]
        with torch.no_grad():
            rows["codes"].append(vae.likelihood(vae.decoder(z)).mean)
        weight = share.reshape(STEPS, 1, 1, 1)
        rows["pixels"].append((1 - weight) * x[first] + weight * x[second])

    figure = Figure(figsize=(10, 2.8), layout="constrained")
    for axes, (name, images) in zip(figure.subplots(1, 2), rows.items(), strict=True):
        axes.imshow(make_grid(torch.cat(images), nrow=STEPS, padding=1)[0], cmap="gray", vmin=0, vmax=1)
        axes.set(title=f"between {name}", xticks=[], yticks=[])
        contrast = torch.stack(images)[:, STEPS // 2].std()
        print(f"half way between {name}: standard deviation of the pixels {contrast:.3f} (data: {x.std():.3f})")
    pv.plots.save(figure, Path("interpolate.png"))
