"""Figures of pairs, data and runs; matplotlib is imported when the first of them is drawn."""

from pyro_vae.late import late

__all__ = [
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
    "undisturbed",
]
_ROLLS = dict.fromkeys(["piano_rolls", "rolls_and_paths"], "pyro_vae.plots.rolls")
__getattr__, __dir__ = late(__name__, dict.fromkeys(__all__, "pyro_vae.plots.figures") | _ROLLS)
