"""The variational autoencoder (Kingma & Welling 2014; Rezende, Mohamed & Wierstra 2014)."""

from collections.abc import Sequence

import pyro
from jaxtyping import Float
from torch import Tensor, nn

from pyro_vae.pair.pair import Pair
from pyro_vae.parts import build
from pyro_vae.parts.likelihoods import LIKELIHOODS
from pyro_vae.parts.nets import DECODERS, ENCODERS
from pyro_vae.parts.posteriors import POSTERIORS
from pyro_vae.parts.priors import PRIORS


class VAE(Pair):
    """p(z) p(x|z) with q(z|x): encoder -> posterior -> plate; prior; decoder -> likelihood.

    Args:
        data_shape: shape of one datum x; the data set's own on the command line.
        latent_dim: size of z.
        hidden: widths of the encoder's hidden layers; the decoder mirrors them. Empty: a linear VAE.
        activation: any torch activation by name ("relu", "elu", "tanh", ...).
        likelihood: "bernoulli", "continuous_bernoulli", "gaussian" (fixed `sigma`), "gaussian_learned",
            "gaussian_per_dimension", "gaussian_net", "categorical", "discretized_logistic" (both for 8-bit data),
            "poisson"; or an object with the interface of `pyro_vae.parts.likelihoods.Likelihood`.
        prior: "standard_normal", "mixture"; or a module whose forward() is a distribution of z.
        posterior: "diagonal_normal", "full_covariance"; or a module from features to a distribution of z.
        net: "mlp", "conv", "residual"; `hidden` are channels in the latter two.
        sigma: standard deviation of a Gaussian likelihood (its start, where it is learned).
        components: number of components of a mixture prior.
        data_mean: mean of the training data [*data_shape]; where given, the decoder starts at it.
        log_library: mean and standard deviation of the log of the training data's library sizes, for a likelihood that
            asks for them.

    Raises:
        ContractError: a size that is not positive, or a net that does not fit the data's shape.
        UnknownName: a part that is not known; lists those that are.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dim: int = 2,
        hidden: Sequence[int] = (512,),
        activation: str = "relu",
        likelihood: str | nn.Module = "bernoulli",
        prior: str | nn.Module = "standard_normal",
        posterior: str | nn.Module = "diagonal_normal",
        net: str = "mlp",
        sigma: float = 1.0,
        components: int = 10,
        data_mean: Float[Tensor, "..."] | None = None,
        log_library: Sequence[float] | None = None,
    ):
        super().__init__()
        build.check_sizes(data_shape=data_shape, latent_dim=[latent_dim], hidden=hidden, components=[components])
        options = {
            "data_shape": data_shape,
            "latent_dim": latent_dim,
            "hidden": hidden,
            "activation": activation,
            "sigma": sigma,
            "components": components,
            "log_library": log_library,
        }
        self.likelihood = build.build("likelihood", likelihood, LIKELIHOODS, **options)
        self.optional_fields = self.likelihood.fields
        self.encoder = build.build("net", net, ENCODERS, **options)
        features = self.encoder.out_features
        self.posterior = build.build("posterior", posterior, POSTERIORS, **options, in_features=features)
        self.prior = build.build("prior", prior, PRIORS, **options)
        options |= {"hidden": hidden[::-1], "channels": self.likelihood.channels}
        self.decoder = build.build("net", net, DECODERS, **options)
        if data_mean is not None:
            self.decoder.set_output(self.likelihood.start(data_mean))

    def model(self, x: Float[Tensor, "batch ..."], **fields: Tensor) -> None:
        with self.plate(x.shape[0]):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.likelihood.conditioned(self.decoder(z), x, **fields), obs=x)

    def guide(self, x: Float[Tensor, "batch ..."], **fields: Tensor) -> None:
        with self.plate(x.shape[0]):
            pyro.sample("z", self.posterior(self.encoder(self.likelihood.encoder_input(x))))
            self.likelihood.guide(x)
