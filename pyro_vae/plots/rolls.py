"""Pictures of sequences: a panel for each, time across; and below it the paths of its discrete states."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import torch
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from torch import Tensor

from pyro_vae.plots.mosaic import BLUE, DPI, Limits, as_array, value_range

CURVES = 3
"""So many numbers a time slice, at most, are drawn as curves."""

BEYOND = "#e6edf5"
"""The colour of what lies beyond the end of a sequence."""


def piano_rolls(
    values: Float[Tensor, "n time ..."],
    columns: int = 2,
    titles: Sequence[str] = (),
    limits: Limits | None = None,
) -> Figure:
    """Sequences in a grid, the numbers of a time slice upwards, dark where they are large; up to three numbers a slice
    as curves.

    Args:
        values: NaN beyond the end of a sequence.
        titles: of the columns.
        limits: the values to show as white and black, or as the ends of the axis; None: their range.
    """
    values, limits = _shown(values), limits or value_range(values)
    rows = -(-len(values) // columns)
    size = (5 * columns, 1.3 * rows + 0.5)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, sequence in zip(panels.flat, values, strict=False):
        _draw(axes, sequence, limits)
    for axes in panels.flat[len(values) :]:
        axes.set_axis_off()
    for axes, title in zip(panels[0], titles, strict=False):
        axes.set_title(title, fontsize="medium")
    for axes in panels[-1]:
        axes.set_xlabel("time slice")
    return figure


def rolls_and_paths(values: Float[Tensor, "n time ..."], paths: Mapping[str, Int[Tensor, "n time"]]) -> Figure:
    """Sequences one below the other, and under each its paths as strips, a colour for each state.

    Args:
        values: NaN beyond the end of a sequence.
        paths: by what they are; -1 beyond the end.
    """
    values, limits = _shown(values), value_range(values)
    strips = torch.stack(list(paths.values()), 1)[..., : values.shape[1]].cpu().numpy()
    count = int(strips.max()) + 1
    palette = matplotlib.colormaps["tab10" if count <= 10 else "tab20"].colors
    colors = ListedColormap([palette[state % len(palette)] for state in range(count)])
    height = 0.18 * len(paths)
    figure = Figure(figsize=(9, (1.2 + height) * len(values) + 0.4), dpi=DPI, layout="constrained")
    ratios = [1.2, height] * len(values)
    panels = figure.subplots(2 * len(values), 1, sharex=True, height_ratios=ratios, squeeze=False)[:, 0]
    for axes, below, sequence, states in zip(panels[::2], panels[1::2], values, strips, strict=True):
        _draw(axes, sequence, limits)
        shown = np.ma.masked_array(states, states < 0)
        extent = (0, states.shape[1], len(paths), 0)
        how = {"cmap": colors, "vmin": -0.5, "vmax": count - 0.5, "interpolation": "nearest", "aspect": "auto"}
        below.imshow(shown, extent=extent, **how)
        below.set_yticks(np.arange(len(paths)) + 0.5, list(paths), fontsize="small")
        below.tick_params(length=0)
        below.spines[:].set_visible(False)
    panels[-1].set_xlabel("time slice")
    return figure


def _shown(values: Float[Tensor, "n time ..."]) -> Float[Tensor, "n time elements"]:
    """The same up to the end of the longest sequence."""
    flat = values.detach().cpu().double().reshape(*values.shape[:2], -1)
    there = (~flat.isnan()).any(2).any(0).nonzero()
    return flat[:, : int(there.max()) + 1] if len(there) else flat


def _draw(axes: Axes, sequence: Float[Tensor, "time elements"], limits: Limits) -> None:
    steps, width = sequence.shape
    axes.set(xlim=(0, steps))
    if width <= CURVES:
        axes.plot(np.arange(steps) + 0.5, as_array(sequence), linewidth=1, color=BLUE if width == 1 else None)
        margin = 0.05 * (limits[1] - limits[0])
        axes.set(ylim=(limits[0] - margin, limits[1] + margin))
        axes.spines[["top", "right"]].set_visible(False)
        return
    grey = matplotlib.colormaps["Greys"].with_extremes(bad=BEYOND)
    how = {"cmap": grey, "vmin": limits[0], "vmax": limits[1], "interpolation": "nearest", "aspect": "auto"}
    axes.imshow(np.ma.masked_invalid(as_array(sequence.T)), origin="lower", extent=(0, steps, 0, width), **how)
