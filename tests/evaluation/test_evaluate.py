"""`evaluate`, the ELBO and its parts, reconstruction, and what a Result says."""

import json
import math
from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs import SHAPE, Clusters, bits, counts, small_vae
from torch import nn

import pyro_vae as pv
from pyro_vae import plugins
from pyro_vae.errors import ContractError, DataError, RunError, UnknownName
from pyro_vae.evaluation import Estimate, Evaluator, Result, chunks
from pyro_vae.evaluation.elbo import ELBO
from pyro_vae.evaluation.result import quantiles
from pyro_vae.pair import bounds
from pyro_vae.pair.terms import elbo_terms


def evaluate(pair, data, *arguments, **options) -> Result:
    return pv.evaluate(pair, data, *arguments, progress=False, **options)


@pytest.fixture(scope="module")
def vae():
    """A VAE with some training behind it."""
    return pv.train(small_vae(), bits(200), epochs=20, batch_size=20, lr=1e-2, progress=False).pair


# --- the ELBO -----------------------------------------------------------------------------------------------


def test_the_elbo_is_that_of_log_terms(vae):
    """A second way to the same number: many draws, averaged outside the evaluator."""
    x = bits(150, seed=4)
    result = evaluate(vae, x, particles=400)
    with torch.no_grad():
        terms = elbo_terms(vae, {"x": x}, 400)
    spread = terms.log_likelihood.std(0) * math.sqrt(2 / 400)
    z = (result.elbo - bounds.elbo(terms)) / spread
    assert z.abs().max() < 5 and abs(z.mean()) < 0.4
    assert torch.allclose(result.rate.float(), terms.kl[0], rtol=1e-5), "the KL of normals is exact"


def test_rate_and_distortion_are_the_parts_of_the_bound(vae):
    result = evaluate(vae, bits(30), particles=3)
    assert torch.equal(result.elbo, -result.rate - result.distortion)
    assert result.elbo.shape == (30,) and result.elbo.dtype == torch.float64
    assert (result.rate > 0).all() and (result.distortion > 0).all()
    assert result.mean == pytest.approx(result.elbo.mean().item())
    assert result.standard_error == pytest.approx(result.elbo.std().item() / math.sqrt(30))


def test_the_elbo_of_a_discrete_pair_is_below_its_exact_likelihood():
    pair, x = Clusters(), counts(60)
    rates = nn.functional.softplus(pair.rates).detach()
    exact = dist.Poisson(rates).log_prob(x.unsqueeze(1)).sum(-1).logsumexp(1) - math.log(3)
    result = evaluate(pair, {"counts": x}, particles=500)
    assert (result.elbo < exact + 0.3).all() and result.mean < exact.mean()


def test_the_seed_fixes_the_figures_and_nothing_else_does(vae):
    x = bits(120)
    torch.manual_seed(1)
    first = evaluate(vae, x, particles=2, seed=3)
    torch.manual_seed(2)
    assert torch.equal(first.elbo, evaluate(vae, x, particles=2, seed=3).elbo)
    assert not torch.equal(first.elbo, evaluate(vae, x, particles=2, seed=4).elbo)


def test_equal_data_get_draws_of_their_own(vae):
    """Also where they stand at the same place of different blocks."""
    result = evaluate(vae, bits(1).expand(250, *SHAPE))
    assert len(result.distortion.unique()) == 250 and result.rate.std() < 1e-5


def test_data_come_as_a_tensor_a_mapping_a_split_or_one_of_a_dataset(vae):
    x = bits(30)
    data = pv.Dataset("named", pv.Split({"x": bits(9)}), pv.Split({"x": bits(8)}), pv.Split({"x": x}))
    expected = evaluate(vae, x).elbo
    for form in ({"x": x, "unused": x}, pv.Split({"x": x}), data):
        assert torch.equal(evaluate(vae, form).elbo, expected)
    assert evaluate(vae, data).data == "named" and evaluate(vae, x).data == "data"
    assert evaluate(vae, data, split="train").n == 9 and evaluate(vae, data, split="valid").n == 8
    with pytest.raises(DataError, match="no split 'tset'; there are train, valid, test"):
        evaluate(vae, data, split="tset")


def test_a_limit_takes_the_first_data(vae):
    x = bits(30)
    assert torch.equal(evaluate(vae, x, limit=7).rate, evaluate(vae, x[:7]).rate)
    assert evaluate(vae, x, limit=99).n == 30


@pytest.mark.parametrize("evaluator", ["elbo", "importance"])
def test_figures_do_not_depend_on_what_fits_the_memory(vae, evaluator, monkeypatch):
    whole = evaluate(vae, bits(20), evaluator, particles=300)
    monkeypatch.setitem(chunks.CHUNK_BYTES, "cpu", 2**13)
    chunked = evaluate(vae, bits(20), evaluator, particles=300)
    assert torch.allclose(whole.headline, chunked.headline, atol=1e-5)


# --- reconstruction -----------------------------------------------------------------------------------------


def test_reconstruction_is_at_the_mean_of_the_guide(vae):
    x = bits(130)
    result = evaluate(vae, x, "reconstruction")
    with torch.no_grad():
        loc = vae.posterior(vae.encoder(x)).mean
        logits = vae.decoder(loc).squeeze(1)
    nll = nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1).sum(1)
    assert torch.allclose(result.reconstruction_nll, nll, rtol=1e-5)
    assert torch.allclose(result.squared_error, (logits.sigmoid() - x).square().flatten(1).mean(1), rtol=1e-4)
    assert result.quantity == "reconstruction_nll" and result.bits_per_dim is None
    assert result.bits_per_dim_note == "not a log-likelihood"


# --- what a result says -------------------------------------------------------------------------------------


def test_bits_per_dim_are_minus_the_bound_over_its_elements(vae):
    result = evaluate(vae, bits(30))
    assert result.bits_per_dim == pytest.approx(-result.mean / (math.prod(SHAPE) * math.log(2)))


def test_continuous_data_have_no_bits():
    result = evaluate(small_vae(likelihood="gaussian"), bits(30))
    assert result.bits_per_dim is None and "continuous" in result.bits_per_dim_note


def test_grey_values_under_a_bernoulli_are_refused_or_called_a_loss(vae):
    grey = torch.full((5, *SHAPE), 0.25)
    with pytest.raises(DataError, match=r"x\[0\] holds 0.25: .*binarize"):
        evaluate(vae, grey)
    result = evaluate(vae, grey, relaxed=True)
    with pytest.raises(AttributeError, match="log_likelihood"):
        _ = result.log_likelihood
    entry = result.entry()
    assert entry["quantity"] == "loss" and entry["nats"]["mean"] > 0
    assert result.bits_per_dim is None and any("not a log-likelihood" in warning for warning in result.warnings)


def test_an_entry_is_what_the_design_promises(vae):
    entry = json.loads(json.dumps(evaluate(vae, bits(30), particles=2).entry()))
    assert entry["evaluator"] == "elbo" and entry["model"] == "VAE" and entry["split"] == "test"
    assert entry["n"] == 30 and entry["particles"] == 2 and entry["seconds"] >= 0
    assert set(entry["nats"]) == {"mean", "standard_error"} and entry["nats"]["mean"] < 0
    assert set(entry["rate"]) == {"mean", "median", "min", "max"}


def test_an_entry_is_valid_json_for_one_datum_too(vae):
    entry = evaluate(vae, bits(1)).entry()
    assert entry["nats"]["standard_error"] is None
    assert "NaN" not in json.dumps(entry)


def test_numbers_that_are_not_finite_become_null():
    estimate = Estimate({"log_likelihood": torch.tensor([1.0, -math.inf])}, {"a": [math.nan, {"b": math.inf}]})
    entry = Result("e", "m", "d", "s", 2, 1, 0.0, estimate).entry()
    assert entry["nats"]["mean"] is None and entry["a"] == [None, {"b": None}]


def test_a_result_lists_what_it_has_per_datum(vae):
    with pytest.raises(AttributeError, match="no 'pareto_k' per datum; it has elbo, rate, distortion"):
        _ = evaluate(vae, bits(5)).pareto_k


def test_quantiles_leave_out_what_is_not_a_number():
    found = quantiles(torch.tensor([1.0, math.nan, 2.0, 6.0]))
    assert found == {"mean": 3.0, "median": 2.0, "min": 1.0, "max": 6.0}
    assert all(map(math.isnan, quantiles(torch.tensor([math.nan])).values()))


# --- what it leaves alone, and what it refuses --------------------------------------------------------------


class Normalised(pv.VAE):
    """A VAE whose encoder keeps running statistics and drops features."""

    def __init__(self):
        super().__init__(SHAPE, hidden=(8,))
        self.encoder.layers.extend([nn.BatchNorm1d(8), nn.Dropout(0.5)])


@pytest.mark.parametrize("training", [True, False])
def test_a_pair_runs_in_eval_mode_and_is_left_as_it_was(training):
    pair = Normalised().train(training)
    pair.decoder.eval()
    before = {name: value.clone() for name, value in pair.state_dict().items()}
    result = evaluate(pair, bits(30))
    assert all(torch.equal(before[name], value) for name, value in pair.state_dict().items())
    assert pair.training is training and pair.encoder.training is training and not pair.decoder.training
    assert torch.equal(result.rate, evaluate(pair.eval(), bits(30)).rate), "no dropout in either"
    assert all(parameter.grad is None for parameter in pair.parameters())


def test_a_pair_that_writes_to_its_state_is_refused():
    class Writing(pv.VAE):
        def guide(self, x):
            super().guide(x)
            with torch.no_grad():
                self.decoder.out.bias.add_(1.0)

    with pytest.raises(ContractError, match="evaluation changed 'decoder.out.bias'"):
        evaluate(Writing(SHAPE, hidden=(4,)), bits(5))


def test_evaluators_of_the_users_own_are_given_the_data():
    class Counting:
        def __call__(self, pair, blocks, particles, progress):
            progress(blocks.size)
            return Estimate({"rows": torch.arange(blocks.split.size)}, warnings=["only counts"])

    result = evaluate(small_vae(), bits(6), Counting())
    assert result.evaluator == "Counting" and result.rows.tolist() == list(range(6)) and result.mean == 2.5
    assert result.warnings == ["only counts"] and result.quantity == "rows"


def test_a_plain_function_is_an_evaluator():
    def rows(pair, blocks, particles, progress):
        return Estimate({"rows": torch.arange(blocks.size)})

    result = evaluate(small_vae(), bits(6), rows)
    assert result.evaluator == "rows" and result.mean == 2.5 and not result.warnings


def test_what_is_found_on_single_blocks_is_put_together_and_then_summarised():
    class Rows(Evaluator):
        shareable = True

        def of_block(self, block, particles, progress):
            return {"row": torch.arange(block.rows.start, block.rows.start + block.size)}

        def summarise(self, found, particles):
            return replace(found, summary={"last": found.per_datum["row"][-1].item(), "particles": particles})

    result = evaluate(small_vae(), bits(230), Rows(), particles=3)
    assert result.row.tolist() == list(range(230))
    assert result.entry()["last"] == 229 and result.entry()["particles"] == 3


def test_every_registered_evaluator_is_one_by_its_class():
    assert all(issubclass(plugins.load("evaluator", name), Evaluator) for name in plugins.names("evaluator"))


def test_gradients_are_off_unless_an_evaluator_needs_them():
    class Asking:
        def __init__(self, needs_gradients):
            self.needs_gradients = needs_gradients

        def __call__(self, pair, blocks, particles, progress):
            return Estimate({"grad": torch.full((blocks.size,), float(torch.is_grad_enabled()))})

    assert evaluate(small_vae(), bits(3), Asking(True)).mean == 1.0
    assert evaluate(small_vae(), bits(3), Asking(False)).mean == 0.0


MISTAKES = {
    "unknown_evaluator": ({"evaluator": "elbow"}, UnknownName, "unknown evaluator 'elbow'; known: elbo"),
    "no_particles": ({"particles": 0}, RunError, "particles must be at least 1, not 0"),
    "mistyped_option": (
        {"evaluator": "ais", "leapfrogs": 3},
        UnknownName,
        "unknown option 'leapfrogs'; known: leapfrog, ",
    ),
    "option_of_none": ({"enginee": "eager"}, UnknownName, "unknown option 'enginee'; known: none"),
    "option_beside_an_evaluator": (
        {"evaluator": ELBO(), "engine": "eager"},
        RunError,
        "ELBO is made already, so it takes no engine here: make it with its options",
    ),
    "no_data": ({"limit": 0}, RunError, "limit must be at least 1, not 0"),
}


@pytest.mark.parametrize("options, error, words", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line(options, error, words, vae):
    with pytest.raises(error, match=words):
        evaluate(vae, bits(5), **options)


def test_data_that_do_not_fit_the_pair_are_refused(vae):
    with pytest.raises(DataError, match="needs the field 'x'; the data have y"):
        evaluate(vae, {"y": bits(5)})
    with pytest.raises(DataError, match="nan"):
        evaluate(vae, bits(5) * math.nan)
    with pytest.raises(DataError, match="0 rows"):
        evaluate(vae, bits(5)[:0])


def test_latents_outside_the_plate_are_drawn_for_all_data():
    class Shared(pv.VAE):
        def model(self, x):
            pyro.sample("global", dist.Normal(0.0, 1.0))
            super().model(x)

        def guide(self, x):
            pyro.sample("global", dist.Normal(0.0, 1.0))
            super().guide(x)

    result = evaluate(Shared(SHAPE, hidden=(4,)), bits(5))
    assert result.quantity == "elbo_given_globals" and result.data_set.quantity == "elbo"
    run = pv.train(Shared(SHAPE, hidden=(4,)), bits(), epochs=1, batch_size=16, progress=False)
    assert np.isfinite(run.history[0]["valid_elbo"]), "an ELBO of all data it has"


def test_progress_is_shown_on_stderr_and_only_if_asked(vae, capsys):
    evaluate(vae, bits(5))
    assert capsys.readouterr() == ("", "")
    pv.evaluate(vae, bits(5), particles=3)
    out, err = capsys.readouterr()
    assert out == "" and "elbo: 100%" in err
