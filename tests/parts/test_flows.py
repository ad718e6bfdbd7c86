"""Flow posteriors and the flow prior: their densities, a banana of known log p, and what a pair does with them."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import reasons_to_doubt
from references import data_with_axes, gaussian_log_density
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae import plugins
from pyro_vae.errors import ContractError
from pyro_vae.parts.priors import FlowPrior
from pyro_vae.parts.splines import rational_quadratic

POSTERIORS = ["planar", "radial", "iaf", "neural_spline"]
INVERTIBLE = ["iaf", "neural_spline"]
FEATURES, LATENT = 4, 3


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


def flow(name: str, layers: int = 3, latent: int = LATENT) -> nn.Module:
    """A flow in float64 that is away from the identity."""
    made = plugins.load("posterior", name)(FEATURES, latent, layers=layers).double()
    with torch.no_grad():
        for parameter in made.maps.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


# --- densities ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", POSTERIORS)
def test_the_density_of_a_draw_is_that_of_its_noise_over_the_jacobian(name):
    made, features = flow(name), torch.randn(1, FEATURES, dtype=torch.float64)
    fn = made(features)
    start = made.start(features).sample()

    def through(z: Tensor) -> Tensor:
        for transform in made(features).transforms:
            z = transform(z)
        return z

    jacobian = torch.autograd.functional.jacobian(through, start).reshape(LATENT, LATENT)
    value = start
    for transform in fn.transforms:
        value = transform(value)
    expected = made.start(features).log_prob(start) - torch.linalg.slogdet(jacobian)[1]
    assert torch.allclose(fn.log_prob(value), expected) and torch.allclose(value, through(start))
    assert not torch.allclose(value, start, atol=0.1)


@pytest.mark.parametrize("name", INVERTIBLE)
@pytest.mark.parametrize("lead", [(), (5,), (2, 5)])
def test_a_flow_with_an_inverse_scores_any_value_as_its_own_draw(name, lead):
    fn = flow(name)(torch.randn(5, FEATURES, dtype=torch.float64))
    value = fn.rsample(lead[:-1])
    assert torch.allclose(fn.log_prob(value.clone()), fn.log_prob(value), rtol=1e-9)


@pytest.mark.parametrize("name", INVERTIBLE)
def test_the_density_of_a_flow_integrates_to_one(name):
    fn = flow(name, layers=2, latent=2)(torch.randn(FEATURES, dtype=torch.float64))
    axis = torch.linspace(-12, 12, 481, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        total = fn.log_prob(grid).logsumexp(0) + 2 * (axis[1] - axis[0]).log()
    assert total.exp().item() == pytest.approx(1.0, abs=2e-3)


def test_the_flow_prior_integrates_to_one_and_draws_from_its_density():
    prior = FlowPrior(2, layers=3).double()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        axis = torch.linspace(-12, 12, 481, dtype=torch.float64)
        grid = torch.cartesian_prod(axis, axis)
        mass = (prior().log_prob(grid) + 2 * (axis[1] - axis[0]).log()).exp()
        assert mass.sum().item() == pytest.approx(1.0, abs=1e-3)
        draws = prior().sample((20_000,))
    expected = mass @ torch.cat([grid, grid.square()], 1)
    found = torch.cat([draws, draws.square()], 1)
    z = (found.mean(0) - expected) / (found.std(0) / math.sqrt(len(found)))
    assert z.abs().max() < 4 and found.mean(0)[:2].abs().max() > 0.1


def test_a_spline_is_monotone_smooth_and_the_identity_outside_its_box():
    widths, heights = (torch.randn(8, dtype=torch.float64).softmax(0) for _ in range(2))
    slopes = nn.functional.softplus(torch.randn(7, dtype=torch.float64))
    x = torch.linspace(-4, 4, 4001, dtype=torch.float64).requires_grad_()
    y, stretch = rational_quadratic(x, widths, heights, slopes, bound=3.0)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert torch.allclose(slope.log(), stretch) and (y.diff() > 0).all() and y.diff().max() < 0.2
    outside = x.abs() > 3
    assert torch.equal(y[outside], x[outside]) and not torch.allclose(y, x, atol=0.1)
    back, shrunk = rational_quadratic(y.detach(), widths, heights, slopes, bound=3.0, inverse=True)
    assert torch.allclose(back, x) and torch.allclose(shrunk, -stretch)


# --- a banana -----------------------------------------------------------------------------------------------

BEND, SIGMA = 0.6, 0.5


def banana_log_joint(z: Tensor) -> Tensor:
    """z ~ N(0, I), 0 ~ N(z_2 + BEND (z_1^2 - 1), SIGMA^2)."""
    prior = dist.Normal(0.0, 1.0).log_prob(z).sum(-1)
    return prior + dist.Normal(z[..., 1] + BEND * (z[..., 0].square() - 1), SIGMA).log_prob(z.new_zeros(()))


def banana_log_marginal() -> float:
    """log p of that observation: z_2 in closed form, z_1 by quadrature."""
    z = torch.linspace(-9, 9, 9001, dtype=torch.float64)
    given = dist.Normal(BEND * (z.square() - 1), math.sqrt(1 + SIGMA**2)).log_prob(torch.zeros((), dtype=z.dtype))
    return (dist.Normal(0.0, 1.0).log_prob(z) + given + (z[1] - z[0]).log()).logsumexp(0).item()


def banana_gap(name: str, steps: int = 400, draws: int = 128, **options) -> float:
    """log p(x) less the ELBO of a trained posterior, in nats."""
    torch.manual_seed(0)
    posterior = plugins.load("posterior", name)(1, 2, **options)
    optimizer = torch.optim.Adam(posterior.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def log_ratio(count: int) -> Tensor:
        fn = posterior(torch.ones(count, 1))
        z = fn.rsample()
        return fn.log_prob(z) - banana_log_joint(z)

    for _ in range(steps):
        optimizer.zero_grad()
        log_ratio(draws).mean().backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return log_ratio(20_000).mean().item() + banana_log_marginal()


@pytest.mark.parametrize("name, layers", [("iaf", 4), ("neural_spline", 1)])
def test_iaf_and_spline_fit_a_banana(name, layers):
    """A diagonal normal is 0.27 nats short of it."""
    assert -0.01 < banana_gap(name, layers=layers) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("name", ["planar", "radial"])
def test_the_gap_of_simple_maps_falls_with_their_number(name):
    gaps = [banana_gap(name, layers=layers) for layers in (1, 4, 12)]
    assert gaps[0] - 0.01 > gaps[1] > gaps[2] + 0.02 > 0.02, gaps


# --- in a pair ----------------------------------------------------------------------------------------------


class Placed(pv.Pair):
    """x = W z + noise as a user writes it, with a posterior of ours; log p(x) is known."""

    def __init__(self, posterior: nn.Module, loadings: Tensor):
        super().__init__()
        self.posterior = posterior
        self.register_buffer("loadings", loadings)

    def model(self, x):
        with self.plate(len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.loadings.shape[1]), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.loadings.T, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with self.plate(len(x)):
            pyro.sample("z", self.posterior(x))

    def exact(self, x: Tensor) -> Tensor:
        covariance = self.loadings @ self.loadings.T + torch.eye(len(self.loadings)).to(x)
        return gaussian_log_density(x, torch.zeros(len(self.loadings)).to(x), covariance)


@pytest.mark.parametrize("name", POSTERIORS)
def test_bounds_with_a_flow_are_right(name):
    x = 0.5 * data_with_axes(12, FEATURES)
    posterior = plugins.load("posterior", name)(FEATURES, 2, layers=2).double()
    nn.init.zeros_(posterior.start.heads.weight)  # wide enough for the weights to behave
    pair = Placed(posterior, 0.4 * torch.randn(FEATURES, 2, dtype=torch.float64))
    assert not reasons_to_doubt(pair, {"x": x}, pair.exact(x), floor=1e-4)


@pytest.mark.parametrize("gradient", ["stl", "dreg"])
@pytest.mark.parametrize("name", POSTERIORS)
def test_estimators_take_a_flow_that_has_an_inverse_and_refuse_others(name, gradient):
    x = data_with_axes(6, FEATURES).float()
    pair = Placed(plugins.load("posterior", name)(FEATURES, 2, layers=2), torch.randn(FEATURES, 2))
    objective = plugins.load("objective", "iwae")(gradient)
    if name in INVERTIBLE:
        objective(pair, {"x": x}, particles=3).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in pair.parameters())
    else:
        with pytest.raises(ContractError, match="has no inverse.*use gradient='pathwise'"):
            objective(pair, {"x": x}, particles=3)


@pytest.mark.parametrize("name", POSTERIORS)
def test_several_particles_go_through_a_flow_at_once(name):
    torch.manual_seed(0)
    pair = pv.VAE((6,), 4, hidden=(8,), likelihood="gaussian", posterior=name)
    run = pv.train(pair, torch.randn(20, 6), epochs=1, batch_size=9, particles=3, engine="eager", progress=False)
    assert "particles: in a dim of their own" in run.notes[0]


def test_options_carry_the_kind_of_the_part():
    pair = pv.VAE((6,), 2, posterior="iaf", posterior_layers=3, prior="flow", prior_layers=2)
    assert len(pair.posterior.maps) == 3 and len(pair.prior.maps) == 2
    with pytest.raises(ContractError, match="posterior_layers must be at least 1, not 0"):
        pv.VAE((6,), 2, posterior="planar", posterior_layers=0)
    with pytest.raises(ContractError, match="the prior 'flow' needs a latent_dim of at least 2"):
        pv.VAE((6,), 1, prior="flow")


@pytest.mark.parametrize("posterior", ["planar", "radial", "delta"])
def test_a_mixture_of_posteriors_needs_their_density_everywhere(posterior):
    with pytest.raises(ContractError, match="'vamp'.*has no density at the draws of another datum"):
        pv.VAE((6,), 2, posterior=posterior, prior="vamp")


@pytest.mark.parametrize("posterior", INVERTIBLE)
def test_a_vamp_prior_is_the_mean_of_flows_too(posterior):
    pair = pv.VAE((6,), 2, hidden=(8,), posterior=posterior, prior="vamp", prior_components=3).double()
    z = torch.randn(5, 2, dtype=torch.float64)
    parts = [pair.posterior(pair.encoder(one)).log_prob(z.clone()) for one in pair.prior.inputs]
    assert torch.allclose(pair.prior().log_prob(z), torch.stack(parts).logsumexp(0) - math.log(3))


@pytest.mark.parametrize("parts", [{"posterior": "iaf"}, {"posterior": "neural_spline"}, {"prior": "flow"}])
def test_a_vae_with_flows_trains_by_name_on_a_default_that_needs_no_file(parts):
    options = {"latent_dim": 4, "hidden": (32,), **parts}
    run = pv.train("vae", epochs=2, model_options=options, engine="eager", progress=False)
    assert run.history[-1]["valid_elbo"] > run.history[0]["valid_elbo"]
