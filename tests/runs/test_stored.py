"""Run folders that an earlier version wrote: read, evaluated, reported and resumed."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import pyro_vae as pv
from pyro_vae import plugins
from pyro_vae.command_line import main as cli

STORED = Path(__file__).parent / "stored"
RUNS = sorted(path.name for path in STORED.iterdir())


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Copies of the stored runs; the CVAE names the folder of its baseline beside it."""
    shutil.copytree(STORED, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", RUNS)
def test_a_stored_run_is_read_and_evaluated_to_the_figures_of_then(name, folder):
    run = pv.load_run(name)
    assert run.model_name == plugins.current_name("model", name)
    assert len(run.history) == run.config["training"]["epochs"]
    elbo, reconstruction = json.loads((folder / name / "evaluation.json").read_text())
    again = pv.evaluate(run.pair, run.data, "reconstruction", progress=False)
    assert again.mean == pytest.approx(reconstruction["nats"]["mean"], rel=1e-5)
    again = pv.evaluate(run.pair, run.data, "elbo", 20, progress=False)
    assert again.mean == pytest.approx(elbo["nats"]["mean"], abs=0.3)


@pytest.mark.parametrize("name", RUNS)
def test_a_stored_run_is_evaluated_reported_and_resumed_by_command(name, folder):
    assert cli.main(f"evaluate {name} --with importance --particles 5 --quiet".split()) == 0
    assert cli.main(f"report {name}".split()) == 0
    before = pv.load_run(name)
    assert (folder / name / "figures" / "reconstructions.png").exists()
    report = (folder / name / "report.md").read_text()
    assert report.startswith(f"# {before.model_name} on ") and "Test `importance`" in report
    epochs = before.config["training"]["epochs"] + 1
    assert cli.main(f"train --resume --out {name} --epochs {epochs} --quiet".split()) == 0
    resumed = pv.load_run(name)
    assert resumed.history[:-1] == before.history and len(resumed.history) == epochs


def test_the_baseline_of_a_stored_run_is_that_of_its_folder(folder):
    pair, baseline = pv.load_run("cvae").pair, pv.load_run("regressor").pair
    for name, value in baseline.state_dict().items():
        assert torch.equal(pair.baseline.state_dict()[name], value)
