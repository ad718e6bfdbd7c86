"""The most probable words of each topic, as bars."""

import math

from matplotlib.figure import Figure
from torch import nn

from pyro_vae.pair.topics import top_words, topics_of
from pyro_vae.plots.mosaic import BLUE, DPI

COLUMNS = 5


def topics(pair: nn.Module, count: int = 10) -> Figure | None:
    """The most probable words of each topic, with bars of their probabilities; None of a pair without topics."""
    found = topics_of(pair)
    if found is None:
        return None
    columns = min(COLUMNS, len(found))
    rows = math.ceil(len(found) / columns)
    count = min(count, found.shape[1])
    figure = Figure(figsize=(2.2 * columns, 0.4 + rows * (0.4 + 0.17 * count)), dpi=DPI, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    probabilities = found.topk(count).values.numpy()
    for number, (axes, words) in enumerate(zip(grid.flat, top_words(pair, found, count), strict=False)):
        axes.set_axis_on()
        axes.barh(range(count), probabilities[number], color=BLUE)
        axes.set_yticks(range(count), words, fontsize="small")
        axes.set(xticks=[], title=f"topic {number}")
        axes.invert_yaxis()
        axes.tick_params(length=0)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
    return figure
