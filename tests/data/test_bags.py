"""Bags of words from files and made up: a matrix, its vocabulary, and the splits of its documents."""

import os
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch

import pyro_vae as pv
from pyro_vae.data.sets.planted_topics import bars
from pyro_vae.errors import DataError

WORDS = np.array(["ball", "goal", "vote", "tax"])
N = 30
MATRIX = scipy.sparse.csr_matrix(np.random.default_rng(0).poisson(1.5, (N, 4)) + np.eye(N, 4, dtype=int))
SPLIT = np.array(["train"] * 20 + ["val"] * 4 + ["test"] * 6)


def saved(path: Path, matrix: scipy.sparse.csr_matrix = MATRIX, **arrays: np.ndarray) -> Path:
    parts = {"data": matrix.data, "indices": matrix.indices, "indptr": matrix.indptr, "shape": np.array(matrix.shape)}
    np.savez(path, **parts | arrays)
    return path


def test_a_matrix_with_its_vocabulary_and_splits_is_read(tmp_path):
    label = np.arange(N) % 3
    file = saved(tmp_path / "bags.npz", vocabulary=WORDS, split=SPLIT, label=label, label_names=np.array(["a", "b"]))
    data = pv.load_data(file)
    assert data.vocabulary == data.facts["vocabulary"] == ("ball", "goal", "vote", "tax")
    assert [split.size for split in data.splits.values()] == [20, 4, 6]
    assert np.array_equal(data.test["x"].numpy(), MATRIX.toarray()[24:])
    assert data.test["label"].tolist() == label[24:].tolist()


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32])
def test_counts_stay_counts(tmp_path, dtype):
    data = pv.load_data(saved(tmp_path / "bags.npz", MATRIX.astype(dtype), vocabulary=WORDS, split=SPLIT))
    assert np.array_equal(data.train["x"].numpy(), MATRIX.toarray()[:20])


def test_scipys_own_file_has_no_vocabulary_and_may_be_given_one(tmp_path):
    scipy.sparse.save_npz(tmp_path / "bags.npz", MATRIX)
    data = pv.load_data(tmp_path / "bags.npz")
    assert data.vocabulary is None and "vocabulary" not in data.facts and data.facts["data_shape"] == (4,)
    arrays = dict(np.load(tmp_path / "bags.npz"))
    np.savez(tmp_path / "words.npz", **arrays, vocabulary=WORDS)
    assert pv.load_data(tmp_path / "words.npz").vocabulary == tuple(WORDS)


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"vocabulary": WORDS[:3]}, "the vocabulary has 3 words, but x has shape"),
        ({"vocabulary": np.array(["a", "a", "b", "c"])}, "each once"),
        ({"vocabulary": np.arange(4)}, "must be a list of words"),
        ({"vocabulary": WORDS, "split": np.array(["train"] * 29 + ["rest"])}, "calls a document 'rest'"),
        ({"vocabulary": WORDS, "split": SPLIT[:10]}, "split says a word of 10 documents"),
        ({"indptr": np.arange(3)}, "make no CSR matrix"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path, arrays, message):
    with pytest.raises(DataError, match=message) as refusal:
        pv.load_data(saved(tmp_path / "bags.npz", **arrays))
    assert "bags.npz" in str(refusal.value)


def test_planted_topics_are_rows_and_columns():
    topics = bars(3)
    assert topics.shape == (6, 9) and torch.allclose(topics.sum(1), torch.ones(6))
    assert topics[0].nonzero().flatten().tolist() == [0, 1, 2] and topics[3].nonzero().flatten().tolist() == [0, 3, 6]


def test_planted_topics_follow_from_the_seed():
    first, again, other = (pv.load_data("planted_topics", seed=seed, documents=200) for seed in (0, 0, 1))
    assert torch.equal(first.train["x"], again.train["x"]) and not torch.equal(first.train["x"], other.train["x"])
    assert [split.size for split in first.splits.values()] == [160, 20, 20] and len(first.vocabulary) == 25
    lengths = first.train["x"].sum(1).double()
    assert lengths.min() >= 1 and abs(lengths.mean() - 100) < 4 * lengths.std() / 160**0.5


def test_bbc_news_is_read_from_its_file():
    if "PYRO_VAE_DATA" not in os.environ:
        pytest.skip("PYRO_VAE_DATA is not set")
    data = pv.load_data("bbc_news", file=str(Path(os.environ["PYRO_VAE_DATA"]) / "bbc_news.npz"))
    assert [split.size for split in data.splits.values()] == [1556, 334, 335] and len(data.vocabulary) == 2949
    assert sum(split["x"].sum() for split in data.splits.values()) == 267_259 and data.facts["num_labels"] == 5
    with pytest.raises(DataError, match="needs a CSR matrix of counts"):
        pv.load_data("bbc_news", file=str(Path(os.environ["PYRO_VAE_DATA"]) / "frey_faces.npz"))
