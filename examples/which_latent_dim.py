"""Which latent size? Models of digits compared image by image, with the error of each difference."""

import sys
from pathlib import Path

import torch

import pyro_vae as pv

EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 200
DIMS = (2, 5, 10, 20, 50)

if __name__ == "__main__":
    data = pv.load_data("digits", binarize="dynamic")
    runs = {}
    for dim in DIMS:
        torch.manual_seed(0)
        vae = pv.VAE((1, 8, 8), latent_dim=dim, hidden=(200,), data_mean=data.facts["data_mean"])
        runs[f"{dim} dimensions"] = pv.train(vae, data, EPOCHS, patience=30, progress=False)
    found = pv.compare(runs, "importance", particles=1000, progress=False, out=Path("which_latent_dim.png"))
    print(found)
    alike = [name for name, difference in found.behind.items() if not difference.decided]
    print(f"take {found.best}" + (f", or one that is not decidedly worse: {', '.join(alike)}" if alike else ""))
