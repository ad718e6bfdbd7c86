"""The evaluators, each of which is a file of this room."""

from pyro_vae.late import late
from pyro_vae.plugins import homes

__getattr__, __dir__ = late(__name__, homes("evaluator") | {"Evaluator": "pyro_vae.evaluation.evaluator"})
