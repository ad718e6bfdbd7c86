"""Deep latent-variable models as Pyro programs: a model and a guide on one module get training, bounds and pictures.

Names are imported when they are first used, so that `import pyro_vae` and the command line's help cost nothing.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "VAE": "pyro_vae.models.vae",
    "Pair": "pyro_vae.pair.pair",
    "load_data": "pyro_vae.data",
    "Dataset": "pyro_vae.data",
    "Split": "pyro_vae.data",
    "train": "pyro_vae.training.train",
    "Run": "pyro_vae.runs.run",
    "evaluate": "pyro_vae.evaluation",
    "Result": "pyro_vae.evaluation",
    "inference_data": "pyro_vae.evaluation.inference_data",
    "log_terms": "pyro_vae.pair.terms",
    "LogTerms": "pyro_vae.pair.terms",
    "sample": "pyro_vae.reporting.verbs",
    "reconstruct": "pyro_vae.reporting.verbs",
    "encode": "pyro_vae.reporting.verbs",
    "export": "pyro_vae.reporting.verbs",
    "report": "pyro_vae.reporting.verbs",
    "load_run": "pyro_vae.runs.run",
}

_MODULES = ("data", "testing")

__version__ = "0.1.0"
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"pyro_vae.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'pyro_vae' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__, *_MODULES]
