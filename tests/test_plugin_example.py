"""The example of a plugin, installed in a place of its own, has everything through the command line."""

import json
import shutil
import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

from pyro_vae.command_line import main as cli

SOURCE = Path(__file__).parent.parent / "examples" / "plugin"


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A folder with the package, which Python finds there; commands run in it."""
    shutil.copytree(SOURCE, tmp_path / "source")
    site = tmp_path / "site"
    options = ["--no-deps", "--no-build-isolation", "--target", str(site), str(tmp_path / "source")]
    if PathFinder.find_spec("pip"):  # setuptools answers importlib's own call by unloading distutils
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", *options]
    elif shutil.which("uv"):
        install = ["uv", "pip", "install", "--quiet", "--offline", "--python", sys.executable, *options]
    else:
        pytest.skip("neither pip nor uv is there to install a package")
    done = subprocess.run(install, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    monkeypatch.syspath_prepend(site)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("circle_vae", None)


@pytest.fixture
def command(installed, capsys):
    """Runs `pyro-vae`; gives what it printed."""

    def run(line: str) -> str:
        capsys.readouterr()
        try:
            status = cli.main(line.split())
        except SystemExit as stop:
            status = stop.code
        printed = capsys.readouterr()
        assert status == 0, printed.err
        return printed.out

    return run


def test_a_plugin_has_all_that_built_ins_have(command, installed):
    """Listed, checked, trained with options of its own, repeated from its config, evaluated, sampled and reported."""
    listed = command("list")
    assert all(f"  {name} " in listed for name in ("circle_vae", "hands", "angle"))
    assert "--sharpness" in command("train circle_vae --help")
    assert command("check circle_vae --data hands").count("ok: ") == 11
    command(
        "train circle_vae --data hands --epochs 25 --batch_size 64 --lr 0.003 --sharpness 0.9 --engine eager "
        "--quiet --out run"
    )
    assert "sharpness: 0.9" in command("train --config run/config.yaml --print_config")
    angle, bound = json.loads(command("evaluate run --with angle,importance --particles 50 --quiet --json -"))
    assert angle["quantity"] == "angular_error" and angle["nats"]["mean"] < 0.25  # pi/2 where nothing was learned
    assert bound["nats"]["mean"] > -100 and bound["bits_per_dim"] > 0
    command("sample run -n 9 --out samples.png")
    command("report run")
    report = (installed / "run" / "report.md").read_text()
    assert (installed / "samples.png").stat().st_size > 0 and "# circle_vae on hands" in report and "`angle`" in report
