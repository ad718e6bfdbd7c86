"""Model families, one a file; none imports another."""

from pyro_vae.late import late
from pyro_vae.plugins import homes

__getattr__, __dir__ = late(__name__, homes("model"))
