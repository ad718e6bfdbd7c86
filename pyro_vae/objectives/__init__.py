"""What training minimises, by name: a loss in nats per datum with the gradient estimator that the name promises."""

from pyro_vae.late import late
from pyro_vae.plugins import homes

__getattr__, __dir__ = late(__name__, homes("objective") | {"Objective": "pyro_vae.objectives.objective"})
