"""Objectives on several particles at once: the importance-weighted bound and Renyi's, with their gradient estimators.

Each estimator takes the log terms of a pair and gives a surrogate [batch] whose gradient estimates that of
L_alpha = 1/(1-alpha) log 1/K sum_k w_k^(1-alpha). Weights are normalised for each datum by itself, so the bound stays
right under minibatches.
"""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_vae.errors import ContractError, UnknownName
from pyro_vae.objectives.elbo import further_loss, require_reparameterised, without_value
from pyro_vae.pair import bounds
from pyro_vae.pair.particles import batch_size, run_guide, run_guide_at, run_model
from pyro_vae.pair.sites import Sites, values_of
from pyro_vae.pair.terms import LogTerms, counts, joined, log_terms, reduce_sites

Batch = Mapping[str, Tensor]
Weights = Float[Tensor, "particles batch"]


class Renyi:
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

    traceable = True

    def __init__(self, alpha: float = 0.5, gradient: str = "pathwise"):
        if gradient not in ESTIMATORS:
            raise UnknownName("gradient estimator", gradient, ESTIMATORS)
        if alpha >= 1:
            raise ContractError(f"alpha must be below 1, not {alpha}; at 1 the bound is the ELBO: use trace_elbo")
        self.alpha, self.gradient = alpha, gradient

    def __call__(
        self,
        pair: nn.Module,
        batch: Batch,
        particles: int = 1,
        beta: float | Tensor = 1.0,
        data_size: int | None = None,
    ) -> Float[Tensor, ""]:
        bound, draws = ESTIMATORS[self.gradient](pair, batch, particles, beta, self.alpha)
        return -bound.mean() + further_loss(draws, beta, data_size)


class IWAE(Renyi):
    """Minus the importance-weighted bound L_K, K = `particles` (Burda, Grosse & Salakhutdinov 2016).

    Args:
        gradient: as for `Renyi`.
    """

    def __init__(self, gradient: str = "pathwise"):
        super().__init__(alpha=0.0, gradient=gradient)


Estimate = tuple[Float[Tensor, " batch"], LogTerms]
"""The bound with its surrogate gradient, and the terms that it came from."""


def pathwise(pair: nn.Module, batch: Batch, particles: int, beta: float | Tensor, alpha: float) -> Estimate:
    """The bound itself, differentiated through the draws."""
    draws = log_terms(pair, batch, particles, as_loss=True)
    require_reparameterised(draws, "gradient='vimco'")
    return bounds.renyi(_log_weight(draws, beta), alpha), draws


def sticking_the_landing(pair: nn.Module, batch: Batch, particles: int, beta: float | Tensor, alpha: float) -> Estimate:
    """The bound with the guide's parameters held fixed inside log q: no score term, but a bias for K > 1."""
    draws = log_terms(pair, batch, particles, frozen_guide=True, as_loss=True)
    require_reparameterised(draws, "gradient='vimco'")
    return bounds.renyi(_log_weight(draws, beta), alpha), draws


def doubly_reparameterised(
    pair: nn.Module, batch: Batch, particles: int, beta: float | Tensor, alpha: float
) -> Estimate:
    """With v the normalised w^(1-alpha): gradient v for the model, v (1 - (1-alpha)(1-v)) along the path of z for the
    guide (Tucker et al. 2019, eq. 8; alpha: their appendix); with w = p(x|z) (p/q)^beta the bracket subtracts beta
    times as much."""
    runs = counts(pair, batch, particles)
    guides = [run_guide(pair, batch, count) for count in runs]
    with torch.no_grad():
        first = [
            _reduce(pair, batch, count, guide, values_of(guide)) for count, guide in zip(runs, guides, strict=True)
        ]
        log_weight = _log_weight(joined(LogTerms, first), beta)
        bound = bounds.renyi(log_weight, alpha)
        normalised = bounds.normalised_weights((1 - alpha) * log_weight)
        rescale = 1 - beta * (1 - alpha) * (1 - normalised)
    parts = []
    for count, guide, factor in zip(runs, guides, rescale.split(runs), strict=True):
        scaled = {name: _scale_gradient(value, factor) for name, value in values_of(guide).items()}
        frozen = run_guide_at(pair, batch, scaled, count, frozen=True)
        parts.append(_reduce(pair, batch, count, frozen, values_of(frozen)))
    draws = joined(LogTerms, parts)
    require_reparameterised(draws, "gradient='vimco'")
    return bound + without_value((normalised * _log_weight(draws, beta)).sum(0)), draws


def vimco(pair: nn.Module, batch: Batch, particles: int, beta: float | Tensor, alpha: float) -> Estimate:
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
        baseline = bounds.renyi(replaced.transpose(0, 1), alpha)
        signal = bound - baseline
    return bound + without_value((draws.score * signal).sum(0)), draws


ESTIMATORS: dict[str, Callable[..., Estimate]] = {
    "pathwise": pathwise,
    "stl": sticking_the_landing,
    "dreg": doubly_reparameterised,
    "vimco": vimco,
}


def _log_weight(draws: LogTerms, beta: float | Tensor) -> Weights:
    return draws.log_likelihood + beta * (draws.log_prior - draws.log_guide)


def _reduce(pair: nn.Module, batch: Batch, count: int, guide: Sites, values: Mapping[str, Tensor]) -> LogTerms:
    model = run_model(pair, batch, values, count)
    return reduce_sites(model, guide, count, batch_size(pair, batch), as_loss=True)


def _scale_gradient(value: Tensor, factor: Weights) -> Tensor:
    """The same value [particles, batch, *event]; its gradient is multiplied by the factor of its particle and datum."""
    if not value.requires_grad:
        return value
    factor = factor.reshape(*factor.shape, *[1] * (value.dim() - factor.dim()))
    return value.detach() + factor * (value - value.detach())
