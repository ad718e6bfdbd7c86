"""What evaluation finds on data that lack values, against the exact figures of linear-Gaussian pairs."""

import math

import numpy as np
import pytest
import torch
from missing_pairs import Asking, D, Linear, Loop, Mixture, Plates, Undeclared, data

import pyro_vae as pv
from pyro_vae.errors import ContractError, DataError, Doubt, RunError, UnknownName
from pyro_vae.evaluation.imputation import imputations

K = 500


def z_of_weights(bound, exact):
    """exp(L_K) is unbiased for p(x): how many standard errors the mean of their ratio is from 1."""
    ratio = (bound - exact).exp()
    return (ratio.mean() - 1) / (ratio.std() / math.sqrt(len(ratio)))


@pytest.mark.parametrize("kind", [Linear, Plates, Loop, Asking, Mixture])
def test_log_p_of_what_is_observed_is_exact_up_to_its_error(kind):
    pair, x = kind(), data(120)
    result = pv.evaluate(pair, x, "importance", K, progress=False)
    exact = pair.log_marginal(x)
    scores = (result.log_likelihood - exact) / result.monte_carlo_error
    assert abs(z_of_weights(result.log_likelihood, exact)) < 4
    assert 0.5 < scores.square().mean() < 2.0 and result.kind == "lower bound"
    assert result.entry()["missing"]["elements"] == x.isnan().sum() and result.bits_per_dim is None


def test_other_evaluators_agree_with_it():
    pair, x = Linear(), data(30)
    exact = pair.log_marginal(x)
    prior = pv.evaluate(pair, x, "prior", 4000, progress=False)
    assert ((prior.log_likelihood - exact).abs() < 5 * prior.monte_carlo_error).all()
    annealed = pv.evaluate(pair, x, "ais", 2, progress=False, distributions=5, leapfrog=3)
    assert abs(z_of_weights(annealed.log_likelihood, exact)) < 4
    elbo = pv.evaluate(pair, x, "elbo", 200, progress=False)
    assert (elbo.elbo < exact + 0.3).all() and elbo.mean < exact.mean()
    both = pv.evaluate(pair, x, "ais", 2, limit=5, progress=False, distributions=5, leapfrog=3, bidirectional=True)
    assert both.simulated_upper.isfinite().all() and both.simulated_lower.mean() < both.simulated_upper.mean() + 1.0


def test_a_pair_that_declares_nothing_is_evaluated_where_it_is_asked_for():
    pair, x = Undeclared(), data(40)
    with pytest.raises(DataError, match=r"x\[1, 2\] is nan"):
        pv.evaluate(pair, x, "importance", 30, progress=False)
    result = pv.evaluate(pair, x, "importance", K, missing="marginalise", progress=False)
    assert (result.log_likelihood - pair.log_marginal(x)).abs().max() < 6 * result.monte_carlo_error.max()
    assert result.model == "Undeclared" and any("sees zeros where x is missing" in line for line in result.warnings)
    same = pv.evaluate(Linear(), x, "importance", K, progress=False)
    assert torch.equal(result.log_likelihood, same.log_likelihood)
    with pytest.raises(UnknownName, match="unknown treatment of missing values 'drop'; known: "):
        pv.evaluate(pair, x, missing="drop", progress=False)


def test_complete_data_are_evaluated_to_the_same_figures_whatever_is_allowed():
    pair, x = Undeclared(), data(20).nan_to_num(0.3)
    plain, allowed = (
        pv.evaluate(pair, x, "importance", 50, missing=how, progress=False) for how in ("refuse", "marginalise")
    )
    assert torch.equal(plain.log_likelihood, allowed.log_likelihood) and not allowed.warnings[1:]
    assert (pv.evaluate(Linear(), x, "importance", 50, progress=False).log_likelihood == plain.log_likelihood).all()


def test_compiled_chunks_give_the_same(graphs):
    x = data(20)
    eager, compiled = (
        pv.evaluate(Linear(), x, "importance", 50, progress=False, engine=engine) for engine in ("eager", "compiled")
    )
    torch.testing.assert_close(compiled.log_likelihood, eager.log_likelihood)
    assert graphs and "compiled" in compiled.entry()["engine"]


def test_a_datum_that_lacks_everything_has_log_p_0_and_that_is_said():
    pair, x = Linear(), data(40)
    x[7] = torch.nan
    result = pv.evaluate(pair, x, "importance", 30, progress=False)
    assert result.log_likelihood[7] == 0 and result.monte_carlo_error[7] == 0 and (result.log_likelihood[8:] < 0).all()
    assert "datum 7 has all its elements missing, so its log p is 0" in result.warnings
    x[9] = torch.nan
    elbo = pv.evaluate(pair, x, "elbo", 3, progress=False)
    assert elbo.warnings[-1] == "2 data have all their elements missing, so their log p is 0 (the first is datum 7)"
    assert elbo.elbo[7] < 0, "a bound of 0"


def test_bits_per_dim_count_what_is_observed():
    torch.manual_seed(0)
    vae = pv.VAE((6,), hidden=(5,), missing="marginalise")
    x = torch.bernoulli(torch.full((30, 6), 0.4))
    x[::2, 1] = x[3:20, 4] = torch.nan
    result = pv.evaluate(vae, x, "importance", 20, progress=False)
    observed = (~x.isnan()).sum().item()
    assert result.bits_per_dim == pytest.approx(-result.log_likelihood.sum().item() / (observed * math.log(2)))


def test_reconstruction_compares_what_is_observed():
    pair, x = Linear(), data(15)
    result = pv.evaluate(pair, x, "reconstruction", progress=False)
    assert result.squared_error.isfinite().all()
    filled = x.nan_to_num(0.0)
    z = (filled - pair.mean) @ pair.gain.T
    expected = (pair.loc(z) - x).square().nanmean(1)
    torch.testing.assert_close(result.squared_error, expected.detach())


# --- log p(x_S | x_T) ---------------------------------------------------------------------------------------

S = torch.tensor([True, False, True, False, False])
T = torch.tensor([False, True, False, False, True])


@pytest.mark.parametrize("kind", [Linear, Undeclared, Loop, Mixture])
def test_a_conditional_is_exact_up_to_an_error_that_has_both_parts(kind):
    pair, x = kind(), data(100, share=0.2 if kind is not Undeclared else 0.0)
    x = x.nan_to_num(0.1) if kind is Undeclared else x
    result = pv.evaluate(pair, x, "conditional", K, progress=False, of=S, given=T)
    exact = pair.log_marginal(x, (S | T).expand_as(x)) - pair.log_marginal(x, T.expand_as(x))
    scores = (result.log_conditional - exact) / result.monte_carlo_error
    settled = result.monte_carlo_error == 0
    assert ((result.log_conditional - exact)[settled] == 0).all()
    scores = scores[~settled]
    assert 0.6 < scores.square().mean() < 1.6 and abs(scores.mean()) * math.sqrt(len(scores)) < 4
    assert result.kind is None and result.quantity == "log_conditional" and result.bits_per_dim is None
    torch.testing.assert_close(result.log_joint - result.log_given, result.log_conditional)


def test_the_default_is_to_be_given_everything_else(tmp_path):
    pair, x = Linear(), data(40, share=0.0)
    x[1] = 0.2
    np.save(tmp_path / "s.npy", S.numpy())
    result = pv.evaluate(pair, x, "conditional", K, progress=False, of=str(tmp_path / "s.npy"))
    exact = pair.log_marginal(x) - pair.log_marginal(x, (~S).expand_as(x))
    assert ((result.log_conditional - exact).abs() < 5 * result.monte_carlo_error).all()


def test_sets_may_differ_from_datum_to_datum_and_be_empty():
    pair, x = Linear(), data(30, share=0.0)
    x[1] = 0.2
    of = torch.rand(30, D, generator=torch.Generator().manual_seed(2)) < 0.5
    of[0], of[1] = False, True
    result = pv.evaluate(pair, x, "conditional", K, progress=False, of=of)
    exact = pair.log_marginal(x) - pair.log_marginal(x, ~of)
    assert ((result.log_conditional - exact).abs() < 5 * result.monte_carlo_error + 1e-9).all()
    nothing = pv.evaluate(pair, x, "conditional", 30, progress=False, of=S, given=torch.zeros(D).bool())
    assert (nothing.log_given == 0).all()


def test_sets_that_fit_nothing_are_one_line(tmp_path):
    pair, x = Linear(), data(10)
    with pytest.raises(DataError, match=r"of has shape \[4\]; a datum has \[5\], and there are 10"):
        pv.evaluate(pair, x, "conditional", 5, progress=False, of=S[:4])
    with pytest.raises(DataError, match=r"given: .*none.npy cannot be read"):
        pv.evaluate(pair, x, "conditional", 5, progress=False, of=S, given=tmp_path / "none.npy")
    with pytest.raises(ContractError, match="missing names 'y'"):
        pv.evaluate(pair, x, "conditional", 5, progress=False, of=S, field="y")


# --- imputation ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Linear, Plates, Asking])
def test_imputations_have_the_exact_conditional_mean_and_covariance(kind):
    """Of one datum many times, each with a draw of its own."""
    pair, row = kind(), data(4, seed=5)[2]
    gone = row.isnan()
    assert 2 <= gone.sum() < D
    n = 400
    found = pv.impute(pair, row.expand(n, D).clone(), draws=1, particles=150, seed=3)
    drawn = found["x"][0]
    assert found["x"].shape == (1, n, D) and found["ess"].shape == (n,) and (found["ess"] > 15).all()
    assert torch.equal(drawn[:, ~gone], row[~gone].expand(n, -1)), "what is observed is as it is"
    mean, covariance = pair.conditional(row)
    centred = drawn[:, gone] - mean
    scores = centred.mean(0) / (centred.std(0) / math.sqrt(n))
    assert scores.abs().max() < 4
    products = centred.unsqueeze(2) * centred.unsqueeze(1)
    scores = (products.mean(0) - covariance) / (products.std(0) / math.sqrt(n))
    assert scores.abs().max() < 4


def test_draws_of_one_datum_are_independent_of_each_other():
    pair, row = Linear(), data(4, seed=5)[2]
    found = imputations(pair, pv.Split({"x": row.expand(400, D).clone()}), draws=3, particles=100)
    gone = row.isnan().nonzero()[0, 0]
    values = found.values["x"][:, :, gone]
    pairs = ((values[0] - values[0].mean()) * (values[1] - values[1].mean())).mean() / values.var()
    assert abs(pairs) * math.sqrt(400) < 4, "no correlation, though both came of the same particles"


def test_what_the_model_enumerates_is_drawn_given_what_is_observed():
    """One element far out tells the kind, and the others follow it."""
    pair = Mixture()
    pair.w.data.zero_()
    pair.mean.data.zero_()
    pair.shifts.data.mul_(6)
    row = torch.full((D,), torch.nan, dtype=torch.float64)
    row[2] = 9.0  # the third kind
    found = pv.impute(pair, row.expand(50, D).clone(), draws=4, particles=50)["x"]
    rest = found[..., [0, 1, 3, 4]]
    assert abs(rest.mean() - 9.0) < 5 * pair.scale / math.sqrt(rest.numel())
    assert rest.std() == pytest.approx(pair.scale, rel=0.15)


def test_sites_are_imputed_by_their_names():
    pair, x = Loop(), data(12)
    found = pv.impute(pair, x, draws=2, particles=30)
    for i in range(D):
        if x[:, i].isnan().any():
            kept = ~x[:, i].isnan()
            assert found[f"x_{i}"].shape == (2, 12) and torch.equal(found[f"x_{i}"][:, kept], x[kept, i].expand(2, -1))
    assert set(found) == {"ess"} | {f"x_{i}" for i in range(D) if x[:, i].isnan().any()}


def test_few_effective_draws_are_said():
    class Narrow(Linear):
        """A guide far off."""

        def guide(self, x):
            super().guide(x + 30.0)

    with pytest.warns(Doubt, match=r"% of the data have fewer than 20 effective draws .* use more particles"):
        found = pv.impute(Narrow(), data(10), draws=20, particles=40)
    assert (found["ess"] < 20).any()


def test_nothing_to_impute_is_one_line():
    with pytest.raises(DataError, match="nothing to impute"):
        pv.impute(Linear(), data(10).nan_to_num(0.0), particles=10)
    with pytest.raises(RunError, match="a pair has no data of its own"):
        pv.impute(Linear())
    with pytest.raises(RunError, match="draws must be at least 1"):
        pv.impute(Linear(), data(10), draws=0)


def test_gaps_of_inference_are_those_of_what_is_observed():
    pair, x = Linear(), data(8)
    result = pv.evaluate(pair, x, "gaps", 100, progress=False, steps=20)
    assert (result.refined_elbo > result.elbo - 0.05).all() and (result.bound < pair.log_marginal(x) + 0.5).all()
