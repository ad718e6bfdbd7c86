"""Whether the figures say themselves how far they can be trusted: exact weights, narrow guides, masked elements."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

import pyro_vae as pv


class Conjugate(pv.Pair):
    """z ~ N(0, I), x ~ N(z, I) in 20 dims; the guide is N(x/2, scale^2)."""

    def __init__(self, scale: float):
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(scale).log())

    def model(self, x):
        with self.plate(len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with self.plate(len(x)):
            pyro.sample("z", dist.Normal(x / 2, self.log_scale.exp()).to_event(1))


def importance(pair: nn.Module, x: torch.Tensor, particles: int = 500):
    return pv.evaluate(pair, x, evaluator="importance", particles=particles, progress=False)


def data() -> torch.Tensor:
    return 1.4 * torch.randn(60, 20, generator=torch.Generator().manual_seed(0))


def test_weights_that_are_equal_up_to_rounding_are_exact():
    x = data()
    result = importance(Conjugate(math.sqrt(0.5)), x)
    exact = dist.Normal(0.0, math.sqrt(2)).log_prob(x).sum(1)
    assert torch.allclose(result.log_likelihood.float(), exact, atol=1e-4)
    assert result.exact.all() and (result.pareto_k == -math.inf).all() and not result.warnings
    assert result.entry()["exact"] == 1.0


def test_a_guide_of_another_scale_is_not_exact():
    result = importance(Conjugate(0.8), data())
    assert not result.exact.any() and (result.pareto_k > -math.inf).any()


def test_a_guide_whose_draws_are_one_point_gets_a_warning():
    narrow, sound = (importance(Conjugate(scale), data()) for scale in (1e-20, 0.8))
    assert narrow.narrow.all() and not sound.narrow.any()
    assert any("so narrow that its draws are one point" in warning for warning in narrow.warnings)
    assert not any("one point" in warning for warning in sound.warnings)


class FairCoins(pv.Pair):
    """Sequences of fair coins of different lengths: one bit for each toss that counts, whatever the latent."""

    def __init__(self, way: str):
        super().__init__()
        self.way, self.loc = way, nn.Parameter(torch.zeros(()))

    def model(self, x, length):
        counts = torch.arange(x.shape[1]) < length.unsqueeze(1)
        with self.plate(len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            coins = dist.Bernoulli(0.5 * torch.ones_like(x))
            if self.way == "mask of the elements":
                pyro.sample("x", coins.mask(counts).to_event(1), obs=x)
            elif self.way == "mask of the data":
                with poutine.mask(mask=length > 2):
                    pyro.sample("x", coins.to_event(1), obs=x)
            else:
                for step in range(x.shape[1]):
                    with poutine.mask(mask=counts[:, step]):
                        pyro.sample(f"x_{step}", dist.Bernoulli(0.5 * torch.ones(len(x))), obs=x[:, step])

    def guide(self, x, length):
        with self.plate(len(x)):
            pyro.sample("z", dist.Normal(self.loc.expand(len(x)), 1.0))


@pytest.mark.parametrize("way", ["mask of the elements", "mask of the data", "a mask a step"])
@pytest.mark.parametrize("evaluator", ["elbo", "importance"])
def test_bits_are_counted_for_the_elements_that_no_mask_leaves_out(way, evaluator):
    generator = torch.Generator().manual_seed(1)
    length = torch.tensor([6, 1, 2, 3] * 40)  # more than a block of data
    x = torch.bernoulli(torch.full((160, 6), 0.5), generator=generator)
    result = pv.evaluate(FairCoins(way), {"x": x, "length": length}, evaluator, 30, progress=False)
    assert result.bits_per_dim == pytest.approx(1.0, abs=1e-5)


def test_a_bound_says_that_it_is_one():
    pair, x = Conjugate(0.8), data()
    for evaluator, quantity in (("elbo", "elbo"), ("importance", "log_likelihood")):
        result = pv.evaluate(pair, x, evaluator=evaluator, particles=30, progress=False)
        assert (result.quantity, result.kind) == (quantity, "lower bound")
        assert (result.entry()["quantity"], result.entry()["kind"]) == (quantity, "lower bound")
    with pytest.raises(AttributeError, match="no 'log_likelihood'"):
        _ = pv.evaluate(pair, x, progress=False).log_likelihood
