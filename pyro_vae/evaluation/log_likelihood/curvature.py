"""How log p(x, z) curves at a place: by Gauss and Newton where the likelihood offers its Fisher information, else by
the exact Hessian; along the steepest axes alone in many dimensions."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, jvp, vmap

from pyro_vae.errors import UserError
from pyro_vae.evaluation.log_likelihood.normals import AXES, RANK, Normals, eigen
from pyro_vae.evaluation.log_likelihood.target import Rows, Target
from pyro_vae.pair.enumeration import enumerates
from pyro_vae.pair.particles import run_model
from pyro_vae.pair.sites import Site, has_mask, unwrapped

FLOOR = 0.05
"""The least curvature in units of the prior's, so that no axis is more than about four times as wide."""

GAUSS_NEWTON, HESSIAN, NONE = "Gauss-Newton", "Hessian", "none"

EXACT_COST = 6
"""Model evaluations of one column of a Hessian: a tangent of a gradient."""


class Feature(NamedTuple):
    """Numbers [rows, features] that a site's log-probability depends on, and the Fisher information of each."""

    value: Float[Tensor, "rows features"]
    information: Float[Tensor, "rows features"]


@dataclass
class Curvature:
    """The curvature of a target, in units of `scale`.

    Attributes:
        scale: the scale of the prior in each coordinate.
        kind: how it is found.
        reason: why it is not found, where it is not.
    """

    target: Target
    scale: Float[Tensor, " dim"]
    kind: str = GAUSS_NEWTON
    reason: str = ""

    def __post_init__(self) -> None:
        """Choose the first way that works at the first datum."""
        place, rows = self.scale.new_zeros(1, len(self.scale)), torch.zeros(1, dtype=torch.long)
        ways = {GAUSS_NEWTON: self._gauss_newton, HESSIAN: self._hessian}
        if len(self.scale) > RANK:
            ways = {HESSIAN: lambda place, rows: self._products(place, rows, place.unsqueeze(0))}
        for kind, way in ways.items():
            try:
                with warnings.catch_warnings():  # torch loads a part of forward mode that is of an old kind
                    warnings.filterwarnings("ignore", ".torch.jit.script. is deprecated", FutureWarning)
                    way(place, rows.to(place.device))
                self.kind = kind
                return
            except (UserError, RuntimeError, NotImplementedError) as problem:
                self.reason = " ".join(str(problem).split())[:120]
        self.kind = NONE

    @property
    def whole(self) -> bool:
        """Whether it is found along all axes."""
        return len(self.scale) <= RANK

    @property
    def cost(self) -> int:
        """Model evaluations of one."""
        if self.kind == NONE:
            return 0
        if not self.whole:
            return EXACT_COST * 2 * AXES
        return len(self.scale) + 1 if self.kind == GAUSS_NEWTON else EXACT_COST * len(self.scale)

    def without(self, reason: str) -> "Curvature":
        """None, for a reason."""
        self.kind, self.reason = NONE, reason
        return self

    def normals(self, place: Float[Tensor, "data dim"], rows: Rows) -> Normals:
        """The normals whose precision is the curvature, eigenvalues floored; where it is not finite, as wide as the
        prior."""
        if self.whole:
            return self.of_matrix(place, self.matrix(place, rows))
        step = max(1, self.target.most // AXES)
        parts = [self._low_rank(*part) for part in zip(place.split(step), rows.split(step), strict=True)]
        axes, values = map(torch.cat, zip(*parts, strict=True))
        return self._normals(place, axes, values)

    def _low_rank(self, place: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """The steepest axes and the curvature along them, by subspace iteration (Halko, Martinsson & Tropp 2011)."""
        generator = torch.Generator(place.device).manual_seed(0)
        probes = torch.randn(AXES, 1, place.shape[1], generator=generator, device=place.device, dtype=place.dtype)
        for _ in range(2):
            probes = probes.expand(-1, len(place), -1)
            products = (-self._products(place, rows, probes) - probes).nan_to_num(0.0, 0.0, 0.0)
            inner = torch.einsum("and,bnd->nab", probes, products)
            basis = torch.linalg.qr(products.permute(1, 2, 0))[0]
            found, probes = probes, basis.permute(2, 0, 1)
        values, turn = eigen((inner + inner.mT).double() / 2)
        return found.permute(1, 2, 0).double() @ turn, values + 1

    def of_matrix(self, place: Float[Tensor, "data dim"], matrix: Float[Tensor, "data dim dim"]) -> Normals:
        bad = ~matrix.isfinite().flatten(1).all(1)
        matrix = torch.where(bad[:, None, None], torch.eye(matrix.shape[-1]).to(matrix), matrix)
        values, axes = eigen(matrix)
        return self._normals(place, axes, values)

    def _normals(self, place: Tensor, axes: Tensor, values: Tensor) -> Normals:
        widths = values.clamp(min=FLOOR).rsqrt()
        return Normals(place.double(), self.scale.double().expand(place.shape), axes, widths)

    def matrix_of(self, normals: Normals) -> Float[Tensor, "data dim dim"]:
        """The precision of normals, in units of the scale."""
        inner = normals.axes * normals.widths.unsqueeze(1) ** -2 @ normals.axes.mT
        units = self.scale.double() / normals.scale
        return units.unsqueeze(2) * inner * units.unsqueeze(1) if self.whole else inner

    def matrix(self, place: Float[Tensor, "data dim"], rows: Rows) -> Float[Tensor, "data dim dim"]:
        """The curvature itself, in units of the scale, in float64."""
        way = self._gauss_newton if self.kind == GAUSS_NEWTON else self._hessian
        step = max(1, self.target.most // len(self.scale))
        parts = [way(*part) for part in zip(place.split(step), rows.split(step), strict=True)]
        return torch.cat(parts)

    def _gauss_newton(self, place: Tensor, rows: Rows) -> Tensor:
        units = place / self.scale
        features = self._features(units, rows)
        information = torch.cat([feature.information for feature in features], 1)

        def values(units: Tensor) -> Tensor:
            return torch.cat([feature.value for feature in self._features(units, rows)], 1)

        slopes = vmap(lambda tangent: jvp(values, (units,), (tangent,))[1])(self._basis(len(place)))
        weighed = (slopes * information.sqrt()).transpose(0, 1)
        return (weighed @ weighed.mT).double()

    def _hessian(self, place: Tensor, rows: Rows) -> Tensor:
        return -self._products(place, rows, self._basis(len(place))).transpose(0, 1).double()

    def _products(self, place: Tensor, rows: Rows, directions: Float[Tensor, "count data dim"]) -> Tensor:
        """The Hessian of log p(x, z), in units of the scale, times some directions."""
        slope = grad(lambda units: self.target.densities(units * self.scale, rows).log_joint.sum())
        units = place / self.scale
        found = vmap(lambda tangent: jvp(slope, (units,), (tangent,))[1])(directions)
        return found

    def _basis(self, size: int) -> Float[Tensor, "dim data dim"]:
        return torch.diag(torch.ones_like(self.scale))[:, None].expand(-1, size, -1)

    def _features(self, units: Tensor, rows: Rows) -> list[Feature]:
        target, place = self.target, (units * self.scale).unsqueeze(0)
        values, _ = target.coordinates.values(place)
        sites = run_model(target.pair, target.fields(rows), values, 1, summing=True)
        if enumerates(sites) or not target.coordinates.are_values:
            raise NotImplementedError("the Hessian is asked for")
        return [Feature(*map(_of_rows, pair)) for site in sites.values() for pair in features_of(site)]


def _of_rows(tensor: Tensor) -> Tensor:
    return tensor.reshape(tensor.shape[1], -1)


def features_of(site: Site) -> list[tuple[Tensor, Tensor]]:
    """The features of a site and their Fisher information, each [1, rows, ...].

    Raises:
        NotImplementedError: none is known.
    """
    fn = unwrapped(site.fn)
    known = next((find for kind, find in FEATURES.items() if isinstance(fn, kind)), None)
    if known is None or has_mask(site) or not site.in_plate or type(fn).__name__ in NOT_AS_THEIR_PARENTS:
        raise NotImplementedError(f"no Fisher information of site {site.name!r} is known")
    event = len(site.event_shape)
    return [
        (_like(site, value, event + more), _like(site, information, event + more))
        for value, information, more in known(fn, site.raw)
    ]


def _like(site: Site, tensor: Tensor, event_dims: int) -> Tensor:
    """A tensor of a site's parameters as [1, rows, ...], with the dims that it has beside those of the value."""
    more = event_dims - len(site.event_shape)
    return site.unfold(tensor.expand(*site.raw.shape, *tensor.shape[tensor.dim() - more :]), event_dims)


Found = list[tuple[Tensor, Tensor, int]]
"""Features, their information, and how many dims they have beside those of the value."""


def _normal(fn: dist.Normal, value: Tensor) -> Found:
    precision = fn.scale.detach() ** -2
    return [(value - fn.loc, precision, 0), (fn.scale.log(), torch.full_like(fn.scale, 2.0), 0)]


def _bernoulli(fn: dist.Bernoulli, value: Tensor) -> Found:
    probs = torch.sigmoid(fn.logits.detach())
    return [(fn.logits, probs * (1 - probs), 0)]


def _poisson(fn: dist.Poisson, value: Tensor) -> Found:
    return [(fn.rate.log(), fn.rate.detach(), 0)]


FEATURES: dict[type, Callable[..., Found]] = {
    dist.Normal: _normal,
    dist.Bernoulli: _bernoulli,
    dist.Poisson: _poisson,
}

NOT_AS_THEIR_PARENTS = ("LogNormal",)
