"""The Gaussian-mixture VAE: a VAE with a mixture for its prior, whose clusters are seen."""

from itertools import permutations

import pytest
import torch
from enumerated import log_marginal
from pairs import SHAPE, assert_terms_are_their_sums, bits, same_state

import pyro_vae as pv
from pyro_vae.errors import ContractError, UnfitPair
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
    assert_terms_are_their_sums(pair, fields)


def test_it_is_a_vae_whose_prior_is_a_mixture():
    pair, fields = small(latent_dim=2), {"x": bits(10)}
    with torch.no_grad():
        pair.logits.copy_(torch.tensor([0.3, -1.0, 0.5]))
    vae = pv.VAE(SHAPE, 2, (6,), prior="mixture", prior_components=3)
    state = {name: value for name, value in pair.state_dict().items() if "." in name}
    state |= {f"prior.{name}": getattr(pair, name) for name in ("logits", "loc", "log_scale")}
    vae.load_state_dict(state)
    found = []
    for each in (pair, vae):
        torch.manual_seed(2)
        found.append(log_terms(each, fields, 5))
    for ours, theirs in zip(found[0][:3], found[1][:3], strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_draws_of_its_prior_give_the_likelihood():
    pair, fields = small().double().eval(), {"x": bits(6).double()}
    result = pv.evaluate(pair, fields, "prior", particles=20_000, progress=False)
    assert ((result.log_likelihood - log_marginal(pair, fields)) / result.monte_carlo_error).abs().max() < 5


def test_the_probability_of_a_cluster_is_bayes_rule_at_the_draw():
    pair, x = small(), bits(8)
    torch.manual_seed(3)
    codes = generation.encode(pair, pv.Split({"x": x}))
    torch.manual_seed(3)
    z = run_guide(pair, {"x": x})["z"].value[0]
    normals = torch.distributions.Normal(pair.loc, pair.log_scale.exp()).log_prob(z.unsqueeze(1)).sum(-1)
    joint = torch.log_softmax(pair.logits, 0) + normals
    assert torch.allclose(codes["cluster_probabilities"], joint.softmax(1), atol=1e-5)
    assert torch.equal(codes["cluster_most_probable"], joint.argmax(1))


@pytest.fixture(scope="module")
def found() -> tuple[GMVAE, pv.Dataset, pv.VAE]:
    """A pair that was trained on planted clusters from a VAE, the data, and the VAE."""
    data = pv.load_data("planted_clusters", size=1000)
    torch.manual_seed(0)
    vae = pv.VAE((1, 8, 8), 5, (64,), data_mean=data.facts["data_mean"])
    pv.train(vae, data, epochs=15, batch_size=100, lr=3e-3, engine="eager", progress=False)
    pair = GMVAE((1, 8, 8), 5, vae=vae)
    pv.train(pair, data, epochs=5, batch_size=100, lr=3e-3, engine="eager", progress=False)
    return pair, data, vae


def test_it_finds_planted_clusters_without_labels(found):
    pair, data, _ = found
    result = pv.evaluate(pair, data, "classify", particles=10, progress=False)
    assert result.entry()["accuracy"] > 0.95 and result.entry()["clusters_used"] == 5
    guess, label = result.probabilities.argmax(1), data.test["label"]
    best = max((torch.tensor(names)[guess] == label).double().mean().item() for names in permutations(range(5)))
    assert best == pytest.approx(result.entry()["accuracy"])


def test_it_starts_at_the_nets_and_at_groups_of_the_codes_of_a_vae(found):
    """A VAE that stays as it is; groups are placed once, by the first data that are enough."""
    _, data, vae = found
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    pair, x = GMVAE((1, 8, 8), 5, vae=vae), data.train["x"][:100]
    assert torch.equal(pair.decoder.out.weight, vae.decoder.out.weight) and pair.loc.shape == (5, 5)
    pair.prepare({"x": x[:3]})
    assert pair.unplaced
    pair.prepare({"x": x})
    placed = pair.loc.clone()
    pair.prepare({"x": data.train["x"][100:200]})
    assert not pair.unplaced and torch.equal(placed, pair.loc)
    assert pair.logits.exp().sum().item() == pytest.approx(1.0, abs=1e-5)
    with torch.no_grad():
        codes, label = vae.posterior(vae.encoder(x)).mean, data.train["label"][:100]
    centres = torch.stack([codes[label == k].mean(0) for k in range(5)])
    assert (torch.cdist(centres, placed).min(1).values < 0.7).all(), "each cluster has a normal near it"
    assert all(torch.equal(before[name], value) for name, value in vae.state_dict().items())


def test_a_start_is_the_folder_of_a_run_and_is_read_again(tmp_path):
    quiet = {"epochs": 1, "engine": "eager", "progress": False}
    pv.train("vae", out=tmp_path / "vae", model_options={"hidden": [16]}, **quiet)
    run = pv.train("gmvae", out=tmp_path / "gmvae", model_options={"vae": str(tmp_path / "vae")}, **quiet)
    (tmp_path / "vae").rename(tmp_path / "gone")
    stored = pv.load_run(tmp_path / "gmvae")
    assert same_state(run.pair, stored.pair) and not stored.pair.unplaced
    assert run.results[-1].evaluator == "classify" and run.results[-1].entry()["clusters"] == 10


def test_what_is_no_vae_is_refused():
    with pytest.raises(UnfitPair, match="vae: a GMVAE that is no VAE of data of shape"):
        GMVAE((1, 8, 8), vae=small())


@pytest.mark.parametrize("option", ["clusters", "latent_dim"])
def test_sizes_are_positive(option):
    with pytest.raises(ContractError, match=f"{option} must be at least 1"):
        small(**{option: 0})
