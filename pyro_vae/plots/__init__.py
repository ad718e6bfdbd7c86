"""Figures of pairs, data and runs."""

from pyro_vae.plots.figures import (
    image_grid,
    loss_curves,
    manifold,
    posterior_means,
    reconstructions,
    samples,
    save,
    save_images,
    undisturbed,
)

__all__ = [
    "image_grid",
    "loss_curves",
    "manifold",
    "posterior_means",
    "reconstructions",
    "samples",
    "save",
    "save_images",
    "undisturbed",
]
