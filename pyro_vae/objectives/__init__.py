"""What training minimises, by name: a loss in nats per datum with the gradient estimator that the name promises."""

from pyro_vae.late import late

_HOMES = {
    "Objective": "pyro_vae.objectives.objective",
    "TraceELBO": "pyro_vae.objectives.elbo",
    "TraceMeanFieldELBO": "pyro_vae.objectives.elbo",
    "TraceGraphELBO": "pyro_vae.objectives.trace_graph",
    "IWAE": "pyro_vae.objectives.importance_weighted",
    "Renyi": "pyro_vae.objectives.importance_weighted",
}

__all__ = sorted(_HOMES)
__getattr__, __dir__ = late(__name__, _HOMES)
