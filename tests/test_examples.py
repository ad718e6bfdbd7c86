"""Every example runs as it stands, in a process and a folder of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))


def test_there_are_examples():
    assert EXAMPLES


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_one_idea_of_library_calls(path):
    """80 lines or fewer, of lines that the README can show, which say what they are about."""
    text = path.read_text()
    assert text.count("\n") <= 80 and max(map(len, text.splitlines())) <= 120
    assert text.startswith('"""') and "pyro_vae" in text


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(path, tmp_path):
    """It ends well, prints finite numbers, says nothing on stderr, and writes to its own folder only."""
    before = sorted(FOLDER.rglob("*"))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, str(path)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert re.search(r"\d", done.stdout) and not re.search(r"\b(nan|inf)\b", done.stdout), done.stdout
    assert sorted(FOLDER.rglob("*")) == before
    assert all(file.stat().st_size > 0 for file in tmp_path.rglob("*"))
