"""Objectives on several particles at once: the importance-weighted bound and Renyi's, with their gradient estimators.

Each estimator gives L_alpha = 1/(1-alpha) log 1/K sum_k w_k^(1-alpha) of every datum, with a gradient that estimates
that of its expectation. Weights are normalised for each datum by itself, so the bound stays right under minibatches.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_vae.errors import ContractError, find
from pyro_vae.objectives.objective import Batch, Beta, Estimate, MinusBound, require_reparameterised, without_value
from pyro_vae.pair import bounds
from pyro_vae.pair.pair import batch_size, select_fields
from pyro_vae.pair.particles import run_guide, run_guide_at, run_model
from pyro_vae.pair.sites import Sites, values_of
from pyro_vae.pair.structure import structure_of
from pyro_vae.pair.terms import LogTerms, counts, joined, log_terms, reduce_sites

Weights = Float[Tensor, "particles batch"]


class Renyi(MinusBound):
    """Minus Renyi's bound of order `alpha` < 1 on log p(x) (Li & Turner 2016).

    Args:
        alpha: 0 is the importance-weighted bound; towards 1 it is the ELBO.
        gradient: "pathwise"; "stl", sticking the landing (Roeder, Wu & Duvenaud 2017), unbiased for one particle
            only; "dreg", doubly reparameterised (Tucker et al. 2019), unbiased for any number; "vimco", for guides
            with sites that cannot be reparameterised (Mnih & Rezende 2016).

    Raises:
        UnknownName: a gradient estimator that is not known.
        ContractError: alpha of 1 or more, latents outside the data plate, or sites that the estimator cannot take.
    """

    def __init__(self, alpha: float = 0.5, gradient: str = "pathwise"):
        find("gradient estimator", gradient, ESTIMATORS)
        if alpha >= 1:
            raise ContractError(f"alpha must be below 1, not {alpha}; at 1 the bound is the ELBO: use trace_elbo")
        self.alpha, self.gradient = alpha, gradient

    def bound(self, pair: nn.Module, batch: Batch, particles: int, beta: Beta) -> Estimate:
        enumerated = structure_of(pair, select_fields(pair, batch)).enumerated["guide"]
        if enumerated:
            raise ContractError(
                f"the guide enumerates {min(enumerated)!r}, whose q is not in the importance weights and would get no "
                "gradient; use trace_enum_elbo"
            )
        return ESTIMATORS[self.gradient](pair, batch, particles, beta, self.alpha)


class IWAE(Renyi):
    """Minus the importance-weighted bound L_K, K = `particles` (Burda, Grosse & Salakhutdinov 2016).

    Args:
        gradient: as for `Renyi`.
    """

    def __init__(self, gradient: str = "pathwise"):
        super().__init__(alpha=0.0, gradient=gradient)


def pathwise(
    pair: nn.Module, batch: Batch, particles: int, beta: Beta, alpha: float, frozen_guide: bool = False
) -> Estimate:
    """The bound itself, differentiated through the draws.

    Args:
        frozen_guide: stick the landing: hold the guide's parameters fixed inside log q. There is then no score term,
            but a bias for more particles than one.
    """
    draws = log_terms(pair, batch, particles, frozen_guide=frozen_guide, as_loss=True)
    require_reparameterised(draws, "gradient='vimco'")
    return bounds.renyi(_log_weight(draws, beta), alpha), draws


def doubly_reparameterised(pair: nn.Module, batch: Batch, particles: int, beta: Beta, alpha: float) -> Estimate:
    """The gradients of log w_k, weighted (Tucker et al. 2019, eq. 8; alpha: their appendix).

    v is w^(1-alpha), w = p(x|z) (p(z) / q(z|x))^beta, normalised over the particles. The model's gradients have the
    weight v, the guide's, which run along the path of z, v (1 - beta (1-alpha) (1-v)).
    """
    runs = counts(pair, batch, particles)
    guides = [run_guide(pair, batch, count, summing=True) for count in runs]
    with torch.no_grad():
        drawn = zip(runs, guides, strict=True)
        first = [_reduce(pair, batch, count, guide, values_of(guide)) for count, guide in drawn]
        log_weight = _log_weight(joined(LogTerms, first), beta)
        bound = bounds.renyi(log_weight, alpha)
        normalised = bounds.normalised_weights((1 - alpha) * log_weight)
        rescale = 1 - beta * (1 - alpha) * (1 - normalised)
    parts = []
    for count, guide, factor in zip(runs, guides, rescale.split(runs), strict=True):
        scaled = {name: _scale_gradient(value, factor) for name, value in values_of(guide).items()}
        frozen = run_guide_at(pair, batch, scaled, count, frozen=True, summing=True)
        parts.append(_reduce(pair, batch, count, frozen, values_of(frozen)))
    draws = joined(LogTerms, parts)
    require_reparameterised(draws, "gradient='vimco'")
    return bound + without_value((normalised * _log_weight(draws, beta)).sum(0)), draws


def vimco(pair: nn.Module, batch: Batch, particles: int, beta: Beta, alpha: float) -> Estimate:
    """Score-function gradients with the bound of the other particles as each one's baseline, its own weight replaced
    by their geometric mean (Mnih & Rezende 2016, eq. 9 and 10)."""
    if particles < 2:
        raise ContractError("gradient='vimco' needs at least 2 particles; its baseline is made of the others")
    draws = log_terms(pair, batch, particles, as_loss=True)
    log_weight = _log_weight(draws, beta)
    bound = bounds.renyi(log_weight, alpha)
    if draws.score is None:
        return bound, draws
    with torch.no_grad():
        others = (log_weight.sum(0) - log_weight) / (particles - 1)
        own = torch.eye(particles, dtype=torch.bool, device=log_weight.device).unsqueeze(-1)
        replaced = torch.where(own, others.unsqueeze(0), log_weight.unsqueeze(0))
        signal = bound - bounds.renyi(replaced.transpose(0, 1), alpha)
    return bound + without_value((draws.score * signal).sum(0)), draws


ESTIMATORS: dict[str, Callable[..., Estimate]] = {
    "pathwise": pathwise,
    "stl": partial(pathwise, frozen_guide=True),
    "dreg": doubly_reparameterised,
    "vimco": vimco,
}


def _log_weight(draws: LogTerms, beta: Beta) -> Weights:
    return draws.log_likelihood + beta * (draws.log_prior - draws.log_guide)


def _reduce(pair: nn.Module, batch: Batch, count: int, guide: Sites, values: Mapping[str, Tensor]) -> LogTerms:
    model = run_model(pair, batch, values, count, summing=True)
    return reduce_sites(model, guide, count, batch_size(select_fields(pair, batch)), as_loss=True)


def _scale_gradient(value: Tensor, factor: Weights) -> Tensor:
    """The same value [particles, batch, *event]; its gradient is multiplied by the factor of its particle and datum."""
    if not value.requires_grad:
        return value
    factor = factor.reshape(*factor.shape, *[1] * (value.dim() - factor.dim()))
    return value.detach() + factor * (value - value.detach())
