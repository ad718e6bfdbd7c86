"""The sparse gamma deep exponential family: Pyro's ELBO, digits, draws, and what is refused."""

import pytest
import torch
from pyro.infer import Trace_ELBO

import pyro_vae as pv
from pyro_vae.errors import ContractError, DataError

QUIET = {"progress": False}
SIZES = {"widths": (12, 8, 5), "hidden": (32,)}


@pytest.fixture(scope="module")
def digits() -> pv.Dataset:
    return pv.load_data("digits", scale="raw")


def made(digits: pv.Dataset) -> pv.models.SparseGammaDEF:
    torch.manual_seed(0)
    return pv.models.SparseGammaDEF((1, 8, 8), data_mean=digits.facts["data_mean"], **SIZES)


def test_its_elbo_of_all_data_is_pyros(digits):
    """Both estimated; they agree within four standard errors."""
    pair, x = made(digits), digits.train["x"][:20]
    ours = pv.evaluate(pair, x, "elbo", particles=2, global_draws=100, **QUIET).data_set
    elbo = Trace_ELBO()
    theirs = -torch.tensor([elbo.loss(pair.model, pair.guide, x) for _ in range(200)])
    error = (ours.monte_carlo_error**2 + theirs.var().item() / len(theirs)) ** 0.5
    assert ours.quantity == "elbo" and abs(ours.nats - theirs.mean().item()) < 4 * error


def test_it_learns_digits_and_is_bounded(digits):
    pair = made(digits)
    before = pv.evaluate(pair, digits, global_draws=3, **QUIET).mean
    run = pv.train(pair, digits, epochs=15, lr=0.01, **QUIET)
    after = pv.evaluate(run, global_draws=3, **QUIET)
    assert after.mean > before + 50 and after.quantity == "elbo_given_globals"
    bound = pv.evaluate(run, evaluator="importance", particles=50, global_draws=3, limit=50, **QUIET)
    assert bound.quantity == "log_predictive" and bound.data_set.quantity == "log_likelihood"


def test_draws_are_counts(digits):
    drawn = pv.sample(pv.train(made(digits), digits, epochs=1, **QUIET), 20)["x"]
    assert drawn.shape == (20, 1, 8, 8) and drawn.isfinite().all() and torch.equal(drawn, drawn.floor())


def test_what_cannot_be_is_one_line():
    with pytest.raises(ContractError, match="at least one layer"):
        pv.models.SparseGammaDEF((1, 8, 8), widths=())
    with pytest.raises(DataError, match="counts 0, 1, 2"):
        pv.train(pv.models.SparseGammaDEF((1, 8, 8), **SIZES), pv.load_data("digits"), epochs=1, **QUIET)
