"""Pairs whose log p(x) has a closed form, with guides that are right, or wrong on purpose."""

import math

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn


class Gaussians(nn.Module):
    """z from an equal mixture of normals N(place, I), x ~ N(A z, noise^2 I): log p(x) and p(z|x) are known.

    Args:
        modes: how many normals, `apart` from the origin; one stands at the origin.
        known: how many of the posterior's modes the guide draws from.
        scale: how much wider than the posterior the guide is.
        shift: how many of the posterior's standard deviations it is beside it, in each dimension.
        diagonal: it is the diagonal normal that is nearest to the posterior.
        seen: how many numbers x has.
    """

    def __init__(
        self,
        dim: int,
        modes: int = 1,
        known: int = 1,
        apart: float = 4.0,
        noise: float = 0.5,
        scale: float = 1.0,
        shift: float = 0.0,
        diagonal: bool = False,
        seen: int | None = None,
    ):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        places = torch.randn(modes, dim, generator=generator)
        places = places / places.norm(dim=1, keepdim=True) * apart * (modes > 1)
        places[1::2] = -places[: modes // 2 * 2 : 2]
        self.places = nn.Parameter(places)
        self.loadings = nn.Parameter(torch.randn(seen or dim, dim, generator=generator) / math.sqrt(dim))
        self.noise, self.known, self.scale, self.shift, self.diagonal = noise, known, scale, shift, diagonal

    def prior(self) -> dist.Distribution:
        normals = dist.Normal(self.places, 1.0).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=self.places.new_zeros(len(self.places))), normals)

    def posterior(self, x: Float[Tensor, "batch seen"]) -> tuple[Tensor, Tensor, Tensor]:
        """Means, the covariance and log p(x, mode) of each mode."""
        gain = self.loadings.T / self.noise**2
        covariance = torch.linalg.inv(torch.eye(len(gain)) + gain @ self.loadings)
        means = (self.places + (x @ gain.T)[:, None]) @ covariance
        spread = self.loadings @ self.loadings.T + self.noise**2 * torch.eye(len(self.loadings))
        of_mode = torch.distributions.MultivariateNormal(self.places @ self.loadings.T, spread)
        return means, covariance, of_mode.log_prob(x[:, None]) - math.log(len(self.places))

    def log_marginal(self, x: Float[Tensor, "batch seen"]) -> Float[Tensor, " batch"]:
        """log p(x) in nats."""
        return self.posterior(x)[2].logsumexp(1)

    def model(self, x: Float[Tensor, "batch seen"]) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", dist.Normal(z @ self.loadings.T, self.noise).to_event(1), obs=x)

    def guide(self, x: Float[Tensor, "batch seen"]) -> None:
        means, covariance, log_joint = (part[:, : self.known] if part.dim() > 1 else part for part in self.posterior(x))
        covariance = self.posterior(x)[1]
        deviation = covariance.diagonal().sqrt()
        with pyro.plate("data", len(x)):
            if self.diagonal:
                nearest = torch.linalg.inv(covariance).diagonal().rsqrt()
                pyro.sample("z", dist.Normal(means[:, 0], nearest).to_event(1))
            elif self.known == 1:
                tril = self.scale * torch.linalg.cholesky(covariance)
                pyro.sample("z", dist.MultivariateNormal(means[:, 0] + self.shift * deviation, scale_tril=tril))
            else:
                normals = dist.MultivariateNormal(means, covariance)
                pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(logits=log_joint), normals))

    @torch.no_grad()
    def draw(self, count: int, seed: int = 1) -> Float[Tensor, "count seen"]:
        """Data of its own."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self.prior().sample((count,)) @ self.loadings.T + self.noise * torch.randn(count, len(self.loadings))


UNIMODAL = {
    "the posterior": {},
    "a tenth of its scale": {"scale": 0.1},
    "ten times its scale": {"scale": 10.0},
    "a scale of 1e-20": {"scale": 1e-20},
    "its mean shifted by 3 deviations": {"shift": 3.0},
    "diagonal, nearest to it": {"diagonal": True},
}
LOST = {
    f"{known} of {modes} modes, {how}": {"modes": modes, "known": known, **options}
    for modes, known in ((2, 1), (4, 1), (4, 3))
    for how, options in {
        "near": {"noise": 3.0},
        "sharp": {"noise": 0.3, "apart": 6.0, "seen": 1},
        "far": {"noise": 6.0, "apart": 12.0, "seen": 2},
    }.items()
}
"""What the guide is, by what the pair is made of."""
