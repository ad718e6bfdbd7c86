"""Many data in one picture: images as tiles of a grid, vectors as bars in its cells."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import pad

from pyro_vae.pair.sites import Site

DPI = 128  # a power of two, so that whole dots survive the division into inches
MARGIN = 0.125
BLUE, FRAME = "#1f5fa8", "#cccccc"

Limits = tuple[float, float]


def mosaic(
    values: Float[Tensor, "n ..."],
    columns: int,
    limits: Limits,
    *,
    left: float = MARGIN,
    bottom: float = MARGIN,
    top: float = MARGIN,
    right: float = MARGIN,
    note: bool = False,
    colors: Sequence[str] | None = None,
    gap_shade: float = 1.0,
    largest: float = 12.0,
) -> tuple[Figure, Axes]:
    """A figure of the data in cells of width and height 1, row by row from the top left corner at (0, 0).

    Each pixel of an image has a whole number of dots, unless the mosaic would be wider than `largest` inches.

    Args:
        values: images [n, ..., height, width] or vectors [n, ...].
        limits: the values to show as black and white, or as the ends of bars.
        left, bottom, top, right: room around the mosaic, in inches.
        note: say below bars what a cell's axes run over.
        colors: of the bars of each vector.
        gap_shade: the grey between images, from 0 (black) to 1 (white).
    """
    rows, width = -(-len(values) // columns), min(8.0, max(3.0, 0.8 * columns))
    picture = tiles(values, columns, limits, gap_shade) if is_image(values.shape[1:]) else None
    if picture is not None:
        zoom = max(1, round(width * DPI / picture.shape[1]))
        width = min(zoom * picture.shape[1] / DPI, largest)
        height = width * picture.shape[0] / picture.shape[1]
    else:
        height, bottom = 0.7 * width * rows / columns, 3 * MARGIN if note else bottom
    across, upward = width + left + right, height + bottom + top
    figure = Figure(figsize=(across, upward), dpi=DPI)
    axes = figure.add_axes((left / across, bottom / upward, width / across, height / upward), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    if picture is not None:
        half = [0.5 / (side + 1) for side in values.shape[-2:]]
        axes.imshow(picture, extent=(-half[1], columns + half[1], rows + half[0], -half[0]), aspect="auto")
    else:
        _draw_bars(axes, values, columns, limits, colors or [BLUE] * len(values))
        axes.set(xlim=(-0.02, columns + 0.02), ylim=(rows + 0.02, -0.02))
        if note:
            across, upward = f"elements 1 to {values[0].numel()}", f"{limits[0]:.4g} to {limits[1]:.4g}"
            axes.set_xlabel(f"each cell: {across} across, {upward} upward".replace("-", "−"), fontsize="small")
    return figure, axes


def tiles(
    values: Float[Tensor, "n ..."], columns: int, limits: Limits, gap_shade: float = 1.0
) -> Float[np.ndarray, "height width 3"]:
    """Images [n, ..., height, width] row by row, one dot apart, with their limits mapped to [0, 1] and NaN to white.

    Of images that have neither one nor three channels the first is shown.
    """
    height, width = values.shape[-2:]
    images = values.detach().cpu().double().reshape(len(values), -1, height, width)
    images = images if images.shape[1] in (1, 3) else images[:, :1]
    images = ((images - limits[0]) / (limits[1] - limits[0])).nan_to_num(1.0).clamp(0, 1)
    cells = images.new_full((-(-len(images) // columns) * columns, 3, height + 1, width + 1), gap_shade)
    cells[: len(images), :, 1:, 1:] = images
    rows = cells.unflatten(0, (-1, columns)).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    return pad(rows, (0, 0, 0, 1, 0, 1), value=gap_shade).numpy()


def _draw_bars(axes: Axes, values: Float[Tensor, "n ..."], columns: int, limits: Limits, colors: Sequence[str]) -> None:
    """Vectors as bars in framed cells; NaN leaves a cell empty."""
    unit = np.array([(0.02, 0.02), (0.98, 0.02), (0.98, 0.98), (0.02, 0.98)])
    cells = _corners(len(values), columns)[:, None] + unit
    outlines = bar_outlines(values, columns, limits)
    axes.add_collection(PolyCollection(cells, facecolors="none", edgecolors=FRAME, linewidths=0.6))
    axes.add_collection(PolyCollection(outlines, facecolors=colors, linewidths=0))


def bar_outlines(values: Float[Tensor, "n ..."], columns: int, limits: Limits) -> Float[np.ndarray, "n points 2"]:
    """The outline of each vector's bars in its cell, from zero or from the limit that is nearest to it."""
    heights = np.nan_to_num(as_array(values).reshape(len(values), -1))
    bars = heights.shape[1]
    ends = np.zeros((len(heights), 1))
    steps = np.concatenate([ends, np.repeat(heights, 2, axis=1), ends], 1)
    y = 0.92 - 0.84 * (np.clip(steps, *limits) - limits[0]) / (limits[1] - limits[0])
    x = np.broadcast_to(np.repeat(np.linspace(0.06, 0.94, bars + 1), 2), y.shape)
    return np.stack([x, y], -1) + _corners(len(heights), columns)[:, None]


def _corners(n: int, columns: int) -> Float[np.ndarray, "n 2"]:
    """The top left corner of each cell."""
    return np.stack([np.arange(n) % columns, np.arange(n) // columns], 1).astype(float)


def limits_of(site: Site, values: Tensor) -> Limits:
    """As `value_range`, for values of a site: the bounds of its support where it has both, else their range."""
    support = getattr(site.support, "base_constraint", site.support)
    if support is torch.distributions.constraints.boolean:
        return 0.0, 1.0
    bounds = [torch.as_tensor(getattr(support, f"{end}_bound", math.inf)) for end in ("lower", "upper")]
    low, high = bounds[0].min().item(), bounds[1].max().item()
    return (float(low), float(high)) if math.isfinite(low) and math.isfinite(high) else value_range(values)


def value_range(values: Tensor) -> Limits:
    """The values to show as black and white, or as the ends of bars.

    These are 0 and 1, or 0 and 255, where the values fill that range; else their own range, from 0 where none is
    negative. A few values of images may lie outside, so that single pixels do not decide.
    """
    finite = as_array(values).astype(np.float64)
    finite = finite[np.isfinite(finite)]
    if not finite.size:
        return 0.0, 1.0
    tail, slack = (0.5, 0.1) if is_image(values.shape[1:]) else (0.0, 0.0)
    low, high = np.percentile(finite, (tail, 100.0 - tail))
    if low == high:
        low, high = finite.min(), finite.max()
    for full in (1.0, 255.0):
        if low >= -slack * full and 0.5 * full < high <= (1.0 + slack) * full:
            return 0.0, full
    low = 0.0 if finite.min() >= 0 else low
    return float(low), float(high if high > low else low + 1.0)


def is_image(shape: Sequence[int]) -> bool:
    """Whether the last two dims make a picture, not a strip."""
    return len(shape) >= 2 and 1 < min(shape[-2:]) and max(shape[-2:]) <= 8 * min(shape[-2:])


def as_array(values: Tensor) -> np.ndarray:
    values = values.detach().cpu()
    return values.to(torch.float64).numpy() if values.is_floating_point() else values.numpy()
