"""Minus the ELBO with a divergence of the aggregate posterior from the prior (Zhao, Song & Ermon 2019)."""

import math

import torch
import torch.distributions as td
from jaxtyping import Float
from torch import Tensor

from pyro_vae.errors import ContractError
from pyro_vae.objectives.aggregate import OfAggregate
from pyro_vae.objectives.objective import Beta
from pyro_vae.pair.sites import Site, unwrapped


class InfoVAE(OfAggregate):
    """-E_q[log p(x|z)] + (1 - alpha) KL + mmd MMD(q(z), p(z)), q(z) the aggregate posterior (Zhao et al. 2019, eq. 6).

    alpha = 1, the default, is the MMD-VAE, and with a point mass in the guide the Wasserstein autoencoder (Tolstikhin
    et al. 2018): no datum's posterior is drawn to the prior, only all of them together. `beta` weighs the KL besides.

    Args:
        alpha: how much of the information about x the KL must not take from z; 0 leaves the KL whole.
        mmd: the weight of the squared maximum mean discrepancy; alpha + lambda - 1 of the paper.

    Raises:
        ContractError: a negative weight of the KL or the MMD, a pair that has not one latent vector of each datum, or a
            prior that cannot be drawn from with a gradient.
    """

    def __init__(self, alpha: float = 1.0, mmd: float = 100.0):
        if not alpha <= 1:
            raise ContractError(f"alpha must be at most 1, not {alpha}, so that the KL has no negative weight")
        if not 0 <= mmd < math.inf:
            raise ContractError(f"mmd must not be negative, but is {mmd}")
        self.alpha, self.mmd = alpha, mmd

    def kl_weight(self, beta: Beta) -> Beta:
        return (1 - self.alpha) * beta

    def penalty(self, guide: Site, model: Site, beta: Beta, data_size: int) -> Float[Tensor, ""]:
        event_dims = len(model.event_shape)
        drawn = model.unfold(_draws(model), event_dims)
        return self.mmd * squared_mmd(guide.value.flatten(2), drawn.flatten(2)).mean()


def _draws(model: Site) -> Tensor:
    """A draw of the prior for each datum, with a gradient."""
    fn = unwrapped(model.fn)
    if isinstance(fn, td.MixtureSameFamily) or not getattr(model.fn, "has_rsample", False):
        raise ContractError(
            f"the prior of {model.name!r} ({type(fn).__name__}) gives no draws with a gradient, which the discrepancy "
            "needs; use prior='standard_normal', or trace_elbo"
        )
    return model.fn.rsample()


def squared_mmd(
    first: Float[Tensor, "particles n dim"], second: Float[Tensor, "particles n dim"]
) -> Float[Tensor, " particles"]:
    """The unbiased estimate of the squared MMD from n draws of each (Gretton et al. 2012, eq. 3), with the kernel
    exp(-|a - b|^2 / (2 dim)); 0 from a single draw."""
    n, dim = first.shape[-2:]

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        distance = (a.unsqueeze(-2) - b.unsqueeze(-3)).square().sum(-1)
        return torch.exp(-distance / (2 * dim)).sum((-1, -2))

    if n < 2:
        return 0.0 * first.sum((-1, -2))
    within = (kernel(first, first) + kernel(second, second) - 2 * n) / (n * (n - 1))
    return within - 2 * kernel(first, second) / n**2
