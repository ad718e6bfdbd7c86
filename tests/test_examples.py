"""Every example runs as it stands, in a process and a folder of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))
ALWAYS = {"first_vae", "own_model", "svi_script"}
WITHOUT_A_PICTURE = {"arviz_export", "own_model", "svi_script"}


def run(path: Path, folder: Path, *words: str) -> str:
    """What an example prints, run in a folder; it ends well and says nothing on stderr."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, str(path), *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done.stdout


def test_there_are_examples():
    assert EXAMPLES


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_one_idea_of_library_calls(path):
    """80 lines or fewer, of lines that the README can show, which say what they are about."""
    text = path.read_text()
    assert text.count("\n") <= 80 and max(map(len, text.splitlines())) <= 120
    assert text.startswith('"""') and "pyro_vae" in text


@pytest.mark.parametrize(
    "path", [pytest.param(e, id=e.stem, marks=[] if e.stem in ALWAYS else pytest.mark.slow) for e in EXAMPLES]
)
def test_an_example_runs(path, tmp_path):
    """With few epochs, where it takes their number; it prints finite numbers, and writes a picture into the folder."""
    before = sorted(FOLDER.rglob("*"))
    said = run(path, tmp_path, *(["2"] if "sys.argv" in path.read_text() else []))
    assert re.search(r"\d", said) and not re.search(r"\b(nan|inf)\b", said), said
    assert sorted(FOLDER.rglob("*")) == before
    written = list(tmp_path.rglob("*"))
    assert all(file.stat().st_size > 0 for file in written)
    assert path.stem in WITHOUT_A_PICTURE or [file for file in written if file.suffix == ".png"]


def test_the_gallery_shows_every_example():
    """Each by its picture and its command, or in the list of those that have none; and no other."""
    text = (FOLDER / "README.md").read_text()
    for path in EXAMPLES:
        shown = f"gallery/{path.stem}.png" in text and f"python examples/{path.name}" in text
        assert shown or f"`{path.name}`" in text, path.name
    for picture in re.findall(r"\((gallery/\w+\.png)\)", text):
        assert (FOLDER / picture).stat().st_size < 300_000, picture


@pytest.mark.slow
def test_samples_of_the_ring_have_its_radius(tmp_path):
    said = run(FOLDER / "ring.py", tmp_path)
    data, samples = (float(re.search(rf"radius of the {name}: ([\d.]+)", said)[1]) for name in ("data", "samples"))
    assert abs(data - 1.125) < 0.01 and abs(samples - 1.12) < 0.1
