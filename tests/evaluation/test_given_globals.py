"""Figures of pairs whose data share latents: exact where a closed form is known, and equal to Pyro's ELBO."""

import json
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from global_pairs import (
    LDA,
    SCHOOLS,
    Decoder,
    EightSchools,
    GammaDEF,
    Linear,
    Mixture,
    PointDecoder,
    PointLDA,
    Squeezed,
    coins,
    full,
    regression,
)
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoGuideList,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from references import SharedNoise
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.command_line.main import print_results
from pyro_vae.errors import ContractError, RunError
from pyro_vae.evaluation.blocks import Block
from pyro_vae.evaluation.given_globals import shared_draws
from pyro_vae.pair.structure import structure_of

Fields = dict[str, Tensor]


def evaluate(
    pair: nn.Module, fields: Fields, evaluator: str = "importance", particles: int = 1, draws: int = 50, **how
):
    return pv.evaluate(pair, fields, evaluator, particles, progress=False, global_draws=draws, **how)


def pyros_loss(pair: nn.Module, fields: Fields, runs: int = 400) -> tuple[float, float]:
    """The mean of Pyro's `evaluate_loss` over runs, and its standard error."""
    structure = structure_of(pair, fields)
    elbo = TraceEnum_ELBO(max_plate_nesting=structure.depth) if structure.sums else Trace_ELBO()
    with torch.random.fork_rng(), torch.no_grad(), pyro.get_param_store().scope():
        torch.manual_seed(5)
        losses = [elbo.loss(pair.model, pair.guide, **fields) for _ in range(runs)]
    losses = torch.tensor(losses).double()
    return losses.mean().item(), (losses.std() / math.sqrt(runs)).item()


# --- closed forms -------------------------------------------------------------------------------------------


def test_the_exact_guide_of_a_regression_gives_the_evidence_without_noise():
    pair, fields = regression()
    evidence = pair.log_evidence(**fields).item()
    result = evaluate(pair, fields, draws=40)
    assert result.data_set.quantity == "log_likelihood" and result.data_set.draws == 40
    assert result.data_set.nats == pytest.approx(evidence, abs=1e-8)
    assert result.data_set.monte_carlo_error < 1e-8 and result.data_set.ess == pytest.approx(40)
    elbo = evaluate(pair, fields, "elbo", draws=40).data_set
    assert elbo.quantity == "elbo" and elbo.nats == pytest.approx(evidence, abs=1e-8) and elbo.ess is None


def test_a_datum_has_its_predictive_density():
    pair, fields = regression(widen=1.3)
    result = evaluate(pair, fields, draws=300)
    assert result.quantity == "log_predictive" and result.kind == "density"
    off = (result.log_predictive - pair.log_predictive(**fields)) / result.monte_carlo_error
    assert off.abs().max() < 4
    assert torch.equal(result.headline, result.log_predictive) and result.given == "given 300 draws of 'w'"
    few = [evaluate(pair, fields, draws=30, seed=seed) for seed in range(1, 6)]
    spread = torch.stack([one.log_predictive for one in few]).std(0)
    claimed = torch.stack([one.monte_carlo_error for one in few]).mean(0)
    assert 0.5 < (spread / claimed).mean() < 2, "the error over repeated draws is the error that is told"
    means = torch.stack([one.log_predictive.mean() for one in few]).std()
    assert 0.3 < means / few[0].entry()["monte_carlo_error"] < 3, "data share the draws, so their errors do not cancel"


def test_the_spread_is_that_of_the_log_density_over_the_draws():
    pair, fields = regression()
    result = evaluate(pair, fields, draws=250)
    with torch.no_grad():
        deviation = (fields["x"] @ pair.tril).square().sum(1).sqrt()
        centred = (fields["y"] - fields["x"] @ pair.loc).abs()
    # log N(y; x w, s^2) with x w ~ N(m, v): the variance of -(y - xw)^2 / 2 s^2
    variance = (deviation**4 / 2 + deviation**2 * centred**2) / pair.noise**4
    assert torch.allclose(result.spread, variance.sqrt(), rtol=0.35)


def test_a_wrong_guide_of_a_regression_is_weighted():
    pair, fields = regression(widen=1.5)
    evidence = pair.log_evidence(**fields).item()
    result = evaluate(pair, fields, draws=200).data_set
    assert abs(result.nats - evidence) < 4 * result.monte_carlo_error and 0 < result.monte_carlo_error < 0.3
    assert 20 < result.ess < 190 and result.pareto_k < 0.7
    elbo = evaluate(pair, fields, "elbo", draws=150).data_set
    assert abs(elbo.nats - pair.elbo(**fields).item()) < 4 * elbo.monte_carlo_error
    assert elbo.nats < evidence - 0.1


def test_more_data_than_a_block_share_their_draws():
    """Three blocks: the evidence is one number without noise only if all of them have the same draws."""
    pair, fields = regression(n=230, d=2)
    result = evaluate(pair, fields, draws=30)
    assert result.data_set.nats == pytest.approx(pair.log_evidence(**fields).item(), abs=1e-6)
    assert result.data_set.monte_carlo_error < 1e-6 and result.log_predictive.shape == (230,)


def test_coins_in_plates():
    pair, fields = coins()
    result = evaluate(pair, fields, draws=1)
    assert result.data_set.nats == pytest.approx(pair.log_evidence(), abs=1e-8)
    assert result.given == "given 1 draw of 'rate'" and result.spread.isnan().all()
    many = evaluate(pair, fields, draws=150)
    assert many.data_set.nats == pytest.approx(pair.log_evidence(), abs=1e-8)
    assert ((many.log_predictive - pair.log_predictive(**fields)).abs() < 4 * many.monte_carlo_error).all()
    total = -many.log_predictive.sum() / (len(fields["x"]) * math.log(2))
    assert many.bits_per_dim == pytest.approx(total.item())


def test_eight_schools_with_all_effects_drawn():
    pair = EightSchools()
    exact = pair.log_evidence(**SCHOOLS)
    for evaluator, particles in (("importance", 300), ("prior", 100)):
        result = evaluate(pair, SCHOOLS, evaluator, particles, draws=80).data_set
        assert result.ess > 40 and 0 < result.monte_carlo_error < 0.1
        assert abs(result.nats - exact) < 4 * result.monte_carlo_error
    elbo = evaluate(pair, SCHOOLS, "elbo", 4, 60).data_set
    loss, error = pyros_loss(pair, SCHOOLS, 200)
    assert abs(elbo.nats + loss) < 4 * math.hypot(error, elbo.monte_carlo_error) and elbo.nats < exact


def test_latents_of_the_data_are_weighted_given_each_draw():
    pair = Decoder()
    fields = pair.data()
    result = evaluate(pair, fields, particles=2000, draws=1)
    (values,) = shared_draws(Block(pair, pv.Split(fields), slice(0, 100), 0), 1, seed=0).values
    exact = pair.log_marginal(fields["x"], values["weight"])
    assert torch.allclose(result.log_predictive, exact, atol=0.3)
    again = evaluate(pair, fields, "prior", particles=20_000, draws=1)
    assert torch.allclose(again.log_predictive, exact, atol=0.2)


# --- Pyro's own ELBO ----------------------------------------------------------------------------------------


CASES = {"def": GammaDEF, "lda": LDA, "mixture": Mixture, "decoder": Decoder}


@pytest.mark.parametrize("name", CASES)
def test_the_elbo_of_all_data_is_pyros(name):
    torch.manual_seed(0)
    pair = CASES[name]()
    fields = pair.data()
    result = evaluate(pair, fields, "elbo", particles=4, draws=40)
    loss, error = pyros_loss(pair, fields, 150)
    assert abs(result.data_set.nats + loss) < 4 * math.hypot(error, result.data_set.monte_carlo_error)
    assert result.quantity == "elbo_given_globals" and result.kind is None and result.bits_per_dim is None
    assert result.data_set.quantity == "elbo"
    parts = result.rate + result.distortion
    assert torch.allclose(result.headline, -parts)


@pytest.mark.parametrize("auto", [AutoNormal, AutoMultivariateNormal, AutoLowRankMultivariateNormal])
def test_the_tutorials_regression_with_an_autoguide(auto):
    _, fields = regression(d=2)
    torch.manual_seed(0)
    net = Linear(2)
    pair = pv.as_pair(net, auto(net))
    pair.prepare(fields)
    loss, error = pyros_loss(pair, fields, 150)
    result = evaluate(pair, fields, "elbo", draws=40)
    assert abs(result.data_set.nats + loss) < 4 * math.hypot(error, result.data_set.monte_carlo_error)
    assert set(result.given.split("'")[1::2]) == {"sigma", "linear.weight", "linear.bias"}
    bound = evaluate(pair, fields, draws=40)
    assert bound.data_set.nats > result.data_set.nats and bound.log_predictive.isfinite().all()


def test_eight_schools_as_they_are_written():
    """Plain functions and one AutoNormal for the effects and what they share."""
    model = EightSchools().model
    guide = AutoNormal(model, init_scale=1.0)
    pair = pv.as_pair(model, guide)
    result = evaluate(pair, SCHOOLS, "elbo", 4, 40)
    loss, error = pyros_loss(pair, SCHOOLS, 150)
    assert abs(result.data_set.nats + loss) < 4 * math.hypot(error, result.data_set.monte_carlo_error)
    assert result.given == "given 40 draws of 'mu', 'tau'"
    assert evaluate(pair, SCHOOLS, "importance", 20, 30).data_set.nats > result.data_set.nats


def test_a_list_of_autoguides_draws_some_and_estimates_others():
    _, fields = regression(d=2)
    net = Linear(2)
    guide = AutoGuideList(net)
    guide.append(AutoDelta(poutine.block(net, expose=["sigma"])))
    guide.append(AutoNormal(poutine.block(net, hide=["sigma"])))
    result = evaluate(pv.as_pair(net, guide), fields, draws=5)
    assert result.given == "given 5 draws of 'linear.weight', 'linear.bias', at a point estimate of 'sigma'"
    assert result.data_set is None and result.log_predictive.isfinite().all()


# --- point estimates ----------------------------------------------------------------------------------------


def test_a_point_estimate_is_a_parameter():
    pair = PointDecoder()
    fields = pair.data()
    exact = pair.log_marginal(fields["x"], pair.loc.detach())
    result = evaluate(pair, fields, particles=3000)
    assert result.quantity == "log_likelihood" and result.kind == "lower bound"
    assert result.given == "at a point estimate of 'weight'" and result.data_set is None
    assert torch.allclose(result.log_likelihood, exact, atol=0.1)
    elbo = evaluate(pair, fields, "elbo", particles=200)
    assert elbo.quantity == "elbo" and (elbo.elbo < exact + 0.1).all()
    loss, error = pyros_loss(pair, fields)
    assert elbo.data_set.quantity == "loss" and elbo.data_set.draws == 1
    assert abs(elbo.data_set.nats - loss) < 6 * error
    run = pv.train(PointDecoder(), fields, epochs=1, batch_size=8, valid=fields, progress=False)
    assert any("evaluate it at this estimate" in note for note in run.notes)


@pytest.mark.parametrize("auto", [AutoDelta, AutoLaplaceApproximation])
def test_the_modes_that_pyro_finds_are_point_estimates(auto):
    _, fields = regression(d=2)
    net = Linear(2)
    guide = auto(net)
    result = evaluate(pv.as_pair(net, guide), fields)
    values = guide.forward(**fields)
    mean = fields["x"] @ values["linear.weight"][0] + values["linear.bias"]
    expected = torch.distributions.Normal(mean, values["sigma"]).log_prob(fields["y"])
    assert torch.allclose(result.log_likelihood, expected) and result.kind == "exact"
    assert result.given.startswith("at a point estimate of") and result.data_set is None


class Partly(Decoder):
    """The weights are drawn, their bias is a point estimate."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(full(0.2))

    def model(self, x):
        pyro.sample("shift", dist.Normal(full(0.0), 1.0))
        super().model(x)

    def weights(self):
        super().weights()
        pyro.sample("shift", dist.Delta(self.shift))


def test_some_are_drawn_and_others_estimated():
    pair = Partly()
    result = evaluate(pair, pair.data(), draws=30)
    assert result.given == "given 30 draws of 'weight', at a point estimate of 'shift'"
    assert result.quantity == "log_predictive" and result.data_set is None
    assert any("no bound" in line and "'shift'" in line for line in result.warnings)


def test_a_loss_of_the_data_stays_a_loss():
    torch.manual_seed(0)
    pair = PointLDA()
    fields = pair.data()
    result = evaluate(pair, fields, "elbo", particles=2, draws=40)
    loss, error = pyros_loss(pair, fields, 150)
    assert result.quantity == "loss" and result.data_set.quantity == "loss"
    assert abs(result.data_set.nats - loss) < 4 * math.hypot(error, result.data_set.monte_carlo_error)
    with pytest.raises(ContractError, match="'doc_topics' is a point mass"):
        evaluate(pair, fields)


# --- the other evaluators, and what is told -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("evaluator", "options", "quantity"),
    [
        ("prior", {}, "log_predictive"),
        ("ais", {"distributions": 3, "leapfrog": 2, "chains": 2, "bidirectional": True}, "log_predictive"),
        ("gaps", {"steps": 5}, "inference_gap"),
        ("reconstruction", {}, "reconstruction_nll"),
        ("latent", {}, "rate"),
    ],
)
def test_every_evaluator_is_given_the_draws(evaluator, options, quantity):
    pair = Decoder()
    result = evaluate(pair, pair.data(), evaluator, 30, 3, **options)
    assert result.quantity == quantity and result.headline.shape == (9,) and result.headline.isfinite().all()
    assert result.given == "given 3 draws of 'weight'" and (result.data_set is None) == (quantity != "log_predictive")
    assert json.loads(json.dumps(result.entry(per_datum=True)))["given"] == result.given


def test_ais_and_importance_find_the_same():
    pair = Decoder()
    fields = pair.data()
    one = evaluate(pair, fields, "ais", 16, 1, distributions=100, leapfrog=5)
    other = evaluate(pair, fields, "prior", 20_000, 1)
    off = one.log_predictive - other.log_predictive  # each by 0.15 nats or so
    assert off.mean().abs() < 0.2 and off.abs().max() < 0.7, "they are given the same draws"


def test_figures_follow_from_the_seed_and_not_from_what_is_evaluated_beside():
    pair = Decoder()
    fields = pair.data(130)
    first, again, other = (evaluate(pair, fields, particles=3, draws=4, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.log_predictive, again.log_predictive)
    assert not torch.allclose(first.log_predictive, other.log_predictive)
    both = {"elbo": pv.evaluators.ELBO(), "importance": pv.evaluators.Importance()}
    results = list(pv.evaluators.evaluate_each(pair, fields, both, 3, progress=False, global_draws=4))
    assert torch.equal(results[1].log_predictive, first.log_predictive)


def test_what_is_told(capsys):
    pair, fields = regression()
    result = evaluate(pair, fields, draws=30)
    entry = result.entry()
    assert entry["kind"] == "density" and entry["global_draws"] == 30 and entry["data_set"]["draws"] == 30
    assert set(entry["spread"]) == {"mean", "median", "min", "max"}
    print_results([result])
    told = capsys.readouterr().err
    assert "log_predictive        density" in told and "figures of a datum are given 30 draws of 'w'" in told
    assert f"all 12 data together: log_likelihood {result.data_set.nats:.3f}" in told and "a lower bound" in told
    few = evaluate(pair, fields, draws=5)
    assert any("k-hat needs at least 25: set global_draws" in line for line in few.warnings)
    loss = evaluate(pair, fields, draws=30, relaxed=True)
    assert loss.quantity == "loss" and loss.data_set.quantity == "loss"
    with pytest.raises(RunError, match="global_draws must be at least 1"):
        evaluate(pair, fields, draws=0)


def test_a_compiled_engine_takes_the_draws_in_turn():
    pair = SharedNoise()
    fields = {"reading": torch.linspace(-2, 2, 6).double()}
    eager = evaluate(pair, fields, particles=50, draws=4, engine="eager")
    compiled = evaluate(pair, fields, particles=50, draws=4, engine="compiled")
    assert torch.allclose(eager.log_predictive, compiled.log_predictive)


def test_the_density_of_an_auxiliary_site_is_checked():
    fields = {"x": torch.tensor([0.0, 1.0, 1.0]).double()}
    pair = Squeezed()
    result = evaluate(pair, fields, draws=200)
    a = b = full(2.0)
    heads, tails = fields["x"].sum(), (1 - fields["x"]).sum()
    exact = (
        (a + heads).lgamma() + (b + tails).lgamma() - (a + b + 3).lgamma() - a.lgamma() - b.lgamma() + (a + b).lgamma()
    )
    assert abs(result.data_set.nats - exact) < 4 * result.data_set.monte_carlo_error
    with pytest.raises(ContractError, match="log_density of site 'rate'"):
        evaluate(Squeezed(density=0.0), fields)
