"""What a run can be asked for: one function in Python, one command, the same options and results."""

import builtins
import inspect
import json
import re

import numpy as np
import pytest
import torch
import yaml

import pyro_vae as pv
from pyro_vae import plugins
from pyro_vae.command_line import main as cli
from pyro_vae.command_line.options import options_of
from pyro_vae.data import load_data
from pyro_vae.errors import ContractError, UnknownName

VERBS = ["sample", "reconstruct", "encode", "impute", "export", "report"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "digits"
    line = f"train --data digits --hidden 4 --epochs 1 --engine eager --device cpu --quiet --out {folder}"
    assert cli.main(line.split()) == 0
    return folder


@pytest.mark.parametrize("verb", VERBS)
def test_a_command_has_the_options_and_defaults_of_its_function(verb, capsys):
    with pytest.raises(SystemExit):
        cli.main([verb, "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    options = options_of(getattr(pv, verb), ["run"])
    assert {option.name for option in options} == inspect.signature(getattr(pv, verb)).parameters.keys() - {"run"}
    for option in options:
        assert f"-{option.name} {option.name.upper()}" in shown
        if option.default is not None and option.name != "out":
            assert f"(default: {option.default})" in shown


def test_both_doors_give_the_same(folder, tmp_path):
    run = pv.load_run(folder)
    values = pv.sample(run, n=5, seed=3)
    assert cli.main(f"sample {folder} -n 5 --seed 3 --out {tmp_path / 's.npz'}".split()) == 0
    for name, value in np.load(tmp_path / "s.npz").items():
        assert np.array_equal(value, values[name].numpy())
    codes = pv.encode(folder, split="valid", limit=7)
    assert cli.main(f"encode {folder} --split valid --limit 7 --out {tmp_path / 'c.npz'}".split()) == 0
    stored = np.load(tmp_path / "c.npz")
    assert set(stored) == set(codes) == {"z_mean", "z_scale", "label"} and len(stored["label"]) == 7
    assert all(np.array_equal(stored[name], codes[name].numpy()) for name in codes)
    pv.reconstruct(run, n=4, split="train", out=tmp_path / "r.png", device="cpu")
    assert cli.main(f"reconstruct {folder} -n 4 --split train --out {tmp_path / 'q.png'}".split()) == 0
    assert (tmp_path / "r.png").read_bytes() == (tmp_path / "q.png").read_bytes()
    assert pv.report(run) == folder / "report.md"
    exported = pv.export(run, draws=3, limit=4, seed=1)
    assert exported.posterior["z"].shape == (1, 3, 4, 2)


TRAIN = {"epochs": 1, "engine": "eager", "device": "cpu"}
NOT_TYPED = {"valid", "fields", "on_epoch", "record", "pair", "progress"}
"""Parameters of `pv.train` that are objects, the first word, or `--quiet`."""


def test_train_has_the_options_and_defaults_of_its_command(capsys):
    with pytest.raises(SystemExit):
        cli.main("train vae --data digits --help".split())
    shown = " ".join(capsys.readouterr().out.split())
    parameters = inspect.signature(pv.train).parameters
    flags = set(re.findall(r"--(\w+)", shown.partition("positional arguments:")[2]))
    grouped = {name for name in parameters if name.endswith("_options")}
    assert parameters.keys() - grouped - NOT_TYPED <= flags, "each has a flag of its own"
    options = {option.name: option for option in options_of(pv.train)}
    for name in flags & options.keys():
        if options[name].default not in (None, (), "", False) and name not in ("data", "objective"):
            assert f"--{name} {name.upper()}" in shown
            default = re.search(rf"--{name} {name.upper()} .*?\(default: (.*?)\)", shown)
            assert default and default[1] == str(options[name].default), name
    owners = (plugins.load("model", "vae"), load_data, torch.optim.Adam)
    known = {option.name for owner in owners for option in options_of(owner)}
    assert flags - parameters.keys() - {"help", "config", "print_config", "quiet"} <= known


def test_train_does_the_same_by_both_doors(folder, tmp_path):
    run = pv.train("vae", "digits", model_options={"hidden": (4,)}, out=tmp_path / "run", progress=False, **TRAIN)
    other = pv.load_run(folder)
    assert run.config == other.config and (tmp_path / "run" / "report.md").exists()
    assert all(torch.equal(value, other.pair.state_dict()[name]) for name, value in run.pair.state_dict().items())
    figures = [json.loads((f / "evaluation.json").read_text()) for f in (tmp_path / "run", folder)]
    for entries in figures:
        for entry in entries:
            entry.pop("seconds")
    mine, theirs = figures
    assert mine == theirs[: len(mine)] and {path.name for path in folder.iterdir()} == {
        path.name for path in (tmp_path / "run").iterdir()
    }


@pytest.mark.parametrize("data", [None, "digits", "x.npy"])
def test_both_doors_have_equal_defaults(data, tmp_path, monkeypatch, capsys, graphs):
    """All settings of a training of which nothing is said but the data, or not even they."""
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", (np.random.default_rng(0).random((200, 4)) > 0.5).astype("f4"))
    assert cli.main(["train", *(["--data", data] if data else []), "--print_config"]) == 0
    told = yaml.safe_load(capsys.readouterr().out)
    given = {"data": data} if data else {}
    run = pv.train(**given, on_epoch=lambda row: True, progress=False)
    assert run.config == told and told["training"]["epochs"] == (100 if data == "x.npy" else 600)


def test_check_says_the_same_by_both_doors(capsys):
    assert cli.main("check burda --data digits --hidden 4 --latent_dim 2 --binarize static --seed 1".split()) == 0
    told = capsys.readouterr().out.splitlines()
    options = {"model_options": {"hidden": [4], "latent_dim": 2}, "data_options": {"binarize": "static"}}
    state = torch.get_rng_state()
    assert [f"ok: {line}" for line in pv.check("burda", "digits", 1, **options)] == told and len(told) > 5
    assert torch.equal(torch.get_rng_state(), state)


def test_check_has_the_defaults_of_its_command(capsys):
    with pytest.raises(SystemExit):
        cli.main(["check", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    defaults = {name: p.default for name, p in inspect.signature(pv.check).parameters.items()}
    assert (
        f"(default: {defaults['pair']})" in shown
        and defaults["data"] is inspect.signature(pv.train).parameters["data"].default
    )
    assert re.search(r"--seed SEED [^-]*\(default: 0\)", shown) and defaults["seed"] == 0


def test_a_pair_of_ones_own_is_checked_on_data_of_ones_own(capsys):
    x = torch.rand(20, 1, 8, 8).round()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, torch.arange(20)), batch_size=8)
    pair = pv.VAE((1, 8, 8), hidden=(4,))
    said = pv.check(pair, x)
    assert said == pv.check(pair, loader, fields=("x", "label")) == pv.check("vae", x) == pv.check()
    with pytest.raises(ContractError, match="Bernoulli likelihood needs 0 or 1"):
        pv.check(pair, torch.rand(20, 1, 8, 8))


def test_list_says_the_same_by_both_doors(capsys):
    assert cli.main(["list"]) == 0
    told = capsys.readouterr().out
    lines = [
        f"{kind}:\n" + "".join(f"  {n:<24} {line}\n" for n, line in found.items()) for kind, found in pv.list().items()
    ]
    assert told == "".join(lines)
    assert cli.main(["list", "objectives"]) == 0
    assert capsys.readouterr().out in told and list(pv.list("objectives")) == ["objectives"]
    with pytest.raises(UnknownName, match="unknown kind of plugin 'objective'; known: objectives"):
        pv.list("objective")


def test_what_list_reads_from_the_source_is_what_is_imported():
    for kind in plugins.GROUPS:
        for name, line in pv.list(f"{kind}s")[f"{kind}s"].items():
            assert line == plugins.load(kind, name).__doc__.strip().split("\n")[0] and not line.startswith("BROKEN")


def test_no_public_name_hides_a_builtin():
    assert not set(pv.__all__) & set(dir(builtins)) and "list" in dir(pv)


def test_what_is_registered_is_reached_from_the_package():
    assert pv.models.CVAE.__name__ == "CVAE" and pv.models.burda is plugins.load("model", "burda")
    assert pv.objectives.IWAE is plugins.load("objective", "iwae")
    assert pv.evaluators.Importance is plugins.load("evaluator", "importance")
    assert issubclass(pv.evaluators.ELBO, pv.evaluators.Evaluator) and "VAE" in dir(pv.models)


def test_a_run_is_evaluated_on_its_own_data_or_on_others(folder):
    own = pv.evaluate(folder, evaluator="importance", particles=5, limit=20, progress=False)
    again = pv.evaluate(pv.load_run(folder), "digits", "importance", 5, 20, progress=False)
    assert torch.equal(own.log_likelihood, again.log_likelihood) and own.model == "vae" and own.data == "digits"
    assert own.entry()["evaluator"] in (folder / "evaluation.json").read_text()
    other = pv.evaluate(folder, torch.rand(6, 1, 8, 8).round(), progress=False)
    assert other.n == 6
