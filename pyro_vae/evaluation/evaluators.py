"""The evaluators, each of which is a file of this room, and what one of your own is written with."""

from pyro_vae.late import late
from pyro_vae.plugins import homes

_BESIDE = {
    "Evaluator": "pyro_vae.evaluation.evaluator",
    "Block": "pyro_vae.evaluation.blocks",
    "Blocks": "pyro_vae.evaluation.blocks",
    "Estimate": "pyro_vae.evaluation.result",
    "evaluate_each": "pyro_vae.evaluation.evaluate",
}

__getattr__, __dir__ = late(__name__, homes("evaluator") | _BESIDE)
