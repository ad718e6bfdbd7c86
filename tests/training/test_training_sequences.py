"""Training on sequences: one graph for each length that batches are cut to, and the same run as without any."""

import pytest
import torch
from pairs import same_state
from sequence_pairs import STEPS, Chain, Deep, sequences

import pyro_vae as pv
from pyro_vae.data.sequences import cuts
from pyro_vae.engine import policy
from pyro_vae.errors import ContractError, DataError

OPTIONS = {"epochs": 2, "batch_size": 2, "lr": 1e-2, "progress": False, "device": "cpu"}


def data(seed: int = 0, steps: int = STEPS):
    """Sequences of which batches of 2 are cut to 1, 2, 3 and 4 time slices, or fewer, and a batch of one."""
    return sequences([1] * 7 + [min(n, steps) for n in [2] * 5 + [3, 4, 4]], steps, seed=seed)


def trained(pair, engine, steps=STEPS, **options):
    return pv.train(pair, data(0, steps), valid=data(1, steps), engine=engine, **{**OPTIONS, **options})


def by_length(run):
    """What the notes say of the engine of each length."""
    return {int(note.split()[2]): note for note in run.notes if note.startswith("batches of ")}


AN_OLD_TRACER = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 10)
"""Torch's older tracers want the value of an index by enumerated states: such a pair runs eagerly there."""


@pytest.mark.parametrize(
    "make, steps", [pytest.param(Chain, 2, marks=pytest.mark.skipif(AN_OLD_TRACER, reason="old torch")), (Deep, 4)]
)
def test_each_length_has_a_graph_of_its_own_and_the_run_is_the_eager_one(make, steps, graphs):
    compiled, eager = trained(make(), "compiled", steps), trained(make(), "eager", steps)
    assert compiled.engine == "compiled" and eager.engine == "eager", compiled.notes
    assert len(graphs) == len(by_length(compiled)) == steps
    assert all("compiled (asked for), " in note and " s to compile" in note for note in by_length(compiled).values())
    for ours, reference in zip(compiled.history, eager.history, strict=True):
        for key in ("loss", "valid_elbo", "valid_rate"):
            assert ours[key] == pytest.approx(reference[key], rel=1e-4), key
    for ours, reference in zip(compiled.pair.parameters(), eager.pair.parameters(), strict=True):
        assert torch.allclose(ours, reference, atol=1e-3)


@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_a_resumed_run_is_the_uninterrupted_one(engine, graphs, tmp_path):
    whole = trained(Deep(), engine, 2, out=tmp_path / "whole")
    trained(Deep(), engine, 2, epochs=1, out=tmp_path / "run")
    resumed = trained(Deep(), engine, 2, out=tmp_path / "run", resume=True)
    assert whole.engine == resumed.engine == engine
    assert same_state(whole.pair, resumed.pair)
    for ours, reference in zip(resumed.history, whole.history, strict=True):
        assert {**ours, "seconds": 0} == {**reference, "seconds": 0}


def test_auto_counts_the_steps_of_each_length(graphs, monkeypatch):
    """Of batches of one as many are to be expected at each length as there are such sequences."""
    monkeypatch.setattr(policy, "repaying_amount", lambda work: 30)
    lengths = [4, 1, 2, 2, 4, 4, 4, 4, 4, 4]
    run = pv.train(Deep(), sequences(lengths), valid=data(), engine="auto", **{**OPTIONS, "batch_size": 1, "epochs": 5})
    assert len(graphs) == 1 and run.engine == "compiled and eager"
    said = by_length(run)
    assert "eager (5 steps do not repay" in said[1] and "eager (10 steps do not repay" in said[2]
    assert "compiled (35 steps repay it)" in said[4]


def test_a_batch_is_cut_to_the_next_length():
    seen = set()

    class Watched(Deep):
        def model(self, x, length):
            if self.training and len(x) == OPTIONS["batch_size"]:
                assert x.shape[1] == length.max()
                seen.add(x.shape[1])
            super().model(x, length)

    trained(Watched(), "eager")
    assert seen == set(cuts(STEPS))


def test_validation_is_that_of_whole_sequences():
    """The exact log-likelihood of the validation data, cut or not."""
    run = trained(Chain(), "eager", epochs=1)
    given = data(1)
    expected = [run.pair.log_likelihood(x[:n]) for x, n in zip(given["x"], given["length"], strict=True)]
    assert run.history[-1]["valid_elbo"] == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5)


# --- bad input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 5])
def test_a_length_that_the_data_do_not_have_is_refused(length, tmp_path):
    wrong = data()
    wrong["length"][5] = length
    with pytest.raises(DataError, match=rf"^length\[5\] is {length}, but x has 4 time slices"):
        pv.train(Deep(), wrong, valid=data(), out=tmp_path / "run", **OPTIONS)
    assert not (tmp_path / "run").exists()


def test_a_pair_that_counts_what_lies_beyond_is_refused():
    with pytest.raises(ContractError, match="site 'x_1' of the model .* poutine.mask"):
        trained(Chain(masked=False), "eager")
