"""The search for modes, from draws of the prior and of the guide by steps of first order."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pyro_vae.evaluation.log_likelihood.costs import GRADIENT, Costs
from pyro_vae.evaluation.log_likelihood.normals import Normals
from pyro_vae.evaluation.log_likelihood.target import Target

STEPS = 20
"""Steps from each start at most."""

CHECK = 4
"""After every so many steps, what is explained stops."""

FIRST, SHORTEST, LONGEST, SHRINK = 0.02, 1e-4, 1.0, 0.3


def cost_of_search(starts: int) -> int:
    """The most that the search costs, in model evaluations."""
    return starts * (STEPS + 1) * GRADIENT


@dataclass
class Ends:
    """Where the search ended, and which ends nothing explains yet."""

    places: Float[Tensor, "starts data dim"]
    log_joint: Float[Tensor, "starts data"]
    open: Bool[Tensor, "starts data"]


def explained(normals: Normals, places: Float[Tensor, "starts data dim"]) -> Bool[Tensor, "starts data"]:
    """Whether places are such as a normal draws."""
    dim = places.shape[-1]
    return normals.distance(places.double()) < dim + 3 * (2 * dim) ** 0.5


def ascend(
    target: Target,
    starts: Float[Tensor, "starts data dim"],
    scale: Float[Tensor, " dim"],
    known: Callable[[Tensor], Bool[Tensor, "starts data"]],
    costs: Costs,
) -> Ends:
    """Follow the slope of log p(x, z) from each start, by steps of Barzilai & Borwein (1988) in units of `scale`; what
    does not rise is taken back and tried with a shorter step. Starts in what is `known` stop.
    """
    count, size, dim = starts.shape
    rows = torch.arange(size, device=starts.device).repeat(count)
    place = starts.reshape(-1, dim).clone()
    open = ~known(starts).reshape(-1)
    value = place.new_full((len(place),), -torch.inf)
    slope, stride = torch.zeros_like(place), place.new_full((len(place),), FIRST)
    if open.any():
        value[open], slope[open] = target.slopes(place[open], rows[open])
        slope *= scale
        costs.add(rows[open], GRADIENT)
    for number in range(1, STEPS + 1):
        here = open.nonzero().squeeze(1)
        if not len(here):
            break
        before, was, steep, size_of = place[here], value[here], slope[here], stride[here]
        step = size_of[:, None] * steep
        after, new, steeper = before + step * scale, *_scaled(target.slopes, before + step * scale, rows[here], scale)
        costs.add(rows[here], GRADIENT)
        up = new >= was
        bend = steep - steeper
        along = (step * bend).sum(-1).clamp(min=1e-12)
        long, short = step.square().sum(-1) / along, along / bend.square().sum(-1).clamp(min=1e-12)
        next_one = (long if number % 2 else short).clamp(SHORTEST, LONGEST)
        stride[here] = torch.where(up, next_one, SHRINK * size_of)
        place[here] = torch.where(up[:, None], after, before)
        slope[here] = torch.where(up[:, None], steeper, steep)
        value[here] = torch.where(up, new, was)
        if number % CHECK == 0:
            open &= ~known(place.reshape(starts.shape)).reshape(-1)
    open &= ~known(place.reshape(starts.shape)).reshape(-1) & value.isfinite()
    return Ends(place.reshape(starts.shape), value.reshape(count, size), open.reshape(count, size))


def _scaled(slopes: Callable, place: Tensor, rows: Int[Tensor, " rows"], scale: Tensor) -> tuple[Tensor, Tensor]:
    value, slope = slopes(place, rows)
    return value, slope * scale
