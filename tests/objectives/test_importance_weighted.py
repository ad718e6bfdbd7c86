"""The importance-weighted and Renyi objectives: values per datum, and gradients against exact ones.

Exact gradients are of E[L_K] by quadrature or enumeration (`references.expected_bound`); every estimator is held
against them within 4 standard errors over copies of one small model.
"""

import math

import pyro
import pytest
import torch
from pyro.infer import RenyiELBO
from references import (
    Clusters,
    Conditional,
    Labelled,
    NonReparameterisedNormal,
    Scalar,
    ScalarMixture,
    SharedNoise,
    TwoLayers,
    exact_gradients,
    expected_bound_by_enumeration,
    gradient_draws,
    z_scores,
)
from torch import Tensor

from pyro_vae.errors import ContractError, UnknownName
from pyro_vae.objectives.elbo import TraceELBO
from pyro_vae.objectives.importance_weighted import ESTIMATORS, IWAE, Renyi
from pyro_vae.pair.particles import run_guide
from pyro_vae.pair.terms import log_terms

READING = 0.7
COPIES = 40_000
GUIDE = {Scalar: ("loc", "log_scale"), Clusters: ("guide_logits",)}


def pictures(n: int = 6) -> dict[str, Tensor]:
    return {"picture": torch.randn(n, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))}


def scores(
    objective: Renyi, kind: type, particles: int, beta: float = 1.0, copies: int = COPIES, **options
) -> dict[str, Tensor]:
    """z-scores, by parameter, of the mean gradient against that of the exact expected bound."""
    torch.manual_seed(0)
    draws = gradient_draws(objective, kind(copies, **options), READING, particles, beta)
    exact = exact_gradients(kind, READING, particles, objective.alpha, beta)
    return {name: z_scores(draws[name], exact[name]).abs().max() for name in exact}


class Announcing(TwoLayers):
    """With a `pyro.param`, without which `RenyiELBO` takes no gradient of a plain module."""

    def model(self, picture: Tensor) -> None:
        pyro.param("anything", self.v)
        super().model(picture)

    def used(self) -> list[Tensor]:
        return [self.v, self.w, self.lower_gain, self.upper_gain, self.log_scales]


# --- values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.5, -1.0])
@pytest.mark.parametrize("gradient", ESTIMATORS)
def test_the_loss_is_minus_the_mean_of_the_bounds_of_each_datum(gradient, alpha):
    """Weights are normalised for each datum by itself, whatever else is in the batch."""
    pair, particles = TwoLayers(), 5
    torch.manual_seed(3)
    weights = log_terms(pair, pictures(), particles).log_weight
    per_datum = [
        ((1 - alpha) * weights[:, i]).exp().mean().log() / (1 - alpha) for i in range(6)
    ]  # a loop over data, in plain exp and log
    torch.manual_seed(3)
    loss = Renyi(alpha, gradient)(pair, pictures(), particles)
    assert loss.shape == () and torch.allclose(loss, -torch.stack(per_datum).mean())


def test_one_particle_gives_the_elbo():
    losses = []
    for objective in (TraceELBO(), IWAE(), IWAE("stl"), IWAE("dreg"), Renyi(0.5)):
        torch.manual_seed(0)
        losses.append(objective(TwoLayers(), pictures(), 1))
    assert torch.allclose(torch.stack(losses), losses[0])


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_pathwise_gets_the_loss_and_gradients_of_pyros_renyi_elbo(alpha):
    """Where all sites share one plate and nothing is scaled, which is where Pyro's weights are those of each datum."""
    pair, estimator = Announcing(), RenyiELBO(alpha, 5, max_plate_nesting=1, vectorize_particles=True)
    torch.manual_seed(3)
    loss = Renyi(alpha)(pair, pictures(), 5)
    gradients = torch.autograd.grad(loss, pair.used())
    torch.manual_seed(3)
    with pyro.get_param_store().scope():
        pyros = estimator.loss_and_grads(pair.model, pair.guide, **pictures())
    assert loss.item() == pytest.approx(pyros / 6, rel=1e-5)
    for gradient, parameter in zip(gradients, pair.used(), strict=True):
        assert (gradient - parameter.grad / 6).abs().max() <= 1e-5 * gradient.abs().max()


def test_what_a_datum_contributes_does_not_depend_on_the_others_of_its_minibatch():
    """A guide and draws that are all but fixed: the gradient of a batch is the mean of those of its parts."""
    pair, whole = TwoLayers(), pictures()["picture"]
    with torch.no_grad():
        pair.log_scales.fill_(-20.0)
    for gradient in ("pathwise", "dreg"):
        batches = [whole, *whole.split(2)]
        losses = [IWAE(gradient)(pair, {"picture": part}, 3) for part in batches]
        first, *parts = [torch.autograd.grad(loss, [pair.v, pair.w]) for loss in losses]
        for i in range(2):
            assert torch.allclose(first[i], torch.stack([part[i] for part in parts]).mean(0), rtol=1e-5)


# --- gradients in the mean ----------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [1.0, 0.5])
@pytest.mark.parametrize("alpha", [0.0, 0.5, -1.0])
@pytest.mark.parametrize("particles", [1, 2, 8])
@pytest.mark.parametrize("gradient", ["pathwise", "dreg"])
def test_pathwise_and_doubly_reparameterised_gradients_are_unbiased(gradient, particles, alpha, beta):
    for name, score in scores(Renyi(alpha, gradient), Scalar, particles, beta).items():
        assert score < 4, name


@pytest.mark.parametrize("beta", [1.0, 0.5])
@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("particles", [2, 3])
@pytest.mark.parametrize(
    "kind, options",
    [(Clusters, {}), (ScalarMixture, {}), (Scalar, {"normal": NonReparameterisedNormal}), (Scalar, {})],
    ids=["discrete", "discrete and continuous", "continuous without a path", "continuous"],
)
def test_vimco_gradients_are_unbiased(kind, options, particles, alpha, beta):
    for name, score in scores(Renyi(alpha, "vimco"), kind, particles, beta, **options).items():
        assert score < 4, name


def test_vimco_against_the_enumeration_of_both_draws():
    torch.manual_seed(0)
    draws = gradient_draws(IWAE("vimco"), Clusters(COPIES), READING, 2)
    parameters = Clusters.single()
    bound = expected_bound_by_enumeration(*Clusters.nodes(parameters, READING), 2)
    exact = torch.autograd.grad(-bound, list(parameters.values()))
    for (name, _), expected in zip(parameters.items(), exact, strict=True):
        assert z_scores(draws[name], expected).abs().max() < 4, name


def test_sticking_the_landing_is_unbiased_for_one_particle_and_biased_for_more():
    assert max(scores(IWAE("stl"), Scalar, 1).values()) < 4
    for particles in (2, 8):
        found = scores(IWAE("stl"), Scalar, particles)
        assert all(found[name] > 10 for name in GUIDE[Scalar])
        assert all(score < 4 for name, score in found.items() if name not in GUIDE[Scalar]), "the model's has no bias"


def test_two_sites_have_unbiased_doubly_reparameterised_gradients():
    """A guide whose second site depends on the first: both estimators agree in the mean at the same parameters."""
    pair, particles = Announcing().match(), 3
    batch = {"picture": torch.tensor([[0.5, -1.0, 1.0, 0.2]]).double()}
    means = []
    for gradient in ("pathwise", "dreg"):
        torch.manual_seed(0)
        many = {"picture": batch["picture"].expand(2000, 4)}
        repeats = [
            torch.cat([g.flatten() for g in torch.autograd.grad(IWAE(gradient)(pair, many, particles), pair.used())])
            for _ in range(30)
        ]
        means.append(torch.stack(repeats))
    difference = means[0].mean(0) - means[1].mean(0)
    error = ((means[0].var(0) + means[1].var(0)) / 30).sqrt()
    assert (difference.abs() < 4.5 * error).all()  # the largest of 38, by 30 repeats


# --- gradients draw by draw, and their variance -------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_the_doubly_reparameterised_gradient_is_its_formula(alpha):
    """v (alpha + (1-alpha) v) d log w / dz along the path for the guide, v for the model (Tucker et al. 2019)."""
    pair, batch, particles = Scalar(6), {"reading": torch.linspace(-1.0, 2.0, 6, dtype=torch.float64)}, 4
    torch.manual_seed(0)
    z = run_guide(pair, batch, particles)["code"].value.detach()
    torch.manual_seed(0)
    loss = Renyi(alpha, "dreg")(pair, batch, particles)
    torch.manual_seed(0)
    normalised = torch.softmax((1 - alpha) * log_terms(pair, batch, particles).log_weight, 0)
    weight, noise, scale = pair.weight, pair.log_noise.exp(), pair.log_scale.exp()
    residual = batch["reading"] - weight * z - pair.bias
    path = weight * residual / noise**2 - z + (z - pair.loc) / scale**2
    factor = normalised * (alpha + (1 - alpha) * normalised)
    by_hand = {
        "loc": (factor * path).sum(0),
        "log_scale": (factor * path * (z - pair.loc)).sum(0),
        "weight": (normalised * residual * z / noise**2).sum(0),
        "bias": (normalised * residual / noise**2).sum(0),
    }
    gradients = torch.autograd.grad(loss, [getattr(pair, name) for name in by_hand])
    for gradient, expected in zip(gradients, by_hand.values(), strict=True):
        assert torch.allclose(-6 * gradient, expected)


def test_dreg_has_less_variance_than_pathwise_for_the_guide():
    """And keeps a signal as K grows, where the ordinary gradient's drowns (Rainforth et al. 2018)."""
    ratios = {}
    for gradient in ("pathwise", "dreg"):
        for particles in (2, 32):
            torch.manual_seed(0)
            draws = gradient_draws(IWAE(gradient), Scalar(5000), READING, particles)
            for name in GUIDE[Scalar]:
                ratios[gradient, particles, name] = draws[name].mean(0).abs() / draws[name].std(0)
                if gradient == "dreg" and particles == 32:
                    torch.manual_seed(0)
                    ordinary = gradient_draws(IWAE("pathwise"), Scalar(5000), READING, particles)[name]
                    assert draws[name].var(0) < 0.5 * ordinary.var(0)
    for name in GUIDE[Scalar]:
        assert ratios["dreg", 32, name] > ratios["pathwise", 32, name]
        assert ratios["dreg", 32, name] > 0.8 * ratios["dreg", 2, name]


def test_vimco_has_less_variance_than_the_plain_score_function():
    """Against the same estimator without the baseline of the other particles."""
    torch.manual_seed(0)
    pair, particles, n = Clusters(20_000), 5, 20_000
    batch = {"reading": torch.full((n,), READING, dtype=torch.float64)}
    vimco = gradient_draws(IWAE("vimco"), pair, READING, particles)["guide_logits"]
    draws = log_terms(pair, batch, particles)
    bound = draws.log_weight.logsumexp(0) - math.log(particles)
    plain = bound + (draws.score * bound.detach()).sum(0)
    (ordinary,) = torch.autograd.grad(-plain.sum(), pair.guide_logits)
    assert (vimco.var(0) < 0.2 * ordinary.var(0)).all()
    exact = exact_gradients(Clusters, READING, particles)["guide_logits"]
    assert z_scores(ordinary, exact).abs().max() < 4


def test_beta_scales_the_prior_and_the_guide_alike():
    """The pathwise loss is the bound of p(x|z) (p/q)^beta."""
    pair, batch = TwoLayers(), pictures()
    torch.manual_seed(0)
    terms = log_terms(pair, batch, 4)
    weights = terms.log_likelihood + 0.3 * (terms.log_prior - terms.log_guide)
    for gradient in ESTIMATORS:
        torch.manual_seed(0)
        loss = IWAE(gradient)(pair, batch, 4, beta=torch.tensor(0.3))
        assert torch.allclose(loss, -(weights.logsumexp(0) - math.log(4)).mean())


@pytest.mark.parametrize("gradient", ESTIMATORS)
def test_every_parameter_gets_a_finite_gradient(gradient):
    torch.manual_seed(0)
    pair, batch = (Labelled(), {"counts": torch.randint(6, (6, 5)).double()})
    if gradient != "vimco":
        pair, batch = Conditional(), {"target": torch.randn(6, 4).double(), "context": torch.randn(6, 3).double()}
    IWAE(gradient)(pair, batch, 3).backward()
    for name, parameter in pair.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, name
    assert len(pyro.get_param_store()) == 0


# --- what they refuse ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", ["pathwise", "stl", "dreg"])
def test_a_discrete_site_needs_vimco(gradient):
    with pytest.raises(ContractError, match="cannot be reparameterised.*use gradient='vimco'"):
        IWAE(gradient)(Clusters(4), {"reading": torch.zeros(4).double()}, 3)


@pytest.mark.parametrize("gradient", ESTIMATORS)
def test_a_shared_latent_has_no_bound_of_each_datum(gradient):
    with pytest.raises(ContractError, match="'log_noise' is outside the data plate"):
        IWAE(gradient)(SharedNoise(), {"reading": torch.zeros(4).double()}, 3)


def test_settings_that_make_no_sense():
    with pytest.raises(UnknownName, match="unknown gradient estimator 'drag'; known: dreg, "):
        IWAE("drag")
    with pytest.raises(ContractError, match="alpha must be below 1, not 1.0.*use trace_elbo"):
        Renyi(1.0)
    with pytest.raises(ContractError, match="needs at least 2 particles"):
        IWAE("vimco")(Clusters(4), {"reading": torch.zeros(4).double()}, 1)
    with pytest.raises(ContractError, match="particles must be at least 1"):
        IWAE()(Scalar(4), {"reading": torch.zeros(4).double()}, 0)
