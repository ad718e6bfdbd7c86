"""A training by names is the command's: settings, folder, results; objectives by name and as objects are one run."""

import pytest
import torch
import yaml
from pairs import bits, small_vae

import pyro_vae as pv
from pyro_vae import files
from pyro_vae.command_line import main as cli
from pyro_vae.errors import RunError, UnknownName
from pyro_vae.training import by_name

HOW = {"epochs": 1, "engine": "eager", "device": "cpu", "progress": False}


@pytest.fixture(autouse=True)
def unreported(monkeypatch):
    """No report, whose figures take most of the time."""
    monkeypatch.setattr(by_name, "write_report", lambda *_: None)


def stored(folder):
    return files.load(folder / "last.pt")


def test_three_ways_to_say_an_objective_are_one_run(tmp_path):
    line = "train vae --data digits --hidden 4 --epochs 1 --engine eager --device cpu --particles 2 --quiet"
    assert cli.main(f"{line} --objective iwae --gradient dreg --out {tmp_path / 'typed'}".split()) == 0
    how = {**HOW, "particles": 2, "model_options": {"hidden": (4,)}}
    options = {"objective": "iwae", "objective_options": {"gradient": "dreg"}}
    pv.train("vae", "digits", out=tmp_path / "named", **options, **how)
    pv.train("vae", "digits", out=tmp_path / "made", objective=pv.objectives.IWAE(gradient="dreg"), **how)
    typed, named, made = (tmp_path / name for name in ("typed", "named", "made"))
    assert typed.joinpath("config.yaml").read_text() == named.joinpath("config.yaml").read_text()
    assert named.joinpath("config.yaml").read_text() == made.joinpath("config.yaml").read_text()
    assert stored(typed)["identity"] == stored(named)["identity"] == stored(made)["identity"]
    for name, value in stored(typed)["pair"].items():
        assert torch.equal(value, stored(named)["pair"][name]) and torch.equal(value, stored(made)["pair"][name])
    assert cli.main(f"train --resume --out {made} --epochs 2 --quiet".split()) == 0
    run = pv.train("vae", "digits", out=typed, resume=True, **options, **how | {"epochs": 2})
    assert run.history[-1]["loss"] == pv.load_run(made).history[-1]["loss"] and len(run.history) == 2
    with pytest.raises(RunError, match="gradient was 'dreg' there and is 'pathwise' here"):
        pv.train("vae", "digits", out=typed, resume=True, objective=pv.objectives.IWAE(), **how | {"epochs": 3})


def test_a_run_by_names_is_evaluated_and_has_all_its_settings(tmp_path):
    run = pv.train("vae", "digits", data_options={"binarize": "static"}, out=tmp_path / "run", **HOW)
    assert [result.evaluator for result in run.results] == ["elbo", "reconstruction"]
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config == run.config and config["data"] == {"name": "digits", "binarize": "static", "scale": "unit"}
    assert config["training"]["epochs"] == 1 and config["training"]["seed"] == 0
    read = pv.load_run(tmp_path / "run")
    assert torch.equal(read.data.train["x"], run.data.train["x"])


def test_without_a_folder_nothing_is_written_or_evaluated(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = pv.train("blog", "digits", model_options={"hidden": [4]}, **HOW)
    assert run.results == [] and not list(tmp_path.iterdir()) and run.config["model"]["name"] == "blog"


def test_a_pair_of_ones_own_takes_named_data_and_a_named_model_takes_data_of_ones_own():
    run = pv.train(pv.VAE((1, 8, 8), hidden=(4,)), "digits", data_options={"binarize": "static"}, **HOW)
    assert run.data.name == "digits" and run.config == {}
    run = pv.train("vae", bits(40), batch_size=10, model_options={"hidden": (4,), "prior": "mixture"}, **HOW)
    assert run.config["model"]["prior_components"] == 10 and "data" not in run.config


def test_the_seed_fixes_the_weights_and_the_split():
    one, two, other = (
        pv.train("vae", "digits", model_options={"hidden": (4,)}, seed=seed, **HOW).pair.decoder.out.weight
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_what_an_object_cannot_tell_is_recorded_by_its_name(tmp_path):
    how = {"optimizer": torch.optim.SGD, "schedule": "StepLR", "schedule_options": {"step_size": 1}} | HOW
    with pytest.raises(TypeError):
        pv.train("vae", "digits", **how | {"optimizer": lambda parameters: torch.optim.SGD()})
    how["optimizer"] = lambda parameters: torch.optim.SGD(parameters, 0.01)
    run = pv.train("vae", "digits", model_options={"hidden": (4,)}, **how)
    assert run.config["training"]["optimizer"] == "<lambda>"
    assert run.config["training"]["schedule_options"] == {"step_size": 1, "gamma": 0.1}


MISTAKES = {
    "model": (("vea", "digits"), {}, UnknownName, "unknown model 'vea'; known: vae, "),
    "data": (("vae", "digit"), {}, UnknownName, "unknown dataset 'digit'; known: digits, "),
    "option": (("vae", "digits"), {"model_options": {"hiden": (4,)}}, UnknownName, "option of model 'vae' 'hiden'"),
    "data option": (("vae", "digits"), {"data_options": {"binarise": "static"}}, UnknownName, "known: binarize, "),
    "objective option": (
        ("vae", "digits"),
        {"objective": "iwae", "objective_options": {"gradients": "dreg"}},
        UnknownName,
        "option of objective 'iwae' 'gradients'; known: gradient",
    ),
    "part": (
        ("vae", "digits"),
        {"model_options": {"components": 3}},
        RunError,
        "prior_components needs prior mixture or",
    ),
    "object": (("vae", "digits"), {"model_options": {"prior": object()}}, RunError, "build the pair"),
    "options of an object": (
        ("vae", "digits"),
        {"objective": pv.objectives.IWAE(), "objective_options": {"gradient": "dreg"}},
        RunError,
        "objective_options go with the name of an objective",
    ),
    "model options of a pair": (
        (small_vae(), bits(40)),
        {"model_options": {"hidden": [3]}},
        RunError,
        "model_options go",
    ),
    "data options of data": ((small_vae(), bits(40)), {"data_options": {"scale": "raw"}}, RunError, "data_options go"),
}


@pytest.mark.parametrize("what, options, error, words", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_writes_nothing(what, options, error, words, tmp_path):
    with pytest.raises(error, match=words):
        pv.train(*what, out=tmp_path / "run", **options, **HOW)
    assert not list(tmp_path.iterdir())
