"""Half of the pixels are gone, in training too: a VAE learns from the rest and draws what is missing."""

import sys
from pathlib import Path

import torch
from sklearn.impute import KNNImputer, SimpleImputer

import pyro_vae as pv

EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 200


def with_gaps(x: torch.Tensor) -> torch.Tensor:
    """The same data, each pixel with probability one half replaced by NaN."""
    return x.masked_fill(torch.rand_like(x) < 0.5, torch.nan)


if __name__ == "__main__":
    torch.manual_seed(0)
    data = pv.load_data("digits")
    known, whole = with_gaps(data.train["x"]), data.test["x"]
    seen = with_gaps(whole)
    options = {"likelihood": "gaussian_learned", "missing": "marginalise", "encoder_mask": True}
    vae = pv.VAE((1, 8, 8), latent_dim=10, hidden=(200,), **options)
    pv.train(vae, known, EPOCHS, valid=with_gaps(data.valid["x"]), patience=30, progress=False)
    draws = pv.impute(vae, seen, draws=50, particles=5000)["x"]
    found = {"the VAE": draws.mean(0)}
    for name, imputer in {"the pixel's mean": SimpleImputer(), "5 neighbours": KNNImputer(n_neighbors=5)}.items():
        filled = imputer.fit(known.flatten(1)).transform(seen.flatten(1))
        found[name] = torch.from_numpy(filled).float().reshape(whole.shape)
    for name, filled in found.items():
        error = (filled - whole)[seen.isnan()].square().mean()
        print(f"{name}: mean squared error of a missing pixel {error:.4f}")
    shown = torch.cat([rows[:10] for rows in (whole, seen.nan_to_num(0.5), draws.mean(0), draws[0])])
    pv.plots.save(pv.plots.image_grid(shown.clamp(0, 1), columns=10), Path("impute.png"))
