"""Data whose labels are hidden from a pair, and made-up data of known classes."""

import numpy as np
import pytest
import torch

import pyro_vae as pv
from pyro_vae.data import Dataset, Split
from pyro_vae.data.labels import HIDDEN, TRUTH, hide_labels
from pyro_vae.errors import DataError


def labelled(**labels: torch.Tensor) -> Dataset:
    """Data whose x tells the row; the labels of train are given, those of the others are 0, 1, 2, 0."""
    train = labels.get("train", torch.arange(12) % 3)
    held_out = labels.get("valid", torch.tensor([0, 1, 2, 0]))
    parts = (train, held_out, held_out)
    return Dataset("toy", *(Split({"x": torch.arange(len(y)).float().view(-1, 1), "label": y}) for y in parts))


def test_as_many_labels_of_each_class_are_shown_and_they_are_the_true_ones():
    data = hide_labels(labelled(), 6, seed=1)
    label, truth = data.train["label"], data.train[TRUTH]
    known = label != HIDDEN
    assert torch.equal(truth, torch.arange(12) % 3) and torch.equal(label[known], truth[known])
    assert torch.bincount(label[known]).tolist() == [2, 2, 2] and (label[~known] == HIDDEN).all()
    assert data.facts["num_labels"] == 3 and data.name == "toy-6-labels"


def test_held_out_labels_are_kept_for_scoring_and_shown_only_where_that_is_asked_for():
    for shown in (False, True):
        data = hide_labels(labelled(), 3, shown=shown)
        for split in (data.valid, data.test):
            assert split[TRUTH].tolist() == [0, 1, 2, 0]
            assert split["label"].tolist() == ([0, 1, 2, 0] if shown else [HIDDEN] * 4)


def test_the_seed_draws_which_are_shown_and_a_larger_number_shows_the_same_and_more():
    def shown(seed: int, count: int = 6) -> set[int]:
        return set((hide_labels(labelled(), count, seed).train["label"] != HIDDEN).nonzero().flatten().tolist())

    assert shown(0) == shown(0) != shown(1)
    assert shown(0, 3) < shown(0, 6)


def test_copies_stand_in_the_training_data_beside_their_originals():
    once, thrice = (hide_labels(labelled(), 3, copies=copies).train for copies in (1, 3))
    known = once["label"] != HIDDEN
    assert once.size == 12 and thrice.size == 12 + 2 * 3
    assert torch.equal(thrice["x"][:12], once["x"])
    assert sorted(thrice["x"][12:].flatten().tolist()) == sorted(2 * once["x"][known].flatten().tolist())
    assert torch.equal(thrice["label"][12:], thrice[TRUTH][12:])


def test_rows_that_stay_in_their_file_are_hidden_alike():
    """A split that is not resident holds all stored rows, of which it has some, in another order."""
    stored = {"x": torch.arange(12).float().view(-1, 1), "label": torch.arange(12, dtype=torch.uint8) % 3}
    rows = torch.tensor([11, 0, 4, 7, 2, 9])
    parts = [Split(stored, rows=rows, resident=resident) for resident in (True, False)]
    found = [hide_labels(Dataset("toy", part, part, part), 3, copies=2).train for part in parts]
    for name in ("x", "label", TRUTH):
        assert torch.equal(found[0][name], found[1][name])
    assert found[0][TRUTH][:6].tolist() == [2, 0, 1, 1, 2, 0] and found[0].size == 9


@pytest.mark.parametrize(
    "data, labels, message",
    [
        (labelled(), 4, "labels must be a multiple of the 3 classes, such as 30, not 4"),
        (labelled(), 0, "labels must be a multiple of the 3 classes"),
        (labelled(), 15, "labels=15 asks for 5 of each class, but class 0 has 4 data"),
        (labelled(train=torch.tensor([0, 1, -1])), 2, "train label holds -1, so labels are hidden already"),
        (
            labelled(train=torch.tensor([0.0, 1.5])),
            2,
            "train label must be one whole number a datum, not torch.float32",
        ),
        (labelled(valid=torch.eye(3).long()), 3, "valid label must be one whole number a datum"),
    ],
)
def test_labels_that_cannot_be_hidden_are_one_line(data, labels, message):
    with pytest.raises(DataError, match=message):
        hide_labels(data, labels)


def test_any_labelled_source_may_be_partly_labelled(tmp_path):
    data = pv.load_data("partly_labelled", labels=20, binarize="static")
    batch = data.train.take(slice(None))
    assert data.train.size == 1297 and int((batch["label"] != HIDDEN).sum()) == 20
    assert ((batch["x"] == 0) | (batch["x"] == 1)).all() and data.facts["num_labels"] == 10
    np.savez(tmp_path / "own.npz", x=np.zeros((60, 3), np.uint8), label=np.arange(60) % 2)
    data = pv.load_data("partly_labelled", source=str(tmp_path / "own.npz"), labels=4)
    assert int((data.train["label"] != HIDDEN).sum()) == 4
    np.savez(tmp_path / "none.npz", x=np.zeros((60, 3), np.uint8))
    with pytest.raises(DataError, match="has no field label; it has x"):
        pv.load_data("partly_labelled", source=str(tmp_path / "none.npz"))


def test_mnist_may_be_partly_labelled(real_data):
    data = pv.load_data("partly_labelled", source="mnist", root=str(real_data), labels=100, copies=10)
    assert data.train.size == 50_000 + 900 and torch.bincount(data.test[TRUTH]).min() > 800
    assert torch.bincount(data.train["label"][data.train["label"] != HIDDEN]).tolist() == [100] * 10


def test_planted_clusters_have_pictures_of_their_own():
    data = pv.load_data("planted_clusters", binarize="dynamic", clusters=4, size=400)
    x, label = data.train["x"], data.train["label"]
    assert x.shape == (400, 1, 8, 8) and data.test.size == 80 and label.unique().tolist() == [0, 1, 2, 3]
    means = torch.stack([x[label == k].mean(0).flatten() for k in range(4)])
    nearest = (data.test["x"].flatten(1).unsqueeze(1) - means).square().sum(-1).argmin(1)
    assert (nearest == data.test["label"]).float().mean() > 0.95


def test_planted_cells_are_counts_of_types_that_batches_change():
    data = pv.load_data("planted_cells", types=3, genes=8, batches=2, labels=6, size=600)
    x, batch = data.train.take(slice(None))["x"], data.train["context"].argmax(1)
    assert x.shape == (600, 8) and (x == x.round()).all() and (x >= 0).all()
    assert int((data.train["label"] != HIDDEN).sum()) == 6 and data.facts["context_shape"] == (2,)
    shares = x / x.sum(1, keepdim=True)
    of_type, of_batch = (
        torch.stack([shares[kind == k].mean(0) for k in range(count)])
        for kind, count in ((data.train[TRUTH], 3), (batch, 2))
    )
    assert (of_type[0] - of_type[1]).abs().sum() > 0.2 and (of_batch[0] - of_batch[1]).abs().sum() > 0.2


@pytest.mark.parametrize("name, option", [("planted_clusters", "clusters"), ("planted_cells", "genes")])
def test_made_up_data_of_nothing_are_refused(name, option):
    with pytest.raises(DataError, match=f"{option} must be at least 1, not 0"):
        pv.load_data(name, **{option: 0})
