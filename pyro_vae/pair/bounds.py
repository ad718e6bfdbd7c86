"""Reductions of `LogTerms` to bounds on log p(x): one number for each datum, in nats."""

import math

from jaxtyping import Float
from torch import Tensor

from pyro_vae.pair.terms import ElboTerms, LogTerms

NEGLIGIBLE = 46.0
"""Weights below e^-46 (1e-20) of their datum's largest count as zero. They change no float64 sum by a rounding, and
their gradients would be denormal numbers, a hundred times slower to compute with."""


def elbo(terms: LogTerms | ElboTerms, beta: float | Tensor = 1.0) -> Float[Tensor, " batch"]:
    """E_q[log p(x|z)] - beta KL(q || p), the mean over particles (Kingma & Welling 2014, eq. 2; beta: Higgins et
    al. 2017)."""
    return (terms.log_likelihood - beta * terms.kl).mean(0)


def rate(terms: LogTerms | ElboTerms) -> Float[Tensor, " batch"]:
    """The KL part of minus the ELBO, the mean over particles (Alemi et al. 2018)."""
    return terms.kl.mean(0)


def distortion(terms: LogTerms | ElboTerms) -> Float[Tensor, " batch"]:
    """-E_q[log p(x|z)], the other part."""
    return -terms.log_likelihood.mean(0)


def importance_weighted(log_weight: Float[Tensor, "particles batch"]) -> Float[Tensor, " batch"]:
    """L_K = log 1/K sum_k w_k (Burda, Grosse & Salakhutdinov 2016, eq. 8), summed in float64."""
    particles = log_weight.shape[0]
    return (_without_negligible(log_weight).double().logsumexp(0) - math.log(particles)).to(log_weight.dtype)


def renyi(log_weight: Float[Tensor, "particles batch"], alpha: float) -> Float[Tensor, " batch"]:
    """1/(1-alpha) log 1/K sum_k w_k^(1-alpha) (Li & Turner 2016, eq. 4); alpha = 0 is L_K, alpha = 1 the ELBO."""
    if alpha == 1.0:
        return log_weight.mean(0)
    return importance_weighted((1.0 - alpha) * log_weight) / (1.0 - alpha)


def normalised_weights(log_weight: Float[Tensor, "particles batch"]) -> Float[Tensor, "particles batch"]:
    """w_k / sum_j w_j for each datum, the gradient of L_K in log w; negligible weights are exactly zero."""
    return _without_negligible(log_weight).softmax(0)


def _without_negligible(log_weight: Float[Tensor, "particles batch"]) -> Float[Tensor, "particles batch"]:
    """The same, but -inf where a weight is negligible. A datum whose largest weight is 0 or NaN stays as it is."""
    largest = log_weight.detach().amax(0)
    return log_weight.masked_fill(log_weight < largest - NEGLIGIBLE, -math.inf)
