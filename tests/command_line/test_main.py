"""The command line, in process: what each command writes and prints, and what bad input gets."""

import csv
import errno
import json
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from matplotlib.image import imread

import pyro_vae as pv
from pyro_vae import files, plugins
from pyro_vae.command_line import main as cli
from pyro_vae.errors import UserError
from pyro_vae.evaluation.elbo import ELBO
from pyro_vae.training import by_name, loop

TRAIN = "train --hidden 16 --quiet"
RUN_FILES = {"config.yaml", "metrics.csv", "last.pt", "best.pt", "evaluation.json", "report.md", "figures"}


class Outcome:
    """Exit status, stdout and stderr of a command."""

    def __init__(self, capsys, line: str, **where):
        capsys.readouterr()
        try:
            self.status = cli.main(line.format(**where).split())
        except SystemExit as stop:
            self.status = stop.code
        self.out, self.err = capsys.readouterr()


@pytest.fixture
def pyro_vae(capsys, tmp_path, monkeypatch):
    """Runs a command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda line, **where: Outcome(capsys, line, **where)


@pytest.fixture
def unreported(pyro_vae, monkeypatch):
    """Runs a command that writes no report, whose figures take most of the time of a short training."""
    monkeypatch.setattr(by_name, "write_report", lambda *_: None)
    return pyro_vae


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The folder of a run of two epochs on digits; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    assert cli.main(f"{TRAIN} --epochs 2 --out {folder}".split()) == 0
    return folder


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of that run, to be written to."""
    folder = tmp_path / "run"
    subprocess.run(["cp", "-r", trained, folder], check=True)
    return folder


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return files.load(folder / "best.pt")["pair"]


def metrics(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def same_weights(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# --- help, and what it costs --------------------------------------------------------------------------------


def test_help_imports_nothing_that_takes_time():
    """In a process of its own: importing the package and printing the help need neither torch nor NumPy."""
    script = """
import sys
import pyro_vae
from pyro_vae.command_line import main as cli
assert cli.main(["--help"]) == 0 and cli.main(["--version"]) == 0
heavy = {"torch", "pyro", "numpy", "matplotlib", "yaml", "sklearn", "lightning_fabric", "arviz"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: pyro-vae COMMAND") and pv.__version__ in done.stdout


def test_what_the_readme_names_is_there_once_the_package_is_imported():
    """In one process, because an import takes seconds; `data` alone does not bring `testing`."""
    script = """
import sys
import pyro_vae
pyro_vae.data.Dataset
assert "pyro_vae.testing" not in sys.modules
pyro_vae.testing.check_pair
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_explains_itself(command, pyro_vae):
    told = pyro_vae(f"{command} --help")
    assert told.status == 0 and told.out.startswith(f"usage: pyro-vae {command}") and told.err == ""
    assert f"  {command}" in cli.USAGE


def test_the_help_of_training_lists_the_options_of_the_model(pyro_vae):
    told = " ".join(pyro_vae("train --help").out.split())
    for words in ("--latent_dim", "--likelihood", "size of z. (default: 2)", "--kl_warmup", "(default: dynamic)"):
        assert words in told
    assert "--prior" not in pyro_vae("train blog --help").out
    assert "--gradient" in pyro_vae("train --objective iwae --help").out


def test_no_command_is_help(pyro_vae):
    assert pyro_vae("").out == cli.USAGE + "\n"


# --- train --------------------------------------------------------------------------------------------------


def test_a_run_folder_holds_what_the_design_promises(trained):
    assert {path.name for path in trained.iterdir()} == RUN_FILES
    assert [row["epoch"] for row in metrics(trained)] == ["1", "2"]
    entries = json.loads((trained / "evaluation.json").read_text())
    assert [entry["evaluator"] for entry in entries] == ["elbo", "reconstruction"]
    assert entries[0]["model"] == "vae" and entries[0]["data"] == "digits" and entries[0]["split"] == "test"
    assert entries[0]["n"] == 250 and -30 < entries[0]["nats"]["mean"] < -20 and entries[0]["bits_per_dim"] > 0
    report = (trained / "report.md").read_text()
    for name in ("loss", "reconstructions", "samples", "manifold", "posterior_means"):
        assert imread(trained / "figures" / f"{name}.png").ndim == 3 and f"figures/{name}.png" in report
    settings = yaml.safe_load((trained / "config.yaml").read_text())
    assert list(settings) == ["model", "data", "objective", "training"]
    assert settings["data"] == {"name": "digits", "binarize": "dynamic", "scale": "unit"}
    assert settings["model"]["name"] == "vae" and settings["model"]["hidden"] == [16]
    assert settings["training"]["epochs"] == 2


def test_training_ends_by_naming_its_elbo_and_its_report(pyro_vae, tmp_path):
    """And says nothing on stdout, which is for programs."""
    done = pyro_vae("train blog --epochs 1 --hidden 8")
    assert done.status == 0 and done.out == ""
    assert "loss=" in done.err and "elbo" in done.err and "±" in done.err
    assert done.err.endswith(f"report: {Path('runs', 'blog-digits-1', 'report.md')}\n")
    assert (tmp_path / "runs" / "blog-digits-1" / "report.md").exists()


def test_the_config_of_a_run_repeats_it(trained, unreported, tmp_path):
    assert unreported("train --quiet --config {run}/config.yaml --out again", run=trained).status == 0
    assert same_weights(trained, tmp_path / "again") and metrics(trained) == metrics(tmp_path / "again")
    assert (trained / "config.yaml").read_text() == (tmp_path / "again" / "config.yaml").read_text()


def test_a_printed_config_is_that_of_the_run_and_options_go_before_it(trained, pyro_vae, tmp_path):
    printed = pyro_vae(f"{TRAIN} --epochs 2 --print_config")
    assert printed.out == (trained / "config.yaml").read_text() and not list(tmp_path.iterdir())
    changed = pyro_vae("train --config {run}/config.yaml --lr 0.5 --print_config", run=trained)
    settings = yaml.safe_load(printed.out)
    assert yaml.safe_load(changed.out) == settings | {"training": settings["training"] | {"lr": 0.5}}


def test_a_config_stands_in_for_an_option_without_default(unreported, tmp_path):
    bits = np.random.default_rng(0).integers(0, 2, (30, 784), dtype=np.uint8)
    np.savez(tmp_path / "fixed.npz", train=bits, valid=bits, test=bits)
    options = "--data static_mnist --binarize none --file fixed.npz --batch_size 16 --epochs 1"
    assert unreported(f"{TRAIN} {options} --out one").status == 0
    assert unreported("train --quiet --config one/config.yaml --out two").status == 0
    assert unreported("train --quiet --resume --out one --epochs 2").status == 0
    assert len(pv.load_run("one").history) == 2


def test_training_is_resumed_to_the_same_end(trained, unreported, tmp_path):
    assert unreported(f"{TRAIN} --epochs 1 --out cut").status == 0
    assert not same_weights(trained, tmp_path / "cut")
    assert unreported("train --quiet --resume --out cut --epochs 2").status == 0
    assert same_weights(trained, tmp_path / "cut") and metrics(trained) == metrics(tmp_path / "cut")


def test_a_file_that_moved_is_resumed_on_and_one_of_other_rows_is_not(unreported, tmp_path):
    bits = np.random.default_rng(0).integers(0, 2, (60, 5), dtype=np.uint8)
    for folder, rows in ((".", bits), ("moved", bits), ("changed", 1 - bits)):
        (tmp_path / folder).mkdir(exist_ok=True)
        np.save(tmp_path / folder / "bits.npy", rows)
    assert unreported(f"{TRAIN} --data bits.npy --batch_size 16 --epochs 1 --out run").status == 0
    check_refused(
        unreported("train --quiet --data changed/bits.npy --resume --epochs 2 --out run"), "training x was '48 of"
    )
    assert unreported("train --quiet --data moved/bits.npy --resume --epochs 2 --out run").status == 0
    assert len(metrics(tmp_path / "run")) == 2


def test_ctrl_c_says_how_to_go_on(trained, unreported, tmp_path, monkeypatch):
    run_epoch = loop.Trainer._run_epoch

    def interrupted(self, bar, start):
        if self.epoch == 1:
            raise KeyboardInterrupt
        return run_epoch(self, bar, start)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "_run_epoch", interrupted)
        stopped = unreported(f"{TRAIN} --epochs 2 --out cut")
    how = "continue it with: pyro-vae train --resume --out cut"
    assert stopped.status == 130 and stopped.err == f"pyro-vae: interrupted; {how}\n"
    assert unreported("train --quiet --resume --out cut").status == 0
    assert same_weights(trained, tmp_path / "cut")


def test_overwriting_starts_anew(run, pyro_vae):
    (run / "figures" / "mine.png").write_bytes(b"")
    assert pyro_vae("train blog --hidden 8 --latent_dim 3 --epochs 1 --quiet --overwrite --out run").status == 0
    assert len(metrics(run)) == 1 and (run / "figures" / "mine.png").exists(), "no report named it"
    assert not (run / "figures" / "manifold.png").exists(), "the plane of a two-dimensional z that is no more"
    assert {entry["model"] for entry in json.loads((run / "evaluation.json").read_text())} == {"blog"}


def test_a_file_of_the_users_own_is_trained_on(pyro_vae, tmp_path):
    counts = np.random.default_rng(0).poisson(3.0, size=(60, 5)).astype(np.int32)
    np.save(tmp_path / "my counts.npy", counts)
    os.rename(tmp_path / "my counts.npy", tmp_path / "counts.npy")
    line = "train --data counts.npy --binarize none --likelihood poisson --epochs 1 --batch_size 20 --quiet"
    assert pyro_vae(line).status == 0
    folder = tmp_path / "runs" / "vae-counts-1"
    assert json.loads((folder / "evaluation.json").read_text())[0]["n"] == 6
    np.save(tmp_path / "other.npy", counts[:40])
    assert pyro_vae("encode runs/vae-counts-1 --data other.npy --split train --out codes.npz").status == 0
    assert np.load(tmp_path / "codes.npz")["z_mean"].shape == (32, 2)


# --- the commands on a run ----------------------------------------------------------------------------------


def test_json_on_stdout_is_json_and_nothing_else(run, pyro_vae):
    done = pyro_vae("evaluate run --with elbo,reconstruction --particles 3 --limit 40 --json -")
    assert done.status == 0
    entries = json.loads(done.out)
    assert [(e["evaluator"], e["n"], e["particles"]) for e in entries] == [("elbo", 40, 3), ("reconstruction", 40, 3)]
    assert entries[0]["nats"]["mean"] == pytest.approx(-entries[0]["rate"]["mean"] - entries[0]["distortion"]["mean"])
    assert "evaluator" in done.err and "±" in done.err
    of_each = [entry.pop("per_datum") for entry in entries]
    assert sum(of_each[0]["elbo"]) / 40 == pytest.approx(entries[0]["nats"]["mean"])
    assert {name: len(values) for name, values in of_each[1].items()} == {"reconstruction_nll": 40, "squared_error": 40}
    stored = json.loads((run / "evaluation.json").read_text())
    assert len(stored) == 4 and stored[2:] == entries


def test_an_evaluation_replaces_that_with_the_same_settings(run, pyro_vae):
    for seed in (1, 2):
        done = pyro_vae(f"evaluate run --limit 30 --seed {seed} --quiet --json figures.json")
        assert done.status == 0 and done.out == ""
    stored = json.loads((run / "evaluation.json").read_text())
    (written,) = json.loads((run.parent / "figures.json").read_text())
    assert len(stored) == 3 and stored[2] | {"per_datum": written["per_datum"]} == written
    assert pyro_vae("evaluate run --split valid --limit 30 --quiet").status == 0
    assert len(json.loads((run / "evaluation.json").read_text())) == 4


def test_evaluation_by_command_is_that_by_function(trained, run, pyro_vae):
    by_command = json.loads(pyro_vae("evaluate run --particles 4 --quiet --json -").out)[0]
    data = pv.load_data("digits", binarize="dynamic")
    by_function = pv.evaluate(pv.load_run(trained).pair, data, particles=4, progress=False)
    assert by_command["nats"]["mean"] == by_function.mean


def test_evaluators_keep_their_own_defaults_and_share_what_is_given(run, pyro_vae, monkeypatch):
    made = {}

    def evaluator(name, default):
        def make(steps: int = default):
            made[name] = steps
            return ELBO()

        return make

    evaluators = {"first": evaluator("first", 1), "second": evaluator("second", 2)}
    load = plugins.load
    monkeypatch.setattr(plugins, "load", lambda kind, name: evaluators.get(name) or load(kind, name))
    for options, values in (("", (1, 2)), ("--steps 5", (5, 5))):
        assert pyro_vae(f"evaluate run --with first,second --limit 20 --quiet {options}").status == 0
        assert made == dict(zip(evaluators, values, strict=True))


def test_samples_are_a_picture_or_arrays(trained, pyro_vae, tmp_path):
    for out in ("a.npz", "b.npz"):
        assert pyro_vae("sample {run} -n 5 --seed 3 --out " + out, run=trained).status == 0
    first, again = (np.load(tmp_path / name) for name in ("a.npz", "b.npz"))
    assert first["x"].shape == (5, 1, 8, 8) and set(np.unique(first["x"])) == {0.0, 1.0}
    assert first["z"].shape == (5, 2) and (first["x"] == again["x"]).all()
    done = pyro_vae("sample {run} -n 4 --out deep/samples.png", run=trained)
    assert done.status == 0 and done.err == f"wrote {Path('deep', 'samples.png')}\n" and done.out == ""
    assert imread(tmp_path / "deep" / "samples.png").ndim == 3


def test_reconstructions_are_a_picture(trained, pyro_vae, tmp_path):
    assert pyro_vae("reconstruct {run} -n 3", run=trained).status == 0
    assert imread(tmp_path / "reconstructions.png").ndim == 3


def test_codes_are_the_guides_mean_and_scale_with_the_labels(trained, pyro_vae, tmp_path):
    assert pyro_vae("encode {run}", run=trained).status == 0
    codes = np.load(tmp_path / "codes.npz")
    data, pair = pv.load_data("digits", binarize="dynamic"), pv.load_run(trained).pair
    with torch.no_grad():
        posterior = pair.posterior(pair.encoder(data.test["x"]))
    assert np.allclose(codes["z_mean"], posterior.mean, atol=1e-5)
    assert np.allclose(codes["z_scale"], posterior.stddev, atol=1e-5)
    assert (codes["label"] == data.test["label"].numpy()).all()


def test_a_report_is_written_again(run, pyro_vae):
    (run / "report.md").unlink()
    (run / "figures" / "loss.png").unlink()
    done = pyro_vae("report run")
    assert done.status == 0 and done.err == f"report: {Path('run', 'report.md')}\n"
    assert (run / "report.md").exists() and (run / "figures" / "loss.png").exists()


def test_a_list_names_what_is_installed(pyro_vae):
    everything = pyro_vae("list")
    assert everything.status == 0 and everything.err == ""
    for words in ("models:", "datasets:", "objectives:", "evaluators:", "  digits ", "  trace_mean_field_elbo "):
        assert words in everything.out
    models = pyro_vae("list models").out
    assert models.startswith("models:\n") and "digits" not in models and "784-256-64-32-2z" in models


# --- old names ----------------------------------------------------------------------------------------------


def test_an_old_name_goes_on_working_with_a_line_that_gives_the_new_one(pyro_vae):
    done = pyro_vae("train iwae --schedule iwae --print_config")
    assert done.status == 0 and done.out == pyro_vae("train burda --schedule burda_steps --print_config").out
    assert done.err.splitlines() == [
        "pyro-vae: the model 'iwae' is now called 'burda'",
        "pyro-vae: the schedule 'iwae' is now called 'burda_steps'",
    ]
    assert "burda" in pyro_vae("list models").out and "iwae" not in pyro_vae("list models").out


def with_old_names(value):
    """What a run folder holds, as it was written when the net and the schedule were called `iwae`."""
    if isinstance(value, dict):
        return {name: with_old_names(inner) for name, inner in value.items()}
    return "iwae" if value in ("burda", "burda_steps") else value


def test_a_run_that_is_stored_under_old_names_is_used_silently(pyro_vae):
    assert pyro_vae("train burda --schedule burda_steps --hidden 16 --quiet --epochs 1 --out old").status == 0
    folder = Path("old")
    for name in ("last.pt", "best.pt"):
        torch.save(with_old_names(torch.load(folder / name, weights_only=True)), folder / name)
    config = with_old_names(yaml.safe_load((folder / "config.yaml").read_text()))
    assert (
        config["model"]["name"] == config["training"]["schedule"] == files.load(folder / "best.pt")["model"] == "iwae"
    )
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    for command in ("evaluate old --quiet", "report old", "train --resume --out old --epochs 2 --quiet"):
        done = pyro_vae(command)
        assert done.status == 0 and "iwae" not in done.err
    assert len(pv.load_run("old").history) == 2


# --- bad input: exit status 2, one line, nothing written ----------------------------------------------------


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random((100, *shape), dtype=np.float32)


def with_value(value: float) -> np.ndarray:
    x = floats(2, 3)
    x[7, 1, 2] = value
    return x


@pytest.fixture
def wrong_files(tmp_path) -> Path:
    """Files of every kind of wrong, in the folder that commands run in."""
    integers = np.random.default_rng(0).integers
    np.save(tmp_path / "grey.npy", floats(1, 4, 4))
    np.save(tmp_path / "nan.npy", with_value(np.nan))
    np.savez(tmp_path / "inf.npz", x=with_value(-np.inf))
    np.save(tmp_path / "row.npy", np.arange(10.0))
    np.save(tmp_path / "norows.npy", np.zeros((0, 4)))
    np.save(tmp_path / "words.npy", np.array([["a", "b"]] * 50))
    np.save(tmp_path / "objects.npy", np.array([{}] * 50), allow_pickle=True)
    np.save(tmp_path / "levels.npy", integers(0, 300, (100, 4)))
    np.save(tmp_path / "signed.npy", integers(-2, 5, (100, 4)))
    np.save(tmp_path / "few.npy", integers(0, 2, (30, 4)))
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "text.npy").write_text("1 2 3")
    (tmp_path / "table.txt").write_text("1,2,3")
    (tmp_path / "table.csv").write_text("a,label\n1,2\n3,\n")
    (tmp_path / "words.csv").write_text("a,b\n1,two\n3,4\n")
    (tmp_path / "images").mkdir()
    (tmp_path / "list.yaml").write_text("- 1\n")
    (tmp_path / "broken.yaml").write_text("lr: [")
    (tmp_path / "strange.yaml").write_text("latent_dims: 3\n")
    (tmp_path / "wordy.yaml").write_text("lr: fast\n")
    (tmp_path / "other.yaml").write_text("hidden: [8]\n")
    return tmp_path


def test_optimizer_and_schedule_bring_their_own_options(pyro_vae, tmp_path, monkeypatch, unreported):
    monkeypatch.chdir(tmp_path)
    line = "train --data digits --hidden 4 --epochs 2 --quiet --out run --optimizer adamw --weight_decay 0.25"
    assert pyro_vae(f"{line} --schedule StepLR --step_size 1 --gamma 0.5").status == 0
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["training"]["optimizer_options"]["weight_decay"] == 0.25
    assert config["training"]["schedule_options"] == {"step_size": 1, "gamma": 0.5}
    assert pyro_vae("train --resume --out run --epochs 3 --quiet").status == 0
    history = pv.load_run(tmp_path / "run").history
    assert [row["lr"] for row in history] == pytest.approx([1e-3, 5e-4, 2.5e-4])
    check_refused(pyro_vae("train --momentum 0.9 --out new"), "unknown option '--momentum'")


MISTAKES = {
    "unknown_command": ("trian", "unknown command 'trian'; known: train, "),
    "unknown_model": ("train blgo --out new", "unknown model 'blgo'; known: blog, "),
    "unknown_dataset": ("train --data digit --out new", "unknown dataset 'digit'; known: digits, "),
    "unknown_objective": (
        "train --objective trace_elb --out new",
        "'trace_elb'; known: trace_elbo, ",
    ),
    "unknown_option": ("train --latent_dims 3 --out new", "unknown option '--latent_dims'; known: --latent_dim, "),
    "option_of_another_model": ("train blog --prior mixture --out new", "unknown option '--prior'"),
    "unknown_evaluator": ("evaluate {run} --with elbow", "unknown evaluator 'elbow'; known: elbo, "),
    "unknown_likelihood": (
        "train --likelihood bernouli --out new",
        "'bernouli'; known: bernoulli, ",
    ),
    "unknown_prior": ("train --prior mixtur --out new", "unknown prior 'mixtur'; known: mixture, "),
    "unknown_activation": ("train --activation reul --out new", "unknown activation 'reul'; known: relu"),
    "unknown_schedule": ("train --schedule cosin --out new", "unknown schedule 'cosin'; known: cosine, "),
    "unknown_binarization": (
        "train --binarize dynamically --out new",
        "'dynamically'; known: dynamic",
    ),
    "unknown_engine": ("train --engine compile --out new", "unknown engine 'compile'; known: compiled, "),
    "unknown_kind": ("list model", "unknown kind of plugin 'model'; known: models, "),
    "stray_word": ("train vae blog --out new", "unrecognized arguments: blog"),
    "model_last": ("train --epochs 1 blog --out new", "the model comes before the options: pyro-vae train blog"),
    "no_value": ("train --data", "argument --data: expected one argument"),
    "no_value_of_an_evaluator": ("evaluate {run} --with", "argument --with: expected one argument"),
    "wrong_type": ("train --epochs many --out new", "--epochs needs a whole number, not 'many'"),
    "wrong_list": ("train --hidden 8,wide --out new", "--hidden needs comma-separated values"),
    "missing_file": ("train --data nothing.npy --out new", "nothing.npy: no such file"),
    "empty_file": ("train --data empty.npy --out new", "empty.npy: cannot be read"),
    "no_array": ("train --data text.npy --out new", "text.npy: cannot be read"),
    "objects": ("train --data objects.npy --out new", "objects.npy: "),
    "words": ("train --data words.npy --out new", "words.npy: x holds elements of type"),
    "table": ("train --data ./table.txt --out new", "table.txt: is not a folder of images"),
    "missing_label": ("train --data ./table.csv --out new", "table.csv: row 1, column 'label' is missing"),
    "text_cell": ("train --data ./words.csv --out new", "words.csv: row 0, column 'b' holds 'two'"),
    "empty_folder": ("train --data ./images --out new", "images: "),
    "no_rows": ("train --data norows.npy --out new", "norows.npy: "),
    "flat_array": ("train --data row.npy --out new", "row.npy: x has shape [10]; it must be [n, ...]"),
    "nan": ("train --data nan.npy --out new", "nan.npy: x[7, 1, 2] is nan"),
    "infinity": ("train --data inf.npz --out new", "inf.npz: x[7, 1, 2] is -inf"),
    "grey": ("train --data grey.npy --binarize none --out new --batch_size 9", "binarize='dynamic'"),
    "grey_again": ("train --data grey.npy --binarize none --out new --batch_size 9", "continuous_bernoulli"),
    "above_255": (
        "train --data levels.npy --scale raw --binarize none --likelihood categorical --batch_size 9 --out new",
        "whole levels 0..255",
    ),
    "above_255_logistic": (
        "train --data levels.npy --scale raw --binarize none --likelihood discretized_logistic --batch_size 9",
        "whole levels 0..255",
    ),
    "negative_counts": (
        "train --data signed.npy --binarize none --likelihood poisson --batch_size 9 --out new",
        "this likelihood needs counts",
    ),
    "fractional_counts": (
        "train --data grey.npy --binarize none --likelihood negative_binomial --batch_size 9 --out new",
        "this likelihood needs counts 0, 1, 2, ...",
    ),
    "option_of_another_optimizer": ("train --optimizer adam --momentum 0.9 --out new", "unknown option '--momentum'"),
    "unknown_optimizer": ("train --optimizer adm --out new", "unknown optimizer 'adm'; known: adam, "),
    "unknown_column_to_monitor": ("train --monitor elbo --out new", "unknown column to monitor 'elbo'; known: "),
    "free_bits_of_another_objective": ("train --free_bits 1 --objective iwae --out new", "takes no free bits"),
    "binarizing_counts": ("train --data signed.npy --out new", "binarizing needs values in [0, 1]"),
    "large_batch": ("train --data few.npy --out new", "batch_size is 128 but there are 24 training data"),
    "flat_latent": ("train --latent_dim 0 --out new", "latent_dim must be at least 1, not 0"),
    "no_width": ("train --hidden 8,0 --out new", "hidden must be at least 1, not 0"),
    "no_epoch": ("train --epochs 0 --out new", "epochs must be positive, not 0"),
    "no_particle": ("train --particles 0 --out new", "particles must be positive, not 0"),
    "one_particle": ("train --objective iwae --gradient vimco --out new", "at least 2 particles"),
    "bad_net": ("train --net conv --hidden 8 --data few.npy --batch_size 9 --out new", "use net='mlp'"),
    "unknown_device": ("train --device abacus --out new", "abacus"),
    "existing_run": ("train --out {run}", "--resume, replace it with --overwrite"),
    "overwriting_with_a_mistake": ("train --overwrite --engine warp --out {run}", "unknown engine"),
    "overwriting_with_a_clash": (
        "train --overwrite --objective iwae --gradient vimco --out {run}",
        "2 particles",
    ),
    "file_for_a_folder": ("train --out grey.npy", "grey.npy is a file"),
    "another_model": ("train blog --resume --out {run}", "model was 'vae' there and is 'blog' here"),
    "another_objective": ("train --objective iwae --resume --out {run}", "objective was 'trace_mean_field_elbo' there"),
    "another_dataset": ("train --data mnist --resume --out {run}", "data was 'digits' there and is 'mnist' here"),
    "another_size": ("train --latent_dim 5 --resume --out {run}", "latent_dim was 2 there and is 5 here"),
    "another_activation": ("train --activation tanh --resume --out {run}", "activation was 'relu' there"),
    "another_likelihood": ("train --likelihood gaussian --resume --out {run}", "likelihood was 'bernoulli' there"),
    "another_binarization": ("train --binarize static --resume --out {run}", "binarize was 'dynamic' there"),
    "another_seed": ("train --seed 1 --epochs 3 --resume --out {run}", "seed was 0 there and is 1 here; give seed as"),
    "another_lr": ("train --lr 0.1 --resume --out {run}", "lr was 0.001 there and is 0.1 here"),
    "another_config": ("train --config other.yaml --resume --out {run}", "hidden was [16] there and is [8] here"),
    "nothing_to_resume": ("train --resume --out new", "nothing to resume"),
    "resume_what": ("train --resume", "say --out DIR"),
    "missing_config": ("train --config nothing.yaml --out new", "cannot read nothing.yaml: No such file"),
    "list_for_config": ("train --config list.yaml --out new", "list.yaml must hold settings"),
    "broken_config": ("train --config broken.yaml --out new", "broken.yaml is not YAML"),
    "strange_config": ("train --config strange.yaml --out new", "unknown setting 'latent_dims'; known: latent_dim, "),
    "wordy_config": ("train --config wordy.yaml --out new", "--lr needs a finite number, not 'fast'"),
    "no_run": ("evaluate nothing", "is nothing a run folder?"),
    "no_run_to_report": ("report images", "is images a run folder?"),
    "no_run_named": ("evaluate", "the following arguments are required: RUN"),
    "unknown_split": ("evaluate {run} --split tset", "no split 'tset'"),
    "unknown_split_to_encode": ("encode {run} --split tset", "no split 'tset'"),
    "no_particles": ("evaluate {run} --particles 0", "particles must be at least 1, not 0"),
    "no_limit": ("evaluate {run} --limit 0", "limit must be at least 1, not 0"),
    "negative_seed": ("evaluate {run} --seed -1", "seed must be at least 0, not -1"),
    "other_shape": (
        "evaluate {run} --data grey.npy",
        "x has shape [1, 4, 4] a datum, but the run was",
    ),
    "other_shape_to_encode": ("encode {run} --data few.npy", "few.npy: x has shape [4] a datum"),
    "missing_data": ("evaluate {run} --data nothing.npz", "nothing.npz: no such file"),
    "unknown_device_to_evaluate": ("evaluate {run} --device abacus", "abacus"),
    "no_samples": ("sample {run} -n 0", "n must be at least 1, not 0"),
    "unknown_suffix": ("sample {run} --out samples.jpg", "must end in .png or .npz"),
    "unknown_suffix_of_codes": ("encode {run} --out codes.csv", "must end in .npz"),
}


def check_refused(done: Outcome, words: str) -> None:
    assert done.status == 2 and done.out == ""
    assert done.err.startswith("pyro-vae: ") and done.err.count("\n") == 1 and done.err.endswith("\n"), done.err
    assert words in done.err and "Traceback" not in done.err


@pytest.mark.parametrize("line, words", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_gets_one_line_and_writes_nothing(line, words, wrong_files, trained, pyro_vae):
    before = contents(wrong_files), contents(trained)
    check_refused(pyro_vae(line, run=trained), words)
    assert (contents(wrong_files), contents(trained)) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("line", ["train --device cuda --out new", "evaluate {run} --device cuda"])
def test_a_gpu_that_is_not_there(line, trained, pyro_vae, tmp_path):
    check_refused(pyro_vae(line, run=trained), "'cuda' is not there")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_is_full_or_read_only(code, run, pyro_vae, monkeypatch):
    before = contents(run)

    def fail(*_, **__):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "mkstemp", fail)
        for line in ("train --quiet --resume --epochs 3 --out run", "evaluate run --quiet", "sample run", "encode run"):
            check_refused(pyro_vae(line), os.strerror(code))
        check_refused(pyro_vae(f"{TRAIN} --epochs 1 --out new"), os.strerror(code))
    assert contents(run) == before and set(contents(run.parent)) == {"run", *(f"run/{name}" for name in before)}


def test_a_loss_that_is_no_number_keeps_the_last_good_checkpoint(pyro_vae, tmp_path):
    done = pyro_vae(f"{TRAIN} --epochs 3 --lr 1e30 --out new")
    check_refused(done, "not finite")
    assert "epoch 1, step " in done.err and str(Path("new", "last.pt")) in done.err
    pair = files.load(tmp_path / "new" / "last.pt")["pair"]
    assert all(value.isfinite().all() for value in pair.values())


def test_debug_shows_the_traceback(pyro_vae):
    with pytest.raises(UserError):
        pyro_vae("train --latent_dim 0 --debug")


def test_no_other_library_adds_a_line(wrong_files, monkeypatch, capfd):
    """Looked at where a process writes, so that warnings, logs and C code count; examples do so from a fresh start."""
    monkeypatch.chdir(wrong_files)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("default")
        assert cli.main("train --data grey.npy --binarize none --batch_size 9 --out new".split()) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("pyro-vae: x[0] holds") and err.count("\n") == 1
    assert not [w for w in warned if issubclass(w.category, UserWarning)]


# --- check --------------------------------------------------------------------------------------------------


def test_a_model_is_checked_on_a_data_set(pyro_vae):
    done = pyro_vae("check regressor --data column --hidden 8")
    assert done.status == 0 and done.out.count("ok: ") == 11 and done.err == ""
    check_refused(pyro_vae("check cvae --data digits"), "needs context_shape")
    check_refused(pyro_vae("check vae --binarize none"), "a Bernoulli likelihood needs 0 or 1")
