"""Model families, one a file; none imports another."""

from pyro_vae.late import late

_HOMES = {
    "VAE": "pyro_vae.models.vae",
    "CVAE": "pyro_vae.models.cvae",
    "Regressor": "pyro_vae.models.regressor",
    "blog": "pyro_vae.models.presets",
    "burda": "pyro_vae.models.presets",
    "kingma": "pyro_vae.models.presets",
}

__all__ = sorted(_HOMES)
__getattr__, __dir__ = late(__name__, _HOMES)
