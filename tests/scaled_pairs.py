"""Pairs that scale sites on purpose."""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn


class Nets(nn.Module):
    """What the pairs share; their weights do not depend on the scale."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.encoder, self.decoder = nn.Linear(3, 4), nn.Linear(2, 3)

    def posterior(self, x: Tensor) -> dist.Distribution:
        loc, log_scale = self.encoder(x).chunk(2, -1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)


class Factored(Nets):
    """An annealing factor as an argument with a default, as in Pyro's deep Markov model: around the latents alone."""

    def model(self, x: Tensor, annealing_factor=None) -> None:
        factor = self.scale if annealing_factor is None else annealing_factor
        with pyro.plate("sequences", len(x), dim=-1):
            with pyro.poutine.scale(scale=factor):
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor, annealing_factor=None) -> None:
        factor = self.scale if annealing_factor is None else annealing_factor
        with pyro.plate("sequences", len(x), dim=-1), pyro.poutine.scale(scale=factor):
            pyro.sample("z", self.posterior(x))
