"""p(z): modules whose `forward()` is the prior of one latent vector, event shape [latent_dim]; and p(z|c), whose
`forward` takes features of a context c [batch, in_features]."""

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_vae.parts.posteriors import DiagonalNormal


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
    """

    def __init__(self, latent_dim: int, components: int = 10):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(components))
        self.loc = nn.Parameter(torch.randn(components, latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(components, latent_dim))

    def forward(self) -> dist.Distribution:
        normals = dist.Normal(self.loc, self.log_scale.exp()).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), normals)


class ContextFree(StandardNormal):
    """N(0, I), whatever the context."""

    def forward(self, features: Float[Tensor, "batch features"]) -> dist.Distribution:
        return super().forward()


PRIORS = {"standard_normal": StandardNormal, "mixture": MixtureOfNormals}
CONTEXT_PRIORS = {"conditional": DiagonalNormal, "standard_normal": ContextFree}
