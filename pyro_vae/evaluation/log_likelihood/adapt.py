"""A proposal adapted to the weighed draws of another by their moments (Cappe, Guillin, Marin & Robert 2004)."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_vae.evaluation.log_likelihood.normals import Normals, eigen, from_draws
from pyro_vae.evaluation.log_likelihood.proposal import Proposal
from pyro_vae.evaluation.log_likelihood.sampling import Drawn

FEWEST = 100.0
"""A component is moved by half the way where so many effective draws are its own."""

LEAST_SHARE = 0.05
"""No component has less than this share of the components' draws."""


def responsibilities(proposal: Proposal, drawn: Drawn) -> Float[Tensor, "components draws data"]:
    """The weights of the draws, each divided among the components by their densities there; 1 in all for each datum."""
    log_shares = proposal.shares.log()
    terms = torch.full((len(proposal.normals), *drawn.log_weights.shape), -torch.inf, dtype=torch.float64)
    terms = terms.to(drawn.log_weights.device)
    for number, term in enumerate(terms):
        data, normals = proposal.having(number)
        term[:, data] = normals.log_density(drawn.places[:, data]) + log_shares[data, 2 + number]
    return terms.softmax(0).nan_to_num(1 / len(terms)) * drawn.shares


def component_masses(proposal: Proposal, drawn: Drawn) -> Float[Tensor, "data components"]:
    """How the weight is divided among the components of each datum; none has less than `LEAST_SHARE`."""
    masses = responsibilities(proposal, drawn).sum(1).T
    has = proposal.shares[:, 2 : 2 + masses.shape[1]] > 0
    return masses.clamp(min=LEAST_SHARE) * has


def adapted(proposal: Proposal, drawn: Drawn, widen: float) -> list[Normals]:
    """Components with the moments of the weighed draws that are theirs, as far as there are enough of these."""
    found = []
    for number, weights in enumerate(responsibilities(proposal, drawn)):
        data, normals = proposal.having(number)
        if not len(data):
            found.append(proposal.normals[number])
            continue
        new = _adapted(normals, drawn.places[:, data], weights[:, data], widen)
        found.append(proposal.normals[number].put(data, new))
    return found


def _adapted(old: Normals, places: Tensor, weights: Float[Tensor, "draws data"], widen: float) -> Normals:
    total = weights.sum(0)
    weights = weights / total.clamp(min=1e-300)
    effective = torch.where(total > 0, 1 / weights.square().sum(0).clamp(min=1e-300), 0.0)
    trust = (effective / (effective + FEWEST))[:, None]
    units = old.whitened(places)
    mean = trust * (weights[..., None] * units).sum(0)
    inner = (
        from_draws(units - mean, torch.full_like(mean, 1e-3), weights) if old.axes.shape[2] == mean.shape[1] else None
    )
    place = old.mean + old.scale * old.along(mean[None])[0]
    return old.moved(place) if inner is None else _composed(old.moved(place), inner, widen)


def _composed(old: Normals, inner: Normals, widen: float) -> Normals:
    """The normal whose draws are those of `old` at noise with the covariance of `inner`."""
    rank = inner.axes.shape[-1]
    eye = torch.eye(rank, dtype=old.mean.dtype, device=old.mean.device).expand(len(old.mean), -1, -1)
    spread = inner.scale.unsqueeze(-1) * (inner.axes * inner.widths.unsqueeze(1)) @ inner.axes.mT
    factor = old.along(eye.transpose(0, 1)).transpose(0, 1) @ spread
    values, axes = eigen(factor @ factor.mT)
    return replace(old, axes=axes, widths=widen * values.clamp(min=1e-12).sqrt())
