"""Figures of pairs, data and runs; matplotlib is imported when the first of them is drawn."""

from pyro_vae.late import late

__all__ = [
    "class_conditional",
    "confusion_matrix",
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
_BESIDE = {"confusion_matrix": "pyro_vae.plots.confusion", "topics": "pyro_vae.plots.words"}
__getattr__, __dir__ = late(__name__, dict.fromkeys(__all__, "pyro_vae.plots.figures") | _BESIDE)
