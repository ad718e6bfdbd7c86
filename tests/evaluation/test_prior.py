"""The Monte Carlo estimate from the prior against exact sums, for pairs of any kind."""

import math

import pyro
import pytest
import torch
from pairs import Clusters, bits, counts, small_vae
from torch import nn

import pyro_vae as pv


def test_an_enumerable_model_has_its_exact_likelihood():
    pair, fields = Clusters(), {"counts": counts(12)}
    with torch.no_grad():
        rates = torch.nn.functional.softplus(pair.rates)
        of_each = torch.distributions.Poisson(rates).log_prob(fields["counts"].unsqueeze(1)).sum(-1)
        exact = (torch.log_softmax(pair.weights, 0) + of_each).logsumexp(1)
    result = pv.evaluate(pair, fields, "prior", 20_000, progress=False)
    assert ((result.log_likelihood - exact) / result.monte_carlo_error).abs().max() < 4.5


def test_it_is_a_looser_bound_than_importance_and_both_rise_to_the_same():
    pair, x = small_vae(), bits(40)
    prior, importance = (pv.evaluate(pair, x, name, 5000, progress=False) for name in ("prior", "importance"))
    error = math.hypot(prior.entry()["monte_carlo_error"], importance.entry()["monte_carlo_error"])
    assert abs(prior.mean - importance.mean) < 4 * error + 1e-3
    few = [pv.evaluate(pair, x, "prior", k, progress=False).mean for k in (1, 1000)]
    assert few == sorted(few)


@pytest.mark.parametrize("particles", [1, 7, 260])
def test_progress_and_seeds(particles):
    pair, x = small_vae(), bits(130)
    first, again = (pv.evaluate(pair, x, "prior", particles, progress=False) for _ in range(2))
    assert torch.equal(first.log_likelihood, again.log_likelihood)
    other = pv.evaluate(pair, x, "prior", particles, progress=False, seed=1)
    assert not torch.equal(first.log_likelihood, other.log_likelihood)


def test_latents_outside_the_plate_are_drawn_by_the_guide():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(()))

        def model(self, x):
            shared = pyro.sample("shared", pyro.distributions.Normal(0.0, 1.0))
            with pyro.plate("data", x.shape[0], dim=-1):
                pyro.sample("x", pyro.distributions.Normal(shared, 1.0), obs=x)

        def guide(self, x):
            pyro.sample("shared", pyro.distributions.Normal(self.loc, 1.0))

    x = torch.randn(5)
    result = pv.evaluate(Shared(), x, "prior", 1, progress=False, global_draws=300)
    expected = torch.distributions.Normal(0.0, 2**0.5).log_prob(x)
    assert ((result.log_predictive - expected).abs() < 4 * result.monte_carlo_error).all()
