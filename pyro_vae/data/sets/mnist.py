"""MNIST and the sets in its format: from a folder in torchvision's layout, or downloaded by it."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from jaxtyping import Int, UInt8
from torch import Tensor

from pyro_vae.data.dataset import Dataset
from pyro_vae.data.partition import partition
from pyro_vae.data.sets.downloads import ROOT, downloading
from pyro_vae.data.split import Split
from pyro_vae.errors import DataError, UnknownName
from pyro_vae.files import at_home

Arrays = tuple[UInt8[Tensor, "n height width"], Int[Tensor, " n"]]


def mnist(seed: int = 0, root: str = ROOT, valid: int = 10_000) -> Dataset:
    """Handwritten digits: grey x [n, 1, 28, 28] and `label` [n]; 60,000 less `valid`, `valid` and 10,000.

    Args:
        seed: draws which of the training images are held out for validation.
        root: folder in torchvision's layout (`MNIST/raw/train-images-idx3-ubyte`, ..., or the same with .gz).
        valid: how many are held out; the importance-weighted autoencoder's paper has 400.

    Raises:
        DataError: files that are damaged, or neither in `root` nor to be downloaded there.

    Source: LeCun, Bottou, Bengio & Haffner, "Gradient-based learning applied to document recognition" (1998).
    """
    return _dataset("mnist", *_train_and_test("MNIST", root), valid, seed)


def fashion_mnist(seed: int = 0, root: str = ROOT, valid: int = 10_000) -> Dataset:
    """Articles of clothing, in MNIST's format and number; see `mnist`.

    Source: Xiao, Rasul & Vollgraf, "Fashion-MNIST: a novel image dataset" (2017).
    """
    return _dataset("fashion_mnist", *_train_and_test("FashionMNIST", root), valid, seed)


def kmnist(seed: int = 0, root: str = ROOT, valid: int = 10_000) -> Dataset:
    """Cursive Japanese characters, in MNIST's format and number; see `mnist`.

    Source: Clanuwat et al., "Deep learning for classical Japanese literature" (2018).
    """
    return _dataset("kmnist", *_train_and_test("KMNIST", root), valid, seed)


def emnist(seed: int = 0, root: str = ROOT, valid: int = 10_000, split: str = "balanced") -> Dataset:
    """Handwritten characters, upright, in MNIST's format; see `mnist`.

    Args:
        split: "balanced" (131,600 images of 47 classes), "byclass", "bymerge", "letters" (labels from 1),
            "digits" or "mnist".

    Raises:
        UnknownName: a split that does not exist.

    Source: Cohen, Afshar, Tapson & van Schaik, "EMNIST: extending MNIST to handwritten letters" (2017).
    """
    from torchvision.datasets import EMNIST

    if split not in EMNIST.splits:
        raise UnknownName("split of emnist", split, EMNIST.splits)
    stems = (f"emnist-{split}-train", f"emnist-{split}-test")
    parts = _train_and_test("EMNIST", root, stems, split=split)
    upright = [(images.transpose(1, 2).contiguous(), labels) for images, labels in parts]
    return _dataset("emnist", *upright, valid, seed)


def _dataset(name: str, train: Arrays, test: Arrays, valid: int, seed: int) -> Dataset:
    kept, held_out = partition(len(train[0]), (valid,), seed)
    train_fields, test_fields = ({"x": images.unsqueeze(1), "label": labels} for images, labels in (train, test))
    return Dataset(name, Split(train_fields, rows=kept), Split(train_fields, rows=held_out), Split(test_fields))


def _train_and_test(
    family: str, root: str, stems: tuple[str, str] = ("train", "t10k"), **options: str
) -> tuple[Arrays, Arrays]:
    """Both parts of a set that is a class of torchvision's, which takes seconds to import."""
    from torchvision import datasets

    folder = at_home(root)
    train, test = (_on_disk(family, folder, stem) for stem in stems)
    if train and test:
        return train, test
    with downloading(family, folder):
        parts = [
            getattr(datasets, family)(str(folder), train=is_train, download=True, **options)
            for is_train in (True, False)
        ]
    return tuple((part.data, part.targets) for part in parts)


def _on_disk(family: str, root: Path, stem: str) -> Arrays | None:
    """One part's arrays, where its files are in `root` or in torchvision's folder below it."""
    from torchvision.datasets.mnist import read_image_file, read_label_file

    for folder in (root / family / "raw", root):
        images = _existing(folder / f"{stem}-images-idx3-ubyte")
        labels = _existing(folder / f"{stem}-labels-idx1-ubyte")
        if images and labels:
            return _read(read_image_file, images), _read(read_label_file, labels)
    return None


def _existing(file: Path) -> Path | None:
    return next((path for path in (file, file.with_name(f"{file.name}.gz")) if path.is_file()), None)


def _read(reader: Callable[[str], Tensor], file: Path) -> Tensor:
    """What torchvision's reader makes of a file; it raises nearly anything where the file is damaged."""
    from torchvision.datasets.utils import extract_archive

    try:
        with tempfile.TemporaryDirectory() as scratch:
            return reader(extract_archive(str(file), scratch) if file.suffix == ".gz" else str(file))
    except Exception as reason:
        raise DataError(f"{file} is damaged; delete it, and it is downloaded again") from reason
