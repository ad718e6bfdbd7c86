"""The run of a pair in a file: made by both doors, used with the file, and never without it."""

import json
import warnings

import numpy as np
import pytest
import torch
import yaml

import pyro_vae as pv
from pyro_vae import files, scripts
from pyro_vae.command_line import main as cli
from pyro_vae.errors import Changed, PluginError, RunError
from pyro_vae.reporting import report
from pyro_vae.runs.config import read_config

PAIR = '''"""Pairs of a user's own."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from helper import unit
import ran

ran.times += 1


class MyPair(nn.Module):
    """Two observed sites, one of them in a plate of the datum's own.

    Args:
        latent_dim: size of z.
        spread: of the likelihood.
    """

    def __init__(self, data_shape, latent_dim=2, spread: float = 1.0):
        super().__init__()
        self.size, self.latent_dim, self.spread = data_shape[0], latent_dim, spread
        self.decoder = nn.Linear(latent_dim, self.size)
        self.encoder = nn.Linear(self.size, 2 * latent_dim)

    def model(self, x):
        with pyro.plate("rows", len(x), dim=-2):
            z = pyro.sample("z", unit(x, self.latent_dim).expand([len(x), 1]))
            mean = self.decoder(z)
            pyro.sample("total", dist.Normal(mean.sum(-1), 1.0), obs=x.sum(-1, keepdim=True))
            with pyro.plate("features", self.size, dim=-1):
                pyro.sample("x", dist.Normal(mean.squeeze(-2), self.spread), obs=x)

    def guide(self, x):
        with pyro.plate("rows", len(x), dim=-2):
            loc, scale = self.encoder(x).unsqueeze(-2).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))


class Other(MyPair):
    """The same by another name."""


def make(data_shape, latent_dim: int = 2):
    """Makes one."""
    return MyPair(data_shape, latent_dim)
'''

HELPER = """import pyro.distributions as dist


def unit(x, size):
    return dist.Normal(x.new_zeros(size), 1.0).to_event(1)
"""

NAME = "my_model.py:MyPair"
HOW = {"epochs": 2, "batch_size": 20, "engine": "eager", "device": "cpu", "progress": False}
LINE = f"train {NAME} --data x.npy --binarize none --epochs 2 --batch_size 20 --engine eager --device cpu --quiet"


@pytest.fixture(autouse=True)
def unreported(monkeypatch):
    """No figures, which take most of the time."""
    monkeypatch.setattr(report, "_figures", lambda *_: [])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with the file, what lies beside it, data, and a run; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "my_model.py").write_text(PAIR)
    (folder / "helper.py").write_text(HELPER)
    np.save(folder / "x.npy", np.random.default_rng(0).normal(size=(60, 3)).astype("f4"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(report, "_figures", lambda *_: [])
        patch.setitem(__import__("sys").modules, "ran", type("Ran", (), {"times": 0}))
        assert cli.main(f"{LINE} --latent_dim 3 --out run".split()) == 0
    return folder


@pytest.fixture
def ran(monkeypatch):
    """Counts how often a file of pairs is run."""
    scripts._module.cache_clear()
    ran = type("Ran", (), {"times": 0})
    monkeypatch.setitem(__import__("sys").modules, "ran", ran)
    return ran


@pytest.fixture
def work(made, ran, tmp_path, monkeypatch):
    """A copy of that folder to work in."""
    for path in made.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            copy = tmp_path / path.relative_to(made)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(capsys, line: str) -> str:
    """What a command that is refused says: one line."""
    capsys.readouterr()
    assert cli.main(line.split()) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("pyro-vae: ") and told.err.count("\n") == 1, told.err
    return told.err


def test_the_run_keeps_name_hash_and_options_and_no_code(work):
    for kept in (files.load(work / "run" / "best.pt"), files.load(work / "run" / "last.pt")):
        assert kept["model"] == NAME and kept["source"] == scripts.source_of(NAME)
        assert kept["options"] == {"latent_dim": 3, "spread": 1.0} and kept["facts"]["data_shape"] == [3]
    assert read_config(work / "run")["model"] == {"name": NAME, "latent_dim": 3, "spread": 1.0}
    assert not any(b"def model" in path.read_bytes() for path in (work / "run").rglob("*") if path.is_file())


def test_both_doors_train_the_same(work):
    how = {"model_options": {"latent_dim": 3}, "data_options": {"binarize": "none"}, **HOW}
    run = pv.train(NAME, "x.npy", out="mine", **how)
    other = pv.load_run("run", pair=NAME)
    assert run.config == other.config and run.model_name == other.model_name == NAME
    assert [row["loss"] for row in run.history] == [row["loss"] for row in other.history]
    assert all(torch.equal(value, other.pair.state_dict()[name]) for name, value in run.pair.state_dict().items())
    assert [r.mean for r in run.results] == [entry["nats"]["mean"] for entry in entries(work)]


def entries(work):
    return json.loads((work / "run" / "evaluation.json").read_text())


def test_help_shows_the_options_of_the_file(work, capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", NAME, "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "--latent_dim LATENT_DIM size of z. (default: 2)" in shown
    assert "--spread SPREAD of the likelihood. (default: 1.0)" in shown


VERBS = {
    "evaluate": "evaluate run --quiet",
    "importance": "evaluate run --with importance --particles 5 --limit 4 --quiet",
    "sample": "sample run -n 5 --out s.npz",
    "encode": "encode run --limit 4 --out c.npz",
    "export": "export run --limit 2 --draws 3",
    "report": "report run",
}


@pytest.mark.parametrize("line", VERBS.values(), ids=VERBS)
def test_a_verb_asks_for_the_file_and_works_with_it(line, work, ran, capsys):
    before = {path: path.read_bytes() for path in work.rglob("*") if path.is_file()}
    told = said(capsys, line)
    assert told.startswith("pyro-vae: run is the run of a pair in a file") and f"--pair {NAME}" in told
    assert ran.times == 0 and {p: p.read_bytes() for p in work.rglob("*") if p.is_file()} == before
    assert cli.main(f"{line} --pair {NAME}".split()) == 0 and ran.times == 1
    assert "changed" not in capsys.readouterr().err


def test_nothing_that_a_run_folder_says_is_run(work, ran, monkeypatch):
    """A flat list of settings, whose owners are asked for, and the record of another pair among the options."""
    (work / "run" / "config.yaml").write_text(f"model: {NAME}\nsigma: 3.0\nlatent_dim: 3\n")
    with pytest.raises(RunError, match="whose code it does not hold"):
        pv.load_run("run")
    assert read_config(work / "run") and ran.times == 0
    record = files.load(work / "run" / "best.pt")
    inner = {part: record[part] for part in ("model", "facts", "options")}
    outer = {**record, "model": "cvae", "options": {"baseline": inner}}
    outer["facts"] = {"data_shape": [3], "context_shape": [3]}
    files.save(work / "run" / "best.pt", outer)
    with pytest.raises(RunError, match="baseline is the run of a pair in a file"):
        pv.load_run("run")
    assert ran.times == 0


def test_the_python_verbs_take_the_run_that_was_read_with_its_pair(work):
    for run in (pv.load_run("run", pair=NAME), pv.load_run("run", pair=pv.load_run("run", pair=NAME).pair)):
        assert pv.encode(run, limit=4)["z_mean"].shape == (4, 3)
        assert pv.sample(run, n=2)["x"].shape[0] == 2
        assert pv.evaluate(run, limit=4, progress=False).warnings == []
    with pytest.raises(RunError, match=r"load_run\(folder, pair='my_model.py:MyPair'\)"):
        pv.evaluate("run", progress=False)


def test_a_file_that_has_changed_is_used_and_that_is_said(work, capsys):
    (work / "my_model.py").write_text(PAIR.replace("latent_dim, spread\n", "latent_dim, 2.0\n"))
    before = entries(work)[0]["nats"]["mean"]
    assert cli.main(f"evaluate run --quiet --pair {NAME}".split()) == 0
    told = capsys.readouterr().err
    assert told.startswith("pyro-vae: my_model.py has changed since run was trained (its SHA-256 was ")
    assert told.count("has changed since") == 2, "when it is read, and with the result"
    entry = next(entry for entry in entries(work) if entry["evaluator"] == "elbo")
    assert "my_model.py has changed since" in entry["warnings"][0] and entry["nats"]["mean"] != before
    with pytest.warns(Changed, match="what follows is of my_model.py:MyPair as it is now"):
        run = pv.load_run("run", pair=NAME)
    assert "has changed since" in pv.evaluate(run, limit=3, progress=False).warnings[0]
    assert "- my_model.py has changed since" in pv.report(run).read_text().partition("## Notes")[2]


def test_another_name_of_the_same_file_is_said_as_well(work):
    with pytest.warns(Changed, match="run is the run of my_model.py:MyPair; what follows is of my_model.py:Other"):
        pv.load_run("run", pair="my_model.py:Other")


def test_a_file_that_moved_is_the_same_file_and_one_whose_weights_differ_is_refused(work):
    (work / "moved").mkdir()
    for name in ("my_model.py", "helper.py"):
        (work / name).rename(work / "moved" / name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pv.load_run("run", pair="moved/my_model.py:MyPair")
    with pytest.raises(PluginError, match="cannot read my_model.py: No such file"):
        pv.load_run("run", pair=NAME)
    (work / "my_model.py").write_text(PAIR.replace("(latent_dim, self.size)", "(latent_dim, self.size, bias=False)"))
    (work / "helper.py").write_text(HELPER)
    with pytest.raises(RunError, match=r"another model than MyPair: .*\(it is of my_model.py:MyPair\)"):
        pv.load_run("run", pair=NAME)


def test_a_run_is_resumed_with_its_file(work, ran, capsys):
    assert f"train {NAME} --resume --out run" in said(capsys, "train --resume --out run --epochs 3 --quiet")
    assert ran.times == 0
    assert cli.main(f"train {NAME} --resume --out run --epochs 3 --quiet".split()) == 0
    assert "changed" not in capsys.readouterr().err
    assert len(pv.load_run("run", pair=NAME).history) == 3
    (work / "my_model.py").write_text(PAIR + "\n# another line\n")
    assert cli.main(f"train {NAME} --resume --out run --epochs 4 --quiet".split()) == 0
    assert "pyro-vae: my_model.py has changed since the run was trained" in capsys.readouterr().err
    assert files.load(work / "run" / "best.pt")["source"] == scripts.source_of(NAME)


def test_a_training_starts_from_a_run_with_its_file_alone(work, capsys):
    line = LINE.replace("--epochs 2", "--epochs 1")
    assert cli.main(f"{line} --latent_dim 3 --start run --out next".split()) == 0
    capsys.readouterr()
    told = said(capsys, "train --data x.npy --binarize none --likelihood gaussian --batch_size 20 --start run --quiet")
    assert "run is the run of another model than VAE" in told and "(it is of my_model.py:MyPair)" in told


def test_the_config_of_a_run_repeats_it(work):
    assert cli.main("train --config run/config.yaml --out again --quiet".split()) == 0
    one, two = (files.load(work / name / "best.pt")["pair"] for name in ("run", "again"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    told = yaml.safe_load((work / "again" / "config.yaml").read_text())
    assert told == yaml.safe_load((work / "run" / "config.yaml").read_text())


def test_a_function_and_a_pair_that_is_ready_are_trained_too(work):
    (work / "my_model.py").write_text(PAIR + "\n\nready = MyPair((3,))\n")
    for name in ("make", "ready"):
        run = pv.train(f"my_model.py:{name}", "x.npy", data_options={"binarize": "none"}, out=name, **HOW)
        read = pv.load_run(name, pair=f"my_model.py:{name}")
        assert all(torch.equal(v, read.pair.state_dict()[n]) for n, v in run.pair.state_dict().items())


def test_a_run_without_a_name_has_a_folder_named_after_the_class(work):
    assert cli.main(LINE.split()) == 0
    assert (work / "runs" / "MyPair-x-1" / "report.md").read_text().startswith(f"# {NAME} on ")


def test_check_takes_a_pair_in_a_file_by_both_doors(work, capsys):
    assert cli.main(f"check {NAME} --data x.npy --binarize none --latent_dim 1".split()) == 0
    told = capsys.readouterr().out.splitlines()
    options = {"model_options": {"latent_dim": 1}, "data_options": {"binarize": "none"}}
    assert [f"ok: {line}" for line in pv.check(NAME, "x.npy", **options)] == told and len(told) > 5


def test_a_pair_that_was_trained_as_an_object_is_read_with_its_file(work):
    (work / "my_model.py").write_text(f"{PAIR}\n\nready = MyPair((3,))\n")
    run = pv.train(scripts.load("my_model.py:ready")(), torch.from_numpy(np.load("x.npy")), out="notebook", **HOW)
    with pytest.raises(RunError, match="--pair my_model.py:MyPair"):
        pv.load_run("notebook")
    read = pv.load_run("notebook", pair="my_model.py:ready")
    assert all(torch.equal(v, read.pair.state_dict()[n]) for n, v in run.pair.state_dict().items())


def test_the_traceback_of_a_file_belongs_to_debug(work, capsys):
    (work / "my_model.py").write_text("import torch\n\nundefined_name\n")
    line = "pyro-vae: my_model.py raised NameError in line 3: name 'undefined_name' is not defined\n"
    assert said(capsys, LINE) == line
    with pytest.raises(PluginError) as caught:
        cli.main([*LINE.split(), "--debug"])
    assert isinstance(caught.value.__cause__, NameError)


def test_a_baseline_in_a_file_is_given_in_python(work):
    options = {"baseline": "run"}
    with pytest.raises(RunError, match="baseline run: this is the run of a pair in a file; make the model in Python"):
        pv.train("cvae", "column", model_options=options, **HOW)


def test_scales_are_refused_or_ignored_on_the_command_line(work, capsys):
    scaled = "\n\nclass Scaled(MyPair):\n" + "".join(
        f"    def {name}(self, x):\n        with pyro.poutine.scale(scale=0.1):\n            super().{name}(x)\n\n"
        for name in ("model", "guide")
    )
    (work / "my_model.py").write_text(PAIR + scaled)
    name = "my_model.py:Scaled"
    assert cli.main(f"{LINE.replace(NAME, name)} --out scaled".split()) == 0
    notes = (work / "scaled" / "report.md").read_text().partition("## Notes")[2]
    assert "a loss, not a bound: site 'z' of the model is scaled by 0.1" in notes and "elbo was not evaluated" in notes
    line = f"evaluate scaled --with importance --particles 5 --pair {name} --quiet"
    assert "--scales ignore" in said(capsys, line)
    assert cli.main(f"{line} --scales ignore".split()) == 0
    assert "scales ignored" in capsys.readouterr().err
    (entry,) = [
        e for e in json.loads((work / "scaled" / "evaluation.json").read_text()) if e["evaluator"] == "importance"
    ]
    assert entry["warnings"][0].startswith("scales ignored") and entry["kind"] == "lower bound"
    assert "known: refuse, ignore" in said(capsys, f"{line} --scales refused")
