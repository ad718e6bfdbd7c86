"""Finite mixtures: log p(x) is scikit-learn's, training ends where EM does, and a component is known given x."""

import math

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor

import pyro_vae as pv
from pyro_vae.errors import ContractError, UnknownName
from pyro_vae.models.mixture import Mixture

K = 3
QUIET = {"progress": False, "engine": "eager", "device": "cpu"}


def clusters(n: int = 600, seed: int = 0) -> np.ndarray:
    """Points of three normals [n, 2] with covariances of their own, which overlap a little."""
    rng = np.random.default_rng(seed)
    centres = np.array([[-2.0, 0.0], [1.5, 1.0], [0.5, -2.0]])
    shapes = np.array([[[0.8, 0.0], [0.5, 0.5]], [[0.5, 0.0], [-0.4, 0.9]], [[1.0, 0.0], [0.0, 0.4]]])
    kind = rng.choice(3, n, p=[0.5, 0.3, 0.2])
    return centres[kind] + np.einsum("nij,nj->ni", shapes[kind], rng.normal(size=(n, 2)))


def features_of(fitted: GaussianMixture) -> Tensor:
    """scikit-learn's components as the numbers that the likelihood takes, [components, channels, 2]."""
    loc = torch.from_numpy(fitted.means_).unsqueeze(1)
    if fitted.covariance_type == "full":
        tril = torch.linalg.cholesky(torch.from_numpy(fitted.covariances_))
        diagonal = torch.diag_embed(tril.diagonal(dim1=-2, dim2=-1).log())
        return torch.cat([loc, tril.tril(-1) + diagonal], 1)
    return torch.cat([loc, torch.from_numpy(fitted.covariances_).sqrt().log().unsqueeze(1)], 1)


LIKELIHOODS = {"full": "gaussian_full", "diag": "gaussian_net"}


def at(fitted: GaussianMixture) -> Mixture:
    """Our mixture, in float64, at scikit-learn's parameters."""
    pair = Mixture((2,), K, LIKELIHOODS[fitted.covariance_type]).double()
    pair.weights.set(torch.from_numpy(fitted.weights_).log())
    pair.emission.table.set(features_of(fitted))
    return pair


def start(kind: str, x: np.ndarray) -> GaussianMixture:
    """scikit-learn's mixture after one step of EM from the centres that k-means finds."""
    with pytest.warns(Warning, match="converge"):
        return GaussianMixture(K, covariance_type=kind, max_iter=1, random_state=0).fit(x)


# --- the density --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_log_p_is_that_of_scikit_learn(kind):
    x = clusters()
    fitted = GaussianMixture(K, covariance_type=kind, random_state=0).fit(x)
    result = pv.evaluate(at(fitted), torch.from_numpy(x), "importance", progress=False)
    assert result.kind == "exact"
    np.testing.assert_allclose(result.log_likelihood.numpy(), fitted.score_samples(x), rtol=1e-6)


@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_encode_gives_the_responsibilities_of_scikit_learn(kind):
    x = clusters()
    fitted = GaussianMixture(K, covariance_type=kind, random_state=0).fit(x)
    run = pv.train(at(fitted), torch.from_numpy(x), epochs=1, lr=1e-12, **QUIET)
    codes = pv.encode(run, torch.from_numpy(x))
    np.testing.assert_allclose(codes["component_probabilities"].numpy(), fitted.predict_proba(x), atol=1e-6)
    assert np.array_equal(codes["component_most_probable"].numpy(), fitted.predict(x))
    assert set(codes["component_draw"].unique().tolist()) <= set(range(K))


def test_log_p_of_bits_is_the_sum_over_components():
    torch.manual_seed(0)
    pair, x = Mixture((2, 3), 4).double(), torch.bernoulli(torch.full((20, 2, 3), 0.4)).double()
    with torch.no_grad():
        rates = pair.emission.table().sigmoid().squeeze(1)
        each = (x.unsqueeze(1) * rates.log() + (1 - x.unsqueeze(1)) * (1 - rates).log()).sum((2, 3))
        expected = torch.logsumexp(each + pair.weights().log_softmax(0), 1)
    found = pv.evaluate(pair, x, "elbo", progress=False)
    assert found.kind == "exact" and torch.allclose(found.elbo, expected, rtol=1e-9)


# --- training -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_training_ends_where_em_does(kind):
    """From the same start, on the same data."""
    x = clusters()
    begun = start(kind, x)
    em = GaussianMixture(
        K, covariance_type=kind, tol=1e-8, max_iter=2000, weights_init=begun.weights_, means_init=begun.means_,
        precisions_init=begun.precisions_,
    ).fit(x)  # fmt: skip
    pair, data = at(begun), torch.from_numpy(x)
    before = pv.evaluate(pair, data, "elbo", progress=False).mean
    how = {"batch_size": len(x), "lr": 5e-3, "schedule": "cosine", "valid": data}
    run = pv.train(pair, data, epochs=100, **how, **QUIET)
    found = pv.evaluate(run.pair, data, "elbo", progress=False).mean
    assert found - before > 0.005, "there was something to learn"
    assert abs(found - em.score(x)) < 0.02


def patterns(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Three patterns of twelve bits, and data [n, 12] in which each bit of one is flipped with probability 0.1."""
    of_kind = torch.bernoulli(torch.full((3, 12), 0.5), generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(seed)
    kind = torch.randint(3, (n,), generator=generator)
    return 0.1 + 0.8 * of_kind, torch.bernoulli(0.1 + 0.8 * of_kind[kind], generator=generator)


def em_of_bits(pair: Mixture, x: Tensor, steps: int = 300) -> float:
    """The mean log p(x) that EM ends with, from where the mixture is."""
    with torch.no_grad():
        log_weights, rates = pair.weights().log_softmax(0), pair.emission.table().sigmoid().squeeze(1)
    for _ in range(steps):
        joint = log_weights + x @ rates.log().T + (1 - x) @ (1 - rates).log().T
        share = joint.softmax(1)
        log_weights, rates = share.mean(0).log(), (share.T @ x / share.sum(0)[:, None]).clamp(1e-9, 1 - 1e-9)
    return joint.logsumexp(1).mean().item()


def test_training_on_bits_ends_where_em_does():
    """From the same start, on the same data."""
    _, x = patterns(400, seed=2)
    torch.manual_seed(0)
    pair, x = Mixture((12,), 3).double(), x.double()
    expected = em_of_bits(pair, x)
    run = pv.train(pair, x, epochs=100, batch_size=400, lr=1e-2, schedule="cosine", valid=x, **QUIET)
    assert abs(pv.evaluate(run.pair, x, "elbo", progress=False).mean - expected) < 0.02


def test_a_mixture_of_bits_finds_its_patterns():
    """The bound is near that of the truth, on new data."""
    rates, x = patterns(1000, seed=3)
    truth = Mixture((12,), 3)
    truth.weights.set(torch.zeros(3))
    truth.emission.table.set(torch.logit(rates).unsqueeze(1))
    how = {"batch_size": 300, "lr": 1e-2, "model_options": {"components": 3}, "restarts": 3}
    run = pv.train("mixture", x, epochs=40, **how, **QUIET)
    new = patterns(1000, seed=4)[1]
    best, found = (pv.evaluate(pair, new, "elbo", progress=False).mean for pair in (truth, run.pair))
    assert best - 0.05 < found < best + 0.02


# --- pictures and bad input ---------------------------------------------------------------------------------


def test_draws_have_the_shares_of_the_components():
    pair = Mixture((4,), 2)
    pair.weights.set(torch.tensor([0.3, 0.7]).log())
    pair.emission.table.set(torch.tensor([-50.0, 50.0]).reshape(2, 1, 1).expand(2, 1, 4))
    run = pv.train(pair, torch.ones(400, 4), epochs=1, lr=1e-12, **QUIET)
    drawn = pv.sample(run, n=4000)
    assert torch.equal(drawn["x"][:, 0], drawn["component"].float())
    assert abs(drawn["x"].mean() - 0.7) < 4 * math.sqrt(0.21 / 4000)


def test_bad_input_is_one_line():
    with pytest.raises(ContractError, match="components must be at least 1, not 0"):
        Mixture((2,), 0)
    with pytest.raises(UnknownName, match="unknown likelihood 'normal'"):
        Mixture((2,), 2, "normal")
