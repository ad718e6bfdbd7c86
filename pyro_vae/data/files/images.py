"""A folder of images as arrays."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from pyro_vae.errors import DataError
from pyro_vae.files import check_regular
from pyro_vae.parts.memory import check_fits

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg")

_DEEP_MODES = ("I", "F")  # "I", "I;16", "I;16B", "F": more than 8 bits a pixel


def read_folder(folder: Path) -> dict[str, np.ndarray]:
    """The images of a folder as "x" [n, channels, height, width] of uint8, one channel where all are grey.

    Subfolders are labels: "label" [n] counts their names in alphabetical order. Subfolders "train" and "test"
    (and "valid") are ready splits, each flat or with subfolders of labels: "x_train", "label_train", and so
    on.

    Raises:
        DataError: no images, images only partly in subfolders, or what `read_images` raises.
    """
    files = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES and path.name[0] != "."]
    if not files:
        raise DataError(f"holds no images ({', '.join(SUFFIXES)})")
    places = [path.relative_to(folder).parts[:-1] for path in files]
    is_divided = {"/".join(place[:1]) for place in places} in ({"train", "test"}, {"train", "valid", "test"})
    fields = {"x": read_images(files)} | _labels([place[is_divided:] for place in places])
    if not is_divided:
        return fields
    splits = np.array([place[0] for place in places])
    return {f"{name}_{split}": fields[name][splits == split] for name in fields for split in np.unique(splits)}


def read_images(files: Sequence[Path]) -> UInt8[np.ndarray, "n channels height width"]:
    """Images of one size, with one channel where all are grey, else three.

    Raises:
        DataError: an image that cannot be read, differs in size (names the first) or has over 8 bits a pixel.
    """
    modes = _modes(files)
    mode, channels = ("L", 1) if modes <= {"1", "L"} else ("RGB", 3)
    with _opened(files[0]) as first:
        width, height = first.size
    whole = len(files) * channels * height * width
    check_fits(DataError, whole, f"{len(files)} images of {width} by {height}", "make them smaller")
    images = np.empty((len(files), channels, height, width), np.uint8)
    for image, file in zip(images, files, strict=True):
        with _opened(file) as opened:
            image[:] = np.moveaxis(np.asarray(opened.convert(mode)).reshape(height, width, channels), -1, 0)
    return images


def _modes(files: Sequence[Path]) -> set[str]:
    """The images' modes, from their headers, with the check that all are of one size."""
    sizes, modes = [], set()
    for file in files:
        with _opened(file) as image:
            sizes.append(image.size)
            modes.add(image.mode)
        if image.mode.startswith(_DEEP_MODES):
            raise DataError(f"{file.name} has more than 8 bits a pixel; convert it to 8")
        if sizes[-1] != sizes[0]:
            (wide, high), (width, height) = sizes[-1], sizes[0]
            raise DataError(f"{file.name} is {wide} by {high}, {files[0].name} {width} by {height}; resize to one size")
    return modes


def _labels(places: Sequence[tuple[str, ...]]) -> dict[str, np.ndarray]:
    if not any(places):
        return {}
    if not all(places):
        raise DataError("holds images both in subfolders and beside them; keep to one")
    return {"label": np.unique([place[0] for place in places], return_inverse=True)[1]}


@contextmanager
def _opened(file: Path) -> Iterator["Image"]:
    from PIL import Image

    try:
        check_regular(file)
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as reason:
        limit = f"the limit is {Image.MAX_IMAGE_PIXELS:,} pixels"
        raise DataError(f"{file.name} is an image of absurd size ({limit}); make it smaller or remove it") from reason
    except DataError:
        raise
    except Exception as reason:
        raise DataError(f"{file.name} cannot be read as an image; replace or remove it") from reason
