"""Figures of sequences: those of each by itself, by the sequence and by the time slice."""

import json

import pytest
import torch
from sequence_pairs import Chain, Deep, sequences

import pyro_vae as pv
from pyro_vae.command_line.main import print_results
from pyro_vae.engine import policy
from pyro_vae.evaluation import blocks
from pyro_vae.reporting.report import write_report
from pyro_vae.runs.folder import keep_result

LENGTHS = [1, 2, 1, 2, 4, 3, 1, 1]


@pytest.fixture
def short_blocks(monkeypatch):
    """Two data a block, so that the blocks are cut to 2, 2, 4 and 1 time slices."""
    monkeypatch.setattr(blocks, "DATA_BLOCK", 2)


def evaluate(pair, evaluator="importance", particles=30, **options):
    return pv.evaluate(pair, sequences(LENGTHS), evaluator, particles, progress=False, **options)


def exact(pair):
    data = sequences(LENGTHS)
    rows = zip(data["x"], data["length"], strict=True)
    return torch.stack([pair.log_likelihood(x[:n]) for x, n in rows]).detach()


def test_figures_by_sequence_and_by_time_slice(short_blocks):
    pair = Chain()
    result = evaluate(pair)
    assert result.kind == "exact" and torch.allclose(result.log_likelihood.float(), exact(pair), atol=1e-5)
    assert result.mean == pytest.approx(exact(pair).mean().item(), rel=1e-5)
    assert result.per_time_slice == pytest.approx(exact(pair).sum().item() / sum(LENGTHS), rel=1e-5)
    assert result.entry()["nats_per_time_slice"] == result.per_time_slice
    assert result.bits_per_dim == pytest.approx(-result.per_time_slice / (2 * torch.log(torch.tensor(2.0))).item())
    assert pv.evaluate(pv.VAE((2,)), torch.zeros(3, 2), progress=False).entry()["nats_per_time_slice"] is None


@pytest.mark.parametrize("limit", [None, 5])
def test_a_limit_counts_the_slices_of_what_is_evaluated(limit):
    assert evaluate(Deep(), "elbo", 1, limit=limit).time_slices == sum(LENGTHS[:limit])


def test_blocks_that_are_cut_give_the_bound_of_whole_ones(monkeypatch):
    """The draws differ, so the bounds agree up to their error: with draws of the prior, whose weights are even."""
    whole = evaluate(Deep(), "prior", 3000)
    monkeypatch.setattr(blocks, "DATA_BLOCK", 2)
    cut = evaluate(Deep(), "prior", 3000)
    error = (whole.monte_carlo_error.square() + cut.monte_carlo_error.square()).sqrt()
    assert (cut.log_likelihood != whole.log_likelihood).any()
    assert ((cut.log_likelihood - whole.log_likelihood).abs() < 4 * error).all() and error.max() < 0.1


def test_each_length_has_a_graph_of_its_own(short_blocks, graphs, monkeypatch):
    compiled, eager = (evaluate(Deep(), particles=4, engine=engine) for engine in ("compiled", "eager"))
    assert len(graphs) == 3
    said = compiled.estimate.summary["engine"]
    assert all(f"{length} time slices: compiled (asked for), " in said for length in (1, 2, 4)), said
    assert torch.allclose(compiled.log_likelihood, eager.log_likelihood, rtol=1e-5)
    monkeypatch.setattr(policy, "repaying_amount", lambda work: 16)
    said = evaluate(Deep(), particles=4, engine="auto").estimate.summary["engine"]
    assert "2 time slices: compiled (16 samples repay it)" in said
    assert "4 time slices: eager (8 samples do not repay compilation)" in said


@pytest.mark.parametrize("evaluator", ["ais", "latent", "prior", "reconstruction", "gaps"])
def test_every_evaluator_takes_blocks_of_several_lengths(evaluator, short_blocks):
    options = {"ais": {"distributions": 4, "leapfrog": 2}, "gaps": {"steps": 2}}.get(evaluator, {})
    result = evaluate(Deep(), evaluator, 4, **options)
    assert result.headline.isfinite().all() and len(result.headline) == len(LENGTHS)


def test_a_report_and_the_printed_table_say_both(tmp_path, capsys):
    data = sequences(LENGTHS)
    run = pv.train(Deep(), data, valid=data, epochs=1, batch_size=4, progress=False, out=tmp_path / "run")
    result = pv.evaluate(run, data, progress=False)
    print_results([result])
    said = capsys.readouterr().err
    assert f"{result.mean:.3f} nats per sequence, {result.per_time_slice:.4f} nats per time slice" in said
    assert "(15 in 8 sequences)" in said
    keep_result(run.out, result.entry(), {})
    assert json.loads((run.out / "evaluation.json").read_text())[0]["nats_per_time_slice"] == result.per_time_slice
    report = write_report(run).read_text()
    assert f"nats per sequence**, −{-result.per_time_slice:.3f} nats per time slice" in report
