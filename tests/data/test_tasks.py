"""Conditional tasks: what is given, what is hidden, and that both are parts of one image."""

import numpy as np
import pytest
import torch

import pyro_vae as pv
from pyro_vae.errors import DataError


def task(name: str, **options) -> pv.data.Dataset:
    return pv.load_data(name, binarize="dynamic", **options)


def hidden_of(data: pv.data.Dataset) -> torch.Tensor:
    return data.test.take(slice(0, 1))["mask"][0, 0]


def picture(rows: list[str]) -> torch.Tensor:
    return torch.tensor([[cell == "#" for cell in row] for row in rows]).repeat_interleave(4, 0).repeat_interleave(4, 1)


def test_the_middle_column_is_given():
    hidden = hidden_of(task("column"))
    assert hidden.shape == (8, 8) and (~hidden).nonzero()[:, 1].unique().tolist() == [3]


@pytest.mark.parametrize("observed, rows", [(1, ["##", ".#"]), (2, [".#", ".#"]), (3, ["..", ".#"])])
def test_quadrants_are_given_as_in_pyros_example(observed, rows):
    assert torch.equal(hidden_of(task("quadrants", observed=observed)), picture(rows))


@pytest.mark.parametrize("name", ["column", "quadrants"])
def test_what_is_given_is_part_of_the_image_as_it_was_drawn(name):
    data = task(name)
    for split in data.splits.values():
        batch = split.take(slice(0, 20))
        hidden = batch["mask"]
        assert torch.equal(batch["context"][~hidden], batch["x"][~hidden])
        assert (batch["context"][hidden] == -1).all()
        assert ((batch["x"] == 0) | (batch["x"] == 1)).all()
    first, second = (data.train.take(slice(0, 200))["context"] for _ in range(2))
    assert not torch.equal(first, second), "drawn anew at every presentation"
    first, second = (data.test.take(slice(0, 200))["context"] for _ in range(2))
    assert torch.equal(first, second)
    assert data.facts["context_shape"] == data.facts["data_shape"] == (1, 8, 8)


def test_labels_are_given_as_indicators():
    data = task("label")
    batch = data.test.take(slice(0, 30))
    assert torch.equal(batch["context"].argmax(1), batch["label"]) and (batch["context"].sum(1) == 1).all()
    assert data.facts["context_shape"] == (10,)


@pytest.mark.parametrize("shape", [(8, 8), (1, 8, 8)])
def test_a_mask_of_the_users_own(tmp_path, shape):
    mask = np.zeros(shape)
    mask[..., 2:5, 1:4] = 7
    np.save(tmp_path / "mask.npy", mask)
    assert torch.equal(
        hidden_of(task("inpaint", mask=str(tmp_path / "mask.npy"))), torch.from_numpy(mask != 0).view(8, 8)
    )


@pytest.mark.parametrize(
    "array, message",
    [
        (np.zeros((8, 8)), "the mask hides no pixel"),
        (np.ones((8, 8)), "the mask hides every pixel"),
        (np.ones((4, 8)), r"has shape \[4, 8\], but an image has \[1, 8, 8\]"),
        (None, "the mask .* cannot be read .* give a .npy file with --mask"),
    ],
)
def test_a_mask_that_leaves_nothing_to_do_is_refused(tmp_path, array, message):
    if array is not None:
        np.save(tmp_path / "mask.npy", array)
    with pytest.raises(DataError, match=message):
        task("inpaint", mask=str(tmp_path / "mask.npy"))


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("quadrants", {"observed": 4}, "observed is 1, 2 or 3 quadrants, not 4"),
        ("column", {"root": "somewhere"}, "digits: got an unexpected keyword argument 'root'"),
    ],
)
def test_options_that_do_not_fit_are_refused(name, options, message):
    with pytest.raises(DataError, match=message):
        task(name, **options)


def test_a_source_needs_images_and_labels(tmp_path):
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).integers(0, 2, (60, 12)).astype(np.uint8))
    source = str(tmp_path / "rows.npy")
    with pytest.raises(DataError, match=r"x has shape \[12\] a datum; column needs images"):
        task("column", source=source)
    with pytest.raises(DataError, match="has no field label; it has x"):
        task("label", source=source)


def test_a_label_outside_those_of_training_is_refused(tmp_path):
    x, label = np.zeros((60, 1, 4, 4), np.uint8), np.arange(60) % 3
    np.savez(tmp_path / "labelled.npz", x=x, label=label - 1)
    with pytest.raises(DataError, match="the labels of .* run from -1 to 1, those of train from 0 to 1"):
        task("label", source=str(tmp_path / "labelled.npz"))
