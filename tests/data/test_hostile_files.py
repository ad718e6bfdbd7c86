"""Files that are no data, or want to be more than there is room for: one line each, and nothing hangs."""

import io
import os
import struct
import warnings
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import sparse

import pyro_vae as pv
from pyro_vae.command_line import main as cli
from pyro_vae.data.dataset import as_split
from pyro_vae.data.files import read as reading
from pyro_vae.errors import DataError
from pyro_vae.parts import memory


def refused(path, words: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError, match=words) as caught:
            pv.load_data(path)
    assert "\n" not in str(caught.value)


def test_whole_numbers_beyond_63_bits_are_refused_and_not_wrapped(tmp_path):
    x = np.arange(40, dtype=np.uint64).reshape(10, 4)
    np.save(tmp_path / "x.npy", x)
    assert (pv.load_data(tmp_path / "x.npy").train["x"] >= 0).all()
    x[7, 2] = 2**63
    np.save(tmp_path / "x.npy", x)
    refused(tmp_path / "x.npy", r"x\[7, 2\] is 9223372036854775808, more than 2\^63 - 1")
    np.savez(tmp_path / "x.npz", x=np.zeros((10, 4)), label=x[:, 2])
    refused(tmp_path / "x.npz", r"label\[7\] is 9223372036854775808")
    with pytest.raises(DataError, match="more than"):
        pv.train(pv.VAE((4,), hidden=(4,)), x, epochs=1, progress=False)


@pytest.mark.parametrize("name", ["data.npy", "data.npz", "data.csv", "data.h5ad"])
def test_a_pipe_does_not_hang(name, tmp_path):
    os.mkfifo(tmp_path / name)
    refused(tmp_path / name, "is a pipe or a device; save the data to a file")


def test_a_pipe_among_images_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    refused(tmp_path, "a.png cannot be read as an image")


def test_an_archive_that_unpacks_beyond_the_memory_is_refused_with_the_limit(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "zeros.npz", x=np.zeros((1000, 1000)))
    assert (tmp_path / "zeros.npz").stat().st_size < 20_000
    monkeypatch.setattr(memory, "memory_of", lambda device: 8_000_000)
    refused(tmp_path / "zeros.npz", "unpacked it would fill 0.0 GiB, and the limit is 0.0 GiB, half of the memory")
    monkeypatch.undo()
    assert len(pv.load_data(tmp_path / "zeros.npz").train["x"]) == 800


def test_the_memory_of_a_container_counts(tmp_path, monkeypatch):
    cpu, limit = torch.device("cpu"), tmp_path / "memory.max"
    monkeypatch.setattr(memory, "GROUP_LIMIT", limit)
    whole = memory.memory_of(cpu)
    for text, expected in (("max", whole), ("1048576", 2**20), (str(2**60), whole)):
        limit.write_text(text + "\n")
        assert memory.memory_of(cpu) == expected


def png(width: int, height: int) -> bytes:
    """A PNG that says it is of this size and has no pixels."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(10_000, 10_000), (20_000, 20_000), (2**31 - 1, 2**31 - 1)])
def test_an_image_of_absurd_size_is_refused_with_the_limit(size, tmp_path):
    (tmp_path / "a.png").write_bytes(png(*size))
    refused(tmp_path, r"a.png is an image of absurd size \(the limit is 89,478,485 pixels\); make it smaller")


def test_many_large_images_are_refused_before_they_are_read(tmp_path, monkeypatch):
    for name in "abc":
        Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / f"{name}.png")
    monkeypatch.setattr(memory, "memory_of", lambda device: 2 * 64 * 64)
    refused(tmp_path, "3 images of 64 by 64 would fill")


BROKEN_SPARSE = {
    "column_beyond": {"indices": [0, 99], "indptr": [0, 1, 2], "data": [1.0, 1.0], "shape": [2, 3]},
    "column_below": {"indices": [0, -5], "indptr": [0, 1, 2], "data": [1.0, 1.0], "shape": [2, 3]},
    "rows_beyond": {"indices": [0, 1], "indptr": [0, 1, 900], "data": [1.0, 1.0], "shape": [2, 3]},
    "rows_that_fall": {"indices": [0, 1], "indptr": [0, 2, 1], "data": [1.0, 1.0], "shape": [2, 3]},
    "absurd_shape": {"indices": [0, 1], "indptr": [0, 1, 2], "data": [1.0, 1.0], "shape": [-2, 3]},
}


@pytest.mark.parametrize("kind", ["csr", "csc", ""])
@pytest.mark.parametrize("parts", BROKEN_SPARSE.values(), ids=BROKEN_SPARSE)
def test_a_sparse_matrix_that_points_beyond_itself_is_refused(parts, kind, tmp_path):
    """Which SciPy reads without a look, and writes outside its memory as it makes it dense."""
    arrays = {name: np.array(value) for name, value in parts.items()}
    if kind:
        arrays |= {"format": np.array(kind.encode())}
    np.savez(tmp_path / "x.npz", **arrays)
    refused(tmp_path / "x.npz", "x.npz: ")


def test_a_sparse_matrix_that_is_whole_is_read(tmp_path):
    for form in ("csr", "csc", "coo"):
        sparse.save_npz(tmp_path / "x.npz", sparse.random(20, 3, 0.5, format=form))
        assert pv.load_data(tmp_path / "x.npz").train.size == 16


@pytest.mark.parametrize("head", [b"PK\x03\x04", b"\x93NUMPY\x01\x00v\x00", b"\x93NUMPY\xff\xff", b"\x80\x04."])
@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_half_a_file_is_refused(name, head, tmp_path):
    (tmp_path / name).write_bytes(head + b"\x00" * 20)
    refused(tmp_path / name, f"{name}: ")


def test_a_header_that_promises_more_than_there_is_is_refused(tmp_path):
    whole = io.BytesIO()
    np.save(whole, np.zeros((10, 4)))
    content = whole.getvalue().replace(b"(10, 4)", b"(10**12, 4)"[:7])
    (tmp_path / "x.npy").write_bytes(content)
    refused(tmp_path / "x.npy", "cannot be read")
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x.npy", whole.getvalue().replace(b"(10, 4), ", b"(9999999,"))
    refused(tmp_path / "x.npz", "x.npz: ")


def test_a_mask_is_a_file_as_well(tmp_path):
    os.mkfifo(tmp_path / "mask.npy")
    with pytest.raises(DataError, match="mask.npy cannot be read .*not a file"):
        pv.load_data("inpaint", source="digits", mask=str(tmp_path / "mask.npy"))
    with pytest.raises(DataError, match="is an archive, not an array"):
        np.savez(tmp_path / "m.npz", x=np.zeros(3))
        reading.read_array(tmp_path / "m.npz")


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64])
def test_a_tensor_of_unsigned_numbers_is_taken_as_an_array_is(dtype):
    """Torch holds such tensors, and computes with none of them."""
    x = torch.arange(80).reshape(20, 4).remainder(2)
    taken = as_split(x.to(dtype))["x"]
    assert taken.dtype == as_split(x.numpy().astype(str(dtype).removeprefix("torch.")))["x"].dtype
    assert (taken == x).all()
    with pytest.raises(DataError, match="more than"):
        pv.evaluate(pv.VAE((4,)), torch.from_numpy(np.full((20, 4), 2**64 - 1, np.uint64)), progress=False)


def test_a_tensor_of_complex_numbers_is_refused():
    with pytest.raises(DataError, match="x holds elements of type complex64"):
        pv.evaluate(pv.VAE((4,)), torch.zeros(20, 4, dtype=torch.complex64), progress=False)


@pytest.mark.parametrize("name", ["~nobody of this name/x.npy", "~\ud7ff", "x" * 300 + ".npy", "a\0b.npy"])
def test_a_path_that_leads_nowhere_is_one_line(name, capsys):
    assert cli.main(["train", "--data", name, "--quiet", "--epochs", "1"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("pyro-vae: ") and told.count("\n") == 1
