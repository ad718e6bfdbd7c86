"""A picture of what single latent units do to the mean of p(x|z)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor, nn

from pyro_vae.pair.generation import center, decode, model_at, picture_site
from pyro_vae.pair.pair import select_fields
from pyro_vae.pair.particles import Fields, run_guide
from pyro_vae.pair.sites import Site
from pyro_vae.plots.mosaic import DPI, Limits, is_image, limits_of, tiles


class Unit(NamedTuple):
    """One element of a latent site, and the values [columns] to give it."""

    site: str
    index: int
    values: Float[Tensor, " columns"]


def traversals(pair: nn.Module, datum: Fields, units: Sequence[Unit]) -> Figure | None:
    """Means of p(x|z) where one unit at a time leaves the guide's mean of a datum, whose fields are [1, ...]; a row of
    pictures for each unit.

    Sites whose prior depends on the moved one follow it, at their prior means. Units whose values are outside their
    support (discrete ones, elements of a simplex) are left out; None where no unit remains.
    """
    sites = {f"{unit.site}[{unit.index}]": _row(pair, datum, unit) for unit in units}
    rows = {name: site for name, site in sites.items() if site is not None}
    if not rows:
        return None
    means = torch.stack([center(site) for site in rows.values()]).float().cpu()
    if not is_image(means.shape[2:]):
        return _curves(means, list(rows))
    return _pictures(means, list(rows), limits_of(next(iter(rows.values())), means.flatten(0, 1)))


def _row(pair: nn.Module, datum: Fields, unit: Unit) -> Site | None:
    """The site to show, [1, columns, *event], at each value of a unit; None where these are outside the support."""
    columns = len(unit.values)
    fields = {name: value.expand(columns, *value.shape[1:]) for name, value in select_fields(pair, datum).items()}
    latents = {name: center(site).expand(columns, *site.event_shape) for name, site in run_guide(pair, datum).items()}
    sites = model_at(pair, fields, latents)
    moved = latents[unit.site].clone()
    moved.view(columns, -1)[:, unit.index] = unit.values.to(moved)
    support = sites[unit.site].support
    if support is None or support.is_discrete or not support.check(moved).all():
        return None
    latents[unit.site] = moved
    order = [name for name, site in sites.items() if not site.observed]
    for name in order[order.index(unit.site) + 1 :]:
        prior = center(model_at(pair, fields, latents)[name])
        if (prior != prior[:1]).any():
            latents[name] = prior
    return picture_site(decode(pair, fields, latents))


def _pictures(means: Float[Tensor, "units columns ..."], names: Sequence[str], limits: Limits) -> Figure:
    """Images in a grid, a row for each unit."""
    units, columns = means.shape[:2]
    grid = tiles(means.flatten(0, 1), columns, limits)
    width = 0.7 * columns
    figure = Figure(figsize=(width + 1, width * grid.shape[0] / grid.shape[1] + 0.8), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(grid, extent=(0, columns, units, 0), aspect="auto", interpolation="nearest")
    axes.set_yticks(np.arange(units) + 0.5, names)
    axes.set_xticks([0.5, columns - 0.5], ["1%", "99%"])
    axes.set_xlabel("from the 1st to the 99th percentile of the unit's draws z ~ q(z|x)")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return figure


def _curves(means: Float[Tensor, "units columns ..."], names: Sequence[str]) -> Figure:
    """The elements of x as one curve for each value of a unit, dark to bright as it rises."""
    figure = Figure(figsize=(7, 1.2 * len(names) + 0.8), dpi=DPI, layout="constrained")
    panels = figure.subplots(len(names), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    colors = colormaps["viridis"](np.linspace(0, 1, means.shape[1]))
    for axes, name, row in zip(panels, names, means.reshape(*means.shape[:2], -1).numpy(), strict=True):
        for curve, color in zip(row, colors, strict=True):
            axes.plot(np.arange(1, len(curve) + 1), curve, color=color, linewidth=1, marker=".", markersize=3)
        axes.set_ylabel(name)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("element of x; dark to bright: 1st to 99th percentile of the unit's draws z ~ q(z|x)")
    return figure
