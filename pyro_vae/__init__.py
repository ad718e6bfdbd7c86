"""Deep latent-variable models as Pyro programs: a model and a guide on one module get training, bounds and pictures.

Names are imported when they are first used, so that `import pyro_vae` and the command line's help cost nothing.
"""

from pyro_vae.late import late

__version__ = "0.1.0"

_HOMES = {
    "VAE": "pyro_vae.models.vae",
    "Pair": "pyro_vae.pair.pair",
    "load_data": "pyro_vae.data",
    "Dataset": "pyro_vae.data",
    "Split": "pyro_vae.data",
    "train": "pyro_vae.training.train",
    "check": "pyro_vae.testing",
    "list": "pyro_vae.plugins:installed",
    "Run": "pyro_vae.runs.run",
    "load_run": "pyro_vae.runs.run",
    "evaluate": "pyro_vae.evaluation",
    "Result": "pyro_vae.evaluation",
    "sample": "pyro_vae.reporting.verbs",
    "reconstruct": "pyro_vae.reporting.verbs",
    "encode": "pyro_vae.reporting.verbs",
    "impute": "pyro_vae.reporting.verbs",
    "export": "pyro_vae.reporting.verbs",
    "report": "pyro_vae.reporting.verbs",
    "compare": "pyro_vae.reporting.compare",
    "Comparison": "pyro_vae.reporting.comparison",
    "inference_data": "pyro_vae.runs.inference_data",
    "as_pair": "pyro_vae.pair.adapted",
    "log_terms": "pyro_vae.pair.terms",
    "LogTerms": "pyro_vae.pair.terms",
    "data": "pyro_vae.data:",
    "models": "pyro_vae.models:",
    "objectives": "pyro_vae.objectives:",
    "evaluators": "pyro_vae.evaluation.evaluators:",
    "likelihoods": "pyro_vae.parts.likelihoods:",
    "priors": "pyro_vae.parts.priors:",
    "posteriors": "pyro_vae.parts.posteriors:",
    "nets": "pyro_vae.parts.nets:",
    "plots": "pyro_vae.plots:",
    "bits_back": "pyro_vae.evaluation.bits_back:",
    "testing": "pyro_vae.testing:",
}

__all__ = sorted(_HOMES.keys() - {"list"})  # `from pyro_vae import *` hides no builtin
__getattr__, __dir__ = late(__name__, _HOMES)
