"""Sequences: where batches are cut, what is to be expected of them, and how files hold them."""

import numpy as np
import pytest
import torch

from pyro_vae import load_data
from pyro_vae.data import Split
from pyro_vae.data.sequences import cut, cuts, lengths_of, shares
from pyro_vae.errors import DataError


def test_there_are_at_most_four_lengths():
    assert cuts(160) == [40, 80, 120, 160] and cuts(129) == [33, 65, 97, 129]
    assert cuts(7) == [2, 4, 6, 7] and cuts(2) == [1, 2] and cuts(1) == [1]


@pytest.mark.parametrize("longest, kept", [(1, 2), (2, 2), (3, 4), (6, 6), (7, 7)])
def test_a_batch_ends_with_the_smallest_length_that_holds_it(longest, kept):
    x = torch.arange(42.0).reshape(2, 7, 3)
    batch = cut({"x": x, "length": torch.tensor([1, longest]), "mask": x[..., 0], "context": torch.ones(2, 5)})
    assert torch.equal(batch["x"], x[:, :kept]) and batch["x"].is_contiguous()
    assert list(batch["mask"].shape) == [2, kept] and list(batch["context"].shape) == [2, 5]


def test_what_are_no_sequences_stays():
    x = torch.ones(2, 7)
    assert cut({"x": x})["x"] is x
    assert list(cut({"length": torch.ones(2), "x": torch.ones(2)})["x"].shape) == [2]


def test_expected_shares_are_those_of_batches_drawn():
    lengths = torch.tensor([1, 1, 2, 2, 3, 3, 4, 4, 4, 4])
    expected = shares(lengths, 4, 3)
    generator = torch.Generator().manual_seed(0)
    drawn = [int(lengths[torch.randperm(10, generator=generator)[:3]].max()) for _ in range(4000)]
    assert sum(expected.values()) == pytest.approx(1.0)
    for length, share in expected.items():
        assert drawn.count(length) / 4000 == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.float32])
def test_lengths_are_whole_numbers_however_they_are_stored(dtype):
    split = Split({"x": torch.zeros(3, 4), "length": torch.tensor([1, 4, 2], dtype=dtype)})
    assert lengths_of(split).tolist() == [1, 4, 2]
    assert split.take(slice(None))["length"].dtype == (dtype if dtype.is_floating_point else torch.int64)


def archive(tmp_path, **arrays):
    path = tmp_path / "music.npz"
    np.savez(path, **arrays)
    return path


def test_a_file_of_sequences(tmp_path):
    """No images, though they have three dims of bytes; the splits are filled up to the longest array."""
    rng = np.random.default_rng(0)
    arrays = {}
    for name, (n, steps) in {"train": (5, 4), "valid": (2, 3), "test": (3, 6)}.items():
        arrays |= {f"x_{name}": rng.integers(0, 2, (n, steps, 2)).astype(bool), f"length_{name}": np.full(n, steps)}
    data = load_data(archive(tmp_path, **arrays))
    for name, split in data.splits.items():
        x, steps = split.take(slice(None))["x"], arrays[f"x_{name}"].shape[1]
        assert x.shape[1:] == (6, 2) and not x[:, steps:].any()
        assert np.array_equal(x[:, :steps].numpy(), arrays[f"x_{name}"])
    raw = load_data(archive(tmp_path, x=np.ones((20, 4, 3), np.uint8), length=np.full(20, 4)), scale="raw")
    assert raw.train.take(slice(0, 2))["x"].shape == (2, 4, 3)


def chorales(**changed):
    arrays = {f"{split}_x": np.ones((2, steps, 88), np.uint8) for split, steps in zip(SPLITS, (5, 4, 6), strict=True)}
    return arrays | {f"{split}_length": np.array([3, 4]) for split in SPLITS} | changed


SPLITS = ("train", "valid", "test")


def test_the_chorales(tmp_path):
    data = load_data("jsb", file=str(archive(tmp_path, **chorales())))
    batch = data.train.take(slice(None))
    assert data.facts["data_shape"] == (6, 88) and batch["x"].max() == 1 and batch["length"].tolist() == [3, 4]


@pytest.mark.parametrize(
    "changed", [{"train_x": np.full((2, 5, 88), 2)}, {"test_x": np.ones((2, 5, 87))}, {"valid_x": np.ones((2, 88))}]
)
def test_another_file_than_the_chorales_is_refused(changed, tmp_path):
    with pytest.raises(DataError, match=r"needs arrays S_x \[n, time, 88\] of 0 and 1 and S_length"):
        load_data("jsb", file=str(archive(tmp_path, **chorales(**changed))))


def test_the_real_chorales(real_data):
    data = load_data("jsb", file=str(real_data / "jsb.npz"))
    assert [split.size for split in data.splits.values()] == [229, 76, 77]
    for split in data.splits.values():
        batch, lengths = split.take(slice(None)), lengths_of(split)
        assert not (batch["x"].sum(2) * (torch.arange(160) >= lengths[:, None])).any()
