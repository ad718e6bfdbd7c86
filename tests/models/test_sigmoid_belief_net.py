"""The sigmoid belief net: its densities by hand and by enumeration, and how it trains."""

import math
from itertools import product

import pytest
import torch
from pairs import bits
from torch import Tensor
from torch.distributions import Bernoulli

import pyro_vae as pv
from pyro_vae import runs
from pyro_vae.errors import ContractError, UnknownName
from pyro_vae.models.sigmoid_belief_net import SigmoidBeliefNet
from pyro_vae.pair.particles import run_guide
from pyro_vae.runs.config import read_config

SIZE, LAYERS = 5, (3, 2)


def small(seed: int = 0, **options) -> SigmoidBeliefNet:
    torch.manual_seed(seed)
    return SigmoidBeliefNet((SIZE,), **{"latent_dims": LAYERS, **options})


def log_joint(pair: SigmoidBeliefNet, x: Tensor, z_1: Tensor, z_2: Tensor) -> Tensor:
    """log p(x, z), layer by layer."""
    layers = [(pair.top, z_2), (pair.down[0](z_2), z_1), (pair.decoder.out(z_1), x)]
    return sum(Bernoulli(logits=logits).log_prob(value).sum(-1) for logits, value in layers)


def exact(pair: SigmoidBeliefNet, x: Tensor) -> Tensor:
    """log p(x) [n], summed over every code."""
    codes = torch.tensor(list(product((0.0, 1.0), repeat=sum(LAYERS)))).to(x)
    with torch.no_grad():
        joint = [log_joint(pair, x, *code.expand(len(x), -1).split(LAYERS, 1)) for code in codes]
    return torch.stack(joint).logsumexp(0)


def test_its_terms_are_those_of_the_layers():
    pair, x = small(), bits(6, (SIZE,))
    torch.manual_seed(1)
    guide = run_guide(pair, {"x": x}, 4)
    torch.manual_seed(1)
    terms = pv.log_terms(pair, {"x": x}, 4)
    assert list(guide) == ["z_1", "z_2"]
    z_1, z_2 = guide["z_1"].value, guide["z_2"].value
    assert z_1.shape == (4, 6, 3) and z_2.shape == (4, 6, 2) and set(z_1.unique().tolist()) <= {0.0, 1.0}
    assert torch.allclose(terms.log_likelihood + terms.log_prior, log_joint(pair, x, z_1, z_2), rtol=1e-5)
    layers = [(pair.up[0](x), z_1), (pair.up[1](z_1), z_2)]
    log_guide = sum(Bernoulli(logits=logits).log_prob(value).sum(-1) for logits, value in layers)
    assert torch.allclose(terms.log_guide, log_guide, rtol=1e-5)


def test_the_importance_weighted_bound_reaches_the_sum_over_all_codes():
    pair, x = small().double(), bits(8, (SIZE,)).double()
    result = pv.evaluate(pair, x, "importance", 1000, progress=False, engine="eager")
    z = (result.log_likelihood - exact(pair, x)) / result.monte_carlo_error
    assert z.abs().max() < 5
    assert (pv.evaluate(pair, x, "elbo", 500, progress=False).elbo < exact(pair, x)).all()


def test_it_draws_what_its_probabilities_say():
    pair = small()
    run = pv.train(pair, bits(40, (SIZE,)), epochs=1, batch_size=18, progress=False)
    drawn = pv.sample(run, n=20_000)["x"]
    every = torch.tensor(list(product((0.0, 1.0), repeat=SIZE)))
    probability = exact(run.pair, every).exp()
    place = (drawn @ 2 ** torch.arange(SIZE - 1.0, -1.0, -1.0)).long()
    share = torch.bincount(place, minlength=2**SIZE) / len(drawn)
    error = (probability * (1 - probability) / len(drawn)).sqrt()
    assert torch.allclose(probability.sum(), torch.ones(()), atol=1e-5)
    assert ((share - probability) / error).abs().max() < 4.5


OBJECTIVES = {
    "wake_sleep": {},
    "reweighted_wake_sleep": {"particles": 5},
    "reweighted_wake_sleep, asleep as well": {"particles": 5, "objective_options": {"insomnia": 0.5}},
    "iwae": {"particles": 5, "objective_options": {"gradient": "vimco"}},
    "trace_graph_elbo": {"particles": 5},
}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_of_its_kind_learns_patterns(objective):
    """Four patterns, equally often: log p(x) comes near -log 4."""
    patterns = torch.tensor([[1, 1, 0, 0, 0], [0, 0, 1, 1, 0], [0, 1, 0, 0, 1], [1, 0, 0, 1, 1]]).float()
    x = patterns.repeat(50, 1)
    pair = small()
    start = exact(pair, patterns).mean()
    how = {"epochs": 20, "batch_size": 20, "lr": 5e-2, "engine": "eager", "progress": False}
    run = pv.train(pair, x, objective=objective.partition(",")[0], **how, **OBJECTIVES[objective])
    found = exact(run.pair, patterns).mean()
    assert start + 0.6 < found < -math.log(4), found


@pytest.mark.parametrize("objective", ["wake_sleep", "reweighted_wake_sleep"])
def test_it_trains_compiled_as_it_does_eagerly(graphs, objective):
    losses = []
    for engine in ("eager", "compiled"):
        how = {"epochs": 3, "batch_size": 20, "particles": 3, "engine": engine, "progress": False}
        run = pv.train(small(), bits(80, (SIZE,)), objective=objective, **how)
        assert run.engine == engine, run.notes
        losses.append(run.history[-1]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_it_has_an_objective_of_its_own_where_none_is_asked_for(tmp_path, capsys):
    from pyro_vae.command_line import main as cli

    few = ["--epochs", "1", "--latent_dims", "6,4", "--quiet"]
    assert cli.main(["train", "sigmoid_belief_net", *few, "--out", str(tmp_path / "own")]) == 0
    assert read_config(tmp_path / "own")["objective"] == {"name": "wake_sleep", "dreams": 1}
    other = ["--objective", "reweighted_wake_sleep", "--insomnia", "0.5", "--particles", "3"]
    assert cli.main(["train", "sigmoid_belief_net", *few, *other, "--out", str(tmp_path / "other")]) == 0
    assert read_config(tmp_path / "other")["objective"]["insomnia"] == 0.5
    again = ["train", "--config", str(tmp_path / "own" / "config.yaml"), "--quiet", "--out", str(tmp_path / "again")]
    assert cli.main(again) == 0
    both = [pv.load_run(tmp_path / name) for name in ("own", "again")]
    assert both[0].history[0]["loss"] == both[1].history[0]["loss"]
    resumed = ["train", "--resume", "--epochs", "2", "--quiet", "--out", str(tmp_path / "own")]
    assert cli.main(resumed) == 0 and len(pv.load_run(tmp_path / "own").history) == 2
    run = pv.train("sigmoid_belief_net", "digits", 1, model_options={"latent_dims": (6, 4)}, progress=False)
    assert run.history[0]["loss"] == pytest.approx(both[0].history[0]["loss"])
    assert "report: " in capsys.readouterr().err


def test_other_models_keep_the_default():
    from pyro_vae.runs.config import default_of

    assert default_of("objective", "vae") == default_of("objective", pv.VAE((4,))) == "trace_mean_field_elbo"
    assert default_of("objective", "sigmoid_belief_net") == default_of("objective", small()) == "wake_sleep"


def test_the_first_epochs_start_at_the_mean_of_the_data():
    mean = torch.tensor([0.1, 0.9, 0.5, 0.3, 0.7])
    pair = runs.build_model("sigmoid_belief_net", {"data_shape": (SIZE,), "data_mean": mean}, {})
    assert torch.allclose(pair.decoder.out.bias.sigmoid(), mean, atol=1e-3)


@pytest.mark.parametrize(
    "options, problem, line",
    [
        ({"latent_dims": ()}, ContractError, "latent_dims is empty; give the size of at least one layer of bits"),
        ({"latent_dims": (3, 0)}, ContractError, "latent_dims must be at least 1, not 0"),
        ({"prior_components": 3}, UnknownName, "unknown option 'prior_components'"),
    ],
)
def test_bad_input_is_one_line(options, problem, line):
    with pytest.raises(problem, match=line):
        small(**options)
