"""How far runs are from the best of them: in the mean with its errors, and for each datum."""

from collections.abc import Collection, Mapping

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from pyro_vae.plots.mosaic import BLUE, DPI, FRAME

GREY, SHARE = "#999999", 0.98
"""The colour of what is not decided, and the share of the data that is in view."""


def differences(
    best: str,
    apart: Mapping[str, Float[Tensor, " n"]],
    errors: Mapping[str, tuple[float, float]],
    decided: Collection[str],
) -> Figure:
    """A figure with a row for each run: on the left its mean difference from the best run with two standard errors (the
    thick line) and the stated errors beyond them (the thin one), on the right the differences of the data.

    Args:
        best: the name of the best run.
        apart: of each other run the difference [n] of each datum from the best run, in nats.
        errors: of each the standard error of the mean, and the sum of the stated errors.
        decided: the runs whose difference is decided; the others are grey.
    """
    figure = Figure(figsize=(9, 1.5 + 0.5 * len(apart)), dpi=DPI, layout="constrained")
    mean, each = figure.subplots(1, 2, sharey=True)
    for row, (name, values) in enumerate(apart.items()):
        known = values.double().cpu().numpy()
        known = known[np.isfinite(known)]
        if not len(known):
            continue
        color, (error, stated) = BLUE if name in decided else GREY, np.nan_to_num(errors[name])
        mean.errorbar(known.mean(), row, xerr=2 * error + stated, fmt="none", color=color, linewidth=1, capsize=3)
        mean.errorbar(known.mean(), row, xerr=2 * error, fmt="o", color=color, linewidth=3)
        if np.ptp(known) > 0:
            violin = each.violinplot(known, [row], vert=False, widths=0.8, showextrema=False, showmedians=True)
            violin["bodies"][0].set(facecolor=color, alpha=0.4)
            violin["cmedians"].set(color=color)
        else:
            each.plot(known[0], row, "|", color=color)
    mean.set_yticks(range(len(apart)), list(apart))
    mean.set_ylim(len(apart) - 0.4, -0.6)
    mean.set_xlabel(f"mean difference from {best} (nats per datum)")
    each.set_xlabel(f"difference from {best} of each datum (nats)")
    each.set_xlim(*_in_view([values.double().cpu().numpy() for values in apart.values()]))
    for axes in (mean, each):
        axes.axvline(0, color=FRAME, zorder=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    return figure


def _in_view(values: list[Float[np.ndarray, " n"]]) -> tuple[float, float]:
    """Where all but the farthest of the data of each run are, and zero."""
    known = [part[np.isfinite(part)] for part in values]
    ends = [np.quantile(part, [(1 - SHARE) / 2, (1 + SHARE) / 2]) for part in known if len(part)]
    low, high = min([0.0, *(low for low, _ in ends)]), max([0.0, *(high for _, high in ends)])
    room = 0.05 * (high - low) or 1.0
    return low - room, high + room
