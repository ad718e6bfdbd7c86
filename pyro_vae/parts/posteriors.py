"""q(z|x): modules from encoder features [..., in_features] to a distribution with event shape [latent_dim]."""

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn


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
