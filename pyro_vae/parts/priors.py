"""p(z): modules whose `forward()` is the prior of one latent vector, event shape [latent_dim]; and p(z|c), whose
`forward` takes features of a context c [batch, in_features]."""

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_vae.errors import ContractError
from pyro_vae.parts import flows
from pyro_vae.parts.build import check_scales, check_sizes
from pyro_vae.parts.distributions import FlatDistribution, mixture
from pyro_vae.parts.posteriors import Unscored

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
        return mixture(self.logits, normals)


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
        ContractError: fewer than one pseudo-input, or a posterior whose density is not known everywhere.
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
        if isinstance(posterior, Unscored):
            raise ContractError(
                f"the prior 'vamp' is a mixture of posteriors, and a {type(posterior).__name__} has no density at the "
                "draws of another datum; choose another posterior (diagonal_normal, iaf, neural_spline), or prior"
            )
        start = torch.zeros(tuple(data_shape)) if data_mean is None else likelihood.encoder_input(data_mean)
        self.inputs = nn.Parameter(start + SPREAD * torch.randn(components, *data_shape).to(start))
        self.register_buffer("logits", torch.zeros(components), persistent=False)
        self.encode = (encoder, posterior)

    def forward(self) -> dist.Distribution:
        encoder, posterior = self.encode
        return mixture(self.logits, posterior(encoder(self.inputs)))


class Laplace(nn.Module):
    """Laplace(0, scale) in each dimension, whose log-density is an L1 penalty: minus |z| / scale, less log(2 scale).

    Args:
        scale: one over the weight of the penalty.

    Raises:
        ContractError: it is not positive.
    """

    def __init__(self, latent_dim: int, scale: float = 1.0):
        super().__init__()
        check_scales(prior_scale=scale)
        self.register_buffer("zeros", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("scale", torch.tensor(float(scale)))

    def forward(self) -> dist.Distribution:
        return dist.Laplace(self.zeros, self.scale).to_event(1)


class Flat(nn.Module):
    """No preference: density 1 everywhere, so improper: the pair has a loss, and nothing can be drawn from it."""

    def __init__(self, latent_dim: int):
        super().__init__()
        self.latent_dim = latent_dim

    def forward(self) -> dist.Distribution:
        return FlatDistribution(constraints.real, (self.latent_dim,), ()).to_event(1)


class FlowPrior(StandardNormal):
    """A masked autoregressive flow to N(0, I) (Papamakarios, Pavlakou & Murray 2017).

    The density takes one pass, a draw one for each dimension.

    Args:
        layers: how many maps follow one another, each with the dimensions in the reverse order of the last.

    Raises:
        ContractError: fewer than one, or a latent of one dimension.
    """

    def __init__(self, latent_dim: int, layers: int = 4):
        super().__init__(latent_dim)
        check_sizes(prior_layers=[layers])
        if latent_dim < 2:
            raise ContractError("the prior 'flow' needs a latent_dim of at least 2; use prior='mixture'")
        self.maps = nn.ModuleList(flows.Affine(latent_dim, None, turn=i % 2 == 1) for i in range(layers))

    def forward(self) -> dist.Distribution:
        return flows.masked_autoregressive(super().forward(), self.maps)


class ContextFree(StandardNormal):
    """N(0, I), whatever the context."""

    def forward(self, features: Float[Tensor, "batch features"]) -> dist.Distribution:
        return super().forward()
