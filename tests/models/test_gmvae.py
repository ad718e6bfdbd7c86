"""The Gaussian-mixture VAE: a VAE with a mixture for its prior, whose clusters are seen."""

from itertools import permutations

import pytest
import torch
from enumerated import log_marginal, sums_by_hand
from pairs import SHAPE, bits

import pyro_vae as pv
from pyro_vae.errors import ContractError
from pyro_vae.models.gmvae import GMVAE
from pyro_vae.pair import generation
from pyro_vae.pair.particles import run_guide
from pyro_vae.pair.terms import log_terms

EXACT = {"rtol": 1e-9, "atol": 1e-9}


def small(**options) -> GMVAE:
    torch.manual_seed(0)
    return GMVAE(SHAPE, **{"clusters": 3, "latent_dim": 1, "hidden": (6,), **options})


def test_every_term_is_its_sum_by_hand():
    pair, fields = small().double(), {"x": bits(6).double()}
    torch.manual_seed(1)
    drawn = run_guide(pair, fields, summing=True)
    torch.manual_seed(1)
    terms = log_terms(pair, fields)
    for name, value in sums_by_hand(pair, fields, drawn)._asdict().items():
        assert torch.allclose(getattr(terms, name)[0], value, **EXACT), name


def test_it_is_a_vae_whose_prior_is_a_mixture():
    pair, fields = small(latent_dim=2), {"x": bits(10)}
    with torch.no_grad():
        pair.logits.copy_(torch.tensor([0.3, -1.0, 0.5]))
    vae = pv.VAE(SHAPE, 2, (6,), prior="mixture", prior_components=3)
    state = {name: value for name, value in pair.state_dict().items() if name not in ("logits", "loc", "log_scale")}
    state |= {f"prior.{name}": getattr(pair, name) for name in ("logits", "loc", "log_scale")}
    vae.load_state_dict(state)
    found = []
    for each in (pair, vae):
        torch.manual_seed(2)
        found.append(log_terms(each, fields, 5))
    for ours, theirs in zip(found[0][:3], found[1][:3], strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_its_bound_is_below_the_likelihood_and_near_it():
    pair, fields = small().double().eval(), {"x": bits(6).double()}
    result = pv.evaluate(pair, fields, "importance", particles=20_000, progress=False)
    assert ((result.log_likelihood - log_marginal(pair, fields)) / result.monte_carlo_error).abs().max() < 5


def test_the_probability_of_a_cluster_is_bayes_rule_at_the_draw():
    pair, x = small(), bits(8)
    torch.manual_seed(3)
    codes = generation.encode(pair, pv.Split({"x": x}))
    torch.manual_seed(3)
    z = run_guide(pair, {"x": x})["z"].value[0]
    joint = torch.log_softmax(pair.logits, 0) + torch.distributions.Normal(pair.loc, pair.log_scale.exp()).log_prob(z)
    assert torch.allclose(codes["cluster_probabilities"], joint.softmax(1), atol=1e-5)
    assert torch.equal(codes["cluster_most_probable"], joint.argmax(1))


def test_it_finds_planted_clusters_without_labels():
    data = pv.load_data("planted_clusters")
    torch.manual_seed(0)
    pair = GMVAE((1, 8, 8), 5, 5, (64,), data_mean=data.facts["data_mean"])
    pv.train(pair, data, epochs=30, batch_size=100, lr=3e-3, kl_warmup=15, engine="eager", progress=False)
    result = pv.evaluate(pair, data, "classify", particles=10, progress=False)
    assert result.entry()["accuracy"] > 0.95 and result.entry()["clusters_used"] == 5
    guess, label = result.probabilities.argmax(1), data.test["label"]
    best = max((torch.tensor(names)[guess] == label).double().mean().item() for names in permutations(range(5)))
    assert best == pytest.approx(result.entry()["accuracy"])


@pytest.mark.parametrize("option", ["clusters", "latent_dim"])
def test_sizes_are_positive(option):
    with pytest.raises(ContractError, match=f"{option} must be at least 1"):
        small(**{option: 0})
