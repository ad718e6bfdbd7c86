"""The variational autoencoder (Kingma & Welling 2014; Rezende, Mohamed & Wierstra 2014)."""

import math
from collections.abc import Sequence
from typing import Any

import pyro
import torch
from jaxtyping import Float
from torch import Tensor

from pyro_vae.errors import ContractError, find
from pyro_vae.pair.pair import OBSERVED, Pair
from pyro_vae.parts import build
from pyro_vae.parts.build import LIKELIHOOD, NET, POSTERIOR, PRIOR
from pyro_vae.parts.nets import MaskedEncoder
from pyro_vae.parts.posteriors import Delta

MASK = "x" + OBSERVED
MISSING = {"refuse": (), "marginalise": ("x",)}
"""The fields in which values may be missing, by what `missing` says."""


class VAE(Pair):
    """p(z) p(x|z) with q(z|x): encoder -> posterior -> plate; prior; decoder -> likelihood.

    Args:
        data_shape: shape of one datum x; the data set's own on the command line.
        latent_dim: size of z.
        hidden: widths of the encoder's hidden layers; the decoder mirrors them. Empty: a linear VAE.
        activation: any torch activation by name ("relu", "elu", "tanh", ...).
        likelihood: a name, or an object with the interface of `pyro_vae.parts.likelihoods.Likelihood`.
        prior: a name, or a module whose forward() is a distribution of z.
        posterior: a name, or a module from features to a distribution of z.
        net: a name, or an object with the interface of `pyro_vae.parts.nets.Net`; `hidden` are the channels of a
            convolutional one.
        noise: standard deviation of what is added to the encoder's input in training, and in training only: the
            denoising autoencoder (Vincent et al. 2008). It needs a posterior that is a point mass.
        data_mean: mean of the training data [*data_shape]; where given, the decoder starts at it.
        log_library: mean and standard deviation of the log of the training data's library sizes, for a likelihood that
            asks for them.
        missing: "refuse", or "marginalise": values of x may be missing (NaN), and are left out of the likelihood; the
            encoder sees the means of the training data in their place.
        encoder_mask: the encoder sees zeros in their place, and beside x which elements are observed. Needs
            missing="marginalise".
        part_options: options of the chosen parts, named after their kind: `prior="mixture", prior_components=20`.

    Raises:
        ContractError: a size that is not positive, a net that does not fit the data's shape, noise without a point
            mass, an option of a part that was not chosen, or `encoder_mask` where nothing may be missing.
        UnknownName: a part or a treatment of missing values that is not known; lists those that are.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dim: int = 2,
        hidden: Sequence[int] = (512,),
        activation: str = "relu",
        likelihood: build.LikelihoodPart = "bernoulli",
        prior: build.PriorPart = "standard_normal",
        posterior: build.PosteriorPart = "diagonal_normal",
        net: build.NetPart = "mlp",
        noise: float = 0.0,
        data_mean: Float[Tensor, "..."] | None = None,
        log_library: Sequence[float] | None = None,
        missing: str = "refuse",
        encoder_mask: bool = False,
        **part_options: Any,
    ):
        super().__init__()
        build.check_sizes(data_shape=data_shape, latent_dim=[latent_dim], hidden=hidden)
        parts = build.Parts(part_options)
        of_data = {"data_shape": data_shape, "log_library": log_library}
        self.likelihood = parts.build("likelihood", LIKELIHOOD, likelihood, **of_data)
        self.missing = find("treatment of missing values", missing, MISSING)
        if encoder_mask and not self.missing:
            raise ContractError("encoder_mask shows what is missing, so it needs missing='marginalise'")
        self.optional_fields = (*self.likelihood.fields, *([MASK] if encoder_mask else []))
        nets = parts.build("net", NET, net, hidden=hidden, activation=activation)
        self.encoder = MaskedEncoder(nets, data_shape) if encoder_mask else nets.encoder(data_shape)
        sizes = {"in_features": self.encoder.out_features, "latent_dim": latent_dim}
        self.posterior = parts.build("posterior", POSTERIOR, posterior, **sizes)
        self.prior = parts.build(
            "prior",
            PRIOR,
            prior,
            latent_dim=latent_dim,
            data_shape=data_shape,
            likelihood=self.likelihood,
            encoder=self.encoder,
            posterior=self.posterior,
            data_mean=data_mean,
        )
        self.decoder = nets.decoder(latent_dim, data_shape, self.likelihood.channels)
        parts.check_all_taken()
        if not 0 <= noise < math.inf:
            raise ContractError(f"noise must not be negative, but is {noise}")
        if noise and not isinstance(self.posterior, Delta):
            raise ContractError(
                "noise is for a denoising autoencoder, whose code is a point mass; use posterior='delta'"
            )
        self.noise = noise
        build.start_at(data_mean, self.decoder, self.likelihood)

    def model(self, x: Float[Tensor, "batch ..."], **fields: Tensor) -> None:
        with self.plate(x.shape[0]):
            z = pyro.sample("z", self.prior())
            fields.pop(MASK, None)
            pyro.sample("x", self.likelihood.conditioned(self.decoder(z), x, **fields), obs=x)

    def guide(self, x: Float[Tensor, "batch ..."], **fields: Tensor) -> None:
        with self.plate(x.shape[0]):
            seen = [self._seen(x), *([fields[MASK]] if MASK in fields else [])]
            pyro.sample("z", self.posterior(self.encoder(*seen)))
            self.likelihood.guide(x)

    def _seen(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """What the encoder is given: x at about unit size, in training with noise."""
        seen = self.likelihood.encoder_input(x)
        return seen + self.noise * torch.randn_like(seen) if self.noise and self.training else seen
