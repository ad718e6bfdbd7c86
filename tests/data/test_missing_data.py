"""Missing values in files, frames and arrays: they are read as NaN, and stay so."""

import numpy as np
import pandas
import pytest
import torch

import pyro_vae as pv
from pyro_vae.data import Dataset, Split, as_split, choose_split, load_data
from pyro_vae.data.missing import missing_of, observed_means
from pyro_vae.errors import DataError


def grey(n=50, d=4, seed=0):
    x = np.random.default_rng(seed).uniform(0.1, 0.9, (n, d))
    x[3, 1] = x[10, 0] = x[11] = np.nan
    return x


def test_empty_cells_of_a_table_are_missing_values(tmp_path):
    (tmp_path / "gap.csv").write_text("a,b,label\n" + "1,2,u\n" * 5 + "3,,v\n" + ",5,u\n" * 20)
    x = choose_split(load_data(tmp_path / "gap.csv"), "all").take(slice(None))["x"]
    assert x.shape == (26, 2) and x[5, 1].isnan() and x[5, 0] == 3 and x[6:, 0].isnan().all() and x.isnan().sum() == 21


@pytest.mark.parametrize("first", ["1,2", "1,", ",2"])
def test_a_table_without_names_may_have_empty_cells(first, tmp_path):
    """Also in its first row, where the names would be."""
    (tmp_path / "bare.csv").write_text(f"{first}\n" + "3,\n" * 20)
    x = choose_split(load_data(tmp_path / "bare.csv"), "all").take(slice(None))["x"]
    assert (
        x.shape == (21, 2) and x[1:, 1].isnan().all() and x[0].isnan().tolist() == [c == "" for c in first.split(",")]
    )


@pytest.mark.parametrize(
    "column",
    [
        [1.0, np.nan, 2.0],
        pandas.array([1, None, 2], dtype="Int64"),
        [True, None, False],
        pandas.array([1.5, None, 2.5], dtype="Float64"),
        ["1", None, "2"],
    ],
    ids=["float", "Int64", "bool", "Float64", "text"],
)
def test_missing_cells_of_a_frame_are_missing_values(column):
    x = as_split(pandas.DataFrame({"a": [1.0, 2.0, 3.0], "b": column}))["x"]
    assert x.dtype == torch.float32 and x.isnan().tolist() == [[False, False], [False, True], [False, False]]


def test_a_missing_label_is_refused():
    with pytest.raises(DataError, match="row 1, column 'label' is missing"):
        as_split(pandas.DataFrame({"a": [1.0, 2.0], "label": ["u", None]}))


@pytest.mark.parametrize("binarize", ["none", "static", "dynamic"])
@pytest.mark.parametrize("small", [False, True], ids=["in_memory", "memory_map"])
def test_binarising_leaves_gaps_as_they_are(binarize, small, tmp_path, monkeypatch):
    if small:
        from pyro_vae.data.files import read

        monkeypatch.setattr(read, "MEMORY_LIMIT", 0)
    np.save(tmp_path / "x.npy", grey())
    data = load_data(tmp_path / "x.npy", binarize=binarize)
    whole = choose_split(data, "all").take(slice(None))["x"]
    assert torch.equal(whole.isnan(), torch.from_numpy(grey()).isnan())
    known = whole[~whole.isnan()]
    assert binarize == "none" or ((known == 0) | (known == 1)).all()
    for split in data.splits.values():
        numbers = split.origin
        assert torch.equal(split.take(slice(None))["x"].isnan(), torch.from_numpy(grey()).isnan()[numbers])


def test_bits_with_gaps_are_not_drawn_again(tmp_path):
    x = np.round(grey(seed=1))
    np.save(tmp_path / "x.npy", x)
    data = load_data(tmp_path / "x.npy", binarize="dynamic")
    assert data.undrawn is None
    found = choose_split(data, "all").take(slice(None))["x"].numpy()
    np.testing.assert_array_equal(found, x.astype(np.float32))


def test_the_mean_of_the_data_is_that_of_what_is_observed(tmp_path):
    np.save(tmp_path / "x.npy", grey())
    data = load_data(tmp_path / "x.npy")
    expected = np.nanmean(grey()[data.train.origin.numpy()], 0)
    np.testing.assert_allclose(data.facts["data_mean"].numpy(), expected, rtol=1e-5)
    nothing = Split({"x": torch.tensor([[1.0, torch.nan], [3.0, torch.nan]])})
    assert observed_means(nothing, ["x"])["x"].tolist() == [2.0, 0.0]


def test_what_is_missing_is_counted_in_the_rows_that_were_given():
    x = torch.arange(20.0).view(10, 2)
    x[7, 1], x[4] = torch.nan, torch.nan
    split = Split({"x": x, "y": torch.zeros(10)}, rows=torch.tensor([9, 7, 4, 1]))
    found = missing_of(split, ["x", "y"])
    assert list(found) == ["x"] and found["x"].first == [7, 1] and found["x"].blank == [2]
    assert (found["x"].elements, found["x"].size) == (3, 8) and found["x"].ever.tolist() == [True, True]
    assert missing_of(split.head(1), ["x"]) == {}


def test_all_splits_together_are_in_the_order_of_the_file(tmp_path):
    x = np.arange(60.0).reshape(30, 2)
    np.save(tmp_path / "x.npy", x)
    whole = choose_split(load_data(tmp_path / "x.npy"), "all")
    np.testing.assert_array_equal(whole.take(slice(None))["x"].numpy(), x)
    np.savez(tmp_path / "parts.npz", train=x[:20], test=x[20:])
    found = choose_split(load_data(tmp_path / "parts.npz"), "all").take(slice(None))["x"].numpy()
    assert sorted(found[:, 0]) == sorted(x[:, 0]) and np.array_equal(found[20:], x[20:])
    one = Split({"x": torch.arange(6.0).view(3, 2)})
    assert choose_split(Dataset("data", one, one, one), "all").size == 3


def test_infinite_values_are_refused_as_before():
    with pytest.raises(DataError, match=r"x\[1, 0\] is inf; remove or replace what is not finite"):
        as_split(np.array([[0.0, np.nan], [np.inf, 1.0]]))
    with pytest.raises(DataError, match=r"batch 1 of the DataLoader: x\[1, 1\] is nan"):
        x = torch.tensor([[1.0, 0.0], [1.0, torch.nan]])
        loader = torch.utils.data.DataLoader(x, batch_size=2)
        pv.train(pv.VAE((2,), hidden=(2,)), loader, valid=torch.ones(4, 2), epochs=1, progress=False)
