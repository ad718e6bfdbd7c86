"""What short commands take, as a ratio to importing torch; each is a process of its own, turn by turn, warm.

python reports/short_commands/run.py [--rounds 9]
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from machine import header, table  # noqa: E402
from measure import interleaved, median_ratio, seconds_of  # noqa: E402

COMMAND = Path(sys.executable).with_name("pyro-vae")
BASE = 'python -c "import torch"'
LIMITS = {"pyro-vae list": 1.0, "pyro-vae train --help": 1.7, "pyro-vae sample RUN": 2.5}
"""What each command may take of the time that importing torch takes."""

LIBRARIES = ("torch", "pyro", "pyro_vae", "pythae")
TRAINING = "train --data digits --hidden 16 --epochs 1 --engine eager --device cpu --quiet"


def commands(run: Path) -> dict[str, list[str]]:
    """The commands by what the report calls them; `run` is the folder of a small run."""
    imports = [library for library in LIBRARIES if find_spec(library)]
    ours = {
        "pyro-vae list": ["list"],
        "pyro-vae train --help": ["train", "--help"],
        "pyro-vae sample RUN": ["sample", str(run), "--out", str(run / "samples.png")],
        "pyro-vae sample RUN --out samples.npz": ["sample", str(run), "--out", str(run / "samples.npz")],
        "pyro-vae encode RUN": ["encode", str(run), "--out", str(run / "codes.npz")],
        "pyro-vae evaluate RUN": ["evaluate", str(run), "--quiet"],
        "pyro-vae report RUN": ["report", str(run)],
    }
    peers = {f'python -c "import {library}"': [sys.executable, "-c", f"import {library}"] for library in imports}
    return peers | {name: [str(COMMAND), *arguments] for name, arguments in ours.items()}


def quietly(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True)


def rows(seconds: dict[str, list[float]]) -> list[list[str]]:
    """Median seconds and ratio of each command, with what it may take."""
    told = []
    for name, taken in seconds.items():
        ratio = median_ratio(taken, seconds[BASE])
        limit = f"{LIMITS[name]:.1f}" if name in LIMITS else ""
        spread = f"{statistics.median(taken):.2f} ({min(taken):.2f} to {max(taken):.2f})"
        told.append([f"`{name}`", spread, f"{ratio:.2f}", limit])
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "run"
        quietly([str(COMMAND), *TRAINING.split(), "--out", str(run)])
        contenders = {name: partial(seconds_of, partial(quietly, command)) for name, command in commands(run).items()}
        seconds = interleaved(contenders, rounds)
    text = header("What short commands take", f"python reports/short_commands/run.py --rounds {rounds}", "without data")
    text += f"""
Each command is a process of its own. They run turn by turn, {rounds} rounds after one that is thrown away, so their
files are in the system's cache. A ratio is the median over the rounds of that within each. RUN is
`pyro-vae {TRAINING}`.

{table(["command", "seconds: median (smallest to largest)", "ratio to importing torch", "at most"], rows(seconds))}
`list` reads the first docstring lines of what is built in from the source, and imports only other packages' plugins.
`train --help` needs torch and Pyro, whose classes have the options that it shows. `sample` draws with the model and
writes a picture with matplotlib. `encode` and `evaluate` load scikit-learn's digits, which bring pandas and SciPy.
"""
    (HERE / "README.md").write_text(text)


if __name__ == "__main__":
    main()
