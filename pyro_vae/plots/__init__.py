"""Figures of pairs, data and runs; matplotlib is imported when the first of them is drawn."""

from pyro_vae.late import late

__all__ = [
    "drawings",
    "image_grid",
    "loss_curves",
    "manifold",
    "posterior_means",
    "reconstructions",
    "samples",
    "save",
    "save_images",
    "topics",
    "undisturbed",
]
__getattr__, __dir__ = late(
    __name__, {**dict.fromkeys(__all__, "pyro_vae.plots.figures"), "topics": "pyro_vae.plots.words"}
)
