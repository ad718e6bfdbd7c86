"""The confusion matrix: how many data of each label have each most probable value."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int
from matplotlib.figure import Figure
from torch import Tensor

from pyro_vae.plots.mosaic import DPI

FEW = 20
"""So many rows or columns have their numbers written into them."""


def confusion_matrix(
    counts: Int[Tensor, "labels values"], columns: Sequence[str] | None = None, across: str = "most probable label"
) -> Figure:
    """A figure of counts: a row for each true label, a column for each value, shaded by the row's share.

    Args:
        columns: what the values are called; by default their numbers.
        across: what the columns are, in words.
    """
    numbers = counts.cpu().numpy()
    shares = numbers / np.maximum(numbers.sum(1, keepdims=True), 1)
    rows, width = numbers.shape
    figure = Figure(figsize=(1.6 + 0.42 * min(width, FEW), 1.2 + 0.42 * min(rows, FEW)), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    if max(rows, width) <= FEW:
        for row, column in zip(*numbers.nonzero(), strict=True):
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(numbers[row, column]), ha="center", va="center", color=color, fontsize="small")
        axes.set_xticks(range(width), columns or [str(value) for value in range(width)])
        axes.set_yticks(range(rows))
    axes.tick_params(length=0)
    axes.set(xlabel=across, ylabel="true label")
    return figure
