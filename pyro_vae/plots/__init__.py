"""Figures of pairs, data and runs; matplotlib is imported when the first of them is drawn."""

from pyro_vae.late import late

__all__ = [
    "class_conditional",
    "confusion_matrix",
    "drawings",
    "image_grid",
    "loss_curves",
    "manifold",
    "piano_rolls",
    "posterior_means",
    "reconstructions",
    "rolls_and_paths",
    "samples",
    "save",
    "save_images",
    "state_paths",
    "topics",
    "undisturbed",
]
_BESIDE = {
    "confusion_matrix": "pyro_vae.plots.confusion",
    "piano_rolls": "pyro_vae.plots.rolls",
    "rolls_and_paths": "pyro_vae.plots.rolls",
    "topics": "pyro_vae.plots.words",
}
__getattr__, __dir__ = late(__name__, dict.fromkeys(__all__, "pyro_vae.plots.figures") | _BESIDE)
