"""Clusters without labels: what a Gaussian-mixture VAE finds, beside a mixture of normals on PCA codes."""

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.optimize import linear_sum_assignment
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from torchvision.utils import make_grid

import pyro_vae as pv

EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 60


def beside(data: pv.Dataset, clusters: int) -> float:
    """The accuracy of scikit-learn's mixture of normals on ten PCA codes, its clusters matched to labels."""
    x, test = (split["x"].flatten(1).numpy() for split in (data.train, data.test))
    pca = PCA(10, random_state=0).fit(x)
    mixture = GaussianMixture(clusters, n_init=5, random_state=0).fit(pca.transform(x))
    counts = np.zeros((clusters, clusters))
    np.add.at(counts, (data.test["label"].numpy(), mixture.predict(pca.transform(test))), 1)
    return counts[linear_sum_assignment(counts, maximize=True)].sum() / counts.sum()


if __name__ == "__main__":
    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, (name, clusters) in zip(panels, {"planted_clusters": 5, "digits": 10}.items(), strict=True):
        data = pv.load_data(name, binarize="dynamic")
        torch.manual_seed(0)
        vae = pv.VAE((1, 8, 8), latent_dim=10, hidden=(200,), data_mean=data.facts["data_mean"])
        pv.train(vae, data, EPOCHS, progress=False)
        gmvae = pv.models.GMVAE((1, 8, 8), clusters, vae=vae)  # starts at groups of its codes
        pv.train(gmvae, data, EPOCHS, batch_size=500, progress=False)
        result = pv.evaluate(gmvae, data, "classify", particles=10, progress=False)
        accuracy, other = result.entry()["accuracy"], beside(data, clusters)
        print(f"{name}: GMVAE {accuracy:.1%}, PCA and mixture of normals {other:.1%} of the test data as labelled")
        with torch.no_grad():
            scale = gmvae.log_scale.exp().unsqueeze(1)
            z = gmvae.loc.unsqueeze(1) + scale * torch.randn(clusters, 12, gmvae.loc.shape[1])
            means = gmvae.likelihood(gmvae.decoder(z)).mean.flatten(0, 1)
        axes.imshow(make_grid(means, nrow=12, padding=1)[0], cmap="gray")
        axes.set(title=f"{name}: a cluster in each row, {accuracy:.1%} as labelled", xticks=[], yticks=[])
    pv.plots.save(figure, Path("clusters.png"))
