"""p(z) and q(z|x): densities against SciPy, KL divergences, gradients."""

import numpy as np
import pytest
import torch
from references import gaussian_log_density, z_scores
from scipy import stats
from scipy.special import logsumexp
from torch.distributions import kl_divergence

import pyro_vae as pv
from pyro_vae import plugins
from pyro_vae.errors import ContractError
from pyro_vae.pair.particles import run_guide
from pyro_vae.pair.terms import elbo_terms, log_terms
from pyro_vae.parts.posteriors import DiagonalNormal, FullCovarianceNormal
from pyro_vae.parts.priors import Flat, Laplace, MixtureOfNormals, StandardNormal

FEATURES, LATENT = 5, 3


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


def values(*lead: int, latent: int = LATENT) -> torch.Tensor:
    return torch.randn(*lead, latent, dtype=torch.float64)


def mixture() -> MixtureOfNormals:
    """With weights, means and scales away from where they start."""
    prior = MixtureOfNormals(LATENT, components=4).double()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return prior


def vae(latent: int = LATENT, **options) -> pv.VAE:
    return pv.VAE((6,), latent, hidden=(4,), activation="tanh", likelihood="gaussian", **options).double()


# --- densities ----------------------------------------------------------------------------------------------


def test_the_standard_normal_is_scipys():
    z = values(4, 5)
    distribution = StandardNormal(LATENT).double()()
    assert distribution.event_shape == (LATENT,)
    assert np.allclose(distribution.log_prob(z), stats.norm.logpdf(z).sum(-1))


def test_the_mixture_is_a_log_sum_of_normals():
    prior, z = mixture(), values(7)
    parts = stats.norm(prior.loc.detach(), prior.log_scale.detach().exp()).logpdf(z.unsqueeze(-2)).sum(-1)
    expected = logsumexp(parts + torch.log_softmax(prior.logits.detach(), 0).numpy(), axis=-1)
    assert np.allclose(prior().log_prob(z).detach(), expected)


def test_draws_of_the_mixture_have_its_mean_and_variance():
    prior = mixture()
    weights = torch.softmax(prior.logits, 0).unsqueeze(-1)
    draws = prior().sample((40_000,))
    mean = (weights * prior.loc).sum(0)
    second = (weights * (prior.loc.square() + (2 * prior.log_scale).exp())).sum(0)
    assert z_scores(draws, mean).abs().max() < 4 and z_scores(draws.square(), second).abs().max() < 4


def test_the_diagonal_normal_has_the_means_and_log_scales_of_its_heads():
    posterior, features, z = DiagonalNormal(FEATURES, LATENT).double(), values(4, 2, latent=FEATURES), values(4, 2)
    numbers = (features @ posterior.heads.weight.T + posterior.heads.bias).detach()
    expected = stats.norm(numbers[..., :LATENT], numbers[..., LATENT:].exp()).logpdf(z).sum(-1)
    assert np.allclose(posterior(features).log_prob(z).detach(), expected)


@pytest.mark.parametrize("latent", [1, 2, 5])
def test_the_full_covariance_is_of_a_lower_triangular_root(latent):
    posterior, features = FullCovarianceNormal(FEATURES, latent).double(), values(4, latent=FEATURES)
    distribution, z = posterior(features), values(4, latent=latent)
    root = torch.zeros(4, latent, latent).double()
    rows, columns = np.tril_indices(latent, -1)
    root[:, rows, columns] = posterior.off_diagonal(features)
    root += torch.diag_embed(posterior.log_diagonal(features).exp())
    assert torch.allclose(distribution.scale_tril, root)
    for i in range(4):
        expected = gaussian_log_density(z[i : i + 1], posterior.loc(features)[i], root[i] @ root[i].T)
        assert torch.allclose(distribution.log_prob(z)[i], expected)


@pytest.mark.parametrize("name", plugins.names("posterior"))
@pytest.mark.parametrize("lead", [(), (4,), (2, 3)])
def test_posteriors_take_any_leading_dims(name, lead):
    posterior = plugins.load("posterior", name)(FEATURES, LATENT).double()
    distribution = posterior(values(*lead, latent=FEATURES))
    assert distribution.batch_shape == lead and distribution.event_shape == (LATENT,)
    assert distribution.rsample((7,)).shape == (7, *lead, LATENT)


def test_priors_learn_what_they_should():
    assert not list(StandardNormal(LATENT).parameters())
    assert sum(p.numel() for p in MixtureOfNormals(LATENT, 4).parameters()) == 4 + 2 * 4 * LATENT
    assert not StandardNormal(LATENT).state_dict(), "constants stay out of checkpoints"


# --- KL divergences -----------------------------------------------------------------------------------------


def terms_at_seed(terms, pair, batch):
    torch.manual_seed(0)
    return terms(pair, batch, particles=3)


def drawn_kl(pair, batch, draws: int) -> torch.Tensor:
    """log q - log p at draws [draws, batch]."""
    return log_terms(pair, batch, particles=draws).kl


def test_the_closed_form_kl_is_the_mean_of_draws():
    """A diagonal normal against the standard normal, within 4 standard errors for each datum."""
    pair, batch = vae(), {"x": 2 * torch.randn(6, 6).double()}
    kl = elbo_terms(pair, batch).kl
    site = run_guide(pair, batch)["z"].fn.base_dist
    by_hand = 0.5 * (site.scale.square() + site.loc.square() - 1 - 2 * site.scale.log()).sum(-1)
    assert kl.shape == (1, 6) and torch.allclose(kl[0], by_hand)
    assert z_scores(drawn_kl(pair, batch, 20_000), kl[0]).abs().max() < 4


@pytest.mark.parametrize("prior, posterior", [("mixture", "diagonal_normal"), ("mixture", "full_covariance")])
def test_where_no_closed_form_is_known_the_kl_is_that_of_the_draws(prior, posterior):
    pair, batch = vae(prior=prior, posterior=posterior), {"x": torch.randn(6, 6).double()}
    closed, drawn = (terms_at_seed(terms, pair, batch).kl for terms in (elbo_terms, log_terms))
    assert torch.allclose(closed, drawn)
    assert closed.std(0).min() > 0


def test_the_kl_of_a_full_covariance_is_right_in_the_mean():
    pair, batch = vae(posterior="full_covariance"), {"x": torch.randn(6, 6).double()}
    q = run_guide(pair, batch)["z"].fn
    standard = torch.distributions.MultivariateNormal(torch.zeros(LATENT).double(), torch.eye(LATENT).double())
    torch.manual_seed(1)
    kl = elbo_terms(pair, batch, particles=20_000).kl
    assert z_scores(kl, kl_divergence(q, standard)).abs().max() < 4


def test_a_mixture_of_one_standard_normal_is_the_standard_normal():
    prior = MixtureOfNormals(LATENT, components=1)
    torch.nn.init.zeros_(prior.loc)
    z = values(9).float()
    assert torch.allclose(prior().log_prob(z), StandardNormal(LATENT)().log_prob(z))


# --- in a pair ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("latent", [1, 3])
@pytest.mark.parametrize("posterior", plugins.names("posterior"))
@pytest.mark.parametrize("prior", plugins.names("prior"))
def test_every_parameter_of_prior_and_posterior_gets_a_gradient(prior, posterior, latent):
    try:
        pair = vae(latent, prior=prior, posterior=posterior)
    except ContractError as refusal:
        assert "use prior=" in str(refusal) or "choose another posterior" in str(refusal)
        return
    (-log_terms(pair, {"x": torch.randn(6, 6).double()}, 2, as_loss=True).log_weight.mean()).backward()
    for part in (pair.prior, pair.posterior):
        for name, parameter in part.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            assert parameter.numel() == 0 or parameter.grad.abs().max() > 0, name


def test_a_mixture_starts_with_equal_weights_and_its_components_apart():
    prior = MixtureOfNormals(LATENT, components=8)
    assert torch.allclose(torch.softmax(prior.logits, 0), torch.full((8,), 1 / 8))
    assert torch.pdist(prior.loc).min() > 0.1


# --- priors that are penalties ------------------------------------------------------------------------------


def test_the_laplace_prior_is_scipys():
    z = values(4, 5)
    distribution = Laplace(LATENT, scale=0.4).double()()
    assert np.allclose(distribution.log_prob(z), stats.laplace.logpdf(z, scale=0.4).sum(-1), rtol=1e-6)


def test_the_flat_prior_is_zero_where_the_value_is():
    z = values(4, 5)
    found = Flat(LATENT)().expand((5,)).log_prob(z)
    assert found.shape == (4, 5) and found.dtype == z.dtype and not found.any()


def test_the_kl_to_a_flat_prior_is_minus_the_entropy():
    pair, batch = vae(prior="flat"), {"x": torch.randn(6, 6).double()}
    kl = elbo_terms(pair, batch, as_loss=True).kl
    site = run_guide(pair, batch)["z"].fn.base_dist
    assert torch.allclose(kl[0], -torch.from_numpy(stats.norm.entropy(scale=site.scale.detach())).sum(-1))
