"""q(z|x): modules from encoder features [..., in_features] to a distribution with event shape [latent_dim]."""

from abc import ABC, abstractmethod

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_vae.parts import flows
from pyro_vae.parts.build import check_scales, check_sizes
from pyro_vae.parts.nets import activation_class


class Unscored(nn.Module):
    """A posterior that has no density, or knows it at its own draws only."""


class DiagonalNormal(nn.Module):
    """N(mean(h), diag(scale(h))^2)."""

    def __init__(self, in_features: int, latent_dim: int):
        super().__init__()
        self.heads = nn.Linear(in_features, 2 * latent_dim)

    def forward(self, features: Float[Tensor, "... features"]) -> dist.Distribution:
        loc, log_scale = self.heads(features).chunk(2, -1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)


class FullCovarianceNormal(nn.Module):
    """N(mean(h), L(h) L(h)') with a lower-triangular L."""

    def __init__(self, in_features: int, latent_dim: int):
        super().__init__()
        self.latent_dim = latent_dim
        rows, columns = torch.tril_indices(latent_dim, latent_dim, offset=-1)
        self.register_buffer("flat_index", rows * latent_dim + columns, persistent=False)
        self.loc = nn.Linear(in_features, latent_dim)
        self.log_diagonal = nn.Linear(in_features, latent_dim)
        self.off_diagonal = nn.Linear(in_features, len(rows))

    def forward(self, features: Float[Tensor, "... features"]) -> dist.Distribution:
        lead = features.shape[:-1]
        flat = features.new_zeros(*lead, self.latent_dim**2)
        flat = flat.index_copy(-1, self.flat_index, self.off_diagonal(features))
        tril = flat.unflatten(-1, (self.latent_dim, self.latent_dim))
        scale_tril = tril + torch.diag_embed(self.log_diagonal(features).exp())
        return dist.MultivariateNormal(self.loc(features), scale_tril=scale_tril)


class FixedNormal(nn.Module):
    """N(mean(h), sigma^2 I), one fixed standard deviation for every datum.

    Args:
        sigma: the standard deviation.

    Raises:
        ContractError: it is not positive.
    """

    def __init__(self, in_features: int, latent_dim: int, sigma: float = 0.1):
        super().__init__()
        check_scales(posterior_sigma=sigma)
        self.loc = nn.Linear(in_features, latent_dim)
        self.register_buffer("sigma", torch.tensor(float(sigma)))

    def forward(self, features: Float[Tensor, "... features"]) -> dist.Distribution:
        return dist.Normal(self.loc(features), self.sigma).to_event(1)


class Delta(Unscored):
    """A point mass at f(h), the code of a deterministic autoencoder: no density, so the pair's numbers are a loss.

    Args:
        activation: what the code goes through: any torch activation by name ("relu"); none where it is left out.

    Raises:
        UnknownName: no such activation.
    """

    def __init__(self, in_features: int, latent_dim: int, activation: str | None = None):
        super().__init__()
        self.code = nn.Sequential(nn.Linear(in_features, latent_dim))
        if activation is not None:
            self.code.append(activation_class(activation)())

    def forward(self, features: Float[Tensor, "... features"]) -> dist.Distribution:
        return dist.Delta(self.code(features)).to_event(1)


class Flow(nn.Module, ABC):
    """T_n(... T_1(z_0)) with z_0 ~ N(mean(h), diag(scale(h))^2), every map T_i conditioned on h (Rezende & Mohamed
    2015). Draws cost a pass through the maps.

    Args:
        layers: how many maps follow one another.

    Raises:
        ContractError: fewer than one.
    """

    def __init__(self, in_features: int, latent_dim: int, layers: int = 4):
        super().__init__()
        check_sizes(posterior_layers=[layers])
        self.start = DiagonalNormal(in_features, latent_dim)
        self.maps = nn.ModuleList(self.layer(in_features, latent_dim, turn=i % 2 == 1) for i in range(layers))

    @abstractmethod
    def layer(self, in_features: int, latent_dim: int, turn: bool) -> nn.Module:
        """A module whose `condition(features)` is a transform of z; `turn` asks for the dimensions in reverse order."""

    def forward(self, features: Float[Tensor, "... features"]) -> dist.Distribution:
        return flows.Flowed(self.start(features), [each.condition(features) for each in self.maps])


class Planar(Flow, Unscored):
    """Planar maps z + u tanh(w'z + b) (Rezende & Mohamed 2015).

    Their density is known at their own draws only.

    Args:
        layers: how many maps follow one another.
    """

    def layer(self, in_features: int, latent_dim: int, turn: bool) -> nn.Module:
        return flows.planar(in_features, latent_dim)


class Radial(Flow, Unscored):
    """Radial maps z + beta (z - c) / (alpha + |z - c|) (Rezende & Mohamed 2015).

    Their density is known at their own draws only.

    Args:
        layers: how many maps follow one another.
    """

    def layer(self, in_features: int, latent_dim: int, turn: bool) -> nn.Module:
        return flows.radial(in_features, latent_dim)


class IAF(Flow):
    """Inverse autoregressive flow: each dimension is shifted and scaled by those before it (Kingma et al. 2016).

    The density at other values than its own draws takes a pass for each dimension.

    Args:
        layers: how many maps follow one another, each with the dimensions in the reverse order of the last.
    """

    def layer(self, in_features: int, latent_dim: int, turn: bool) -> nn.Module:
        return flows.Affine(latent_dim, in_features, turn)


class NeuralSpline(Flow):
    """Autoregressive flow of monotone rational-quadratic splines on [-5, 5] (Durkan et al. 2019).

    The density at other values than its own draws takes a pass for each dimension.

    Args:
        layers: how many maps follow one another, each with the dimensions in the reverse order of the last.
    """

    def layer(self, in_features: int, latent_dim: int, turn: bool) -> nn.Module:
        return flows.Spline(latent_dim, in_features, turn)
