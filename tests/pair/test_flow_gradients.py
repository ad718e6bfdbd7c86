"""Gradient estimators on guides whose distributions hold modules: log q depends on parameters at its evaluation too."""

import math

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import pytest
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_transform import TransformModule
from torch import nn

import pyro_vae as pv
from pyro_vae.errors import ContractError
from pyro_vae.objectives.importance_weighted import IWAE


class Stretch(TransformModule):
    """y = e^s x with a parameter s for each element."""

    domain, codomain, bijective = constraints.real, constraints.real, True

    def __init__(self, log_scale: float, dim: int):
        super().__init__(cache_size=1)
        self.log_scale = nn.Parameter(torch.full((dim,), log_scale, dtype=torch.float64))

    def _call(self, x):
        return x * self.log_scale.exp()

    def _inverse(self, y):
        return y * (-self.log_scale).exp()

    def log_abs_det_jacobian(self, x, y):
        return self.log_scale.expand(x.shape)


class FlowPair(pv.Pair):
    """z ~ N(0, I), x ~ N(z, I); the guide is a flow of N(gain x, 1)."""

    def __init__(self, flow: nn.Module, gain: float, dim: int = 2):
        super().__init__()
        self.flow, self.dim = flow, dim
        self.gain = nn.Parameter(torch.tensor(gain, dtype=torch.float64))

    def model(self, x):
        with self.plate(len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.dim), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with self.plate(len(x)):
            base = dist.Normal(self.gain * x, 1.0).to_event(1)
            pyro.sample("z", dist.TransformedDistribution(base, [self.flow]))


def flow_pair(name: str) -> FlowPair:
    torch.manual_seed(0)
    flows = {
        "stretch": lambda: Stretch(-0.6, 2),
        "iaf": lambda: T.affine_autoregressive(2, hidden_dims=[4]),  # whose inverse Pyro has in float32 only
        "spline": lambda: T.Spline(2, count_bins=4, bound=6.0).double(),
        "planar": lambda: T.Planar(2).double(),
    }
    pair = FlowPair(flows[name](), 0.6)
    return pair.float() if name == "iaf" else pair


def gradients(pair: nn.Module, objective, particles: int, draws: int = 150, rows: int = 100) -> torch.Tensor:
    """Draws [draws, parameters] of the gradient of the mean over equal data."""
    x = torch.tensor([[0.8, -0.5]]).to(pair.gain).expand(rows, 2)
    found = []
    for seed in range(draws):
        torch.manual_seed(seed)
        parts = torch.autograd.grad(objective(pair, {"x": x}, particles), list(pair.parameters()), allow_unused=True)
        found.append(torch.cat([g.flatten() for g in parts if g is not None]))
    return torch.stack(found)


@pytest.mark.parametrize("name", ["stretch", "iaf", "spline"])
@pytest.mark.parametrize("estimator, particles", [("dreg", 1), ("dreg", 2), ("dreg", 5), ("stl", 1)])
def test_the_gradient_of_a_flow_is_that_of_the_bound(name, estimator, particles):
    pair = flow_pair(name)
    plain, other = (gradients(pair, IWAE(gradient), particles) for gradient in ("pathwise", estimator))
    error = ((plain.var(0) + other.var(0)) / len(plain)).sqrt()
    z = (plain.mean(0) - other.mean(0)) / error.clamp(min=1e-6)
    assert z.abs().max() < 4.5
    assert not torch.allclose(plain, other), "another estimator of the same gradient"


@pytest.mark.parametrize("estimator, particles", [("stl", 1), ("stl", 3), ("dreg", 3)])
def test_the_gradient_is_zero_at_every_draw_where_the_flow_is_the_posterior(estimator, particles):
    pair = FlowPair(Stretch(-0.5 * math.log(2), 2), 1 / math.sqrt(2))
    exact, noisy = (gradients(pair, IWAE(gradient), particles, draws=2) for gradient in (estimator, "pathwise"))
    assert exact.abs().max() < 1e-12 and noisy.abs().max() > 1e-3


@pytest.mark.parametrize("estimator", ["stl", "dreg"])
def test_a_flow_without_an_inverse_is_refused_in_one_line(estimator):
    with pytest.raises(ContractError, match="its own draws only, because a flow of it has no inverse.*pathwise"):
        gradients(flow_pair("planar"), IWAE(estimator), 3, draws=1)


def test_a_planar_flow_trains_and_is_bounded():
    """log q is taken where z is drawn: L_K is below log p(x) = log N(x; 0, 2 I), and near it."""
    pair = flow_pair("planar")
    x = torch.randn(200, 2, dtype=torch.float64) * math.sqrt(2)
    run = pv.train(pair, x, epochs=5, batch_size=20, particles=3, objective="iwae", engine="eager", progress=False)
    result = pv.evaluate(run.pair, x, evaluator="importance", particles=1000, progress=False)
    exact = dist.Normal(x.new_zeros(2), math.sqrt(2)).to_event(1).log_prob(x)
    z = (result.log_likelihood - exact) / result.monte_carlo_error.clamp(min=1e-6)
    assert z[result.pareto_k < 0.5].abs().max() < 5
