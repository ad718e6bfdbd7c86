"""The nets of published VAEs, by name. Every one is a `VAE` with the paper's sizes as defaults."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from pyro_vae.models.vae import VAE
from pyro_vae.parts.build import LikelihoodPart
from pyro_vae.parts.nets import glorot


def blog(
    data_shape: Sequence[int],
    latent_dim: int = 2,
    hidden: Sequence[int] = (256, 64, 32),
    activation: str = "elu",
    likelihood: LikelihoodPart = "bernoulli",
    data_mean: Float[Tensor, "..."] | None = None,
    log_library: Sequence[float] | None = None,
    **part_options: Any,
) -> VAE:
    """784-256-64-32-2z with ELU: the small two-dimensional VAE of many tutorials."""
    return VAE(
        data_shape,
        latent_dim,
        hidden,
        activation,
        likelihood,
        data_mean=data_mean,
        log_library=log_library,
        **part_options,
    )


def burda(
    data_shape: Sequence[int],
    latent_dim: int = 50,
    hidden: Sequence[int] = (200, 200),
    activation: str = "tanh",
    likelihood: LikelihoodPart = "bernoulli",
    data_mean: Float[Tensor, "..."] | None = None,
    log_library: Sequence[float] | None = None,
    **part_options: Any,
) -> VAE:
    """tanh 200-200, z = 50, Glorot uniform weights (Burda, Grosse & Salakhutdinov 2016, one stochastic layer)."""
    vae = VAE(data_shape, latent_dim, hidden, activation, likelihood, log_library=log_library, **part_options)
    glorot(vae)
    if data_mean is not None:
        vae.decoder.set_output(vae.likelihood.start(data_mean))
    return vae


def kingma(
    data_shape: Sequence[int],
    latent_dim: int = 20,
    hidden: Sequence[int] = (500,),
    activation: str = "tanh",
    likelihood: LikelihoodPart = "bernoulli",
    data_mean: Float[Tensor, "..."] | None = None,
    log_library: Sequence[float] | None = None,
    **part_options: Any,
) -> VAE:
    """tanh 500 (Kingma & Welling 2014, MNIST; their Frey faces use hidden=(200,) and a Gaussian with its own sigma)."""
    return VAE(
        data_shape,
        latent_dim,
        hidden,
        activation,
        likelihood,
        data_mean=data_mean,
        log_library=log_library,
        **part_options,
    )
