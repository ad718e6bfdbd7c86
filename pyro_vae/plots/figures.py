"""Figures of pairs, data and runs: each function gives a `matplotlib.figure.Figure`, drawn without pyplot.

The same pair and data give the same figure, and torch's generators are left as they were. Each figure takes any pair:
data that are no images are drawn as bars, a cell for each datum.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

from pyro_vae.data import Dataset, Split
from pyro_vae.data.sequences import are_sequences
from pyro_vae.errors import ContractError, RunError
from pyro_vae.files import write_whole
from pyro_vae.pair.generation import center, decode, encode, observed, picture_site, reconstruct, sample
from pyro_vae.pair.labels import label_of, unlabelled
from pyro_vae.pair.obs_mask import UNOBSERVED
from pyro_vae.pair.pair import device_of, evaluating, select_fields
from pyro_vae.pair.particles import Fields, run_guide
from pyro_vae.pair.sites import Site
from pyro_vae.pair.slices import numbered, without_padding
from pyro_vae.pair.structure import structure_of
from pyro_vae.plots.mosaic import BLUE, DPI, Limits, as_array, bar_outlines, is_image, limits_of, mosaic, value_range
from pyro_vae.plots.rolls import piano_rolls, rolls_and_paths
from pyro_vae.plots.words import topics

History = Sequence[Mapping[str, Any]]
"""The rows of a run, one an epoch."""

ORANGE, INK = "#d9772b", "#333333"

CLASSES = 30
"""A grid of more classes than these shows nothing."""

SEQUENCES = 12
"""So many sequences are shown, at most."""


def save(figure: Figure, path: Path) -> None:
    """Write a figure whole or not at all; the file's suffix says in which format (.png, .pdf, .svg, ...).

    Raises `RunError` for a format that matplotlib does not know, or a folder that cannot be written.
    """
    path = Path(path)
    form, known = path.suffix.removeprefix(".").lower(), figure.canvas.get_supported_filetypes()
    if form not in known:
        raise RunError(f"cannot draw {path.name!r}: use a file name that ends in one of {', '.join(known)}")
    write_whole(path, lambda file: figure.savefig(file, format=form))


def save_images(values: Float[Tensor, "n ..."], path: Path, columns: int | None = None) -> None:
    """Write the data of `image_grid` as a picture; see `save`."""
    save(image_grid(values, columns), path)


def image_grid(values: Float[Tensor, "n ..."], columns: int | None = None) -> Figure:
    """Images [n, c, h, w] or [n, h, w], each pixel a whole number of dots, or vectors [n, d], row by row in a grid
    without margins; it is about square where `columns` is not given."""
    columns = min(columns or _square(len(values)), len(values))
    return mosaic(values, columns, value_range(values), left=0, bottom=0, top=0, right=0, largest=math.inf)[0]


def drawings(pair: nn.Module, data: Dataset, history: History) -> dict[str, Callable[[], Figure | None]]:
    """What draws each figure of a run, by name; one that does not apply to the pair gives None.

    The figures are of the test data. Drawing one may raise a `UserError` or `NotImplementedError` of its own.
    """
    with undisturbed(pair):
        fields = data.test.head(64).take(slice(None))
    curves = {"loss": partial(loss_curves, history)} if history else {}
    return curves | {
        "reconstructions": partial(reconstructions, pair, data.test),
        "samples": partial(samples, pair, fields),
        "class_conditional": partial(class_conditional, pair, fields),
        "state_paths": partial(state_paths, pair, data.test),
        "manifold": partial(manifold, pair, fields),
        "posterior_means": partial(posterior_means, pair, data.test),
        "topics": partial(topics, pair),
    }


def loss_curves(history: History) -> Figure:
    """Training and validation loss of each epoch, and rate and distortion beside, in nats per datum.

    The rows have `epoch`, `loss`, `valid_loss`, `valid_rate` and `valid_distortion`; `RunError` is raised where there
    are none. The first tenth of the epochs does not decide the vertical range, so that it does not squash the others.
    """
    if not history:
        raise RunError("no epoch has been trained, so there are no curves to draw")
    figure = Figure(figsize=(9, 3.8), dpi=DPI, layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(1.6, 1))
    names = ("epoch", "loss", "valid_loss", "valid_rate", "valid_distortion")
    epoch, training, validation, rate, distortion = (np.array([float(row[name]) for row in history]) for name in names)
    loss = figure.add_subplot(grid[:, 0])
    _curve(loss, epoch, training, INK, "training loss")
    _curve(loss, epoch, validation, BLUE, "validation loss (−ELBO)")
    _mark_best(loss, epoch, validation)
    loss.set_ylim(_settled_range(training, validation))
    loss.set(xlabel="epoch", ylabel="loss (nats per datum)")
    loss.legend(frameon=False)
    parts = {"rate: KL(q(z|x) ‖ p(z))": rate, "distortion: −E log p(x|z)": distortion}
    for row, (title, part) in enumerate(parts.items()):
        axes = figure.add_subplot(grid[row, 1], sharex=loss)
        _curve(axes, epoch, part, BLUE, title)
        axes.set_ylim(_settled_range(part))
        axes.set_title(f"validation {title}", fontsize="medium")
        axes.set_ylabel("nats per datum")
        axes.tick_params(labelbottom=row == 1)
    axes.set_xlabel("epoch")
    return figure


def reconstructions(pair: nn.Module, split: Split, n: int = 10, seed: int = 0) -> Figure:
    """`n` data, spread over the split, above the means of p(x|z) at the guide's means, in rows of at most 12.

    On a reconstruction that is no image the outline of its datum is drawn. Sequences are beside their reconstructions.
    The seed fixes the draws of sites that have no mean.
    """
    with undisturbed(pair, seed) as device:
        batch = split.to(device).take(_spread(split.placed, n).to(device))
        site = picture_site(reconstruct(pair, batch))
        data, means = (without_padding(part, batch) for part in (site.seen.squeeze(0), center(site)))
    if are_sequences(select_fields(pair, batch)):
        values = torch.stack([data.to(means), means], 1).flatten(0, 1)
        return piano_rolls(values, 2, ("data", "reconstruction"), limits_of(site, values))
    rows = -(-len(data) // 12)
    columns = -(-len(data) // rows)
    values = _interleave(data, means, columns)
    limits = limits_of(site, values)
    colors = ([INK] * columns + [BLUE] * columns) * rows
    figure, axes = mosaic(values, columns, limits, left=1.125, note=True, colors=colors)
    axes.set_yticks(np.arange(2 * rows) + 0.5, ["data", "reconstruction"] * rows)
    if not is_image(data.shape[1:]):
        above = bar_outlines(values, columns, limits).reshape(rows, 2, columns, -1, 2)[:, 0] + (0, 1)
        axes.add_collection(LineCollection(above.reshape(rows * columns, -1, 2), colors=INK, linewidths=0.7))
    return figure


def _interleave(
    above: Float[Tensor, "n ..."], below: Float[Tensor, "n ..."], columns: int
) -> Float[Tensor, "cells ..."]:
    """Rows of `columns` data and below each the row of the others; NaN where there are none left."""
    filling = torch.full((-len(below) % columns, *below.shape[1:]), math.nan, dtype=torch.double)
    rows = [torch.cat([part.cpu().double(), filling]).split(columns) for part in (above, below)]
    return torch.cat([row for pair in zip(*rows, strict=True) for row in pair])


def samples(pair: nn.Module, fields: Fields, n: int = 64) -> Figure:
    """Means of p(x|z) at `n` draws z ~ p(z), in a square grid; of sequences the first twelve, in two columns.

    Args:
        fields: what the pair's signature names, as a split presents it, [rows, ...]. Fields that are observed give
            only their shape; fields that the model conditions on give their values, from the first row again where
            there are fewer rows than n.
    """
    with undisturbed(pair) as device:
        fields = _rows(pair, fields, torch.arange(n), device)
        site = picture_site(observed(sample(pair, fields)))
        means = without_padding(center(site), fields)
    limits, columns = limits_of(site, means), _square(n)
    if are_sequences(fields):
        return piano_rolls(means[:SEQUENCES], limits=limits)
    figure, axes = mosaic(means, columns, limits, top=0.375, note=True)
    axes.set_title("means of p(x|z), z ~ p(z)")
    return figure


def class_conditional(pair: nn.Module, fields: Fields, styles: int = 6) -> Figure | None:
    """Means of p(x|z, y): a column for each value y of the pair's label or cluster, a row for each style, which is what
    else is drawn from the prior, by the same random numbers in all columns.

    None unless the pair enumerates a label or cluster, the only such site of a datum, of at most thirty values.

    Args:
        fields: as in `samples`; fields that the model conditions on have the first row's values everywhere.
        styles: how many rows.
    """
    with undisturbed(pair) as device:
        same = torch.zeros(styles, dtype=torch.long)
        try:
            fields = unlabelled(pair, _rows(pair, fields, same, device))
            label = label_of(pair, fields)
        except ContractError:
            return None
        if len(label.values) > CLASSES:
            return None
        columns = []
        for value in label.values:
            with undisturbed(pair):
                given = value.expand(styles, *value.shape)
                site = picture_site(observed(sample(pair, fields, {label.site: given})))
            columns.append(center(site))
    means = torch.stack(columns, 1).flatten(0, 1)
    figure, axes = mosaic(means, len(columns), limits_of(site, means), bottom=0.5, top=0.375)
    axes.set_xticks(np.arange(len(columns)) + 0.5, range(len(columns)))
    axes.set_xlabel(label.site.removesuffix(UNOBSERVED))
    axes.set_title("a style in each row")
    return figure


def manifold(pair: nn.Module, fields: Fields, side: int = 20) -> Figure | None:
    """Means of p(x|z) over the plane of z, at standard-normal quantiles from 0.025 to 0.975 on each axis.

    None unless the guide has a single latent site, of event shape (2,), whose support holds the grid.

    Args:
        fields: as in `samples`; fields that the model conditions on have the first row's values everywhere.
        side: cells along each axis.
    """
    ticks = torch.distributions.Normal(0.0, 1.0).icdf(torch.linspace(0.025, 0.975, side))
    with undisturbed(pair) as device:
        latent = planar_site(pair, _rows(pair, fields, torch.zeros(1, dtype=torch.long), device))
        if latent is None:
            return None
        second, first = torch.meshgrid(ticks.flip(0), ticks, indexing="ij")
        plane = torch.stack([first.flatten(), second.flatten()], 1).to(latent.value)
        if latent.support is None or not latent.support.check(plane).all():
            return None
        fields = _rows(pair, fields, torch.zeros(side**2, dtype=torch.long), device)
        site = picture_site(decode(pair, fields, {latent.name: plane}))
        means = center(site)
    limits = limits_of(site, means)
    figure, axes = mosaic(means, side, limits, left=0.875, bottom=0.625, top=0.375, gap_shade=0.0)
    shown = np.linspace(0, side - 1, min(side, 6)).round().astype(int)
    labels = [f"{round(ticks[i].item(), 2) + 0.0:.2f}".replace("-", "−") for i in shown]
    axes.set_xticks(shown + 0.5, labels)
    axes.set_yticks(side - 0.5 - shown, labels)
    axes.set(xlabel=f"{latent.name}₁ (at standard-normal quantiles)", ylabel=f"{latent.name}₂")
    axes.set_title("means of p(x|z) over the latent plane")
    return figure


def posterior_means(pair: nn.Module, split: Split, limit: int = 5000) -> Figure | None:
    """The guide's mean of at most `limit` data, spread over the split, in the plane of z; coloured by the field `label`
    where the split has it. None unless the guide has a single latent site, of event shape (2,)."""
    with undisturbed(pair) as device:
        split = split.to(device)
        latent = planar_site(pair, split.head(1).take(slice(None)))
        if latent is None:
            return None
        means, labels = [], []
        for positions in _spread(split.placed, limit).to(device).split(512):
            batch = split.take(positions)
            means.append(as_array(center(run_guide(pair, batch)[latent.name])))
            labels.append(as_array(batch["label"]) if "label" in batch else None)
    points = np.concatenate(means)
    figure = Figure(figsize=(6.2, 5), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    _frame(axes)
    _scatter(axes, points, None if labels[0] is None else np.concatenate(labels))
    axes.set_aspect("equal", adjustable="datalim")
    axes.set(xlabel=f"{latent.name}₁", ylabel=f"{latent.name}₂")
    axes.set_title(f"posterior means of {len(points):,} data")
    return figure


def state_paths(pair: nn.Module, split: Split, n: int = 4, seed: int = 0) -> Figure | None:
    """`n` sequences, spread over the split, and below each the states of its time slices that are most probable
    together, and one joint draw of them. None unless the model alone enumerates a site in every time slice; of several,
    they are those of the first."""
    with undisturbed(pair, seed) as device:
        batch = split.to(device).take(_spread(split.placed, n).to(device))
        names = numbered(sorted(structure_of(pair, select_fields(pair, batch)).enumerated["model"]))
        codes = encode(pair, Split(batch)) if names else {}
    name = next((name for name in names if f"{name}_most_probable" in codes), None)
    if name is None:
        return None
    paths = {"most probable": codes[f"{name}_most_probable"], "a draw": codes[f"{name}_draw"]}
    return rolls_and_paths(without_padding(batch["x"], batch), paths)


def planar_site(pair: nn.Module, fields: Fields) -> Site | None:
    """The guide's latent site where it is the only one, one a datum, and two-dimensional; else None."""
    with torch.no_grad():
        sites = list(run_guide(pair, fields).values())
    planar = len(sites) == 1 and sites[0].in_plate and tuple(sites[0].event_shape) == (2,)
    return sites[0] if planar else None


@contextmanager
def undisturbed(pair: nn.Module, seed: int = 0) -> Iterator[torch.device]:
    """Run under `eval()`, without gradients and at this seed, and yield the pair's device. The pair's modes and the
    generators are afterwards as they were."""
    device = device_of(pair)
    cuda = [device.index or 0] if device.type == "cuda" else []
    with evaluating(pair), torch.random.fork_rng(devices=cuda), torch.no_grad():
        for generator in [torch.default_generator, *[torch.cuda.default_generators[i] for i in cuda]]:
            generator.manual_seed(seed)
        yield device


def _curve(axes: Axes, epoch: np.ndarray, values: np.ndarray, color: str, label: str) -> None:
    _frame(axes)
    marker = "o" if len(epoch) < 15 else None
    axes.plot(epoch, values, color=color, label=label, linewidth=1.4, marker=marker, markersize=3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))


def _mark_best(axes: Axes, epoch: np.ndarray, values: np.ndarray) -> None:
    if np.isfinite(values).any():
        best = int(np.nanargmin(values))
        label = f"best: {values[best]:.2f} at epoch {epoch[best]:.0f}".replace("-", "−")
        axes.plot(epoch[best], values[best], "o", color=ORANGE, ms=6, label=label, zorder=3)


def _settled_range(*curves: np.ndarray) -> Limits:
    """Limits that hold the last value of each curve, and those after the first tenth of epochs save for peaks."""
    ends = []
    for curve in curves:
        settled = curve[len(curve) // 10 if len(curve) > 4 else 0 :]
        settled = settled[np.isfinite(settled)]
        if settled.size:
            ends += [settled.min(), np.percentile(settled, 98), settled[-1]]
    low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
    margin = 0.06 * (high - low) or 0.5
    return low - margin, high + margin


def _scatter(axes: Axes, points: Float[np.ndarray, "n 2"], labels: np.ndarray | None) -> None:
    """Points coloured by their labels: whole numbers of few kinds with a legend, others with a colour bar."""
    style = {"s": float(np.clip(8000 / len(points), 3, 25)), "alpha": 0.75, "linewidths": 0}
    if labels is None or labels.ndim != 1:
        axes.scatter(*points.T, color=BLUE, **style)
        return
    kinds = np.unique(labels)
    if len(kinds) > 20 or not np.issubdtype(labels.dtype, np.integer):
        dots = axes.scatter(*points.T, c=labels, cmap="viridis", **style)
        axes.figure.colorbar(dots, ax=axes, label="label").solids.set_alpha(1)
        return
    palette = matplotlib.colormaps["tab10" if len(kinds) <= 10 else "tab20"]
    place = np.searchsorted(kinds, labels)
    dots = axes.scatter(*points.T, c=place, cmap=ListedColormap(palette.colors[: len(kinds)]), **style)
    handles, _ = dots.legend_elements(num=list(range(len(kinds))), alpha=1)
    names = [str(kind) for kind in kinds]
    axes.legend(handles, names, title="label", frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))


def _frame(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)


def _square(n: int) -> int:
    """Columns of the grid of `n` cells that is nearest to a square."""
    return math.ceil(math.sqrt(n))


def _spread(size: int, n: int) -> Int[Tensor, " n"]:
    """Positions of `n` data, evenly spread over `size`; all where there are fewer."""
    return torch.arange(min(n, size)) * size // min(n, size)


def _rows(pair: nn.Module, fields: Fields, positions: Int[Tensor, " n"], device: torch.device) -> dict[str, Tensor]:
    """The fields that a pair takes at these positions, counted round, on a device."""
    chosen = select_fields(pair, fields)
    return {name: value[positions.to(value.device) % len(value)].to(device) for name, value in chosen.items()}
