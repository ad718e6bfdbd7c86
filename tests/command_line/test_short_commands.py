"""Short commands: what they do without, what they leave unread, and that a reader may go away."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from pyro_vae.command_line import main as cli

RUN = "from pyro_vae.command_line.main import main; main({arguments!r})"
TELL = "import json, sys; print(json.dumps(sorted(name for name in sys.modules if '.' not in name)), file=sys.stderr)"
DATA_LIBRARIES = {"torchvision", "sklearn", "scipy", "pandas", "PIL", "arviz", "xarray", "anndata"}
OTHERS = {"matplotlib", "lightning_fabric", "hypothesis", "sympy", "tensorboard", "wandb", "mlflow"}
HEAVY = DATA_LIBRARIES | OTHERS

SLOW = {"torchvision", "arviz", "sympy", "lightning_fabric", "hypothesis"}

DOES_WITHOUT = {
    "list": HEAVY | {"torch", "pyro", "numpy"},
    "train burda --data mnist --help": HEAVY,
    "sample RUN -n 4 --out OUT.png": HEAVY - {"matplotlib", "PIL"},
    "encode RUN --limit 4 --out OUT.npz": SLOW | {"matplotlib"},
    "evaluate RUN --limit 4 --quiet": SLOW | {"matplotlib"},
}
"""Modules that a command does not import. The data of the run are scikit-learn's, which brings pandas and SciPy."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "digits"
    line = f"train --data digits --hidden 4 --epochs 1 --engine eager --device cpu --quiet --out {folder}"
    assert cli.main(line.split()) == 0
    return folder


@pytest.mark.parametrize("line", DOES_WITHOUT)
def test_a_command_imports_only_what_it_needs(line, folder, tmp_path):
    arguments = line.replace("RUN", str(folder)).replace("OUT", str(tmp_path / "out")).split()
    code = f"try:\n    {RUN.format(arguments=arguments)}\nexcept SystemExit:\n    pass\n{TELL}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    imported = set(json.loads(done.stderr.splitlines()[-1]))
    assert "pyro_vae" in imported and not imported & DOES_WITHOUT[line]


@contextmanager
def broken(monkeypatch, stream: str) -> Iterator[None]:
    """A stream that nothing reads any more."""
    read, write = os.pipe()
    os.close(read)
    pipe = open(write, "w", buffering=1)
    with monkeypatch.context() as patch:
        patch.setattr(sys, stream, pipe)
        yield
    with suppress(BrokenPipeError):
        pipe.close()


def test_a_reader_that_goes_away_ends_a_command_quietly():
    command = [sys.executable, "-m", "pyro_vae.command_line.main", "list"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == cli.CLOSED_PIPE


@pytest.mark.parametrize("line", ["--help", "list models", "train --print_config", "evaluate RUN --limit 4 --json -"])
def test_whatever_prints_does_without_a_reader(line, folder, monkeypatch, capfd):
    with broken(monkeypatch, "stdout"):
        assert cli.main(line.replace("RUN", str(folder)).split()) == cli.CLOSED_PIPE
    monkeypatch.undo()
    assert "Broken pipe" not in capfd.readouterr().err


def test_messages_do_without_a_reader(folder, tmp_path, monkeypatch):
    with broken(monkeypatch, "stderr"):
        line = f"sample {folder} -n 2 --out {tmp_path / 'values.npz'}"
        assert cli.main(line.split()) == cli.CLOSED_PIPE
    assert (tmp_path / "values.npz").exists()


def test_a_broken_pipe_that_is_not_ours_is_told(monkeypatch, capfd):
    def fails(arguments):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setitem(cli.COMMANDS, "list", fails)
    assert cli.main(["list"]) == 2
    assert "Broken pipe" in capfd.readouterr().err
