"""Omniglot: 1,623 handwritten characters of 50 alphabets, each drawn by 20 people."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from pyro_vae.data.dataset import Dataset
from pyro_vae.data.files.images import read_images
from pyro_vae.data.partition import partition
from pyro_vae.data.sets.downloads import ROOT, downloading
from pyro_vae.data.split import Split
from pyro_vae.errors import DataError, find
from pyro_vae.files import at_home

SIDE = 28
CHUNK = 1000
LABEL_DEPTH = {"alphabet": 1, "character": 2}


def omniglot(seed: int = 0, root: str = ROOT, valid: int = 1345, label: str = "alphabet") -> Dataset:
    """Characters: grey x [n, 1, 28, 28] with ink 255, and `label` [n].

    19,280 of 30 alphabets, of which `valid` are held out, and 13,180 of 20 other alphabets as the test.

    Args:
        seed: draws which of the background images are held out for validation.
        root: folder in torchvision's layout (`omniglot-py/images_background/Greek/character01/*.png`, ...).
        valid: how many are held out.
        label: "alphabet" (50) or "character" (1,623), counted in alphabetical order, the background's first.

    Raises:
        DataError: images that are damaged, or neither in `root` nor to be downloaded there.
        UnknownName: a label that is not known.

    Source: Lake, Salakhutdinov & Tenenbaum, "Human-level concept learning" (2015). The split is theirs, not
    the random one of the importance-weighted autoencoder's paper.
    """
    depth = find("label of omniglot", label, LABEL_DEPTH)
    folder = at_home(root)
    background, evaluation = (_part(folder, is_background, depth) for is_background in (True, False))
    evaluation["label"] += 1 + int(background["label"].max())
    kept, held_out = partition(len(background["x"]), (valid,), seed)
    return Dataset("omniglot", Split(background, rows=kept), Split(background, rows=held_out), Split(evaluation))


def _part(root: Path, background: bool, label_depth: int) -> dict[str, Tensor]:
    from torchvision.datasets import Omniglot  # torchvision takes seconds to import

    folder = root / Omniglot.folder / ("images_background" if background else "images_evaluation")
    if not folder.is_dir():
        with downloading("omniglot", root):
            Omniglot(str(root), background=background, download=True)
    files = sorted(folder.glob("*/*/*.png"))
    if not files:
        raise DataError(f"{folder} holds no images; delete it, and it is downloaded again")
    characters = ["/".join(file.relative_to(folder).parts[:label_depth]) for file in files]
    labels = np.unique(characters, return_inverse=True)[1]
    return {"x": _shrunk(files), "label": torch.from_numpy(labels)}


def _shrunk(files: list[Path]) -> UInt8[Tensor, "n 1 28 28"]:
    """Black ink on white paper as light ink on black, averaged down to 28 by 28 pixels."""
    chunks = []
    for start in range(0, len(files), CHUNK):
        ink = 255 - torch.from_numpy(read_images(files[start : start + CHUNK])).float()
        small = interpolate(ink, size=(SIDE, SIDE), mode="bilinear", antialias=True)
        chunks.append(small.round().to(torch.uint8))
    return torch.cat(chunks)
