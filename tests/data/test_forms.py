"""Data in the forms in which people have them."""

import numpy as np
import pandas
import pytest
import scipy.sparse
import torch
from torch.utils.data import DataLoader, TensorDataset

import pyro_vae as pv
from pyro_vae.data import as_split
from pyro_vae.errors import DataError

X = np.arange(12.0).reshape(4, 3)


def frame(**more) -> pandas.DataFrame:
    return pandas.DataFrame(X, columns=["a", "b", "c"]).assign(**more)


class Items(torch.utils.data.Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


FORMS = {
    "array": X,
    "frame": frame(),
    "csr": scipy.sparse.csr_matrix(X),
    "csc_array": scipy.sparse.csc_array(X),
    "tensor_dataset": TensorDataset(torch.tensor(X)),
    "dataset": Items(list(torch.tensor(X))),
    "dataset_of_mappings": Items([{"x": row} for row in torch.tensor(X)]),
    "loader": DataLoader(TensorDataset(torch.tensor(X)), batch_size=3),
    "mapping_of_sparse": {"x": scipy.sparse.coo_matrix(X)},
}


@pytest.mark.parametrize("data", FORMS.values(), ids=FORMS)
def test_every_form_holds_the_same_numbers(data):
    split = as_split(data)
    assert list(split) == ["x"] and np.allclose(split["x"].numpy(), X)


def test_labels_come_along():
    beside = as_split({"x": frame(even=[True, False, True, False]), "label": pandas.Series([3, 1, 2, 0])})
    assert beside["label"].tolist() == [3, 1, 2, 0] and beside["x"][:, 3].tolist() == [1, 0, 1, 0]
    words = as_split(frame(label=["cat", "dog", "cat", "ant"]))
    assert words["label"].tolist() == [1, 2, 1, 0] and np.allclose(words["x"].numpy(), X)
    pairs = Items([(row, place) for place, row in enumerate(torch.tensor(X))])
    split = as_split(pairs, ("x", "label"))
    assert split["label"].tolist() == [0, 1, 2, 3]


def test_anndata_is_read(tmp_path):
    anndata = pytest.importorskip("anndata")
    data = anndata.AnnData(
        scipy.sparse.csr_matrix(X), obs=pandas.DataFrame({"label": list("abca")}, index=list("wxyz"))
    )
    split = as_split(data)
    assert np.allclose(split["x"].numpy(), X) and split["label"].tolist() == [0, 1, 2, 0]
    big = anndata.AnnData(scipy.sparse.csr_matrix(np.tile(X, (10, 1))))
    big.write_h5ad(tmp_path / "counts.h5ad")
    assert pv.load_data(tmp_path / "counts.h5ad", scale="raw").train.size == 32


def test_a_csv_is_read_with_and_without_names(tmp_path):
    table = frame(label=[0, 1, 0, 1])
    table = pandas.concat([table] * 10, ignore_index=True)
    table.to_csv(tmp_path / "named.csv", index=False)
    table.drop(columns="label").to_csv(tmp_path / "bare.csv", index=False, header=False)
    named, bare = pv.load_data(tmp_path / "named.csv"), pv.load_data(tmp_path / "bare.csv")
    assert set(named.train) == {"x", "label"} and set(bare.train) == {"x"}
    total = sum(split["x"].sum() for split in bare.splits.values())
    assert total == pytest.approx(10 * X.sum()) and named.train.size + named.valid.size + named.test.size == 40


WRONG = {
    "text": (frame(name=["a", "b", "c", "d"]), "row 0, column 'name' holds 'a', which is no number"),
    "a_word_among_numbers": (frame(d=[1.0, 2.0, "three", 4.0]), "row 2, column 'd' holds 'three'"),
    "dates": (frame(day=pandas.to_datetime(["2020-01-01"] * 4)), "column 'day' holds '2020"),
    "missing": (frame(label=["u", None, "v", "w"]), "row 1, column 'label' is missing"),
    "words": (Items([("a", 1), ("b", 2)]), r"tuple of 2, but none are given; .*fields="),
    "string": (DataLoader(Items(["one", "two"])), "x of an item of the data is list, not numbers|is str, not numbers"),
    "ragged": (Items([torch.zeros(2), torch.zeros(3)]), "differ in their fields or shapes"),
    "none": (Items([]), "0 rows"),
    "named": ({"x": X, "y": [1.0]}, "y: cannot take data of type list"),
    "other": (3.0, "cannot take data of type float"),
}


@pytest.mark.parametrize("data, words", WRONG.values(), ids=WRONG)
def test_what_cannot_be_taken_is_one_line(data, words):
    with pytest.raises(DataError, match=words) as caught:
        as_split(data)
    assert "\n" not in str(caught.value)


def test_a_missing_label_of_a_csv_is_named(tmp_path):
    (tmp_path / "gap.csv").write_text("a,label\n" + "1,2\n" * 5 + "3,\n" + "1,2\n" * 20)
    with pytest.raises(DataError, match="gap.csv: row 5, column 'label' is missing"):
        pv.load_data(tmp_path / "gap.csv")


TABLES = {
    "a,b\n1,2\n1,word\n": "row 1, column 'b' holds 'word'",
    "a,b\n": "0 rows",
}


@pytest.mark.parametrize("text, words", TABLES.items())
def test_a_cell_that_is_no_number_is_named(text, words, tmp_path):
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(DataError, match=words):
        pv.load_data(tmp_path / "table.csv")


def test_numbers_of_mixed_kinds_are_numbers():
    mixed = pandas.DataFrame({"a": pandas.Series([1, 2.5, True, np.float32(3)], dtype=object), "b": [True] * 4})
    assert as_split(mixed)["x"].tolist() == [[1.0, 1.0], [2.5, 1.0], [1.0, 1.0], [3.0, 1.0]]
