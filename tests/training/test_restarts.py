"""Several starts: the best of them goes on, and the run is the one that it would be alone."""

import pytest
from pairs import bits, same_state, small_vae

import pyro_vae as pv
from pyro_vae import runs
from pyro_vae.command_line import main as cli
from pyro_vae.errors import RunError
from pyro_vae.training import by_name

HOW = {"engine": "eager", "device": "cpu", "progress": False, "batch_size": 20, "lr": 1e-2}
OPTIONS = {"components": 3}


def split():
    return pv.Dataset("bits", pv.Split({"x": bits(60)}), pv.Split({"x": bits(20, seed=1)}), pv.Split({"x": bits(9)}))


def test_the_best_start_goes_on():
    """By hand: each start for a tenth of the epochs, then the best for all of them."""
    data = split()
    starts = [runs.build_model("mixture", data.facts, OPTIONS, seed) for seed in (5, 6, 7)]
    tried = [pv.train(start, data, epochs=2, seed=5, **HOW) for start in starts]
    best = min(tried, key=lambda run: min(row["valid_loss"] for row in run.history))
    expected = pv.train(best.pair, data, epochs=20, seed=5, **HOW)
    run = pv.train("mixture", data, epochs=20, seed=5, restarts=3, model_options=OPTIONS, **HOW)
    assert same_state(run.pair, expected.pair)
    (note,) = [note for note in run.notes if "starts" in note]
    losses = sorted(min(row["valid_loss"] for row in run.history) for run in tried)
    assert note.startswith(f"the best of 3 starts: validation loss {losses[0]:.2f}, of the others ")


def test_a_run_of_several_starts_is_resumed_and_written_once(tmp_path, monkeypatch):
    monkeypatch.setattr(by_name, "write_report", lambda *_: None)
    how = {"restarts": 2, "model_options": OPTIONS, **HOW}
    whole = pv.train("mixture", split(), epochs=4, out=tmp_path / "whole", **how)
    pv.train("mixture", split(), epochs=2, out=tmp_path / "run", **how)
    resumed = pv.train("mixture", split(), epochs=4, out=tmp_path / "run", resume=True, **how)
    assert len(whole.history) == len(resumed.history) == 4
    assert whole.config["training"]["restarts"] == 2
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "run"}


def test_the_command_line_takes_restarts(tmp_path, monkeypatch):
    monkeypatch.setattr(by_name, "write_report", lambda *_: None)
    line = f"train mixture --data digits --restarts 2 --epochs 1 --components 2 --quiet --out {tmp_path / 'run'}"
    assert cli.main(line.split()) == 0
    assert pv.load_run(tmp_path / "run").config["training"]["restarts"] == 2


@pytest.mark.parametrize(
    "what, options, words",
    [
        (small_vae(), {"restarts": 2}, "restarts go with the name of a model"),
        ("vae", {"restarts": 0}, "restarts must be at least 1, not 0"),
        ("vae", {"restarts": 2, "start": "runs/other"}, "nothing to choose by restarts"),
    ],
)
def test_what_cannot_be_is_one_line(what, options, words):
    with pytest.raises(RunError, match=words):
        pv.train(what, bits(40), epochs=1, **options, **HOW)


def test_the_data_of_a_model_are_its_own_where_none_are_named(tmp_path, monkeypatch, capsys):
    """In Python and on the command line; those of a pair as well."""
    monkeypatch.setattr(by_name, "write_report", lambda *_: None)
    run = pv.train("hmm", epochs=1, out=tmp_path / "run", **HOW | {"batch_size": 400})
    assert run.data.name == run.config["data"]["name"] == "planted_chains"
    for model, data in {"hmm": "planted_chains", "vae": "digits"}.items():
        assert cli.main(f"train {model} --print_config".split()) == 0
        assert f"data:\n  name: {data}\n" in capsys.readouterr().out
    assert cli.main("train hmm --data digits --print_config".split()) == 0
    assert "data:\n  name: digits\n" in capsys.readouterr().out
    own = pv.train(pv.models.HiddenMarkovModel((24, 12)), epochs=1, **HOW | {"batch_size": 400})
    assert own.data.name == "planted_chains"
