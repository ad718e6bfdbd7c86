"""Figures that need draws of every latent, of pairs that enumerate some: right, or refused."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.errors import ContractError

PARALLEL = {"enumerate": "parallel"}
CENTRES = torch.tensor([-6.0, 0.0, 6.0])


class Mixture(nn.Module):
    """x ~ N(centre of y + z, 0.1^2); y is summed out by the model alone."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=x.new_zeros(3)), infer=PARALLEL)
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 0.1))
            pyro.sample("x", dist.Normal(CENTRES[y] + z, 0.1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0 * x, 0.1))


class Classified(Mixture):
    """The same; y is enumerated by the guide, whose classifier is right."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=x.new_zeros(3)))
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 0.1))
            pyro.sample("x", dist.Normal(CENTRES[y] + z, 0.1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            logits = -(x[:, None] - CENTRES).square()
            pyro.sample("y", dist.Categorical(logits=logits), infer=PARALLEL)
            pyro.sample("z", dist.Normal(0.0 * x, 0.1))


X = torch.tensor([-6.0, 0.1, 5.9, 6.2])


@pytest.mark.parametrize("pair", [Mixture, Classified])
def test_reconstructions_have_the_most_probable_values_of_what_is_enumerated(pair):
    result = pv.evaluate(pair(), X, "reconstruction", progress=False)
    expected = (X - torch.tensor([-6.0, 0.0, 6.0, 6.0])).square()
    assert torch.allclose(result.squared_error.to(expected), expected, atol=1e-5)


def test_what_latents_carry_is_refused_where_the_model_alone_enumerates():
    with pytest.raises(ContractError, match="'y' is enumerated"):
        pv.evaluate(Mixture(), X, "latent", 5, progress=False)
    assert pv.evaluate(Classified(), X, "latent", 5, progress=False).rate.isfinite().all()
