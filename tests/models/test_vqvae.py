"""The VQ-VAE: its density by hand and by enumeration, how its codebook learns, and what training adds to the loss."""

import copy
import math
from itertools import product

import pytest
import torch
from pairs import SHAPE, bits
from torch import Tensor

import pyro_vae as pv
from pyro_vae.errors import ContractError, UnknownName
from pyro_vae.models.vqvae import DEAD, DECAY, VQVAE, Codes
from pyro_vae.pair.particles import run_guide

QUIET = {"progress": False, "batch_size": 20}


def small(seed: int = 0, **options) -> VQVAE:
    torch.manual_seed(seed)
    return VQVAE(SHAPE, **{"codes": 3, "codebook": 4, "code_dim": 2, "hidden": (8,), "prior_hidden": 5, **options})


def chosen(pair: VQVAE, x: Tensor) -> Tensor:
    """The guide's codes [n, codes], found by looking at every entry."""
    with torch.no_grad():
        distance = (pair.said(x).unsqueeze(-2) - pair.codebook).square().sum(-1)
    return distance.argmin(-1)


def log_joint(pair: VQVAE, x: Tensor, codes: Tensor) -> Tensor:
    """log p(codes) + log p(x|codes), one code after the other."""
    with torch.no_grad():
        total, before, state = torch.zeros(len(x)), pair.prior.start(len(x)), None
        for place in range(codes.shape[1]):
            log_probs, state = pair.prior(before, state)
            before = codes[:, place : place + 1]
            total = total + log_probs[:, 0].gather(1, before).squeeze(1)
        logits = pair.decoder(pair.codebook[codes].flatten(1)).squeeze(1)
    bernoulli = torch.distributions.Bernoulli(logits=logits)
    return total + bernoulli.log_prob(x).flatten(1).sum(1)


# --- the density --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("particles", [1, 3])
def test_the_elbo_is_the_joint_density_at_the_guides_codes(particles):
    pair, x = small(), bits(10)
    elbo = pv.evaluate(pair, x, "elbo", particles, progress=False)
    assert elbo.kind == "lower bound" and not elbo.warnings
    assert torch.allclose(elbo.elbo.float(), log_joint(pair, x, chosen(pair, x)), rtol=1e-5)


def test_it_is_below_the_likelihood_which_sums_over_all_codes():
    pair, x = small(), bits(10)
    every = torch.tensor(list(product(range(4), repeat=3)))
    joint = torch.stack([log_joint(pair, x, codes.expand(10, 3)) for codes in every])
    assert (pv.evaluate(pair, x, "elbo", progress=False).elbo < joint.logsumexp(0)).all()
    prior = pv.evaluate(pair, x, "prior", particles=20_000, progress=False)
    z = (prior.log_likelihood - joint.logsumexp(0)) / prior.monte_carlo_error
    assert z.abs().max() < 5, "draws of the prior give log p(x) itself"


def test_the_prior_is_normalised_and_draws_what_it_says():
    prior = Codes(small().prior)
    every = torch.tensor(list(product(range(4), repeat=3)))
    with torch.no_grad():
        probability = prior.log_prob(every).exp()
    assert torch.allclose(probability.sum(), torch.ones(()), atol=1e-5)
    torch.manual_seed(0)
    drawn = prior.expand([20_000]).sample()
    assert prior.support.check(drawn).all()
    counts = torch.bincount(drawn @ torch.tensor([16, 4, 1]), minlength=64)
    error = (probability * (1 - probability) / 20_000).sqrt()
    assert ((counts / 20_000 - probability) / error).abs().max() < 4.5


def test_all_particles_are_alike_and_importance_says_so():
    pair, x = small(), bits(10)
    result = pv.evaluate(pair, x, "importance", particles=50, progress=False)
    assert torch.allclose(result.log_likelihood, pv.evaluate(pair, x, "elbo", progress=False).elbo, rtol=1e-5)
    assert result.kind == "lower bound" and any("draws are one point" in line for line in result.warnings)


def test_samples_come_through_the_prior():
    drawn = pv.train(small(), bits(), epochs=1, **QUIET)
    sites = pv.sample(drawn, n=7)
    assert sites["codes"].shape == (7, 3) and sites["x"].shape == (7, *SHAPE)
    assert set(sites["codes"].unique().tolist()) <= set(range(4)) and set(sites["x"].unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("evaluator", ["ais", "gaps"])
def test_what_needs_continuous_latents_says_so(evaluator):
    with pytest.raises(ContractError, match="'codes'"):
        pv.evaluate(small(), bits(10), evaluator, particles=2, progress=False)


def test_the_information_of_the_codes_is_their_entropy():
    """q(codes) is the share of the data that have these codes."""
    pair, x = small(), bits(60)
    numbers = chosen(pair, x) @ torch.tensor([16, 4, 1])
    counts = torch.bincount(numbers)[numbers]
    result = pv.evaluate(pair, x, "latent", progress=False)
    assert len(numbers.unique()) > 1
    assert torch.allclose(result.mutual_information, -(counts / 60).double().log())


# --- what training does -------------------------------------------------------------------------------------


def gradients(pair: VQVAE, x: Tensor) -> dict[str, Tensor]:
    loss = pv.objectives.TraceELBO()(pair, {"x": x})
    named = dict(pair.named_parameters())
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


def test_the_encoder_gets_the_decoders_gradient_past_the_choice_of_the_entry():
    pair, x = small().eval(), bits(10)
    entries = pair.codebook[chosen(pair, x)].requires_grad_()
    logits = pair.decoder(entries.flatten(1)).squeeze(1)
    loss = -torch.distributions.Bernoulli(logits=logits).log_prob(x).flatten(1).sum(1).mean()
    (past,) = torch.autograd.grad(loss, entries)
    expected = torch.autograd.grad(pair.said(x), pair.heads.weight, past)[0]
    assert torch.allclose(gradients(pair, x)["heads.weight"], expected, rtol=1e-4, atol=1e-7)


def test_commitment_is_in_the_training_loss_alone():
    pair, x = small(commitment=0.7), bits(10)
    codes, before = chosen(pair, x), pair.codebook.clone()
    committed = 0.7 * (pair.said(x) - before[codes]).square().sum((1, 2)).mean()
    alone = torch.autograd.grad(committed, pair.heads.weight)[0]
    evaluated = pv.objectives.TraceELBO()(pair.eval(), {"x": x})
    frozen = copy.deepcopy(pair).train()
    frozen.learn = lambda *_: None
    trained = pv.objectives.TraceELBO()(frozen, {"x": x})
    assert torch.allclose(trained - evaluated, committed, rtol=1e-4)
    assert torch.allclose(gradients(frozen, x)["heads.weight"] - gradients(pair, x)["heads.weight"], alone, atol=1e-6)


def test_training_says_that_its_loss_has_a_further_term():
    run = pv.train(small(), bits(), epochs=2, **QUIET)
    (note,) = [note for note in run.notes if "'commitment'" in note]
    assert "under train() only" in note
    assert "valid_elbo" in run.history[0], "the validation figures are a bound"
    assert not any("a loss, not a bound" in note for note in run.notes)


def test_entries_move_to_what_they_are_chosen_for_and_dead_ones_start_anew():
    pair = small()
    said = torch.tensor([[0.0, 0.0], [2.0, 0.0], [5.0, 5.0], [7.0, 5.0]])
    with torch.no_grad():
        pair.codebook.copy_(torch.tensor([[0.0, 1.0], [6.0, 5.0], [9.0, 9.0], [-9.0, 0.0]]))
        pair.share.copy_(torch.tensor([0.5, 0.25, 0.25, 0.9 * DEAD / 4]))
    torch.manual_seed(0)
    pair.learn(said, torch.tensor([0, 0, 1, 1]))
    share = DECAY * torch.tensor([0.5, 0.25, 0.25]) + (1 - DECAY) * torch.tensor([0.5, 0.5, 0.0])
    assert torch.allclose(pair.share, torch.cat([share, torch.tensor([0.25])]))
    step = (1 - DECAY) * 0.5 / share
    assert torch.allclose(pair.codebook[0], torch.tensor([step[0] * 1.0, 1 - step[0]]))
    assert torch.allclose(pair.codebook[1], torch.tensor([6.0, 5.0])), "the mean of what it is chosen for"
    assert torch.equal(pair.codebook[2], torch.tensor([9.0, 9.0])), "not chosen, and not dead"
    assert (pair.codebook[3] == said).all(1).any(), "dead, so it starts at what the encoder says of some datum"


def test_the_first_step_fills_the_codebook_from_the_data():
    pair, x = small(), bits()
    pv.objectives.TraceELBO()(pair, {"x": x})
    said = pair.said(x).detach().flatten(0, 1)
    nearest = (pair.codebook.unsqueeze(1) - said).square().sum(-1).min(1).values
    assert (nearest < said.var(0).sum()).all() and pair.share.min() > 0


def test_evaluation_leaves_the_codebook_alone():
    pair, x = small(), bits()
    pair.train()
    before = pair.codebook.clone()
    pv.evaluate(pair, x, progress=False)
    pv.check(pair, x)
    assert torch.equal(pair.codebook, before) and pair.training


def test_the_codebook_learns_in_compiled_steps_as_in_eager_ones(graphs):
    runs = []
    for engine in ("eager", "compiled"):
        runs.append(pv.train(small(), bits(80), epochs=3, engine=engine, **QUIET))
        assert runs[-1].engine == engine, runs[-1].notes
    eager, compiled = (run.pair for run in runs)
    assert torch.allclose(eager.codebook, compiled.codebook, atol=1e-4) and not torch.equal(
        eager.codebook, small().codebook
    )
    assert runs[0].history[-1]["loss"] == pytest.approx(runs[1].history[-1]["loss"], rel=1e-4)


def test_it_learns_patterns_and_how_often_they_are():
    """Four patterns, not equally often: the bound comes near minus their entropy."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.rand(4, *SHAPE, generator=generator).round()
    x = patterns[torch.arange(400) % 8 % 5 % 4]
    entropy = -(torch.tensor([3, 2, 2, 1]) / 8 * (torch.tensor([3, 2, 2, 1]) / 8).log()).sum().item()
    run = pv.train(small(hidden=(32,)), x, epochs=30, batch_size=40, lr=2e-2, engine="eager", progress=False)
    elbo = pv.evaluate(run.pair, x, progress=False).mean
    assert -entropy - 0.7 < elbo < -entropy + 0.1
    assert pv.evaluate(run.pair, x, "usage", progress=False).entry()["perplexity"]["codes"] > 1.5
    sampled = pv.sample(run, n=400)["x"]
    known = (sampled.unsqueeze(1) == patterns).flatten(2).all(2).any(1).double().mean()
    assert known > 0.8, "most samples are patterns"


@pytest.mark.parametrize("objective", ["trace_mean_field_elbo", "trace_graph_elbo", "iwae"])
def test_every_objective_trains_it(objective):
    run = pv.train(small(), bits(80), epochs=20, objective=objective, particles=2, lr=1e-2, **QUIET)
    assert run.history[-1]["loss"] < run.history[0]["loss"]


@pytest.mark.parametrize(
    "options, line",
    [
        ({"codebook": 1}, "codebook must have at least 2 entries, not 1"),
        ({"codes": 0}, "codes must be at least 1, not 0"),
        ({"commitment": -1.0}, "commitment must not be negative"),
        ({"commitment": math.nan}, "commitment must not be negative"),
    ],
)
def test_bad_input_is_one_line(options, line):
    with pytest.raises(ContractError, match=line):
        VQVAE(SHAPE, **options)


def test_a_convolutional_net_and_other_likelihoods_serve():
    pair = VQVAE((1, 8, 8), hidden=(4, 8), net="conv", likelihood="gaussian", likelihood_sigma=0.5)
    x = torch.rand(12, 1, 8, 8)
    assert pv.evaluate(pair, x, progress=False).elbo.isfinite().all()
    assert run_guide(pair, {"x": x})["codes"].value.shape == (1, 12, 8)


def test_the_prior_learns_from_codes_that_no_gradient_leaves():
    pair, x = small(), bits(10)
    log_prior = pv.log_terms(pair, {"x": x}).log_prior.mean()
    named = dict(pair.named_parameters())
    found = torch.autograd.grad(log_prior, list(named.values()), allow_unused=True)
    reached = {name for name, gradient in zip(named, found, strict=True) if gradient is not None and gradient.any()}
    assert reached == {name for name in named if name.startswith("prior.")}


def test_it_trains_by_name_on_a_default_that_needs_no_file():
    run = pv.train("vqvae", epochs=3, engine="eager", progress=False)
    assert run.history[-1]["valid_elbo"] > run.history[0]["valid_elbo"]


def test_an_option_of_another_system_is_one_line():
    with pytest.raises(UnknownName, match="unknown option 'prior_components'"):
        VQVAE(SHAPE, prior_components=3)
