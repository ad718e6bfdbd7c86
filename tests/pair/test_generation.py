"""What a pair makes: codes of every datum, and of latents that all of them share."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.data import Split
from pyro_vae.pair import generation


class Shared(pv.Pair):
    """A scalar and a vector outside the plate, and a latent for each datum."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(0.5))

    def model(self, x):
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
        pyro.sample("weights", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with self.plate(len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z + level, 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.sample("level", dist.Normal(self.loc, 0.25))
        pyro.sample("weights", dist.Normal(torch.arange(3.0), 2.0).to_event(1))
        with self.plate(len(x)):
            pyro.sample("z", dist.Normal(x + self.loc, 1.0).to_event(1))


def test_a_latent_that_the_data_share_has_one_code(monkeypatch):
    monkeypatch.setattr(generation, "CHUNK", 4)
    x = torch.randn(10, 2)
    codes = generation.encode(Shared(), Split({"x": x}))
    assert torch.equal(codes["z_mean"], x + 0.5) and codes["z_scale"].shape == (10, 2)
    assert codes["level_mean"].item() == 0.5 and codes["level_scale"].item() == 0.25
    assert codes["weights_mean"].tolist() == [0.0, 1.0, 2.0] and codes["weights_scale"].tolist() == [2.0, 2.0, 2.0]
