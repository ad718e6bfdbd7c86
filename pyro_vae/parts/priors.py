"""p(z): modules whose `forward()` is the prior of one latent vector, event shape [latent_dim]; and p(z|c), whose
`forward` takes features of a context c [batch, in_features]."""

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_vae.parts.build import check_sizes

SPREAD = 0.1
"""Standard deviation of the pseudo-inputs of a `VampPrior` at their start."""


class StandardNormal(nn.Module):
    """N(0, I)."""

    def __init__(self, latent_dim: int):
        super().__init__()
        self.register_buffer("zeros", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("ones", torch.ones(latent_dim), persistent=False)

    def forward(self) -> dist.Distribution:
        return dist.Normal(self.zeros, self.ones).to_event(1)


class MixtureOfNormals(nn.Module):
    """A mixture of diagonal normals with learned weights, means and scales.

    Its KL from a normal has no closed form, so every objective estimates that term from the draws.

    Args:
        components: how many.

    Raises:
        ContractError: fewer than one.
    """

    def __init__(self, latent_dim: int, components: int = 10):
        super().__init__()
        check_sizes(prior_components=[components])
        self.logits = nn.Parameter(torch.zeros(components))
        self.loc = nn.Parameter(torch.randn(components, latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(components, latent_dim))

    def forward(self) -> dist.Distribution:
        normals = dist.Normal(self.loc, self.log_scale.exp()).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), normals)


class VampPrior(nn.Module):
    """The mean of q(z|u_k) over learned pseudo-inputs u_k, which the encoder sees like data (Tomczak & Welling 2018).

    Encoder and posterior are the model's own; they are not registered here, so their parameters are held once.

    Args:
        encoder: from inputs [..., *data_shape] to features.
        posterior: from features to q(z|.).
        likelihood: says what the encoder is given of a datum like `data_mean`.
        components: number of pseudo-inputs.
        data_mean: mean of the training data [*data_shape], near which the pseudo-inputs start; without it, near 0.

    Raises:
        ContractError: fewer than one pseudo-input.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        encoder: nn.Module,
        posterior: nn.Module,
        likelihood: nn.Module,
        components: int = 50,
        data_mean: Float[Tensor, "..."] | None = None,
    ):
        super().__init__()
        check_sizes(prior_components=[components])
        start = torch.zeros(tuple(data_shape)) if data_mean is None else likelihood.encoder_input(data_mean)
        self.inputs = nn.Parameter(start + SPREAD * torch.randn(components, *data_shape).to(start))
        self.register_buffer("logits", torch.zeros(components), persistent=False)
        self.encode = (encoder, posterior)

    def forward(self) -> dist.Distribution:
        encoder, posterior = self.encode
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), posterior(encoder(self.inputs)))


class ContextFree(StandardNormal):
    """N(0, I), whatever the context."""

    def forward(self, features: Float[Tensor, "batch features"]) -> dist.Distribution:
        return super().forward()
