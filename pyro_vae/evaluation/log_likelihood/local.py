"""A local normal: the nearest mode, and the curvature there, both smoothed over the normal itself."""

from collections.abc import Sequence

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

TRUST = (1.0, 0.7, 0.5)
"""How far the curvature moves to the mean over fresh draws in each round of smoothing."""

PAIRS, SHIFTS = 4, 2
"""The mean slope is that at so many pairs of opposite draws, and the mean is shifted so often in a round."""

WIDEN = 1.07
"""How much wider than the local normal its draws are: tails that are too light cost more than some that are not."""


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
    trust: Sequence[float] = TRUST,
) -> Normals:
    """The normal nearest to the posterior around a mode: its mean is where the mean slope over it vanishes, and its
    precision the mean curvature over it (Opper & Archambeau 2009).

    Args:
        noise: standard normal, `noise_of(trust)` draws.
        trust: how far the curvature moves to the mean over fresh draws in each round.
    """
    shifts, places = noise[: -len(trust)].split(SHIFTS * PAIRS), noise[-len(trust) :]
    found, matrix = local, curvature.matrix_of(local)
    for share, here, pair in zip(trust, shifts, places, strict=False):
        found = _shifted(target, found, here, data, costs)
        if curvature.kind == NONE or not curvature.whole:
            return found
        new = sum(curvature.matrix(place, data) for place in found.at(_opposite(pair[None]))) / 2
        costs.add(data, 2 * curvature.cost)
        matrix = matrix + share * (new - matrix)
        found = curvature.of_matrix(found.mean, matrix)
    return _shifted(target, found, shifts[-1], data, costs)


def cost_of_climb(curvature: Curvature) -> int:
    """The most that a climb costs, in model evaluations."""
    return (CLIMBS + 1) * (GRADIENT + len(STRIDES) + curvature.cost) + 1


def cost_of_smoothing(curvature: Curvature, trust: Sequence[float] = TRUST) -> int:
    """The most that smoothing costs, in model evaluations."""
    return len(trust) * 2 * curvature.cost + (len(trust) + 1) * SHIFTS * PAIRS * 2 * GRADIENT


def noise_of(trust: Sequence[float]) -> int:
    """How many draws of noise smoothing takes."""
    return (len(trust) + 1) * SHIFTS * PAIRS + len(trust)


def _shifted(
    target: Target, found: Normals, noise: Float[Tensor, "draws data dim"], data: Int[Tensor, " data"], costs: Costs
) -> Normals:
    """The same normals moved towards where their mean slope vanishes, by one standard deviation at most each time; back
    again where the mean of log p(x, z) has fallen."""
    kept, best, mean = found.mean, torch.full_like(found.mean[:, 0], -torch.inf), found.mean
    for some in noise.split(PAIRS):
        places = found.moved(mean).at(_opposite(some))
        values, slopes = target.slopes(places.flatten(0, 1), rows_of(len(places), data))
        costs.add(data, len(places) * GRADIENT)
        level, slope = values.reshape(places.shape[:2]).double().mean(0), slopes.reshape(places.shape).double().mean(0)
        better = level > best - TOLERATED
        best, kept = torch.maximum(level, best), torch.where(better[:, None], mean, kept)
        step = found.step(slope)
        length = found.whitened((found.mean + step)[None])[0].norm(dim=-1, keepdim=True)
        mean = torch.where(better[:, None], mean + step / length.clamp(min=1.0), kept)
    return found.moved(torch.where((best > -torch.inf)[:, None], mean, found.mean))


TOLERATED = 1.0
"""Nats that the mean of log p(x, z) may fall by chance from one shift to the next."""


def _opposite(noise: Tensor) -> Tensor:
    return torch.cat([noise, -noise])
