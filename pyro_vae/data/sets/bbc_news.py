"""BBC News as bags of words, from a file."""

from pyro_vae.data.dataset import Dataset
from pyro_vae.data.files.read import from_file
from pyro_vae.errors import DataError
from pyro_vae.files import at_home


def bbc_news(seed: int = 0, *, file: str) -> Dataset:
    """Bags of words x [n, 2949], `label` [n] of five kinds of news; 1,556 documents for training, 334 and 335.

    Args:
        seed: not used; the splits are fixed.
        file: a .npz file with a CSR matrix as "data", "indices", "indptr" and "shape", with "vocabulary", and with
            "split" and "label" of each document.

    Raises:
        DataError: no such file, or one that holds something else.

    Source: Greene & Cunningham, "Practical solutions to the problem of diagonal dominance in kernel document
    clustering" (2006).
    """
    path = at_home(file)
    data = from_file(path, seed)
    if data.vocabulary is None or "label" not in data.train:
        raise DataError(f"{path}: needs a CSR matrix of counts, and vocabulary, split and label")
    return Dataset("bbc_news", data.train, data.valid, data.test, vocabulary=data.vocabulary)


bbc_news.binarize = "none"
