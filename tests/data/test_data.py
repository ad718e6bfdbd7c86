"""Splits, batches, binarisation, named sets, files and what is said of bad ones."""

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.datasets import MNIST, Omniglot

from pyro_vae import plugins
from pyro_vae.data import Dataset, Split, as_split, load_data, split
from pyro_vae.data.files import arrays, read
from pyro_vae.data.partition import partition
from pyro_vae.errors import DataError, PluginError, UnknownName

REAL = os.environ.get("PYRO_VAE_DATA")
needs_real_data = pytest.mark.skipif(REAL is None, reason="PYRO_VAE_DATA names no folder")


@pytest.fixture
def rng_untouched():
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state())


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def counting(size: int, **options) -> Split:
    """A split whose x tells the row."""
    return Split({"x": torch.arange(float(size)).unsqueeze(1)}, **options)


def rows_seen(batches) -> list[int]:
    return torch.cat([batch["x"][:, 0] for batch in batches]).int().tolist()


# --- a split ------------------------------------------------------------------------------------------------


def test_a_split_is_a_mapping_of_its_stored_fields():
    x, label = torch.tensor([[7], [8]], dtype=torch.uint8), torch.tensor([1, 0])
    two = Split({"x": x, "label": label})
    assert dict(two) == {"x": x, "label": label} and len(two) == 2 and two.size == 2
    assert "x" in two and "y" not in two
    with pytest.raises(KeyError):
        two["y"]


def test_take_presents_bytes_as_floats_labels_as_int64_and_other_bits_as_they_are():
    fields = {
        "x": torch.tensor([[0], [255]], dtype=torch.uint8),
        "mask": torch.tensor([True, False]),
        "label": torch.tensor([3, 4], dtype=torch.uint8),
        "count": torch.tensor([5, 6]),
    }
    batch = Split(fields).take(torch.tensor([1]))
    assert {name: value.dtype for name, value in batch.items()} == {
        "x": torch.float32,
        "mask": torch.bool,
        "label": torch.int64,
        "count": torch.int64,
    }
    assert [value.flatten().tolist() for value in batch.values()] == [[255.0], [0.0], [4], [6]]


def test_transforms_apply_in_turn_to_what_is_presented():
    doubled = counting(4).then(lambda batch: {"x": 2 * batch["x"]}).then(lambda batch: {"x": batch["x"] + 1})
    assert doubled.take(slice(1, 3))["x"].flatten().tolist() == [3.0, 5.0]
    assert rows_seen(doubled.batches(3)) == [1, 3, 5, 7]
    assert doubled["x"].flatten().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("resident", [True, False])
def test_rows_select_and_order_the_data(resident):
    part = counting(10, rows=torch.tensor([7, 2, 5]), resident=resident)
    assert part.size == 3
    assert part["x"].flatten().tolist() == [7, 2, 5]
    assert rows_seen(part.batches(2)) == [7, 2, 5]
    assert part.take(torch.tensor([2, 0]))["x"].flatten().tolist() == [5, 7]
    assert rows_seen(part.head(2).batches(5)) == [7, 2] and part.head(2).size == 2
    assert sorted(rows_seen(part.batches(2, generator()))) == [2, 5, 7]


@pytest.mark.parametrize("resident", [True, False])
def test_head_without_rows(resident):
    whole = counting(10, resident=resident)
    assert rows_seen(whole.head(4).batches(3)) == [0, 1, 2, 3]
    assert sorted(rows_seen(whole.head(4).batches(3, generator()))) == [0, 1, 2, 3]
    assert whole.head(None) is whole and whole.head(10) is whole
    with pytest.raises(DataError, match="limit of 0"):
        whole.head(0)


def test_batches_without_a_generator_are_in_order_and_the_last_is_ragged():
    ten = counting(10)
    assert [len(batch["x"]) for batch in ten.batches(4)] == [4, 4, 2] and ten.num_batches(4) == 3
    assert rows_seen(ten.batches(4)) == list(range(10))
    assert ten.num_batches(5) == 2 and ten.num_batches(100) == 1
    with pytest.raises(DataError, match="batch_size"):
        next(ten.batches(0))


def test_a_generator_shuffles_each_pass_anew_and_reproducibly(rng_untouched):
    hundred, order = counting(100), generator(3)
    first, second = rows_seen(hundred.batches(7, order)), rows_seen(hundred.batches(7, order))
    assert sorted(first) == sorted(second) == list(range(100))
    assert first != second and first != list(range(100))
    assert first == rows_seen(hundred.batches(7, generator(3)))


def test_a_device_takes_resident_fields_whole_and_memory_maps_by_the_batch():
    resident = counting(6).to("meta")
    assert resident["x"].device.type == "meta" and resident.take(slice(0, 2))["x"].device.type == "meta"
    mapped = counting(6, resident=False).to("meta")
    assert mapped["x"].device.type == "cpu" and mapped.take(slice(0, 2))["x"].device.type == "meta"
    assert mapped.take(torch.tensor([1]))["x"].device.type == "meta"
    assert all(batch["x"].device.type == "meta" for batch in mapped.head(4).batches(2, generator()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("resident", [True, False])
def test_on_a_gpu_every_row_comes_once_with_a_generator_of_either_device(resident):
    ten = counting(10, resident=resident).to("cuda")
    for device in ("cpu", "cuda"):
        batches = list(ten.batches(3, torch.Generator(device).manual_seed(0)))
        assert all(batch["x"].is_cuda for batch in batches)
        assert sorted(rows_seen(batches)) == list(range(10))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "at least one"),
        ({"x": torch.tensor(1.0)}, "single number"),
        ({"x": torch.zeros(0, 3)}, "0 rows"),
        ({"x": torch.zeros(3, 2), "label": torch.zeros(2)}, r"x 3, label 2"),
    ],
)
def test_a_split_refuses_fields_that_are_no_data(fields, message):
    with pytest.raises(DataError, match=message):
        Split(fields)


def test_partition_covers_all_rows_once_by_the_seed(rng_untouched):
    parts = partition(100, (10, 20), seed=1)
    assert [len(part) for part in parts] == [70, 10, 20]
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(100))
    assert all(map(torch.equal, parts, partition(100, (10, 20), seed=1)))
    assert not torch.equal(parts[0], partition(100, (10, 20), seed=2)[0])
    with pytest.raises(DataError, match="cannot hold out 100 of 100"):
        partition(100, (100,), seed=0)


# --- data in memory -----------------------------------------------------------------------------------------


def test_as_split_takes_tensors_arrays_and_mappings():
    x = torch.rand(3, 2, dtype=torch.float64)
    assert as_split(x)["x"] is x
    assert as_split(x.numpy())["x"].dtype == torch.float32
    assert list(as_split({"x": x, "label": np.array([1, 2, 3], dtype=np.uint16)})) == ["x", "label"]
    ready = Split({"x": x})
    assert as_split(ready) is ready


def test_as_split_never_scales():
    x = torch.full((2, 1), 255, dtype=torch.uint8)
    assert as_split(x).take(slice(None))["x"].max() == 255


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([[1.0]], "cannot take data of type list"),
        (torch.tensor([[0.0, 1.0], [float("nan"), float("-inf")]]), r"x\[1, 1\] is -inf"),
        ({"x": np.ones((2, 1)), "y": np.array([0, np.inf])}, r"y\[1\] is inf"),
        (np.array(["a"]), "<U1"),
        (torch.zeros(0, 3), "0 rows"),
    ],
)
def test_as_split_refuses_what_is_no_data(data, message):
    with pytest.raises(DataError, match=message):
        as_split(data)


# --- scaling and binarisation -------------------------------------------------------------------------------


def test_digits_are_divided_by_the_seed_and_scaled_by_their_16_levels(rng_untouched):
    data = load_data("digits", seed=4)
    assert [part.size for part in data.splits.values()] == [1297, 250, 250]
    bundled = load_digits()
    rows = {image.tobytes(): label for image, label in zip(bundled.images / 16, bundled.target, strict=True)}
    seen = []
    for part in data.splits.values():
        assert part["x"].shape[1:] == (1, 8, 8) and part["x"].dtype == torch.float32
        images = [image.double().numpy().tobytes() for image in part["x"]]
        assert [rows[image] for image in images] == part["label"].tolist()
        seen += images
    assert sorted(seen) == sorted(image.tobytes() for image in bundled.images / 16)
    assert torch.equal(data.train["x"], load_data("digits", seed=4).train["x"])
    assert not torch.equal(data.train["x"], load_data("digits", seed=5).train["x"])


def test_the_raw_scale_keeps_what_is_stored(rng_untouched):
    scaled, stored = load_data("digits"), load_data("digits", scale="raw")
    assert stored.train["x"].dtype == torch.float32 and stored.train["x"].max() == 16
    torch.testing.assert_close(stored.train["x"], 16 * scaled.train["x"])


@pytest.mark.parametrize(
    ("stored", "scaled"),
    [
        (np.array([[0, 51, 255]] * 5, np.uint8), [0, 0.2, 1]),
        (np.array([[0, 1, 1]] * 5, np.uint8), [0, 1, 1]),
        (np.array([[False, True, True]] * 5), [0, 1, 1]),
        (np.array([[0, 51, 255]] * 5, np.int64), [0, 51, 255]),
        (np.array([[0, 51, 60000]] * 5, np.uint16), [0, 51, 60000]),
        (np.array([[-1, 0.5, 255]] * 5), [-1, 0.5, 255]),
        (np.array([[-1, 0.5, 255]] * 5, ">f4"), [-1, 0.5, 255]),
    ],
    ids=["grey", "bits in bytes", "bool", "counts", "unsigned counts", "floats", "big-endian"],
)
def test_the_unit_scale_divides_grey_levels_only(tmp_path, stored, scaled):
    np.save(tmp_path / "x.npy", stored)
    x = load_data(tmp_path / "x.npy").train["x"]
    assert x.dtype == torch.float32
    torch.testing.assert_close(x, torch.tensor(scaled, dtype=torch.float32).expand(3, 3))


def assert_drawn_from(draws: torch.Tensor, probabilities: torch.Tensor) -> None:
    """Draws [k, ...] are 0 or 1, and their sum is within 4 standard deviations of what is expected."""
    assert set(draws.unique().tolist()) <= {0.0, 1.0}
    expected, variance = (
        len(draws) * probabilities.sum(),
        len(draws) * (probabilities * (1 - probabilities)).sum(),
    )
    assert abs(draws.sum() - expected) < 4 * variance.sqrt()
    inner = (probabilities > 0.2) & (probabilities < 0.8)
    weights = torch.where(inner, probabilities - 0.5, 0)
    expected = len(draws) * (weights * probabilities).sum()
    variance = len(draws) * (weights**2 * probabilities * (1 - probabilities)).sum()
    assert abs((draws * weights).sum() - expected) < 4 * variance.sqrt()


def test_static_binarisation_is_drawn_once_by_the_seed(rng_untouched):
    grey, drawn = load_data("digits", seed=1), load_data("digits", binarize="static", seed=1)
    again = load_data("digits", binarize="static", seed=1)
    for name, part in drawn.splits.items():
        assert_drawn_from(part["x"].unsqueeze(0), grey.splits[name]["x"])
        assert torch.equal(part["label"], grey.splits[name]["label"])
        assert torch.equal(part.take(slice(None))["x"], again.splits[name]["x"])


def test_the_seed_of_the_draw_matters_where_the_splits_are_fixed(tmp_path):
    x = np.full((20, 50), 0.5)
    np.savez(tmp_path / "x.npz", train=x, valid=x, test=x)
    first, second = (load_data(tmp_path / "x.npz", binarize="static", seed=seed) for seed in (0, 1))
    drawn = [part["x"] for data in (first, second) for part in data.splits.values()]
    assert not any(torch.equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])


def test_dynamic_binarisation_draws_training_data_anew_and_the_others_once():
    grey, data = load_data("digits"), load_data("digits", binarize="dynamic")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = torch.stack([data.train.take(slice(0, 100))["x"] for _ in range(50)])
        shuffled = [batch["x"] for _ in range(2) for batch in data.train.batches(1297, generator(1))]
        torch.manual_seed(0)
        assert torch.equal(draws[0], data.train.take(slice(0, 100))["x"])
    assert not torch.equal(draws[0], draws[1]) and not torch.equal(*shuffled)
    assert_drawn_from(draws, grey.train["x"][:100])
    static = load_data("digits", binarize="static")
    for name in ("valid", "test"):
        assert torch.equal(data.splits[name].take(slice(None))["x"], static.splits[name]["x"])


@pytest.mark.parametrize("binarize", ["none", "static", "dynamic"])
def test_loading_and_facts_leave_the_global_generator_alone(rng_untouched, binarize):
    data = load_data("digits", binarize=binarize)
    facts = data.facts
    assert facts["data_shape"] == (1, 8, 8) and facts["num_labels"] == 10 and "context_shape" not in facts
    torch.testing.assert_close(facts["data_mean"], data.train["x"].mean(0))


@pytest.mark.parametrize("binarize", ["static", "dynamic"])
def test_binary_data_have_nothing_to_draw(tmp_path, rng_untouched, binarize):
    bits = np.random.default_rng(0).integers(0, 2, (50, 4), dtype=np.uint8)
    np.save(tmp_path / "bits.npy", bits)
    plain, data = load_data(tmp_path / "bits.npy"), load_data(tmp_path / "bits.npy", binarize=binarize)
    assert torch.equal(data.train.take(slice(None))["x"], plain.train["x"])
    assert data.undrawn is None


@pytest.mark.parametrize("binarize", ["static", "dynamic"])
def test_binarising_needs_values_between_0_and_1(binarize):
    with pytest.raises(DataError, match=r"values in \[0, 1\].*holds 0 to 16.*scale='unit'"):
        load_data("digits", scale="raw", binarize=binarize)


def test_derived_fields_are_computed_from_what_is_binarised(monkeypatch, rng_untouched):
    def derive(batch):
        return {**batch, "context": batch["x"][:, :1], "mask": batch["x"] == 1}

    def plugin(seed: int = 0) -> Dataset:
        part = Split({"x": torch.full((8, 3), 0.5)})
        return Dataset("halves", part, part, part, derive=derive)

    monkeypatch.setattr(plugins, "load", lambda kind, name: plugin)
    data = load_data("halves", binarize="dynamic")
    assert data.facts["context_shape"] == (1,)
    torch.testing.assert_close(data.facts["data_mean"], torch.full((3,), 0.5))
    with torch.random.fork_rng():
        batch = data.train.take(slice(None))
    assert batch["mask"].dtype == torch.bool and torch.equal(batch["mask"], batch["x"] == 1)
    assert torch.equal(batch["context"], batch["x"][:, :1]) and set(batch["x"].unique().tolist()) == {0, 1}


# --- names and options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"name_or_file": "digit"}, UnknownName, "known: digits"),
        ({"binarize": "dynamc"}, UnknownName, "known: dynamic"),
        ({"scale": "units"}, UnknownName, "known: unit"),
        ({"root": "here"}, DataError, "digits: .*'root'; its options: none"),
        ({"name_or_file": "mnist", "rot": "here"}, DataError, "its options: root, valid"),
        ({"name_or_file": "static_mnist"}, DataError, "'file'; its options: file"),
        ({"name_or_file": "emnist", "split": "letter"}, UnknownName, "known: letters"),
        ({"name_or_file": "omniglot", "label": "alphabets"}, UnknownName, "known: alphabet"),
    ],
)
def test_unknown_names_and_options_list_the_known_ones(options, error, message):
    with pytest.raises(error, match=message) as raised:
        load_data(**{"name_or_file": "digits"} | options)
    assert "\n" not in str(raised.value)


def test_a_plugin_that_returns_something_else_is_named(monkeypatch):
    monkeypatch.setattr(plugins, "load", lambda kind, name: lambda seed=0: {"x": 1})
    with pytest.raises(PluginError, match="'odd' is broken"):
        load_data("odd")


def test_a_registered_name_goes_before_a_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    assert load_data("digits").train.size == 1297
    with pytest.raises(DataError, match="no images"):
        load_data("./digits")


# --- sets in MNIST's format ---------------------------------------------------------------------------------


def write_idx(file: Path, array: np.ndarray, packed: bool = False) -> None:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    data = header + array.astype(np.uint8).tobytes()
    file.parent.mkdir(parents=True, exist_ok=True)
    if packed:
        file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(data))
    else:
        file.write_bytes(data)


def write_mnist(folder: Path, stems=("train", "t10k"), packed: bool = False) -> dict[str, np.ndarray]:
    """50 and 20 random images in the format; the label is the first pixel's value modulo 10."""
    images = np.random.default_rng(0).integers(0, 256, (70, 28, 28), dtype=np.uint8)
    parts = dict(zip(stems, (images[:50], images[50:]), strict=True))
    for stem, part in parts.items():
        write_idx(folder / f"{stem}-images-idx3-ubyte", part, packed)
        write_idx(folder / f"{stem}-labels-idx1-ubyte", part[:, 0, 0] % 10, packed)
    return parts


@pytest.fixture
def no_download(monkeypatch):
    def download(self):
        raise RuntimeError("no\nnetwork")

    monkeypatch.setattr(MNIST, "download", download)
    monkeypatch.setattr(Omniglot, "download", download)


def as_bytes(x: torch.Tensor) -> torch.Tensor:
    return (255 * x).round().to(torch.uint8)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize(
    ("name", "below"),
    [("mnist", "MNIST/raw"), ("fashion_mnist", "FashionMNIST/raw"), ("kmnist", "KMNIST/raw"), ("mnist", "")],
)
def test_sets_in_torchvisions_layout_are_read_where_they_lie(tmp_path, no_download, rng_untouched, name, below, packed):
    images = write_mnist(tmp_path / below, packed=packed)
    data = load_data(name, root=str(tmp_path), valid=15, seed=2)
    assert data.name == name
    assert [part.size for part in data.splits.values()] == [35, 15, 20]
    for part in data.splits.values():
        assert part["x"].shape[1:] == (1, 28, 28)
        assert torch.equal(part["label"], as_bytes(part["x"])[:, 0, 0, 0].long() % 10)
    assert np.array_equal(as_bytes(data.test["x"]).numpy()[:, 0], images["t10k"])
    both = np.concatenate([as_bytes(data.train["x"]), as_bytes(data.valid["x"])])[:, 0]
    assert sorted(map(bytes, both)) == sorted(map(bytes, images["train"]))
    again = load_data(name, root=str(tmp_path), valid=15, seed=2)
    assert torch.equal(data.valid["x"], again.valid["x"])
    assert not torch.equal(data.valid["x"], load_data(name, root=str(tmp_path), valid=15, seed=3).valid["x"])


def test_emnist_is_turned_upright(tmp_path, no_download):
    images = write_mnist(tmp_path / "EMNIST/raw", ("emnist-letters-train", "emnist-letters-test"))
    data = load_data("emnist", root=str(tmp_path), valid=10, split="letters")
    turned = images["emnist-letters-test"].transpose(0, 2, 1)
    assert np.array_equal(as_bytes(data.test["x"]).numpy()[:, 0], turned)
    assert data.test["x"].is_contiguous()


def test_torchvision_downloads_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(MNIST, "download", lambda self: write_mnist(Path(self.raw_folder)))
    assert load_data("kmnist", root=str(tmp_path), valid=5).train.size == 45


@pytest.mark.parametrize("name", ["mnist", "omniglot"])
def test_a_failed_download_names_the_folder(tmp_path, no_download, name):
    with pytest.raises(DataError, match=r"cannot be downloaded \(no network\)") as raised:
        load_data(name, root=str(tmp_path))
    assert str(tmp_path) in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("damage", [b"", b"\0\0\x08\x03", b"garbage" * 10], ids=["empty", "header only", "garbage"])
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_a_damaged_file_is_named(tmp_path, no_download, damage, packed):
    write_mnist(tmp_path, packed=packed)
    file = tmp_path / f"train-images-idx3-ubyte{'.gz' if packed else ''}"
    file.write_bytes(damage)
    with pytest.raises(DataError, match=f"{file.name} is damaged"):
        load_data("mnist", root=str(tmp_path), valid=5)


def test_holding_out_everything_is_refused(tmp_path, no_download):
    write_mnist(tmp_path)
    with pytest.raises(DataError, match="cannot hold out 50 of 50"):
        load_data("mnist", root=str(tmp_path), valid=50)


@needs_real_data
def test_the_real_mnist():
    data = load_data("mnist", root=REAL, valid=400)
    assert [part.size for part in data.splits.values()] == [59_600, 400, 10_000]
    x = torch.cat([data.train["x"], data.valid["x"]])
    assert x.mean().item() == pytest.approx(0.1307, abs=1e-4) and x.std().item() == pytest.approx(0.3081, abs=1e-4)
    assert data.test["label"].bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@needs_real_data
def test_the_real_static_mnist():
    data = load_data("static_mnist", file=f"{REAL}/mnist_static_binarized.npz")
    assert [part.size for part in data.splits.values()] == [50_000, 10_000, 10_000]
    assert data.facts["data_shape"] == (1, 28, 28)
    for part in data.splits.values():
        assert part["x"].unique().tolist() == [0, 1]
        assert part["x"].mean().item() == pytest.approx(0.132, abs=0.002)


@needs_real_data
def test_the_real_frey_faces():
    data = load_data(f"{REAL}/frey_faces.npz")
    assert [part.size for part in data.splits.values()] == [1573, 196, 196]
    assert data.facts["data_shape"] == (1, 28, 20) and 0.5 < data.facts["data_mean"].mean() < 0.7


@pytest.mark.parametrize("shape", [(784,), (28, 28)])
def test_static_mnist_has_the_shape_of_images(tmp_path, shape):
    bits = np.random.default_rng(0).integers(0, 2, (6, *shape), dtype=np.uint8)
    np.savez(tmp_path / "static.npz", train=bits, valid=bits[:2], test=bits[:3])
    data = load_data("static_mnist", file=str(tmp_path / "static.npz"))
    assert [part.size for part in data.splits.values()] == [6, 2, 3]
    assert np.array_equal(data.train["x"].numpy(), bits.reshape(6, 1, 28, 28))


@pytest.mark.parametrize(
    "arrays",
    [
        {"train": np.zeros((3, 784), np.uint8), "test": np.zeros((3, 784), np.uint8)},
        dict.fromkeys(("train", "valid", "test"), np.zeros((3, 783), np.uint8)),
        dict.fromkeys(("train", "valid", "test"), np.full((3, 784), 2, np.uint8)),
        dict.fromkeys(("train", "valid", "test"), np.array(1)),
    ],
    ids=["no valid", "other width", "grey", "no images"],
)
def test_static_mnist_refuses_another_file(tmp_path, arrays):
    np.savez(tmp_path / "other.npz", **arrays)
    with pytest.raises(DataError, match="other.npz: needs arrays train, valid and test"):
        load_data("static_mnist", file=str(tmp_path / "other.npz"))


def save_image(file: Path, pixels: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


def test_omniglot_is_light_ink_on_28_by_28_pixels(tmp_path, no_download):
    paper = np.full((105, 105), 255, np.uint8)
    half = paper.copy()
    half[:, :52] = 0
    folder = tmp_path / "omniglot-py"
    for part, alphabets in (("images_background", ("Greek", "Latin")), ("images_evaluation", ("Tibetan",))):
        for alphabet in alphabets:
            for character in ("character01", "character02"):
                for i, image in enumerate((half, half, paper)):
                    save_image(folder / part / alphabet / character / f"{i}.png", image)
    data = load_data("omniglot", root=str(tmp_path), valid=4)
    assert [part.size for part in data.splits.values()] == [8, 4, 6]
    assert data.facts["num_labels"] == 3 and data.test["label"].tolist() == [2] * 6
    inked, blank = data.test["x"][0, 0], data.test["x"][2, 0]
    assert inked.shape == (28, 28) and blank.max() == 0
    assert inked[:, :13].min() == 1 and inked[:, 15:].max() == 0
    assert inked.mean().item() == pytest.approx(52 / 105, abs=0.01)
    by_character = load_data("omniglot", root=str(tmp_path), valid=4, label="character")
    assert by_character.test["label"].tolist() == [4, 4, 4, 5, 5, 5]
    assert by_character.train["label"].max() <= 3


# --- files --------------------------------------------------------------------------------------------------


def numbered(size: int, *shape: int) -> np.ndarray:
    """Float rows that each hold their own number, from 0 on."""
    return np.broadcast_to(np.arange(float(size)).reshape(-1, *[1] * len(shape)), (size, *shape)).copy()


def numbers(part: Split) -> list[int]:
    return part["x"].flatten(1)[:, 0].int().tolist()


@pytest.mark.parametrize("as_path", [str, Path])
def test_a_file_is_divided_80_10_10_by_the_seed(tmp_path, rng_untouched, as_path):
    np.save(tmp_path / "x.npy", numbered(57, 3))
    data = load_data(as_path(tmp_path / "x.npy"), seed=1)
    assert data.name == "x.npy" and data.facts["data_shape"] == (3,)
    assert [part.size for part in data.splits.values()] == [47, 5, 5]
    assert sorted(sum(map(numbers, data.splits.values()), [])) == list(range(57))
    assert numbers(data.test) == numbers(load_data(tmp_path / "x.npy", seed=1).test)
    assert numbers(data.test) != numbers(load_data(tmp_path / "x.npy", seed=2).test)


@pytest.mark.parametrize(
    ("array", "shape"),
    [
        (np.zeros((5, 4, 3), np.uint8), (1, 4, 3)),
        (np.zeros((5, 4, 3)), (4, 3)),
        (np.zeros((5, 12), np.uint8), (12,)),
        (np.zeros((5, 3, 4, 4), np.uint8), (3, 4, 4)),
    ],
)
def test_stacks_of_grey_images_get_a_channel(tmp_path, array, shape):
    np.save(tmp_path / "x.npy", array)
    assert load_data(tmp_path / "x.npy").facts["data_shape"] == shape


def test_an_archive_with_x_and_other_fields(tmp_path):
    x = numbered(20, 2)
    np.savez_compressed(tmp_path / "d.npz", x=x, label=np.arange(20, dtype=np.uint8) % 3, y=x[:, 0] / 2)
    data = load_data(tmp_path / "d.npz")
    assert list(data.train) == ["x", "label", "y"] and data.facts["num_labels"] == 3
    for part in data.splits.values():
        assert part["label"].dtype == torch.int64 and (part["label"] == part["x"][:, 0] % 3).all()
        assert part["y"].dtype == torch.float32 and (part["y"] == part["x"][:, 0] / 2).all()


def test_archives_with_ready_splits_keep_them(tmp_path):
    x, label = numbered(30, 2), np.arange(30)
    np.savez(tmp_path / "three.npz", train=x[:20], valid=x[20:24], test=x[24:])
    assert [numbers(part) for part in load_data(tmp_path / "three.npz").splits.values()] == [
        list(range(20)),
        list(range(20, 24)),
        list(range(24, 30)),
    ]
    np.savez(tmp_path / "two.npz", x_train=x[:20], label_train=label[:20], x_test=x[20:], label_test=label[20:])
    data = load_data(tmp_path / "two.npz")
    assert numbers(data.test) == list(range(20, 30)) and data.valid.size == 2
    assert sorted(numbers(data.train) + numbers(data.valid)) == list(range(20))
    assert all(part["label"].tolist() == numbers(part) for part in data.splits.values())


def test_an_archive_of_one_unnamed_array_is_x(tmp_path):
    np.savez(tmp_path / "d.npz", numbered(10, 2))
    assert load_data(tmp_path / "d.npz").train.size == 8


def test_a_flat_folder_of_grey_images(tmp_path):
    for i in range(10):
        save_image(tmp_path / f"{i}.png", np.full((4, 6), i, np.uint8))
    data = load_data(tmp_path, scale="raw")
    assert data.facts["data_shape"] == (1, 4, 6) and "label" not in data.train
    assert sorted(sum(map(numbers, data.splits.values()), [])) == list(range(10))


def test_subfolders_are_labels_and_one_colour_image_makes_all_colour(tmp_path):
    for i in range(10):
        grey = np.full((4, 6), i, np.uint8)
        save_image(tmp_path / ("cat", "dog")[i % 2] / f"{i}.png", grey if i else np.stack([grey, grey + 9, grey], -1))
    data = load_data(tmp_path, scale="raw")
    assert data.facts["data_shape"] == (3, 4, 6) and data.facts["num_labels"] == 2
    for part in data.splits.values():
        assert part["label"].tolist() == [number % 2 for number in numbers(part)]
        for x, number in zip(part["x"], numbers(part), strict=True):
            assert x[:, 0, 0].tolist() == [number, number if number else 9, number]


def test_folders_named_train_and_test_are_splits(tmp_path):
    for i in range(12):
        where = tmp_path / ("test" if i >= 10 else "train") / "ba"[i % 2]
        save_image(where / f"{i}.png", np.full((4, 4), i, np.uint8))
    data = load_data(tmp_path, scale="raw")
    assert sorted(numbers(data.test)) == [10, 11] and data.valid.size == 1
    assert all(part["label"].tolist() == [1 - number % 2 for number in numbers(part)] for part in data.splits.values())


BAD_ARRAYS = {
    "0-d": (np.array(1.0), r"shape \[\]"),
    "1-d": (np.zeros(5), r"shape \[5\]"),
    "no rows": (np.zeros((0, 3)), r"shape \[0, 3\]"),
    "no columns": (np.zeros((3, 0)), r"shape \[3, 0\]"),
    "beside nan": (np.array([[0.0, 0], [0, 0], [0, np.nan], [np.inf, 0]]), r"x\[3, 0\] is inf"),
    "infinity": (np.array([[0.0, 0], [-np.inf, 0], [0, 0]]), r"x\[1, 0\] is -inf"),
    "text": (np.array([["a"]]), "<U1"),
    "complex": (np.zeros((3, 1), complex), "complex128"),
    "pickle": (np.array([[{}]]), "cannot be read"),
    "too few": (np.zeros((2, 1)), "cannot hold out 1 and 1 of 2"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_a_bad_array_gets_one_line(tmp_path, case):
    array, message = BAD_ARRAYS[case]
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(DataError, match=rf"x\.npy: .*{message}") as raised:
        load_data(tmp_path / "x.npy")
    assert "\n" not in str(raised.value)


BAD_ARCHIVES = {
    "no x": ({"a": np.zeros((3, 1)), "b": np.zeros((3, 1))}, "holds a, b; name the data x"),
    "lengths": ({"x": np.zeros((3, 1)), "label": np.zeros(2)}, "x 3, label 2"),
    "field infinite": ({"x": np.zeros((3, 1)), "y": np.array([0, 0, np.inf])}, r"y\[2\] is inf"),
    "no test": ({"train": np.zeros((3, 1)), "valid": np.zeros((3, 1))}, "train and test"),
    "mixed": ({"x": np.zeros((3, 1)), "x_test": np.zeros((3, 1))}, r"holds x \(all\), x \(test\)"),
    "shapes": ({"train": np.zeros((3, 1)), "test": np.zeros((3, 2))}, "differ in their fields or shapes"),
    "fields": ({"x_train": np.zeros((3, 1)), "y_train": np.zeros(3), "x_test": np.zeros((3, 1))}, "differ"),
    "pickle": ({"x": np.array([[{}]])}, "cannot be read"),
    "nothing": ({}, "holds no arrays"),
}


@pytest.mark.parametrize("case", BAD_ARCHIVES)
def test_a_bad_archive_gets_one_line(tmp_path, case):
    arrays, message = BAD_ARCHIVES[case]
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(DataError, match=rf"d\.npz: .*{message}") as raised:
        load_data(tmp_path / "d.npz")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["d.npy", "d.npz"])
@pytest.mark.parametrize("content", [b"", b"garbage", b"\x93NUMPY\x01\x00", b"PK\x03\x04"], ids=repr)
def test_a_file_that_is_no_array_gets_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}: cannot be read") as raised:
        load_data(tmp_path / name)
    assert "\n" not in str(raised.value)


def test_a_truncated_array_gets_one_line(tmp_path):
    np.save(tmp_path / "x.npy", numbered(10, 3))
    whole = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npy").write_bytes(whole[:-8])
    with pytest.raises(DataError, match="x.npy: cannot be read"):
        load_data(tmp_path / "x.npy")


def test_files_of_the_wrong_kind_are_named(tmp_path):
    with pytest.raises(DataError, match="none.npy: no such file"):
        load_data(tmp_path / "none.npy")
    with pytest.raises(DataError, match="no such file"):
        load_data("nowhere/x")
    (tmp_path / "x.txt").write_text("1,2")
    with pytest.raises(DataError, match="x.txt: is not a folder of images, and not .npy or .npz or .csv or .h5ad"):
        load_data(tmp_path / "x.txt")
    np.savez(tmp_path / "a.npz", numbered(3, 1))
    (tmp_path / "a.npz").rename(tmp_path / "a.npy")
    with pytest.raises(DataError, match="rename it to .npz"):
        load_data(tmp_path / "a.npy")
    np.save(tmp_path / "b.npy", numbered(3, 1))
    (tmp_path / "b.npy").rename(tmp_path / "b.npz")
    with pytest.raises(DataError, match="rename it to .npy"):
        load_data(tmp_path / "b.npz")
    with pytest.raises(DataError, match="'valid'; its options: none"):
        load_data(tmp_path / "b.npy", valid=3)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ({}, "holds no images"),
        (
            {"a.png": np.zeros((4, 4), np.uint8), "b.png": np.zeros((4, 5), np.uint8)},
            "b.png is 5 by 4, a.png 4 by 4",
        ),
        ({"a.png": np.zeros((4, 4), np.uint16)}, "a.png has more than 8 bits"),
        ({"a.png": np.zeros((4, 4), np.uint8), "c/b.png": np.zeros((4, 4), np.uint8)}, "beside"),
    ],
    ids=["none", "sizes", "16 bits", "mixed"],
)
def test_a_bad_folder_gets_one_line(tmp_path, images, message):
    for name, pixels in images.items():
        save_image(tmp_path / name, pixels)
    with pytest.raises(DataError, match=message) as raised:
        load_data(tmp_path)
    assert str(tmp_path) in str(raised.value) and "\n" not in str(raised.value)


def test_a_broken_image_is_named(tmp_path):
    save_image(tmp_path / "a.png", np.random.default_rng(0).integers(0, 255, (40, 40), dtype=np.uint8))
    whole = (tmp_path / "a.png").read_bytes()
    for content in (b"no image", whole[: len(whole) // 2]):
        (tmp_path / "b.png").write_bytes(content)
        with pytest.raises(DataError, match="b.png cannot be read as an image"):
            load_data(tmp_path)


# --- memory maps --------------------------------------------------------------------------------------------

ROWS, WIDTH = 2000, 64


@pytest.fixture
def small_memory(monkeypatch):
    """Any .npy file is too large; a chunk holds 128 rows of WIDTH float32, a page 8."""
    monkeypatch.setattr(read, "MEMORY_LIMIT", 0)
    monkeypatch.setattr(split, "CHUNK_BYTES", 128 * WIDTH * 4)
    monkeypatch.setattr(split, "PAGE_BYTES", 8 * WIDTH * 4)
    monkeypatch.setattr(arrays, "CHUNK_BYTES", 128 * WIDTH * 4)


@pytest.fixture
def map_file(tmp_path):
    np.save(tmp_path / "x.npy", numbered(ROWS, WIDTH).astype(np.float32))
    return tmp_path / "x.npy"


class LargestTensor(TorchDispatchMode):
    """The bytes of the largest tensor that any operation makes; views and writes in place make none."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        makes = not function.is_view and not function._schema.is_mutable
        if makes and isinstance(result, torch.Tensor):
            self.bytes = max(self.bytes, result.nbytes)
        return result


def test_a_memory_map_shows_each_row_once_a_pass_shuffled(map_file, small_memory, rng_untouched):
    data = load_data(map_file)
    assert not any(part.resident for part in data.splits.values())
    assert sorted(sum(map(numbers, data.splits.values()), [])) == list(range(ROWS))
    order = generator()
    batches = list(data.train.batches(50, order))
    assert [len(batch["x"]) for batch in batches] == [50] * 32 and data.train.num_batches(50) == 32
    first, second = rows_seen(batches), rows_seen(data.train.batches(50, order))
    assert sorted(first) == sorted(second) == sorted(numbers(data.train))
    assert first != second and first == rows_seen(data.train.batches(50, generator()))
    for batch in batches[:-1]:
        assert np.ptp(rows_seen([batch])) > ROWS / 4
    correlation = np.corrcoef(first, np.arange(len(first)))[0, 1]
    assert abs(correlation) < 4 / np.sqrt(len(first) / 8)


def test_a_memory_map_has_the_splits_and_batches_of_a_resident_file(map_file, small_memory, monkeypatch):
    mapped = load_data(map_file, seed=3)
    monkeypatch.setattr(read, "MEMORY_LIMIT", 2**30)
    resident = load_data(map_file, seed=3)
    assert resident.train.resident
    for name, part in mapped.splits.items():
        assert numbers(part) == numbers(resident.splits[name])
        assert rows_seen(part.batches(30)) == rows_seen(resident.splits[name].batches(30))
    torch.testing.assert_close(mapped.facts["data_mean"], resident.facts["data_mean"])


@pytest.mark.parametrize("binarize", ["none", "static", "dynamic"])
def test_a_memory_map_is_never_read_whole(map_file, small_memory, binarize):
    scaled = np.load(map_file) / ROWS
    np.save(map_file, scaled)
    with torch.random.fork_rng(), LargestTensor() as largest:
        data = load_data(map_file, binarize=binarize)
        assert data.facts["data_shape"] == (WIDTH,)
        for _ in data.train.batches(50, generator()):
            pass
        for _ in data.valid.batches(50):
            pass
    assert 0 < largest.bytes <= scaled.nbytes / 8


def test_a_memory_map_is_binarised_like_a_resident_file(map_file, small_memory):
    probabilities = np.load(map_file) / ROWS
    np.save(map_file, probabilities)
    grey, data = load_data(map_file), load_data(map_file, binarize="dynamic")
    again = load_data(map_file, binarize="dynamic")
    assert not data.test.resident and data.test["x"].dtype == torch.uint8
    for name in ("valid", "test"):
        assert_drawn_from(data.splits[name].take(slice(None))["x"].unsqueeze(0), grey.splits[name]["x"])
        assert torch.equal(data.splits[name]["x"], again.splits[name]["x"])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = torch.stack([data.train.take(slice(0, 100))["x"] for _ in range(20)])
    assert not torch.equal(draws[0], draws[1])
    assert_drawn_from(draws, grey.train.take(slice(0, 100))["x"])


def test_mapped_bytes_are_scaled_batch_by_batch(tmp_path, small_memory):
    np.save(tmp_path / "x.npy", np.arange(200, dtype=np.uint8).reshape(50, 2, 2))
    data = load_data(tmp_path / "x.npy")
    assert data.train["x"].dtype == torch.uint8 and data.facts["data_shape"] == (1, 2, 2)
    batch = data.train.take(torch.tensor([3, 1]))["x"]
    torch.testing.assert_close(batch, data.train["x"][[3, 1]].float() / 255)


def test_batches_of_a_memory_map_may_be_written_to(map_file, small_memory):
    whole = as_split(np.load(map_file, mmap_mode="r"))
    assert not whole.resident
    for batch in (whole.take(slice(0, 3)), whole.take(torch.tensor([0, 1, 2]))):
        assert batch["x"][:, 0].tolist() == [0, 1, 2]
        batch["x"].zero_()
    assert whole["x"][2, 0] == 2


def test_a_memory_map_is_checked_in_chunks(map_file, small_memory):
    wrong = np.load(map_file)
    wrong[1500, 7] = np.nan
    wrong[1501, 0] = np.inf
    np.save(map_file, wrong)
    with pytest.raises(DataError, match=r"x\[1501, 0\] is inf"):
        load_data(map_file)


def test_a_map_in_another_byte_order_is_refused(tmp_path, small_memory):
    np.save(tmp_path / "x.npy", numbered(10, 2).astype(">f8"))
    with pytest.raises(DataError, match="byte order"):
        load_data(tmp_path / "x.npy")
