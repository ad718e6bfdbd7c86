"""The modes of each datum's posterior, as local normals."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pyro_vae.evaluation.log_likelihood.costs import Costs
from pyro_vae.evaluation.log_likelihood.curvature import Curvature
from pyro_vae.evaluation.log_likelihood.local import climb, cost_of_climb, cost_of_smoothing
from pyro_vae.evaluation.log_likelihood.normals import Normals
from pyro_vae.evaluation.log_likelihood.search import Ends, ascend, explained
from pyro_vae.evaluation.log_likelihood.target import Target

MOST = 8
"""So many modes of a datum at most."""

NEGLIGIBLE = 8.0
"""A mode counts for nothing where its mass is this many nats below that of the largest."""

SAME = 1.0
"""Two modes are one where each is this near to the other's normal."""


@dataclass
class Modes:
    """The local normals of each datum, the largest mass anywhere in the list.

    Attributes:
        normals: components; those that a datum lacks have no mass.
        log_mass: of each component and datum, by Laplace's approximation; -inf where there is none.
        left: whether the search left ends of a datum that nothing explains.
    """

    normals: list[Normals]
    log_mass: list[Float[Tensor, " data"]]
    left: Bool[Tensor, " data"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))

    def known(self, places: Float[Tensor, "starts data dim"]) -> Bool[Tensor, "starts data"]:
        """Whether one of the normals explains places."""
        found = torch.zeros(places.shape[:2], dtype=torch.bool, device=places.device)
        for normals, mass in zip(self.normals, self.log_mass, strict=True):
            data = (mass > -torch.inf).nonzero().squeeze(1)
            found[:, data] |= explained(normals.of(data), places[:, data])
        return found

    @property
    def best(self) -> Float[Tensor, " data"]:
        return torch.stack(self.log_mass).amax(0)

    @property
    def masses(self) -> Float[Tensor, "data components"]:
        """Shares of the components, nearer to each other than their masses are."""
        log_mass = torch.stack(self.log_mass, 1)
        return (0.5 * (log_mass - log_mass.amax(1, keepdim=True))).exp()


def find_modes(
    target: Target,
    curvature: Curvature,
    first: Normals,
    starts: Float[Tensor, "starts data dim"],
    costs: Costs,
) -> Modes:
    """The modes that the climb from `first` and the search from the starts reach."""
    everything = torch.arange(target.size, device=starts.device)
    main = climb(target, curvature, first, everything, costs)
    modes = Modes([main], [_log_mass(target, main, everything)])
    ends = ascend(target, starts, curvature.scale, modes.known, costs)
    given_up = torch.zeros(target.size, dtype=torch.bool, device=starts.device)
    for _ in range(len(starts)):
        data, place = _most_open(ends, modes, curvature.scale)
        allowed = costs.allow(data, cost_of_climb(curvature) + cost_of_smoothing(curvature))
        given_up[data[~allowed]] = True
        data, place = data[allowed], place[allowed]
        if not len(data):
            break
        found = climb(target, curvature, first.of(data).moved(place.double()), data, costs)
        mass = _log_mass(target, found, data)
        new = (mass > modes.best[data] - NEGLIGIBLE) & ~_same(modes, found, data)
        if new.any():
            _add(modes, found.of(new.nonzero().squeeze(1)), mass[new], data[new])
        ends.open &= ~modes.known(ends.places)
    modes.left = given_up | _worth(ends, modes, curvature.scale).any(0)
    return modes


def _log_mass(target: Target, normals: Normals, data: Int[Tensor, " data"]) -> Float[Tensor, " data"]:
    """log p(x, z) at the mode, and half the log determinant of the covariance."""
    value = target.weigh(normals.mean.to(target.coordinates.dtype), data).log_joint.double()
    return (value + normals.log_volume).nan_to_num(-torch.inf, torch.inf, -torch.inf)


def _worth(ends: Ends, modes: Modes, scale: Float[Tensor, " dim"]) -> Bool[Tensor, "starts data"]:
    """The open ends that could be of a mode that counts: with no more room around it than the prior has."""
    most = ends.log_joint.double() + scale.double().log().sum()
    return ends.open & (most > modes.best - NEGLIGIBLE)


def _most_open(ends: Ends, modes: Modes, scale: Tensor) -> tuple[Int[Tensor, " data"], Float[Tensor, "data dim"]]:
    """The data that have an open end, and the best of them, which is open no more."""
    worth = _worth(ends, modes, scale)
    data = worth.any(0).nonzero().squeeze(1)
    best = ends.log_joint.masked_fill(~worth, -torch.inf).argmax(0)[data]
    ends.open[best, data] = False
    return data, ends.places[best, data]


def _same(modes: Modes, found: Normals, data: Int[Tensor, " data"]) -> Bool[Tensor, " data"]:
    """Whether a mode is one that is known."""
    same = torch.zeros(len(data), dtype=torch.bool, device=data.device)
    for normals, mass in zip(modes.normals, modes.log_mass, strict=True):
        other = normals.of(data)
        apart = torch.minimum(other.distance(found.mean[None])[0], found.distance(other.mean[None])[0])
        same |= (mass[data] > -torch.inf) & (apart < SAME)
    return same


def _add(modes: Modes, found: Normals, mass: Tensor, data: Int[Tensor, " data"]) -> None:
    """Put new modes into the first place that is free for each datum."""
    for number in range(MOST):
        if number == len(modes.normals):
            modes.normals.append(modes.normals[0])
            modes.log_mass.append(torch.full_like(modes.log_mass[0], -torch.inf))
        free = modes.log_mass[number][data] == -torch.inf
        if free.any():
            here = free.nonzero().squeeze(1)
            modes.normals[number] = modes.normals[number].put(data[here], found.of(here))
            modes.log_mass[number][data[here]] = mass[here]
            data, mass, found = data[~free], mass[~free], found.of((~free).nonzero().squeeze(1))
        if not len(data):
            return
