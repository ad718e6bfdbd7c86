"""Nets of published VAEs, and systems of lectures, by name: each is a `VAE` with parts and sizes of its own."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from pyro_vae.models.vae import VAE
from pyro_vae.parts.build import LikelihoodPart, NetPart, PosteriorPart, PriorPart, check_scales, start_at
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
    start_at(data_mean, vae.decoder, vae.likelihood)
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


def autoencoder(
    data_shape: Sequence[int],
    latent_dim: int = 2,
    hidden: Sequence[int] = (512,),
    activation: str = "relu",
    likelihood: LikelihoodPart = "gaussian",
    prior: PriorPart = "flat",
    net: NetPart = "mlp",
    noise: float = 0.0,
    data_mean: Float[Tensor, "..."] | None = None,
    **part_options: Any,
) -> VAE:
    """The autoencoder: a point mass at f(x) for a code, on which there is no prior.

    Its loss is |x - r(f(x))|^2 / 2 + d/2 log(2 pi) for d elements of x; `likelihood_sigma` other than 1 divides the
    first by its square, and adds d log sigma. With prior="standard_normal" and `beta` its code is regularised.
    """
    sizes = (data_shape, latent_dim, hidden, activation, likelihood)
    return VAE(*sizes, prior, "delta", net, noise, data_mean, **part_options)


def linear_autoencoder(
    data_shape: Sequence[int],
    latent_dim: int = 2,
    likelihood: LikelihoodPart = "gaussian",
    prior: PriorPart = "flat",
    data_mean: Float[Tensor, "..."] | None = None,
    **part_options: Any,
) -> VAE:
    """The autoencoder without hidden layers, whose decoder spans the plane of PCA (Baldi & Hornik 1989)."""
    return autoencoder(data_shape, latent_dim, (), "relu", likelihood, prior, data_mean=data_mean, **part_options)


def sparse_autoencoder(
    data_shape: Sequence[int],
    latent_dim: int = 128,
    hidden: Sequence[int] = (),
    activation: str = "relu",
    likelihood: LikelihoodPart = "gaussian",
    l1: float = 0.1,
    data_mean: Float[Tensor, "..."] | None = None,
    **part_options: Any,
) -> VAE:
    """The sparse autoencoder: rectified codes under a Laplace prior, decoder columns of unit norm.

    Its loss is the autoencoder's plus l1 sum |z|, and log(2 / l1) for each of the code's elements.

    Args:
        l1: the weight of the penalty on the code, which is one over the prior's scale.
    """
    check_scales(l1=l1)
    code = {"posterior": "delta", "posterior_activation": "relu", "prior": "laplace", "prior_scale": 1 / l1}
    sizes = (data_shape, latent_dim, hidden, activation, likelihood)
    return VAE(*sizes, net="dictionary", data_mean=data_mean, **code, **part_options)


def denoising_autoencoder(
    data_shape: Sequence[int],
    latent_dim: int = 32,
    hidden: Sequence[int] = (512,),
    activation: str = "relu",
    likelihood: LikelihoodPart = "gaussian",
    net: NetPart = "mlp",
    noise: float = 0.5,
    data_mean: Float[Tensor, "..."] | None = None,
    **part_options: Any,
) -> VAE:
    """The denoising autoencoder: it finds x from x with noise, and so points back to the data (Vincent et al. 2008).

    Args:
        noise: its standard deviation, in units of what the encoder is given.
    """
    sizes = (data_shape, latent_dim, hidden, activation, likelihood)
    return autoencoder(*sizes, net=net, noise=noise, data_mean=data_mean, **part_options)


def probabilistic_autoencoder(
    data_shape: Sequence[int],
    latent_dim: int = 2,
    hidden: Sequence[int] = (512,),
    activation: str = "relu",
    likelihood: LikelihoodPart = "gaussian",
    prior: PriorPart = "flat",
    posterior: PosteriorPart = "fixed_normal",
    net: NetPart = "mlp",
    data_mean: Float[Tensor, "..."] | None = None,
    **part_options: Any,
) -> VAE:
    """The autoencoder whose code is N(f(x), sigma^2 I): an autoencoder with noise on its code.

    Its loss is the autoencoder's at such a code, less the entropy k/2 log(2 pi e sigma^2) of k elements. With
    prior="standard_normal" it is the regularised one of constant variance, which has a density.
    """
    sizes = (data_shape, latent_dim, hidden, activation, likelihood)
    return VAE(*sizes, prior, posterior, net, data_mean=data_mean, **part_options)


def linear_vae(
    data_shape: Sequence[int],
    latent_dim: int = 2,
    likelihood: LikelihoodPart = "gaussian_learned",
    prior: PriorPart = "standard_normal",
    posterior: PosteriorPart = "diagonal_normal",
    data_mean: Float[Tensor, "..."] | None = None,
    **part_options: Any,
) -> VAE:
    """The VAE without hidden layers: probabilistic PCA (Tipping & Bishop 1999).

    With likelihood="gaussian_per_dimension" it is factor analysis, as far as a diagonal posterior goes.
    """
    sizes = (data_shape, latent_dim, (), "relu", likelihood)
    return VAE(*sizes, prior, posterior, data_mean=data_mean, **part_options)
