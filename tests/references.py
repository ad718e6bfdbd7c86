"""Closed forms that the tests hold the library against, and pairs as users write them: plain modules, own names.

Pairs whose parameters have one entry for each datum (`Scalar`, `Clusters`, `ScalarMixture`) are many independent copies
of one small model: a single backward pass gives as many draws of a gradient estimator as there are data.
"""

import math
from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro import poutine
from torch import Tensor, nn

import pyro_vae as pv

# --- Gaussian marginals -------------------------------------------------------------------------------------


class PPCA(NamedTuple):
    """p(x) = N(mean, W W' + variance I) (Tipping & Bishop 1999)."""

    mean: Float[Tensor, " d"]
    loadings: Float[Tensor, "d q"]
    variance: Float[Tensor, ""]

    @property
    def inner(self) -> Float[Tensor, "q q"]:
        """M = W'W + variance I; the posterior of z has covariance variance M^-1."""
        return self.loadings.T @ self.loadings + self.variance * torch.eye(self.loadings.shape[1]).to(self.loadings)

    @property
    def covariance(self) -> Float[Tensor, "d d"]:
        return self.loadings @ self.loadings.T + self.variance * torch.eye(len(self.mean)).to(self.loadings)

    def rotated(self, angle: float) -> "PPCA":
        """The same p(x), W turned in the plane of the first two latents."""
        c, s = math.cos(angle), math.sin(angle)
        turn = torch.eye(self.loadings.shape[1]).to(self.loadings)
        turn[:2, :2] = turn.new_tensor([[c, -s], [s, c]])
        return self._replace(loadings=self.loadings @ turn)


def ppca_optimum(x: Float[Tensor, "n d"], q: int) -> PPCA:
    """The maximum-likelihood solution with the axes of PCA: W = U_q (L_q - variance I)^(1/2)."""
    mean = x.mean(0)
    values, vectors = torch.linalg.eigh((x - mean).T @ (x - mean) / len(x))
    values, vectors = values.flip(0), vectors.flip(1)
    variance = values[q:].mean()
    return PPCA(mean, vectors[:, :q] * (values[:q] - variance).sqrt(), variance)


def ppca_mean_log_likelihood(x: Float[Tensor, "n d"], q: int) -> float:
    """-1/2 [sum_{i<=q} ln l_i + (d-q) ln variance + d + d ln 2 pi], nats per datum at the optimum."""
    d = x.shape[1]
    values = torch.linalg.eigvalsh(torch.cov(x.T, correction=0)).flip(0)
    return -0.5 * (values[:q].log().sum() + (d - q) * values[q:].mean().log() + d + d * math.log(2 * math.pi)).item()


def gaussian_log_density(
    x: Float[Tensor, "n d"], mean: Float[Tensor, "..."], covariance: Float[Tensor, "d d"]
) -> Float[Tensor, " n"]:
    """log N(x; mean, covariance), nats per datum."""
    centred = (x - mean).unsqueeze(-1)
    mahalanobis = (centred.mT @ torch.linalg.solve(covariance, centred)).squeeze((-1, -2))
    return -0.5 * (mahalanobis + torch.logdet(covariance) + x.shape[1] * math.log(2 * math.pi))


def linear_vae(solution: PPCA) -> nn.Module:
    """A linear `pv.VAE` in float64 with these weights, whose diagonal guide is the best there is for them."""
    d, q = solution.loadings.shape
    vae = pv.VAE((d,), latent_dim=q, hidden=(), likelihood="gaussian_learned").double()
    gain = torch.linalg.solve(solution.inner, solution.loadings.T)
    with torch.no_grad():
        vae.decoder.out.weight.copy_(solution.loadings)
        vae.decoder.out.bias.copy_(solution.mean)
        vae.likelihood.log_sigma.copy_(0.5 * solution.variance.log())
        vae.posterior.heads.weight.copy_(torch.cat([gain, torch.zeros_like(gain)]))
        log_scale = 0.5 * (solution.variance / solution.inner.diagonal()).log()
        vae.posterior.heads.bias.copy_(torch.cat([-gain @ solution.mean, log_scale]))
    return vae


def factor_analysis_vae(
    mean: Float[Tensor, " d"], loadings: Float[Tensor, "d q"], variances: Float[Tensor, " d"]
) -> nn.Module:
    """A linear `pv.VAE` in float64 with p(x) = N(mean, W W' + diag(variances)) and its exact posterior as the guide."""
    d, q = loadings.shape
    options = {"likelihood": "gaussian_per_dimension", "posterior": "full_covariance"}
    vae = pv.VAE((d,), latent_dim=q, hidden=(), **options).double()
    precision = torch.eye(q).to(loadings) + loadings.T @ (loadings / variances.unsqueeze(1))
    gain = torch.linalg.solve(precision, loadings.T / variances)
    tril = torch.linalg.cholesky(torch.linalg.inv(precision))
    rows, columns = torch.tril_indices(q, q, offset=-1)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.zero_()
        vae.decoder.out.weight.copy_(loadings)
        vae.decoder.out.bias.copy_(mean)
        vae.likelihood.log_sigma.copy_(0.5 * variances.log())
        vae.posterior.loc.weight.copy_(gain)
        vae.posterior.loc.bias.copy_(-gain @ mean)
        vae.posterior.log_diagonal.bias.copy_(tril.diagonal().log())
        vae.posterior.off_diagonal.bias.copy_(tril[rows, columns])
    return vae


def data_with_axes(n: int, d: int, seed: int = 0) -> Float[Tensor, "n d"]:
    """Gaussian data in float64 with unequal variances along turned axes."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.randn(d, d, dtype=torch.float64, generator=generator) / math.sqrt(d)
    scales = torch.linspace(3.0, 0.3, d, dtype=torch.float64)
    return torch.randn(n, d, dtype=torch.float64, generator=generator) * scales @ axes + 1.5


# --- the expectation of bounds ------------------------------------------------------------------------------


def expected_bound(
    log_mass: Float[Tensor, " nodes"], log_weight: Float[Tensor, " nodes"], particles: int, alpha: float = 0.0
) -> Float[Tensor, ""]:
    """E[1/(1-alpha) log 1/K sum_k w_k^(1-alpha)] over K independent draws from a guide on nodes, differentiable.

    With S the sum, E[log S] = integral of exp(-e^u) - phi(e^u)^K over all u, where phi(t) = E[exp(-t w^(1-alpha))].

    Args:
        log_mass: log-probability of each node under the guide (a density's, with the log of the spacing).
        log_weight: log w there.
    """
    tilted = (1 - alpha) * log_weight
    centre = torch.logsumexp(log_mass.detach() + tilted.detach(), 0)
    u, step = torch.arange(-40.0, 80.0, 0.1, dtype=torch.float64), 0.1
    phi = (log_mass.exp() * torch.exp(-torch.exp(u.unsqueeze(1) + tilted - centre))).sum(1)
    log_sum = centre + step * (torch.exp(-torch.exp(u)) - phi**particles).sum()
    return (log_sum - math.log(particles)) / (1 - alpha)


def expected_bound_by_enumeration(
    log_mass: Float[Tensor, " nodes"], log_weight: Float[Tensor, " nodes"], particles: int
) -> Float[Tensor, ""]:
    """E[log 1/K sum_k w_k] as a sum over every K-tuple of nodes."""
    tuples = torch.tensor(list(product(range(len(log_mass)), repeat=particles)))
    bounds = torch.logsumexp(log_weight[tuples], 1) - math.log(particles)
    return (log_mass[tuples].sum(1).exp() * bounds).sum()


GRID = torch.arange(-12.0, 12.0, 0.02, dtype=torch.float64)


def normal_log_density(value: Tensor, loc: Tensor | float, scale: Tensor | float) -> Tensor:
    """log N(value; loc, scale^2), written out."""
    scale = torch.as_tensor(scale, dtype=value.dtype)
    return -0.5 * ((value - loc) / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)


def z_scores(draws: Float[Tensor, "n ..."], expected: Tensor | float) -> Tensor:
    """How many standard errors the mean of independent draws is from its expectation."""
    return (draws.mean(0) - expected) / (draws.std(0) / math.sqrt(len(draws)))


# --- copies of small models ---------------------------------------------------------------------------------


class NonReparameterisedNormal(dist.Normal):
    """A normal whose draws carry no gradient."""

    has_rsample = False


class Copies(nn.Module):
    """Base class: parameters with one entry for each of `copies` data, all with the same values at first."""

    values: dict[str, list[float] | float]

    def __init__(self, copies: int):
        super().__init__()
        for name, value in self.values.items():
            value = torch.tensor(value, dtype=torch.float64)
            self.register_parameter(name, nn.Parameter(value.expand(copies, *value.shape).clone()))

    @classmethod
    def single(cls) -> dict[str, Tensor]:
        """The parameters of one copy, to differentiate a closed form by."""
        return {n: torch.tensor(v, dtype=torch.float64, requires_grad=True) for n, v in cls.values.items()}


def entry(table: Float[Tensor, "copies categories"], index: Tensor) -> Tensor:
    """table[i, index[..., i]] for every copy i."""
    return table.expand(*index.shape, table.shape[-1]).gather(-1, index.unsqueeze(-1)).squeeze(-1)


class Scalar(Copies):
    """code ~ N(0, 1), reading ~ N(weight code + bias, noise^2); q(code) = N(loc, scale^2)."""

    values = {"weight": 1.3, "bias": -0.4, "log_noise": -0.3, "loc": 0.5, "log_scale": -0.2}

    def __init__(self, copies: int, normal: type[dist.Distribution] = dist.Normal):
        super().__init__(copies)
        self.normal = normal

    def model(self, reading: Tensor) -> None:
        with pyro.plate("readings", len(reading), dim=-1):
            code = pyro.sample("code", dist.Normal(reading.new_zeros(()), reading.new_ones(())))
            noise = self.log_noise.exp()
            pyro.sample("observed reading", dist.Normal(self.weight * code + self.bias, noise), obs=reading)

    def guide(self, reading: Tensor) -> None:
        with pyro.plate("readings", len(reading), dim=-1):
            pyro.sample("code", self.normal(self.loc, self.log_scale.exp()))

    @staticmethod
    def log_joint(p: dict[str, Tensor], z: Tensor, x: float) -> tuple[Tensor, Tensor, Tensor]:
        """log p(x|z), log p(z) and log q(z) of one copy."""
        return (
            normal_log_density(torch.tensor(x, dtype=z.dtype), p["weight"] * z + p["bias"], p["log_noise"].exp()),
            normal_log_density(z, 0.0, 1.0),
            normal_log_density(z, p["loc"], p["log_scale"].exp()),
        )

    @classmethod
    def nodes(cls, p: dict[str, Tensor], x: float, beta: float = 1.0) -> tuple[Tensor, Tensor]:
        """Log mass of the guide and log w on a grid that stands for all z."""
        likelihood, prior, guide = cls.log_joint(p, GRID, x)
        return guide + math.log(GRID[1] - GRID[0]), likelihood + beta * (prior - guide)


class Clusters(Copies):
    """cluster ~ Categorical, reading ~ N(centres[cluster], 1), all of it enumerable; q(cluster) = Categorical.

    `beta` weighs the latent site inside the pair, as for `TwoLayers`.
    """

    beta = 1.0
    values = {"logits": [0.1, -0.5, 0.4], "centres": [-1.0, 0.3, 2.0], "guide_logits": [0.5, 0.2, -0.6]}

    def model(self, reading: Tensor) -> None:
        with pyro.plate("readings", len(reading), dim=-1):
            with poutine.scale(scale=self.beta):
                cluster = pyro.sample("cluster", dist.Categorical(logits=self.logits))
            centre = entry(self.centres, cluster)
            pyro.sample("observed reading", dist.Normal(centre, torch.ones_like(centre)), obs=reading)

    def guide(self, reading: Tensor) -> None:
        with pyro.plate("readings", len(reading), dim=-1), poutine.scale(scale=self.beta):
            pyro.sample("cluster", dist.Categorical(logits=self.guide_logits))

    @classmethod
    def nodes(cls, p: dict[str, Tensor], x: float, beta: float = 1.0) -> tuple[Tensor, Tensor]:
        """Log mass of the guide and log w of each cluster."""
        likelihood = normal_log_density(torch.tensor(x, dtype=torch.float64), p["centres"], 1.0)
        prior, guide = torch.log_softmax(p["logits"], -1), torch.log_softmax(p["guide_logits"], -1)
        return guide, likelihood + beta * (prior - guide)


class ScalarMixture(Copies):
    """kind ~ Categorical, code ~ N(centres[kind], 1), reading ~ N(code, 1/4); q(kind) q(code | kind).

    One site has a pathwise gradient and one has none, and the former depends on the latter.
    """

    values = {
        "logits": [0.3, -0.3],
        "centres": [-1.0, 1.5],
        "guide_logits": [-0.2, 0.5],
        "locs": [-0.2, 1.0],
        "log_scale": -0.6,
    }

    def model(self, reading: Tensor) -> None:
        with pyro.plate("readings", len(reading), dim=-1):
            kind = pyro.sample("kind", dist.Categorical(logits=self.logits))
            centre = entry(self.centres, kind)
            code = pyro.sample("code", dist.Normal(centre, torch.ones_like(centre)))
            pyro.sample("observed reading", dist.Normal(code, torch.full_like(centre, 0.5)), obs=reading)

    def guide(self, reading: Tensor) -> None:
        with pyro.plate("readings", len(reading), dim=-1):
            kind = pyro.sample("kind", dist.Categorical(logits=self.guide_logits))
            pyro.sample("code", dist.Normal(entry(self.locs, kind), self.log_scale.exp()))

    @classmethod
    def nodes(cls, p: dict[str, Tensor], x: float, beta: float = 1.0) -> tuple[Tensor, Tensor]:
        """Log mass of the guide and log w on kinds x a grid of codes."""
        z = GRID.unsqueeze(1)
        likelihood = normal_log_density(torch.tensor(x, dtype=torch.float64), z, 0.5)
        prior = torch.log_softmax(p["logits"], -1) + normal_log_density(z, p["centres"], 1.0)
        guide = torch.log_softmax(p["guide_logits"], -1) + normal_log_density(z, p["locs"], p["log_scale"].exp())
        mass = guide + math.log(GRID[1] - GRID[0])
        return mass.flatten(), (likelihood + beta * (prior - guide)).flatten()


def gradient_draws(
    objective: Callable[..., Tensor], pair: Copies, reading: float, particles: int = 1, beta: float = 1.0
) -> dict[str, Float[Tensor, "copies ..."]]:
    """One draw for each copy of an objective's gradient estimator, by parameter."""
    named = dict(pair.named_parameters())
    copies = len(next(iter(named.values())))
    batch = {"reading": torch.full((copies,), reading, dtype=torch.float64)}
    gradients = torch.autograd.grad(objective(pair, batch, particles, beta), list(named.values()))
    return {name: copies * gradient for name, gradient in zip(named, gradients, strict=True)}


def exact_gradients(
    kind: type[Copies], reading: float, particles: int = 1, alpha: float = 0.0, beta: float = 1.0
) -> dict[str, Tensor]:
    """The gradient of minus the expected bound of one copy; alpha = 1 is the ELBO."""
    parameters = kind.single()
    log_mass, log_weight = kind.nodes(parameters, reading, beta)
    if alpha == 1.0:
        bound = (log_mass.exp() * log_weight).sum()
    else:
        bound = expected_bound(log_mass, log_weight, particles, alpha)
    gradients = torch.autograd.grad(-bound, list(parameters.values()))
    return dict(zip(parameters, gradients, strict=True))


# --- pairs with several sites or fields ---------------------------------------------------------------------


class TwoLayers(nn.Module):
    """upper ~ N(0, I), lower ~ N(V upper, 0.8^2), picture ~ N(W lower, 0.5^2), all in float64.

    Args:
        bottom_up: the guide draws `lower` first and `upper` from it (as a two-layer IWAE does), or the other way round.
        beta: weight of both latent sites, in model and guide alike, for a reference that knows no beta of its own.
    """

    def __init__(self, bottom_up: bool = True, beta: float = 1.0, seed: int = 0):
        super().__init__()
        self.bottom_up, self.beta = bottom_up, beta
        generator = torch.Generator().manual_seed(seed)
        shapes = {"v": (3, 2), "w": (4, 3), "lower_gain": (3, 4), "upper_gain": (2, 3), "top_gain": (2, 4)}
        for name, shape in {**shapes, "down_gain": (3, 2), "log_scales": (2,)}.items():
            value = 0.5 * torch.randn(shape, dtype=torch.float64, generator=generator)
            self.register_parameter(name, nn.Parameter(value))

    def model(self, picture: Tensor) -> None:
        with pyro.plate("pictures", len(picture), dim=-1):
            with poutine.scale(scale=self.beta):
                upper = pyro.sample("upper", dist.Normal(picture.new_zeros(2), 1.0).to_event(1))
                lower = pyro.sample("lower", dist.Normal(upper @ self.v.T, 0.8).to_event(1))
            pyro.sample("seen", dist.Normal(lower @ self.w.T, 0.5).to_event(1), obs=picture)

    def guide(self, picture: Tensor) -> None:
        lower_scale, upper_scale = self.log_scales.exp()
        with pyro.plate("pictures", len(picture), dim=-1), poutine.scale(scale=self.beta):
            loc = picture @ self.lower_gain.T
            if self.bottom_up:
                lower = pyro.sample("lower", dist.Normal(loc, lower_scale).to_event(1))
                pyro.sample("upper", dist.Normal(lower @ self.upper_gain.T, upper_scale).to_event(1))
            else:
                upper = pyro.sample("upper", dist.Normal(picture @ self.top_gain.T, upper_scale).to_event(1))
                pyro.sample("lower", dist.Normal(loc + upper @ self.down_gain.T, lower_scale).to_event(1))

    def match(self, widen: float = 1.2) -> "TwoLayers":
        """Set the guide's means to the exact conditional ones, its scales to no less than theirs in any direction, so
        that importance weights are bounded."""
        v, w, one = self.v.detach() / 0.8, self.w.detach() / 0.5, torch.eye(3).to(self.v)
        upper_given_lower = torch.linalg.inv(one[:2, :2] + v.T @ v)
        lower_given_both = torch.linalg.inv(one / 0.8**2 + w.T @ w)
        lower_given_picture = torch.linalg.inv(torch.linalg.inv(0.8**2 * (v @ v.T + one)) + w.T @ w)
        through_both = torch.linalg.inv(self.covariance().detach())
        lower, upper = lower_given_picture, upper_given_lower
        gains = {"lower_gain": lower @ w.T / 0.5, "upper_gain": upper @ v.T / 0.8}
        if not self.bottom_up:
            carried = 0.8 * v.T @ (0.5 * w).T
            lower, upper = lower_given_both, one[:2, :2] - carried @ through_both @ carried.T
            gains = {"lower_gain": lower @ w.T / 0.5, "down_gain": lower @ v / 0.8, "top_gain": carried @ through_both}
        widest = torch.stack([torch.linalg.eigvalsh(block)[-1].sqrt() for block in (lower, upper)])
        for name, value in {**gains, "log_scales": (widen * widest).log()}.items():
            getattr(self, name).data.copy_(value)
        return self

    def covariance(self) -> Float[Tensor, "4 4"]:
        """Of the marginal p(picture), whose mean is 0."""
        middle = self.v @ self.v.T + 0.8**2 * torch.eye(3).to(self.v)
        return self.w @ middle @ self.w.T + 0.5**2 * torch.eye(4).to(self.w)


class Labelled(nn.Module):
    """kind ~ Categorical, code ~ N(centre of the kind, I), counts ~ Poisson; the guide draws both from the counts.

    Args:
        beta: as for `TwoLayers`.
        baseline: Pyro's options for the baseline of the discrete site.
    """

    def __init__(self, beta: float = 1.0, baseline: dict | None = None):
        super().__init__()
        self.beta, self.infer = beta, {"baseline": baseline} if baseline else {}
        self.logits = nn.Parameter(torch.tensor([0.2, -0.1, 0.4]))
        self.centres = nn.Parameter(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.5]]))
        self.decoder, self.classifier, self.encoder = nn.Linear(2, 5), nn.Linear(5, 3), nn.Linear(5 + 3, 4)
        self.double()

    def model(self, counts: Tensor) -> None:
        with pyro.plate("rows", len(counts), dim=-1):
            with poutine.scale(scale=self.beta):
                kind = pyro.sample("kind", dist.Categorical(logits=self.logits))
                code = pyro.sample("code", dist.Normal(self.centres[kind], 1.0).to_event(1))
            pyro.sample("seen", dist.Poisson(nn.functional.softplus(self.decoder(code))).to_event(1), obs=counts)

    def guide(self, counts: Tensor) -> None:
        with pyro.plate("rows", len(counts), dim=-1), poutine.scale(scale=self.beta):
            kind = pyro.sample("kind", dist.Categorical(logits=self.classifier(counts)), infer=self.infer)
            one_hot = nn.functional.one_hot(kind, 3).to(counts)
            rows = counts.expand(*one_hot.shape[:-1], counts.shape[-1])
            loc, log_scale = self.encoder(torch.cat([rows, one_hot], -1)).chunk(2, -1)
            pyro.sample("code", dist.Normal(loc, log_scale.exp()).to_event(1))


class SharedNoise(nn.Module):
    """log_noise ~ N(0, 1) once for all data; code ~ N(0, 1), reading ~ N(code, noise^2)."""

    def __init__(self):
        super().__init__()
        self.noise_loc, self.noise_scale, self.gain, self.scale = (
            nn.Parameter(torch.tensor(value, dtype=torch.float64)) for value in (-0.3, 0.4, 0.6, 0.7)
        )

    def model(self, reading: Tensor) -> None:
        log_noise = pyro.sample("log_noise", dist.Normal(reading.new_zeros(()), 1.0))
        with pyro.plate("readings", len(reading), dim=-1):
            code = pyro.sample("code", dist.Normal(reading.new_zeros(()), 1.0))
            pyro.sample("seen", dist.Normal(code, log_noise.exp()), obs=reading)

    def guide(self, reading: Tensor) -> None:
        pyro.sample("log_noise", dist.Normal(self.noise_loc, self.noise_scale))
        with pyro.plate("readings", len(reading), dim=-1):
            pyro.sample("code", dist.Normal(self.gain * reading, self.scale))


class Conditional(nn.Module):
    """z ~ N(C context, I), target ~ N(W z + D context, 0.6^2); the guide sees both fields."""

    def __init__(self, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        for name, shape in {"c": (2, 3), "w": (4, 2), "d": (4, 3), "gain": (2, 7), "log_scale": (2,)}.items():
            value = 0.5 * torch.randn(shape, dtype=torch.float64, generator=generator)
            self.register_parameter(name, nn.Parameter(value))

    def model(self, target: Tensor, context: Tensor) -> None:
        with pyro.plate("rows", len(target), dim=-1):
            z = pyro.sample("z", dist.Normal(context @ self.c.T, 1.0).to_event(1))
            loc = z @ self.w.T + context @ self.d.T
            pyro.sample("target", dist.Normal(loc, 0.6).to_event(1), obs=target)

    def guide(self, target: Tensor, context: Tensor) -> None:
        with pyro.plate("rows", len(target), dim=-1):
            loc = torch.cat([target, context], -1) @ self.gain.T
            pyro.sample("z", dist.Normal(loc, self.log_scale.exp()).to_event(1))

    def match(self, widen: float = 1.2) -> "Conditional":
        """As for `TwoLayers`."""
        w = self.w.detach() / 0.6
        posterior = torch.linalg.inv(torch.eye(2).to(w) + w.T @ w)
        by_target = posterior @ w.T / 0.6
        by_context = posterior @ self.c.detach() - by_target @ self.d.detach()
        self.gain.data.copy_(torch.cat([by_target, by_context], 1))
        self.log_scale.data.fill_(math.log(widen * torch.linalg.eigvalsh(posterior)[-1].sqrt()))
        return self

    def log_marginal(self, target: Float[Tensor, "n 4"], context: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        """log p(target | context)."""
        covariance = self.w @ self.w.T + 0.6**2 * torch.eye(4).to(self.w)
        return gaussian_log_density(target, context @ (self.w @ self.c + self.d).T, covariance)
