"""The example of a plugin, installed in a place of its own, has everything through the command line."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "examples" / "plugin"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the package, and the environment in which Python finds it."""
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(SOURCE, folder / "source")
    options = ["--no-deps", "--no-build-isolation", "--target", str(folder / "site"), str(folder / "source")]
    if importlib.util.find_spec("pip"):
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", *options]
    elif shutil.which("uv"):
        install = ["uv", "pip", "install", "--quiet", "--offline", "--python", sys.executable, *options]
    else:
        pytest.skip("neither pip nor uv is there to install a package")
    done = subprocess.run(install, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, os.environ | {"PYTHONPATH": str(folder / "site"), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def command(installed):
    """Runs `pyro-vae` in another process; gives what it printed."""
    folder, environment = installed

    def run(line: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "pyro_vae.command_line.main", *line.split()],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_a_plugin_has_all_that_built_ins_have(command, installed):
    """Listed, checked, trained with options of its own, repeated from its config, evaluated, sampled and reported."""
    folder, _ = installed
    listed = command("list")
    assert all(f"  {name} " in listed for name in ("circle_vae", "hands", "angle"))
    assert "--sharpness" in command("train circle_vae --help")
    assert command("check circle_vae --data hands").count("ok: ") == 9
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
    report = (folder / "run" / "report.md").read_text()
    assert (folder / "samples.png").stat().st_size > 0 and "# circle_vae on hands" in report and "`angle`" in report
