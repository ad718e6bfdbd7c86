"""Conditional tasks on the images of another data set: what is given, `context`, and what is generated, `x`.

Each wraps a data set by name and adds two fields to every batch, after binarisation, so that what is given is drawn
anew with the image: `context`, and for tasks on pixels `mask` [n, *data_shape], True at the pixels that are generated,
which `context` holds as -1. The `seed` and the `options` of a task go to that data set.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypedDict, Unpack

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor

from pyro_vae.data.dataset import Dataset
from pyro_vae.data.files.read import read_array
from pyro_vae.data.load import stored
from pyro_vae.data.split import Batch
from pyro_vae.errors import DataError

Mask = Bool[Tensor, "..."]


class SourceOptions(TypedDict, total=False):
    """What a task passes on to the data set that the images come from.

    Args:
        root: folder of the source, where it takes one.
        valid: how many of the source's training data are held out, where it takes a number.
        file: file of the source, where it takes one.
    """

    root: str | None
    valid: int | None
    file: str | None


def column(seed: int = 0, source: str = "digits", **options: Unpack[SourceOptions]) -> Dataset:
    """The middle column of an image is given, the others are generated.

    Args:
        source: the data set that the images come from.

    Raises:
        DataError: a source without images.

    Source: Doersch, "Tutorial on variational autoencoders" (2016), section 4.
    """

    return _masked(_source(source, seed, **options), "column", _all_but_the_middle_column)


def quadrants(seed: int = 0, source: str = "digits", observed: int = 1, **options: Unpack[SourceOptions]) -> Dataset:
    """Quadrants of an image are given, the others are generated.

    Args:
        source: the data set that the images come from.
        observed: 1, the lower left; 2, the left half; 3, all but the lower right.

    Raises:
        DataError: a source without images, or a number of quadrants that leaves nothing to do.

    Source: Sohn, Lee & Yan, "Learning structured output representation using deep conditional generative models"
    (2015), section 5.1; which quadrants: Pyro's example of it.
    """
    if observed not in (1, 2, 3):
        raise DataError(f"observed is 1, 2 or 3 quadrants, not {observed}")

    return _masked(_source(source, seed, **options), "quadrants", partial(_all_but_quadrants, observed))


def inpaint(seed: int = 0, mask: str = "mask.npy", source: str = "digits", **options: Unpack[SourceOptions]) -> Dataset:
    """Pixels of the user's choice are generated, the others are given.

    Args:
        mask: a .npy file of the shape of an image (its channels may be left out), other than 0 at the pixels that are
            generated.
        source: the data set that the images come from.

    Raises:
        DataError: a source without images; a mask that is no array of this shape, or that hides nothing or everything.
    """
    return _masked(_source(source, seed, **options), "inpaint", partial(_read_mask, Path(mask)))


def label(seed: int = 0, source: str = "digits", **options: Unpack[SourceOptions]) -> Dataset:
    """The label of an image is given, as `context` [n, classes] with a 1 at the label; the image is generated.

    Args:
        source: the data set that images and labels come from.

    Raises:
        DataError: a source without labels, or a label outside those of the training data.
    """
    data = _source(source, seed, **options)
    if "label" not in data.train:
        raise DataError(f"{source} has no field label; it has {', '.join(data.train)}")
    classes = int(data.train["label"].max()) + 1
    for name, split in data.splits.items():
        lowest, highest = (int(value) for value in split["label"].aminmax())
        if lowest < 0 or highest >= classes:
            raise DataError(
                f"the labels of {source} {name} run from {lowest} to {highest}, those of train from 0 to {classes - 1}"
            )
    return replace(data, name=f"{data.name}-label", derive=partial(_with_label, classes))


def _source(name: str, seed: int, **options: Unpack[SourceOptions]) -> Dataset:
    """The images, with those options that were given."""
    return stored(name, seed, {key: value for key, value in options.items() if value is not None})


def _masked(data: Dataset, task: str, hidden: Callable[[tuple[int, ...]], Mask]) -> Dataset:
    """The data set with context and mask; `hidden` says which pixels of an image of this shape are generated."""
    shape = tuple(data.train.fields["x"].shape[1:])
    if len(shape) < 2 or min(shape[-2:]) < 2:
        raise DataError(
            f"{data.name}: x has shape {list(shape)} a datum; {task} needs images [channels, height, width]"
        )
    mask = hidden(shape)
    if mask.all() or not mask.any():
        what = "hides every pixel, so nothing is given" if mask.all() else "hides no pixel, so nothing is generated"
        raise DataError(f"{task}: the mask {what}")
    return replace(data, name=f"{data.name}-{task}", derive=partial(_with_context, mask))


def _all_but_the_middle_column(shape: tuple[int, ...]) -> Mask:
    mask = torch.ones(shape, dtype=torch.bool)
    mask[..., (shape[-1] - 1) // 2] = False
    return mask


def _all_but_quadrants(observed: int, shape: tuple[int, ...]) -> Mask:
    mask = torch.ones(shape, dtype=torch.bool)
    lower, upper = slice(shape[-2] // 2, None), slice(None, shape[-2] // 2)
    left, right = slice(None, shape[-1] // 2), slice(shape[-1] // 2, None)
    for rows, columns in [(lower, left), (upper, left), (upper, right)][:observed]:
        mask[..., rows, columns] = False
    return mask


def _with_context(mask: Mask, batch: Batch) -> Batch:
    """Context: the given pixels, and -1 where a pixel is hidden, which is not a black one."""
    x, hidden = batch["x"], mask.to(batch["x"].device)
    return {**batch, "context": torch.where(hidden, -1.0, x), "mask": hidden.expand_as(x)}


def _with_label(classes: int, batch: Batch) -> Batch:
    return {**batch, "context": F.one_hot(batch["label"], classes).to(batch["x"].dtype)}


def _read_mask(path: Path, shape: tuple[int, ...]) -> Mask:
    try:
        array = read_array(path)
    except DataError as reason:
        raise DataError(f"the mask {path} {reason}; give a .npy file with --mask") from reason
    if array.shape not in (shape, shape[-2:]):
        raise DataError(f"the mask {path} has shape {list(np.shape(array))}, but an image has {list(shape)}")
    return torch.from_numpy(array != 0).expand(shape).clone()
