"""A local normal: the nearest mode, and the curvature there, both smoothed over the normal itself."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyro_vae.evaluation.log_likelihood.costs import GRADIENT, Costs
from pyro_vae.evaluation.log_likelihood.curvature import NONE, Curvature
from pyro_vae.evaluation.log_likelihood.normals import Normals
from pyro_vae.evaluation.log_likelihood.target import Target, rows_of

CLIMBS = 6
"""Damped steps to a mode at most."""

STRIDES = (1.0, 0.5, 0.2, 0.05)
"""Parts of a Newton step that are tried."""

LEVEL = 0.02
"""Where a further step promises no more nats than this for each dimension, and one in all, the climb is over."""

SHIFTS, PAIRS, PLACES = 3, 6, 4
"""So often the mean is shifted, by the slopes at so many pairs of opposite draws; and the curvature is the mean over so
many places."""

WIDEN = 1.15**0.5


def climb(target: Target, curvature: Curvature, start: Normals, data: Int[Tensor, " data"], costs: Costs) -> Normals:
    """The normals at the modes that damped Newton steps reach from the means of others, for some data of the block.

    Where there is no curvature, the others' covariance takes its place.
    """
    found = start
    left = torch.arange(len(data), device=data.device)
    for round in range(CLIMBS + 1):
        here, rows = found.of(left), data[left]
        place = here.mean.to(target.coordinates.dtype)
        value, slope = target.slopes(place, rows)
        costs.add(rows, GRADIENT)
        if curvature.kind != NONE:
            here = curvature.normals(place, rows)
            costs.add(rows, curvature.cost)
            found = found.put(left, here)
        step = here.step(slope.double())
        gain = 0.5 * (step * slope.double()).sum(-1)
        going = (gain > min(1.0, LEVEL * place.shape[1])) & value.isfinite()
        if round == CLIMBS or not going.any():
            break
        place, step, rows, left = place[going], step[going], rows[going], left[going]
        tried = torch.stack([place + (stride * step).to(place) for stride in STRIDES])
        values = target.weigh(tried.flatten(0, 1), rows_of(len(STRIDES), rows)).log_joint.reshape(len(STRIDES), -1)
        costs.add(rows, len(STRIDES))
        best, which = values.max(0)
        better = best > value[going]
        left = left[better]
        if not len(left):
            break
        mean = found.mean.clone()
        mean[left] = tried[which, torch.arange(len(rows), device=rows.device)][better].double()
        found = found.moved(mean)
    return found


def smoothed(
    target: Target,
    curvature: Curvature,
    local: Normals,
    noise: Float[Tensor, "draws data dim"],
    data: Int[Tensor, " data"],
    costs: Costs,
) -> Normals:
    """The normal nearest to the posterior around a mode: its mean is where the mean slope over it vanishes, and its
    precision the mean curvature over it (Opper & Archambeau 2009). What makes it worse is left out.

    Args:
        noise: standard normal, `noise_of` draws.
    """
    found = _shifted(target, local, noise, data, costs)
    if curvature.kind == NONE or not curvature.whole:
        return found
    places = found.at(_opposite(noise[-PLACES // 2 :]))
    total = sum(curvature.matrix(place, data) for place in places) / len(places)
    costs.add(data, len(places) * curvature.cost)
    found = curvature.of_matrix(found.mean, total)
    return _shifted(target, found, noise[PAIRS:], data, costs, SHIFTS - 1)


DRAWS = PAIRS * (2 * SHIFTS - 1) + PLACES
"""Draws of noise that smoothing takes."""


def _shifted(
    target: Target, found: Normals, noise: Tensor, data: Tensor, costs: Costs, shifts: int = SHIFTS
) -> Normals:
    """The same normals where their mean slope vanishes; of the means on the way those with the largest mean of
    log p(x, z)."""
    best, mean = None, found.mean
    for shift in range(shifts):
        places = found.moved(mean).at(_opposite(noise[shift * PAIRS : (shift + 1) * PAIRS]))
        values, slopes = target.slopes(places.flatten(0, 1), rows_of(2 * PAIRS, data))
        costs.add(data, 2 * PAIRS * GRADIENT)
        level, slope = values.reshape(2 * PAIRS, -1).double().mean(0), slopes.reshape(places.shape).double().mean(0)
        better = level.isfinite() if best is None else level > best - TOLERATED
        best = level if best is None else torch.where(better, torch.maximum(level, best), best)
        kept = found.mean if shift == 0 else kept
        kept = torch.where(better[:, None], mean, kept)
        step = found.step(slope)
        length = found.whitened((found.mean + step)[None])[0].norm(dim=-1, keepdim=True)
        mean = torch.where(better[:, None], mean + step / length.clamp(min=1.0), kept)
    return found.moved(mean)


TOLERATED = 1.0
"""Nats that the mean of log p(x, z) may fall by chance from one shift to the next."""


def _opposite(noise: Tensor) -> Tensor:
    return torch.cat([noise, -noise])
