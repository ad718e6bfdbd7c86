"""A sparse matrix that would be too large as a dense one stays sparse, and gives what the dense one gives."""

import numpy as np
import pandas
import pytest
import scipy.sparse
import torch

import pyro_vae as pv
from pyro_vae.data import as_split, forms, sparse
from pyro_vae.data.sparse import SparseRows
from pyro_vae.errors import DataError

N, WIDTH = 60, 7


@pytest.fixture
def small_memory(monkeypatch):
    """Any sparse matrix is too large."""

    def shrink():
        monkeypatch.setattr(sparse, "DENSE_LIMIT", 0)
        monkeypatch.setattr(forms, "DENSE_LIMIT", 0)
        monkeypatch.setattr(forms, "COPIED_BYTES", 100)

    return shrink


def counts(dtype=np.float32) -> scipy.sparse.csr_matrix:
    return scipy.sparse.csr_matrix(np.random.default_rng(0).poisson(0.4, (N, WIDTH)).astype(dtype))


def is_kept_sparse(data: pv.Dataset) -> bool:
    return all(isinstance(split.fields["x"], SparseRows) and not split.resident for split in data.splits.values())


def poisson() -> pv.VAE:
    torch.manual_seed(0)
    return pv.VAE((WIDTH,), hidden=(4,), likelihood="poisson")


def trained(data) -> pv.Run:
    return pv.train(poisson(), data, epochs=2, batch_size=16, engine="eager", device="cpu", progress=False)


@pytest.mark.parametrize("form", ["csr_matrix", "csc_matrix", "coo_array", "csr_array"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64, np.uint16, np.uint8, bool])
def test_a_split_that_is_kept_sparse_is_the_dense_one(form, dtype, small_memory):
    matrix = getattr(scipy.sparse, form)(counts(dtype))
    dense = as_split(matrix)
    small_memory()
    kept = as_split(matrix)
    assert isinstance(kept.fields["x"], SparseRows) and not isinstance(dense.fields["x"], SparseRows)
    assert kept.size == N and repr(kept) == repr(dense)
    places = torch.tensor([5, 0, 59, 5])
    for a, b in (
        (kept["x"], dense["x"]),
        (kept.take(slice(3, 9))["x"], dense.take(slice(3, 9))["x"]),
        (kept.take(places)["x"], dense.take(places)["x"]),
        (kept.between(4, 11).take(slice(None))["x"], dense.between(4, 11).take(slice(None))["x"]),
        (kept.head(3)["x"], dense.head(3)["x"]),
    ):
        assert a.dtype == b.dtype and torch.equal(a, b)
    orders = [torch.Generator().manual_seed(1) for _ in range(2)]
    for a, b in zip(kept.batches(16, orders[0]), dense.batches(16, orders[1]), strict=True):
        assert torch.equal(a["x"], b["x"])


def test_a_run_on_sparse_rows_is_the_run_on_dense_ones_and_says_what_it_costs(small_memory):
    dense = trained(counts())
    small_memory()
    kept = trained(counts())
    assert is_kept_sparse(kept.data)
    for name, value in dense.pair.state_dict().items():
        assert torch.equal(kept.pair.state_dict()[name], value)
    assert [row["valid_loss"] for row in kept.history] == [row["valid_loss"] for row in dense.history]
    (note,) = [note for note in kept.notes if "sparse" in note]
    assert note.startswith("x stays sparse (0.0 MiB instead of 0.0 MiB): each batch is made dense when it is needed")
    assert not any("sparse" in note for note in dense.notes)
    for data in (counts(), counts()[:30]):
        of_kept = pv.evaluate(kept.pair, data, "importance", 20, progress=False)
        small = pv.evaluate(dense.pair, data.toarray(), "importance", 20, progress=False)
        assert torch.equal(of_kept.log_likelihood, small.log_likelihood)
    assert torch.equal(pv.encode(kept, counts())["z_mean"], pv.encode(dense, counts().toarray())["z_mean"])


@pytest.mark.parametrize("binarize", ["none", "dynamic"])
def test_a_file_of_sparse_rows_is_loaded_like_one_of_dense_rows(binarize, tmp_path, small_memory):
    probabilities = counts() / 10
    np.savez(tmp_path / "dense.npz", x=probabilities.toarray())
    scipy.sparse.save_npz(tmp_path / "sparse.npz", probabilities)
    dense = pv.load_data(tmp_path / "dense.npz", binarize=binarize, seed=3)
    assert torch.equal(pv.load_data(tmp_path / "sparse.npz", seed=3).train["x"], dense.train["x"])
    small_memory()
    kept = pv.load_data(tmp_path / "sparse.npz", binarize=binarize, seed=3)
    assert isinstance(kept.train.fields["x"], SparseRows)
    torch.testing.assert_close(kept.facts["data_mean"], dense.facts["data_mean"])
    for name in ("train", "valid", "test"):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            a = kept.splits[name].take(slice(None))["x"]
            torch.manual_seed(0)
            assert torch.equal(a.float(), dense.splits[name].take(slice(None))["x"])


@pytest.mark.parametrize("kind", ["sparse", "dense"])
def test_an_anndata_is_read_from_its_file(kind, tmp_path, small_memory):
    anndata = pytest.importorskip("anndata")
    labels = pandas.DataFrame({"label": list("abc") * (N // 3)}, index=[str(i) for i in range(N)])
    x = counts() if kind == "sparse" else counts().toarray()
    anndata.AnnData(x, obs=labels).write_h5ad(tmp_path / "counts.h5ad")
    whole = pv.load_data(tmp_path / "counts.h5ad", scale="raw")
    small_memory()
    kept = pv.load_data(tmp_path / "counts.h5ad", scale="raw")
    assert whole.train.resident and not kept.train.resident and is_kept_sparse(kept) == (kind == "sparse")
    for name, split in whole.splits.items():
        for field in ("x", "label"):
            assert torch.equal(kept.splits[name].take(slice(None))[field], split.take(slice(None))[field])
    backed = anndata.read_h5ad(tmp_path / "counts.h5ad", backed="r")
    assert torch.equal(as_split(backed).take(slice(None))["x"], torch.from_numpy(counts().toarray()))
    backed.file.close()


def test_a_memory_map_says_what_it_costs(tmp_path):
    np.save(tmp_path / "x.npy", counts().toarray())
    run = trained(np.load(tmp_path / "x.npy", mmap_mode="r"))
    assert any(note.startswith("the data stay in their file: 256 MiB") for note in run.notes)


def test_what_is_not_finite_in_sparse_rows_is_named(small_memory):
    small_memory()
    wrong = counts()
    wrong[7, 4] = np.inf
    with pytest.raises(DataError, match=r"x\[7, 4\] is inf"):
        as_split(wrong)
    with pytest.raises(DataError, match="x holds elements of type complex128"):
        as_split(counts(complex))
