"""Minus the ELBO with the total correlation of the latents weighted by itself (Chen, Li, Grosse & Duvenaud 2018)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_vae.errors import ContractError
from pyro_vae.objectives.aggregate import OfAggregate
from pyro_vae.objectives.objective import Beta
from pyro_vae.pair.sites import Site, elements, is_point_mass


class BetaTCVAE(OfAggregate):
    """Minus the ELBO, of whose KL `beta` weighs the total correlation alone (Chen et al. 2018, eq. 4).

    KL(q(z|x) || p(z)), averaged over the data, is I(x; z) + TC + sum_d KL(q(z_d) || p(z_d)), where q(z) is the
    aggregate posterior and TC = KL(q(z) || prod_d q(z_d)); so at beta = 1 this is minus the ELBO. TC is
    estimated from the batch.

    Raises:
        ContractError: a pair that has not one latent vector of each datum, whose elements are independent given x.
    """

    def kl_weight(self, beta: Beta) -> Beta:
        return 1.0

    def penalty(self, guide: Site, model: Site, beta: Beta, data_size: int) -> Float[Tensor, ""]:
        return (beta - 1) * total_correlation(guide, data_size).mean()


def total_correlation(site: Site, data_size: int) -> Float[Tensor, "particles batch"]:
    """log q(z) - sum_d log q(z_d) at the draws of a guide's site, in nats.

    q(z), the mean of q(z|x) over `data_size` data of which the batch is a sample, is estimated by its value at each
    draw's own datum and the mean over the others of the batch, each at its share: exact where the batch is all the data
    (Chen et al. 2018, appendix C.2, with all others alike).
    """
    particles, batch = site.value.shape[:2]
    log_q = _crossed(site).reshape(batch, particles, batch, -1)
    log_share = _log_shares(batch, data_size, log_q).reshape(batch, 1, batch)
    together = (log_q.sum(-1) + log_share).logsumexp(2)
    each = (log_q + log_share.unsqueeze(-1)).logsumexp(2).sum(-1)
    return (together - each).T


def _crossed(site: Site) -> Tensor:
    """log q(z_d|x_j) of every element d of every draw z under every datum j, the data of the draws first."""
    q = elements(site.fn)
    if q.event_shape or is_point_mass(site.fn):
        raise ContractError(
            f"the elements of {site.name!r} must be independent given x and have a density, as those of a diagonal "
            "normal, so that each has a density of its own; use trace_elbo, or info_vae"
        )
    data = site.raw.dim() - len(site.event_shape) + site.layout.data
    return q.log_prob(site.raw.movedim(data, 0).unsqueeze(data + 1))


def _log_shares(batch: int, data_size: int, like: Tensor) -> Float[Tensor, "batch batch"]:
    """The log of what a datum of the batch stands for in the mean over all data: each for itself, and for the others as
    one of those that were drawn."""
    if batch == 1:
        return like.new_zeros(1, 1)
    others = math.log((data_size - 1) / (batch - 1)) if data_size > 1 else 0.0
    own = torch.eye(batch, dtype=torch.bool, device=like.device)
    return torch.where(own, 0.0, like.new_full((), others)) - math.log(data_size)
