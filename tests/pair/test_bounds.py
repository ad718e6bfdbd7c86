"""The bounds against closed forms, in float64."""

import math

import numpy as np
import pytest
import torch
from references import (
    PPCA,
    Conditional,
    TwoLayers,
    data_with_axes,
    expected_bound,
    expected_bound_by_enumeration,
    factor_analysis_vae,
    gaussian_log_density,
    linear_vae,
    ppca_mean_log_likelihood,
    ppca_optimum,
    z_scores,
)
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.decomposition import PCA, FactorAnalysis
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.pair import bounds
from pyro_vae.pair.particles import run_guide, run_guide_at, run_model
from pyro_vae.pair.terms import ElboTerms, LogTerms, log_terms, reduce_sites

N, D, Q = 60, 6, 3


@pytest.fixture
def x() -> torch.Tensor:
    return data_with_axes(N, D)


def exact_elbo(vae: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The ELBO [n] of a linear VAE with a diagonal guide: its log terms are quadratic in z, so their mean over the
    2q points mean +- sqrt(q) scale_i is their expectation."""
    site = run_guide(vae, {"x": x})["z"]
    q = site.value.shape[-1]
    steps = math.sqrt(q) * torch.diag_embed(site.deviation()[0])
    points = torch.cat([site.mean()[0].unsqueeze(-2) + sign * steps for sign in (1, -1)], -2).movedim(-2, 0)
    model = run_model(vae, {"x": x}, {"z": points}, 2 * q)
    return bounds.elbo(reduce_sites(model, run_guide_at(vae, {"x": x}, {"z": points}, 2 * q), 2 * q, len(x)))


# --- the references themselves ------------------------------------------------------------------------------


def test_the_ppca_reference_agrees_with_scikit_learn_and_scipy(x):
    solution = ppca_optimum(x, Q)
    density = gaussian_log_density(x, solution.mean, solution.covariance)
    assert np.allclose(density, multivariate_normal(solution.mean, solution.covariance).logpdf(x), rtol=1e-10)
    assert density.mean().item() == pytest.approx(ppca_mean_log_likelihood(x, Q), rel=1e-10)
    # scikit-learn takes the unbiased covariance, which moves the optimum's value by O(1/n)
    assert density.mean().item() >= PCA(Q).fit(x.numpy()).score(x.numpy())


def test_the_expected_bound_agrees_with_enumeration():
    mass = torch.log_softmax(torch.tensor([0.3, -1.0, 0.5, 2.0], dtype=torch.float64), 0)
    weight = torch.tensor([-3.0, 1.0, -0.5, 0.2], dtype=torch.float64)
    assert expected_bound(mass, weight, 1).item() == pytest.approx((mass.exp() * weight).sum().item(), abs=1e-9)
    for particles in (2, 3, 5):
        enumerated = expected_bound_by_enumeration(mass, weight, particles).item()
        assert expected_bound(mass, weight, particles).item() == pytest.approx(enumerated, abs=1e-9)


# --- linear VAEs --------------------------------------------------------------------------------------------


def test_the_elbo_at_the_ppca_optimum_is_the_exact_log_likelihood(x):
    solution = ppca_optimum(x, Q)
    vae = linear_vae(solution)
    elbo = bounds.elbo(log_terms(vae, {"x": x}))
    assert torch.allclose(elbo, gaussian_log_density(x, solution.mean, solution.covariance), atol=1e-9)
    assert elbo.mean().item() == pytest.approx(ppca_mean_log_likelihood(x, Q), abs=1e-9)
    assert torch.allclose(exact_elbo(vae, x), elbo, atol=1e-9)


def test_at_the_optimum_every_weight_is_equal_and_every_bound_exact(x):
    solution = ppca_optimum(x, Q)
    exact = gaussian_log_density(x, solution.mean, solution.covariance)
    weights = log_terms(linear_vae(solution), {"x": x}, particles=20).log_weight
    assert weights.std(0).max() < 1e-9
    for bound in (bounds.importance_weighted(weights), bounds.renyi(weights, 0.5), bounds.renyi(weights, -2.0)):
        assert torch.allclose(bound, exact, atol=1e-9)


@pytest.mark.parametrize("angle", [0.0, 0.2, math.pi / 4, 1.3])
def test_a_rotation_of_the_loadings_lowers_the_best_diagonal_elbo_by_the_stated_amount(x, angle):
    optimum = ppca_optimum(x, Q)
    rotated = optimum.rotated(angle)
    lost = 0.5 * (rotated.inner.diagonal().log().sum() - torch.logdet(rotated.inner))
    exact = gaussian_log_density(x, optimum.mean, optimum.covariance)
    vae = linear_vae(rotated)
    gap = exact - exact_elbo(vae, x)
    assert torch.allclose(gap, lost.expand(N), atol=1e-9)
    assert (lost > 1e-3) == (angle > 0)
    # and this diagonal guide is the best: the exact ELBO is flat in the guide's parameters
    slopes = torch.autograd.grad(exact_elbo(vae, x).mean(), list(vae.posterior.parameters()))
    assert all(slope.abs().max() < 1e-9 for slope in slopes)


def test_factor_analysis_with_its_exact_posterior_is_exact(x):
    oracle = FactorAnalysis(2).fit(x.numpy())
    loadings, variances = torch.tensor(oracle.components_.T.copy()), torch.tensor(oracle.noise_variance_)
    mean = torch.tensor(oracle.mean_)
    exact = gaussian_log_density(x, mean, loadings @ loadings.T + variances.diag())
    assert exact.mean().item() == pytest.approx(oracle.score(x.numpy()), rel=1e-9)
    weights = log_terms(factor_analysis_vae(mean, loadings, variances), {"x": x}, particles=5).log_weight
    assert torch.allclose(weights, exact.expand(5, N), atol=1e-8)


def test_importance_weights_are_unbiased_for_the_likelihood_of_each_datum(x):
    """A guide with wider scales than the posterior's: E[w] = p(x) exactly, so 4 standard errors."""
    solution = ppca_optimum(x, Q).rotated(0.3)
    vae = linear_vae(solution)
    with torch.no_grad():
        vae.posterior.heads.bias[Q:] += 0.2
    exact = gaussian_log_density(x, solution.mean, solution.covariance)
    torch.manual_seed(0)
    relative = (log_terms(vae, {"x": x}, particles=1000).log_weight - exact).exp()
    scores = z_scores(relative, 1.0)
    assert scores.abs().max() < 4.5 and 0.5 < scores.std() < 1.5  # the largest of 60


@pytest.mark.parametrize("pair_name", ["bottom_up", "top_down", "conditional"])
def test_bounds_rise_to_the_exact_value_of_other_gaussian_models(pair_name):
    torch.manual_seed(0)
    if pair_name == "conditional":
        pair = Conditional().match()
        batch = {"target": torch.randn(8, 4).double(), "context": torch.randn(8, 3).double()}
        exact = pair.log_marginal(**batch)
    else:
        pair = TwoLayers(bottom_up=pair_name == "bottom_up").match()
        batch = {"picture": torch.randn(8, 4).double()}
        exact = gaussian_log_density(batch["picture"], torch.zeros(()), pair.covariance())
    with torch.no_grad():
        weights = log_terms(pair, batch, particles=40_000).log_weight
    assert z_scores((weights - exact).exp(), 1.0).abs().max() < 4
    ladder = [bounds.importance_weighted(weights.reshape(k, -1, 8)).mean(0) for k in (1, 4, 20, 1000)]
    for lower, upper in zip(ladder, [*ladder[1:], exact + 0.02], strict=True):
        assert (lower < upper).all()
    assert torch.allclose(ladder[-1], exact, atol=0.05)


# --- reductions ---------------------------------------------------------------------------------------------


def random_terms(particles: int = 7, size: int = 5, **more) -> LogTerms:
    generator = torch.Generator().manual_seed(1)
    parts = (torch.randn(particles, size, dtype=torch.float64, generator=generator) for _ in range(3))
    return LogTerms(*parts, **more)


def test_the_elbo_is_minus_rate_minus_distortion():
    terms = random_terms()
    assert torch.allclose(bounds.elbo(terms), -bounds.rate(terms) - bounds.distortion(terms))
    assert torch.allclose(bounds.elbo(terms), terms.log_weight.mean(0))
    assert torch.allclose(bounds.elbo(terms, beta=3.0), -3 * bounds.rate(terms) - bounds.distortion(terms))
    assert torch.allclose(bounds.elbo(terms, beta=0.0), terms.log_likelihood.mean(0))


def test_bounds_take_the_terms_of_an_elbo_with_their_closed_form_kl():
    kl = torch.arange(35.0, dtype=torch.float64).view(7, 5)
    terms = ElboTerms(random_terms().log_likelihood, kl)
    assert torch.equal(bounds.rate(terms), kl.mean(0))
    assert torch.allclose(bounds.elbo(terms, 0.5), (terms.log_likelihood - 0.5 * kl).mean(0))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9, -1.0, -3.0])
def test_renyi_is_its_formula(alpha):
    weights = 5 * random_terms().log_weight
    formula = (logsumexp((1 - alpha) * weights.numpy(), axis=0) - math.log(7)) / (1 - alpha)
    assert np.allclose(bounds.renyi(weights, alpha), formula, rtol=1e-12)


def test_renyi_goes_from_the_elbo_over_the_importance_weighted_bound_to_the_maximum():
    weights = 3 * random_terms().log_weight
    assert torch.equal(bounds.renyi(weights, 1.0), weights.mean(0))
    assert torch.allclose(bounds.renyi(weights, 1 - 1e-6), weights.mean(0), atol=1e-4)
    assert torch.equal(bounds.renyi(weights, 0.0), bounds.importance_weighted(weights))
    assert torch.allclose(bounds.renyi(weights, -1000.0), weights.amax(0), atol=1e-2)
    ladder = torch.stack([bounds.renyi(weights, alpha) for alpha in (1.0, 0.7, 0.0, -1.0, -10.0)])
    assert (ladder.diff(dim=0) > 0).all()


def test_sums_over_particles_are_as_exact_as_float64():
    generator = torch.Generator().manual_seed(0)
    weights = -9e4 + 5 * torch.randn(200_000, 3, generator=generator)
    exact = torch.tensor(logsumexp(weights.double().numpy(), axis=0) - math.log(200_000))
    bound = bounds.importance_weighted(weights)
    assert bound.dtype == torch.float32 and torch.equal(bound, exact.float())


def test_impossible_draws_count_as_zero_weight():
    weights = torch.tensor([[-math.inf, -math.inf], [2.0, -math.inf]])
    first, second = bounds.importance_weighted(weights).tolist()
    assert first == pytest.approx(2.0 - math.log(2)) and second == -math.inf


def spread_weights(dtype: torch.dtype) -> torch.Tensor:
    """Log weights [particles, batch] that lie hundreds of nats apart."""
    generator = torch.Generator().manual_seed(0)
    return (100 * torch.randn(50, 20, dtype=dtype, generator=generator)).requires_grad_()


@pytest.mark.parametrize("alpha", [0.0, 0.5, -1.0])
def test_negligible_weights_change_neither_bound_nor_gradient(alpha):
    weights = spread_weights(torch.float64)
    bound = bounds.renyi(weights, alpha)
    uncut = (((1 - alpha) * weights).logsumexp(0) - math.log(50)) / (1 - alpha)
    gradients = [torch.autograd.grad(value.sum(), weights)[0] for value in (bound, uncut)]
    assert torch.allclose(bound, uncut, rtol=1e-12) and torch.allclose(*gradients, rtol=1e-12, atol=1e-18)


@pytest.mark.parametrize("alpha", [0.0, 0.5, -1.0])
def test_gradients_of_negligible_weights_are_zero_not_denormal(alpha):
    weights = spread_weights(torch.float32)
    (gradient,) = torch.autograd.grad(bounds.renyi(weights, alpha).sum(), weights)
    normalised = bounds.normalised_weights((1 - alpha) * weights)
    for numbers in (gradient, normalised):
        assert (numbers == 0).any() and numbers[numbers != 0].abs().min() > 1e-23
        assert torch.allclose(numbers.sum(0), torch.ones(20))
    assert torch.allclose(gradient, normalised, rtol=1e-4, atol=1e-20)


def test_impossible_and_undefined_weights_stay_what_they_are():
    inf, nan = math.inf, math.nan
    weights = torch.tensor([[-inf, -inf, nan, inf], [2.0, -inf, 0.0, 0.0], [-99.0, -inf, -99.0, -99.0]])
    for value, uncut in (
        (bounds.importance_weighted(weights), weights.double().logsumexp(0).float() - math.log(3)),
        (bounds.normalised_weights(weights), weights.softmax(0)),
    ):
        assert torch.allclose(value, uncut, equal_nan=True)


def test_normalised_weights_can_be_traced():
    graph = make_fx(bounds.normalised_weights)(spread_weights(torch.float32).detach())
    other = -spread_weights(torch.float32).detach()
    assert torch.equal(graph(other), bounds.normalised_weights(other))


def test_a_rotation_leaves_the_model_alone():
    solution = PPCA(torch.zeros(4), torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor(0.5))
    assert torch.allclose(solution.rotated(0.7).covariance, solution.covariance, atol=1e-6)
