"""Pairs whose data lack values, written as Pyro users write them, and what is known of them in closed form."""

import math

import pyro
import pyro.distributions as dist
import torch
from exact import gaussian_log_prob
from jaxtyping import Bool, Float
from pyro.infer import config_enumerate
from torch import Tensor, nn

D, Q = 5, 2


def data(n: int = 60, share: float = 0.4, seed: int = 0) -> Float[Tensor, "n d"]:
    """Standard normal numbers, a share of which is missing; the first datum lacks nothing, the second one element."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, D, dtype=torch.float64, generator=generator)
    gone = torch.rand(n, D, generator=generator) < share
    gone[:, 0] &= gone.sum(1) < D
    gone[0], gone[1] = False, torch.arange(D) == 2
    return x.masked_fill(gone, torch.nan)


class Linear(nn.Module):
    """z ~ N(0, I), x ~ N(W z + mean, noise^2); the guide is wide enough that importance weights are bounded."""

    missing: tuple[str, ...] = ("x",)
    scale = 0.7

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        for name, shape in {"w": (D, Q), "mean": (D,), "gain": (Q, D)}.items():
            value = 0.6 * torch.randn(shape, dtype=torch.float64, generator=generator)
            self.register_parameter(name, nn.Parameter(value))
        self.gain.data *= 0.3

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(Q), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.loc(z), self.scale).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal((x - self.mean) @ self.gain.T, 1.2).to_event(1))

    def loc(self, z: Tensor) -> Tensor:
        return z @ self.w.T + self.mean

    def log_likelihood(self, z: Float[Tensor, "particles n q"], x: Float[Tensor, "n d"]) -> Float[Tensor, "p n"]:
        """log p(x_observed | z), written out."""
        residual = (x.nan_to_num(0.0) - self.loc(z)) / self.scale
        terms = -0.5 * residual**2 - math.log(self.scale * math.sqrt(2 * math.pi))
        return (terms * ~x.isnan()).sum(-1)

    @property
    def covariance(self) -> Float[Tensor, "d d"]:
        return (self.w @ self.w.T + self.scale**2 * torch.eye(D).to(self.w)).detach()

    def log_marginal(self, x: Float[Tensor, "n d"], keep: Bool[Tensor, "n d"] | None = None) -> Float[Tensor, " n"]:
        """log p of the elements that are kept and not missing."""
        keep = ~x.isnan() if keep is None else keep & ~x.isnan()
        mean, covariance = self.mean.detach(), self.covariance
        return torch.stack(
            [gaussian_log_prob(row[k], mean[k], covariance[k][:, k]) for row, k in zip(x, keep, strict=True)]
        )

    def conditional(self, row: Float[Tensor, " d"]) -> tuple[Float[Tensor, " m"], Float[Tensor, "m m"]]:
        """Mean and covariance of the missing elements of a datum given the others."""
        gone = row.isnan()
        mean, covariance = self.mean.detach(), self.covariance
        across = covariance[gone][:, ~gone] @ torch.linalg.inv(covariance[~gone][:, ~gone])
        return (
            mean[gone] + across @ (row[~gone] - mean[~gone]),
            covariance[gone][:, gone] - across @ covariance[~gone][:, gone],
        )


class Undeclared(Linear):
    """A pair that does not say that values may be missing."""

    missing = ()


class Plates(Linear):
    """Elements in a plate of their own, to the right of the data's."""

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1, Q), 1.0).to_event(1))
            with pyro.plate("pixels", D, dim=-1):
                pyro.sample("x", dist.Normal(self.loc(z).squeeze(-2), self.scale), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2):
            loc = ((x - self.mean) @ self.gain.T).unsqueeze(-2)
            pyro.sample("z", dist.Normal(loc, 1.2).to_event(1))


class Loop(Linear):
    """A site for each element."""

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc = self.loc(pyro.sample("z", dist.Normal(x.new_zeros(Q), 1.0).to_event(1)))
            for i in pyro.plate("pixels", D):
                pyro.sample(f"x_{i}", dist.Normal(loc[..., i], self.scale), obs=x[..., i])


class Mask(Linear):
    """A mask of the user's, inside `.to_event`, that leaves out the last element; `poutine.mask` leaves out a datum."""

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc = self.loc(pyro.sample("z", dist.Normal(x.new_zeros(Q), 1.0).to_event(1)))
            kept = torch.arange(D) < D - 1
            with pyro.poutine.mask(mask=torch.arange(len(x)) != 3):
                pyro.sample("x", dist.Normal(loc, self.scale).mask(kept).to_event(1), obs=x)

    def log_likelihood(self, z: Tensor, x: Tensor) -> Tensor:
        x = x.clone()
        x[:, -1] = x[3] = torch.nan
        return super().log_likelihood(z, x)


class Joint(Linear):
    """A multivariate normal: its elements depend on each other."""

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(Q), 1.0).to_event(1))
            tril = self.scale * torch.eye(D).to(x)
            pyro.sample("x", dist.MultivariateNormal(self.loc(z), scale_tril=tril), obs=x)


class Mixture(Linear):
    """One of three kinds, which the model enumerates, and a latent; no closed form but a sum of normals."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.2, -0.4, 0.1], dtype=torch.float64))
        self.shifts = nn.Parameter(torch.tensor([-1.0, 0.0, 1.5], dtype=torch.float64))

    @config_enumerate
    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(Q), 1.0).to_event(1))
            kind = pyro.sample("kind", dist.Categorical(logits=self.logits))
            loc = self.loc(z) + self.shifts[kind].unsqueeze(-1)
            pyro.sample("x", dist.Normal(loc, self.scale).to_event(1), obs=x)

    def log_marginal(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        parts = []
        for log_probability, shift in zip(self.logits.log_softmax(0).detach(), self.shifts.detach(), strict=True):
            parts.append(super().log_marginal(x - shift, keep) + log_probability)
        return torch.logsumexp(torch.stack(parts), 0)


class Asking(Linear):
    """An encoder that asks for the mask, and sees zeros where it is False."""

    def model(self, x: Tensor, x_observed: Tensor) -> None:
        super().model(x)

    def guide(self, x: Tensor, x_observed: Tensor) -> None:
        assert x_observed.dtype == torch.bool and x_observed.shape[-2:] == x.shape[-2:]
        with pyro.plate("data", len(x), dim=-1):
            seen = torch.where(x_observed, x - self.mean, 0.0)
            pyro.sample("z", dist.Normal(seen @ self.gain.T, 1.2).to_event(1))
