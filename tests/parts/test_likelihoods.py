"""p(x|z): log-probabilities against SciPy, normalisation, where a decoder starts, and extremes."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from pyro_vae import plugins
from pyro_vae.errors import ContractError

SHAPE = (2, 3)
CONTINUOUS = ["gaussian", "gaussian_learned", "gaussian_per_dimension", "gaussian_net", "gaussian_full"]
SCATTERED = ["negative_binomial", "zero_inflated_negative_binomial"]
EIGHT_BIT = ["categorical", "discretized_logistic"]

LIKELIHOODS = {name: plugins.load("likelihood", name) for name in plugins.names("likelihood")}


def likelihood(name: str, shape: tuple[int, ...] = SHAPE):
    """In float64, its own parameters (where it has any) away from where they start."""
    built = LIKELIHOODS[name](shape).double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator) - 0.5)
    return built


def numbers(name: str, *lead: int, shape: tuple[int, ...] = SHAPE, spread: float = 1.0) -> Tensor:
    """What a decoder might put out, [*lead, channels, *shape]."""
    generator = torch.Generator().manual_seed(4)
    size = (*lead, LIKELIHOODS[name](shape).channels, *shape)
    return spread * torch.randn(size, dtype=torch.float64, generator=generator)


def data(name: str, *lead: int) -> Tensor:
    """Values in the support, with both ends of it."""
    generator = torch.Generator().manual_seed(5)
    unit = torch.rand((*lead, *SHAPE), dtype=torch.float64, generator=generator)
    flat = unit.flatten()
    flat[0], flat[1] = 0.0, 1.0
    levels = {"bernoulli": unit.round(), "continuous_bernoulli": unit}
    levels |= {name: (12 * unit).floor() for name in ["poisson", *SCATTERED]}
    levels |= {name: (255 * unit).round() for name in EIGHT_BIT} | {name: 6 * unit - 3 for name in CONTINUOUS}
    return levels[name]


# --- log-probabilities --------------------------------------------------------------------------------------


def scipy_bernoulli(features, x, built):
    return stats.bernoulli(1 / (1 + np.exp(-features[0]))).logpmf(x)


def closed_continuous_bernoulli(features, x, built):
    """C(p) p^x (1-p)^(1-x), C(p) = 2 artanh(1-2p) / (1-2p) (Loaiza-Ganem & Cunningham 2019, eq. 1)."""
    p = 1 / (1 + np.exp(-features[0]))
    return np.log(2 * np.arctanh(1 - 2 * p) / (1 - 2 * p)) + x * np.log(p) + (1 - x) * np.log1p(-p)


def scipy_normal(features, x, built):
    if len(features) == 2:
        return stats.norm(features[0], np.exp(features[1])).logpdf(x)
    sigma = built.log_sigma.exp() if hasattr(built, "log_sigma") else built.sigma
    return stats.norm(features[0], sigma.detach().numpy()).logpdf(x)


def scipy_multivariate_normal(features, x, built):
    """One log-density of all elements together, which stands at the first of them."""
    found = np.zeros(x.shape)
    for place in np.ndindex(*x.shape[:2]):
        loc, *rows = features[(slice(None), *place)].reshape(len(features), -1)
        tril = np.tril(rows, -1) + np.diag(np.exp(np.diag(rows)))
        found[(*place, 0, 0)] = stats.multivariate_normal(loc, tril @ tril.T).logpdf(x[place].flatten())
    return found


def log_softmax_of_levels(features, x, built):
    every = features - np.logaddexp.reduce(features, axis=0)
    return np.take_along_axis(every, x.astype(int)[None], axis=0)[0]


def scipy_discretized_logistic(features, x, built):
    """From the CDF left of the location and from its complement right of it, where neither rounds to 1."""
    loc = 127.5 * (features[0] + 1)
    logistic = stats.logistic(loc, 32 * np.exp(features[1]))
    below, above = np.where(x == 0, -np.inf, x - 0.5), np.where(x == 255, np.inf, x + 0.5)
    return np.log(np.where(x < loc, logistic.cdf(above) - logistic.cdf(below), logistic.sf(below) - logistic.sf(above)))


def scipy_poisson(features, x, built):
    return stats.poisson(np.logaddexp(0, features[0])).logpmf(x)


def scipy_negative_binomial(features, x, built):
    r, mean = built.log_r.exp().detach().numpy(), np.exp(features[0])
    of_counts = stats.nbinom(r, r / (r + mean)).logpmf(x)
    if len(features) == 1:
        return of_counts
    gate = 1 / (1 + np.exp(3 - features[1]))
    return np.log(gate * (x == 0) + (1 - gate) * np.exp(of_counts))


ORACLES = {
    "bernoulli": scipy_bernoulli,
    "continuous_bernoulli": closed_continuous_bernoulli,
    "categorical": log_softmax_of_levels,
    "discretized_logistic": scipy_discretized_logistic,
    "poisson": scipy_poisson,
    **dict.fromkeys(SCATTERED, scipy_negative_binomial),
    **dict.fromkeys(CONTINUOUS, scipy_normal),
    "gaussian_full": scipy_multivariate_normal,
}


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_log_probabilities_are_scipys(name):
    built, features, x = likelihood(name), numbers(name, 4, 5), data(name, 5)
    distribution = built(features)
    assert distribution.batch_shape == (4, 5) and distribution.event_shape == SHAPE
    per_channel = features.movedim(-len(SHAPE) - 1, 0).numpy()
    expected = ORACLES[name](per_channel, np.broadcast_to(x.numpy(), (4, 5, *SHAPE)), built)
    assert np.allclose(distribution.log_prob(x).detach(), expected.sum((-1, -2)), rtol=1e-9)


def test_every_likelihood_has_an_oracle():
    assert ORACLES.keys() == LIKELIHOODS.keys()


@pytest.mark.parametrize("sigma", [0.05, 0.7, 3.0])
@pytest.mark.parametrize("name", CONTINUOUS[:3])
def test_a_gaussian_has_the_sigma_it_is_given(name, sigma):
    built = LIKELIHOODS[name](SHAPE, sigma).double()
    x = data(name)
    expected = stats.norm(0, sigma).logpdf(x).sum()
    assert built(torch.zeros(1, *SHAPE).double()).log_prob(x).item() == pytest.approx(expected, rel=1e-5)
    assert len(list(built.parameters())) == (name != "gaussian")


def test_a_sigma_that_is_not_positive_is_refused():
    with pytest.raises(ContractError, match="sigma must be positive, not 0"):
        LIKELIHOODS["gaussian"](SHAPE, 0.0)


# --- normalisation ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [0.0, 0.05, 1.0, 4.0])
@pytest.mark.parametrize("name", ["bernoulli", *EIGHT_BIT, "poisson"])
def test_masses_sum_to_one(name, spread):
    built = likelihood(name, (1,))
    distribution = built(numbers(name, 50, shape=(1,), spread=spread))
    top = {"bernoulli": 2, "poisson": 400}.get(name, 256)
    levels = torch.arange(float(top), dtype=torch.float64).view(-1, 1, 1)
    total = distribution.log_prob(levels.expand(-1, 50, 1)).exp().sum(0)
    assert torch.allclose(total, torch.ones_like(total), atol=1e-9)


@pytest.mark.parametrize("spread", [0.0, 0.05, 1.0, 4.0])
@pytest.mark.parametrize("name", ["continuous_bernoulli", *CONTINUOUS])
def test_densities_integrate_to_one(name, spread):
    built, features = likelihood(name, (1,)), numbers(name, 1, shape=(1,), spread=spread)
    distribution = built(features)
    low, high, points = -math.inf, math.inf, None
    if name == "continuous_bernoulli":
        low, high = 0.0, 1.0
    else:
        mode, sigma = distribution.mean.item(), distribution.variance.sqrt().item()
        low, high, points = mode - 12 * sigma, mode + 12 * sigma, [mode]

    def density(value: float) -> float:
        return distribution.log_prob(torch.tensor([[value]], dtype=torch.float64)).exp().item()

    assert integrate.quad(density, low, high, points=points)[0] == pytest.approx(1.0, abs=1e-7)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-8), (torch.float32, 2e-4)])
def test_the_continuous_bernoulli_is_normalised_for_every_logit(dtype, tolerance):
    """Also beyond |logit| = 16, where clamped probabilities would cut the density short, and around 0."""
    size = torch.cat([torch.logspace(-8, 3, 60, dtype=torch.float64), torch.tensor([0.0, 0.0999, 0.1, 0.1001])])
    logits = torch.cat([-size, size]).to(dtype)
    distribution = LIKELIHOODS["continuous_bernoulli"]((1,))(logits.view(-1, 1, 1))
    # log of the integral of e^(lx) over [0, 1], in double precision
    wide = logits.double()
    log_integral = torch.where(wide == 0, 0.0, wide.clamp(min=0) + torch.log(-torch.expm1(-wide.abs()) / wide.abs()))
    for x in (0.0, 0.3, 1.0):
        density = distribution.log_prob(torch.full((len(logits), 1), x, dtype=dtype))
        error = density.double() - (wide * x - log_integral)
        assert (error.abs() <= tolerance * (1 + wide.abs())).all()


# --- moments and draws --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_draws_are_in_the_support_and_have_the_mean(name):
    built = likelihood(name)
    distribution = built(numbers(name, spread=1.5))
    torch.manual_seed(0)
    draws = distribution.sample((20_000,)).double()
    assert draws.shape == (20_000, *SHAPE) and distribution.support.check(draws).all()
    tolerance = 4 * draws.std(0) / math.sqrt(len(draws)) + (0.02 if name == "discretized_logistic" else 0.0)
    assert ((draws.mean(0) - distribution.mean).abs() < tolerance).all()


@pytest.mark.parametrize("name", EIGHT_BIT)
def test_the_mean_level_is_the_sum_over_levels(name):
    built = likelihood(name, (1,))
    distribution = built(numbers(name, 200, shape=(1,), spread=1.5))
    levels = torch.arange(256.0, dtype=torch.float64).view(-1, 1, 1).expand(-1, 200, 1)
    error = distribution.mean - (distribution.log_prob(levels).exp().unsqueeze(-1) * levels).sum(0)
    narrow = distribution.base_dist.log_scale.exp() < 1 if name == "discretized_logistic" else torch.tensor(False)
    assert (error.abs() < torch.where(narrow, 0.5, 0.02)).all()


def test_draws_of_the_continuous_bernoulli_follow_its_distribution():
    for logit in (-40.0, -1.0, 0.0, 5e-4, 0.2, 60.0):
        distribution = LIKELIHOODS["continuous_bernoulli"]((1,))(torch.tensor([[logit]], dtype=torch.float64))
        torch.manual_seed(0)
        draws = distribution.sample((5000,)).flatten().numpy()

        def cdf(x: np.ndarray, logit: float = logit) -> np.ndarray:
            return np.expm1(logit * x) / np.expm1(logit) if logit else x

        assert stats.kstest(draws, cdf).pvalue > 1e-3


def test_draws_of_the_discretised_logistic_follow_its_masses():
    distribution = LIKELIHOODS["discretized_logistic"]((1,))(torch.tensor([[-0.9], [0.1]]))
    torch.manual_seed(0)
    counts = torch.bincount(distribution.sample((50_000,)).flatten().long(), minlength=256)
    expected = 50_000 * distribution.log_prob(torch.arange(256.0).view(-1, 1)).exp()
    common = expected > 10
    chi_squared = ((counts - expected)[common].square() / expected[common]).sum().item()
    assert stats.chi2(int(common.sum()) - 1).sf(chi_squared) > 1e-3


# --- where a decoder starts ---------------------------------------------------------------------------------

MEANS = {
    "bernoulli": [0.001, 0.2, 0.5, 0.7, 0.999],
    "continuous_bernoulli": [0.06, 0.2, 0.5, 0.7, 0.94],
    "categorical": [1.0, 50.0, 127.5, 200.0, 254.0],
    "discretized_logistic": [1.0, 50.0, 127.5, 200.0, 254.0],
    **dict.fromkeys(["poisson", *SCATTERED], [0.01, 0.5, 2.0, 30.0, 400.0]),
    **dict.fromkeys(CONTINUOUS, [-100.0, 0.0, 0.5, 3.0, 100.0]),
}


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_a_start_has_the_mean_it_is_asked_for(name):
    mean = torch.tensor([MEANS[name]], dtype=torch.float64)
    built = LIKELIHOODS[name](mean.shape).double()
    features = built.start(mean)
    assert features.shape == (built.channels, *mean.shape) and features.dtype == torch.float64
    assert torch.allclose(built(features).mean, mean, rtol=1e-4)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_a_start_at_the_ends_of_the_support_is_finite(name):
    ends = torch.tensor([0.0, 255.0 if name in EIGHT_BIT else 1.0])
    built = LIKELIHOODS[name]((2,))
    features = built.start(ends)
    assert features.isfinite().all() and built(features).log_prob(ends).isfinite()


# --- extremes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1e-6, 1.0, 15.0, 30.0])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_gradients_are_finite_at_extremes_in_single_precision(name, size):
    """Every pattern of signs of the decoder's numbers; a log standard deviation of -15 is 3e-7, and that of a
    triangle is divided by once for each of its rows."""
    built = LIKELIHOODS[name]((3,))
    size = min(size, {"gaussian_net": 15.0, "gaussian_full": 6.0}.get(name, size))
    top = {**dict.fromkeys(["poisson", *SCATTERED], 60.0), **dict.fromkeys(EIGHT_BIT, 255.0)}.get(name, 1.0)
    x = torch.tensor([0.0, top // 2, top])
    for first, second in product([-size, size], repeat=2):
        channels = torch.tensor([first, second]).repeat(128)[: built.channels]
        features = channels.view(-1, 1).repeat(1, 3).requires_grad_()
        log_prob = built(features).log_prob(x)
        log_prob.backward()
        assert log_prob.isfinite() and features.grad.isfinite().all()
