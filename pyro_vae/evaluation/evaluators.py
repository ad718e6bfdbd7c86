"""The evaluators, each of which is a file of this room."""

from pyro_vae.late import late

_HOMES = {
    "Evaluator": "pyro_vae.evaluation.evaluator",
    "AIS": "pyro_vae.evaluation.ais.ais",
    "ELBO": "pyro_vae.evaluation.elbo",
    "Gaps": "pyro_vae.evaluation.gaps",
    "Importance": "pyro_vae.evaluation.importance",
    "Latent": "pyro_vae.evaluation.latent.latent",
    "PriorSampling": "pyro_vae.evaluation.prior",
    "Reconstruction": "pyro_vae.evaluation.reconstruction",
}

__all__ = sorted(_HOMES)
__getattr__, __dir__ = late(__name__, _HOMES)
