"""The models with discrete latents: labels, clusters, mixtures, documents, chains, and gammas beside them.

OMP_NUM_THREADS=1 python reports/discrete/run.py [--runs DIR] [--only WORDS]

trains (or continues, or reads) each row in DIR, and writes README.md with its pictures. What was stopped goes on, row
by row; with --only, rows whose names lack one of the words are shown if they are there, and are not made. Sections on
MNIST, the chorales and the news need PYRO_VAE_DATA, a folder that holds them.
"""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
import chains  # noqa: E402
import clusters  # noqa: E402
import documents  # noqa: E402
import gammas  # noqa: E402
import labels  # noqa: E402
import mixtures  # noqa: E402
from machine import header  # noqa: E402
from rows import Rows  # noqa: E402

COMMAND = "python reports/discrete/run.py"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/discrete"))
    parser.add_argument("--only", default="", help="make only the rows whose names have these words")
    return parser.parse_args()


def sections(rows: Rows, root: Path | None, copy: Callable[[Path, str], str]) -> list[str]:
    """The sections in their order."""
    return [
        labels.section(rows, root, copy),
        clusters.section(rows, copy),
        mixtures.section(rows),
        documents.section(rows, root),
        chains.section(rows, root),
        gammas.section(rows),
    ]


def copied(picture: Path, words: str) -> str:
    """The Markdown of a picture, once it lies beside the report; nothing where it is not made yet."""
    if not picture.exists():
        return ""
    name = f"{picture.parent.name}_{picture.name}"
    (HERE / name).write_bytes(picture.read_bytes())
    return f"![{words}]({name})\n"


def main() -> None:
    options = parse()
    root = os.environ.get("PYRO_VAE_DATA")
    told = sections(Rows(options.runs, options.only), None if root is None else Path(root), copied)
    command = f"OMP_NUM_THREADS={torch.get_num_threads()} {COMMAND}"
    data = "with the data of `PYRO_VAE_DATA`" if root else "without `PYRO_VAE_DATA`"
    text = f"""{header("Models with discrete latents", command, data)}
Minutes are those of training, validation included but starts that were tried and dropped left out, or, of a row that
trains nothing of ours or compares several fits, of the whole row; the machine may have done other work beside. Bounds
are nats per datum unless said otherwise. "Not run" is a row that has not been made.

{chr(10).join(told)}"""
    (HERE / "README.md").write_text(text)


if __name__ == "__main__":
    main()
