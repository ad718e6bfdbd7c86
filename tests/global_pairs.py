"""Pairs with latents that all data share, as Pyro's documentation writes them, and what is known of them exactly."""

import math

import pyro
import pyro.distributions as dist
import torch
from exact import gaussian_log_prob
from jaxtyping import Float
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn

PARALLEL = {"enumerate": "parallel"}


def parameter(*shape: int, seed: int = 0, size: float = 0.3) -> nn.Parameter:
    generator = torch.Generator().manual_seed(seed)
    return nn.Parameter(size * torch.randn(shape, dtype=torch.float64, generator=generator))


def full(value: float, *shape: int) -> Tensor:
    return torch.full(shape, value, dtype=torch.float64)


class Regression(nn.Module):
    """w ~ N(0, I), y ~ N(x w, 0.5^2); the guide is the posterior with its scales times `widen`."""

    noise = 0.5

    def __init__(self, x: Float[Tensor, "n d"], y: Float[Tensor, " n"], widen: float = 1.0):
        super().__init__()
        d = x.shape[1]
        self.precision = torch.eye(d).double() + x.T @ x / self.noise**2
        covariance = torch.linalg.inv(self.precision)
        self.loc = nn.Parameter(covariance @ x.T @ y / self.noise**2)
        self.tril = nn.Parameter(widen * torch.linalg.cholesky(covariance))

    def model(self, x: Tensor, y: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(full(0.0, x.shape[1]), 1.0).to_event(1))
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Normal(x @ w, self.noise), obs=y)

    def guide(self, x: Tensor, y: Tensor) -> None:
        pyro.sample("w", dist.MultivariateNormal(self.loc, scale_tril=self.tril))

    def log_evidence(self, x: Tensor, y: Tensor) -> Tensor:
        covariance = x @ x.T + self.noise**2 * torch.eye(len(x)).double()
        return gaussian_log_prob(y, torch.zeros_like(y), covariance)

    @torch.no_grad()
    def elbo(self, x: Tensor, y: Tensor) -> Tensor:
        """log p(y) - KL(q || posterior)."""
        posterior = torch.distributions.MultivariateNormal(self.loc, precision_matrix=self.precision)
        guide = torch.distributions.MultivariateNormal(self.loc, scale_tril=self.tril)
        return self.log_evidence(x, y) - torch.distributions.kl_divergence(guide, posterior)

    @torch.no_grad()
    def log_predictive(self, x: Tensor, y: Tensor) -> Float[Tensor, " n"]:
        """log of the mean of p(y|x, w) over the guide."""
        variance = (x @ self.tril).square().sum(1) + self.noise**2
        return torch.distributions.Normal(x @ self.loc, variance.sqrt()).log_prob(y)


def regression(n: int = 12, d: int = 3, widen: float = 1.0) -> tuple[Regression, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, d, dtype=torch.float64, generator=generator)
    y = x @ torch.linspace(-1.0, 1.0, d).double() + 0.5 * torch.randn(n, dtype=torch.float64, generator=generator)
    return Regression(x, y, widen), {"x": x, "y": y}


class Coins(nn.Module):
    """A rate ~ Beta(2, 3) for each kind of coin, in a plate of their own; the guide is the posterior."""

    kinds = 3

    def __init__(self, x: Tensor, kind: Tensor):
        super().__init__()
        one_hot = nn.functional.one_hot(kind, self.kinds).double()
        self.heads = nn.Parameter(2.0 + one_hot.T @ x)
        self.tails = nn.Parameter(3.0 + one_hot.T @ (1 - x))

    def model(self, x: Tensor, kind: Tensor) -> None:
        with pyro.plate("kinds", self.kinds):
            rate = pyro.sample("rate", dist.Beta(full(2.0), full(3.0)))
        with pyro.plate("throws", len(x)):
            pyro.sample("x", dist.Bernoulli(rate[kind]), obs=x)

    def guide(self, x: Tensor, kind: Tensor) -> None:
        with pyro.plate("kinds", self.kinds):
            pyro.sample("rate", dist.Beta(self.heads, self.tails))

    @torch.no_grad()
    def log_evidence(self) -> float:
        def log_beta(a: Tensor, b: Tensor) -> Tensor:
            return a.lgamma() + b.lgamma() - (a + b).lgamma()

        return (log_beta(self.heads, self.tails) - log_beta(full(2.0), full(3.0))).sum().item()

    @torch.no_grad()
    def log_predictive(self, x: Tensor, kind: Tensor) -> Tensor:
        share = (self.heads / (self.heads + self.tails))[kind]
        return torch.where(x == 1, share, 1 - share).log()


def coins(n: int = 40) -> tuple[Coins, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    kind = torch.arange(n) % Coins.kinds
    x = torch.bernoulli(torch.tensor([0.2, 0.5, 0.9]).double()[kind], generator=generator)
    return Coins(x, kind), {"x": x, "kind": kind}


SCHOOLS = {
    "y": torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]).double(),
    "sigma": torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]).double(),
    "index": torch.arange(8),
}


class EightSchools(nn.Module):
    """mu ~ N(0, 5^2), log tau ~ N(1, 0.5^2), an effect ~ N(mu, tau^2) of each school; the guide is mean field, with
    parameters of each school by its index."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor([4.4, 1.0] + [4.0] * 8).double())
        self.log_scale = nn.Parameter(torch.tensor([4.5, 0.55] + [4.0] * 8).double().log())

    def model(self, y: Tensor, sigma: Tensor, index: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(full(0.0), 5.0))
        tau = pyro.sample("tau", dist.LogNormal(full(1.0), 0.5))
        with pyro.plate("schools", len(y)):
            theta = pyro.sample("theta", dist.Normal(mu, tau))
            pyro.sample("y", dist.Normal(theta, sigma), obs=y)

    def guide(self, y: Tensor, sigma: Tensor, index: Tensor) -> None:
        scale = self.log_scale.exp()
        pyro.sample("mu", dist.Normal(self.loc[0], scale[0]))
        pyro.sample("tau", dist.LogNormal(self.loc[1], scale[1]))
        with pyro.plate("schools", len(y)):
            pyro.sample("theta", dist.Normal(self.loc[2 + index], scale[2 + index]))

    @staticmethod
    def log_evidence(y: Tensor, sigma: Tensor, index: Tensor, points: int = 400) -> float:
        """Exact in the effects and in mu, by the trapezoidal rule in log tau."""
        log_tau = torch.linspace(1 - 4.0, 1 + 4.0, points).double()
        terms = []
        for tau in log_tau.exp():
            covariance = torch.diag(sigma**2 + tau**2) + 25.0
            terms.append(gaussian_log_prob(y, torch.zeros_like(y), covariance))
        prior = torch.distributions.Normal(1.0, 0.5).log_prob(log_tau)
        return (torch.logsumexp(torch.stack(terms) + prior, 0) + math.log(8.0 / (points - 1))).item()


class GammaDEF(nn.Module):
    """The sparse gamma deep exponential family of Pyro's examples, with two layers: weights are global, in plates; the
    guide has parameters of each datum by its index."""

    top, bottom, size = 2, 3, 4

    def __init__(self, n: int = 7):
        super().__init__()
        self.w_top, self.w_bottom = parameter(2, self.top * self.bottom), parameter(2, self.bottom * self.size, seed=1)
        self.z_top, self.z_bottom = parameter(2, n, self.top, seed=2), parameter(2, n, self.bottom, seed=3)

    def data(self) -> dict[str, Tensor]:
        x = torch.poisson(full(1.5, 7, self.size), generator=torch.Generator().manual_seed(0))
        return {"x": x, "index": torch.arange(7)}

    def model(self, x: Tensor, index: Tensor) -> None:
        with pyro.plate("w_top_plate", self.top * self.bottom):
            w_top = pyro.sample("w_top", dist.Gamma(full(0.5), full(0.5)))
        with pyro.plate("w_bottom_plate", self.bottom * self.size):
            w_bottom = pyro.sample("w_bottom", dist.Gamma(full(0.5), full(0.5)))
        with pyro.plate("data", len(x)):
            z_top = pyro.sample("z_top", dist.Gamma(full(0.5), full(0.5)).expand([self.top]).to_event(1))
            mean = z_top @ w_top.reshape(self.top, self.bottom)
            z_bottom = pyro.sample("z_bottom", dist.Gamma(full(0.5), 0.5 / mean).to_event(1))
            mean = z_bottom @ w_bottom.reshape(self.bottom, self.size)
            pyro.sample("obs", dist.Poisson(mean).to_event(1), obs=x)

    def gamma(self, table: Tensor) -> dist.Gamma:
        concentration, mean = (1 + nn.functional.softplus(part) for part in table)
        return dist.Gamma(concentration, concentration / mean)

    def guide(self, x: Tensor, index: Tensor) -> None:
        with pyro.plate("w_top_plate", self.top * self.bottom):
            pyro.sample("w_top", self.gamma(self.w_top))
        with pyro.plate("w_bottom_plate", self.bottom * self.size):
            pyro.sample("w_bottom", self.gamma(self.w_bottom))
        with pyro.plate("data", len(x)):
            pyro.sample("z_top", self.gamma(self.z_top[:, index]).to_event(1))
            pyro.sample("z_bottom", self.gamma(self.z_bottom[:, index]).to_event(1))


class LDA(nn.Module):
    """Pyro's example with its topics as latents; a word's topic is enumerated, that of a document is drawn."""

    topics, words = 3, 5

    def __init__(self):
        super().__init__()
        self.weights, self.table = parameter(2, self.topics), parameter(self.topics, self.words, seed=1)
        self.predictor = nn.Linear(self.words, self.topics).double()

    def data(self) -> dict[str, Tensor]:
        return {"x": torch.randint(self.words, (7, 4), generator=torch.Generator().manual_seed(0))}

    def model(self, x: Tensor) -> None:
        with pyro.plate("topics", self.topics):
            weights = pyro.sample("topic_weights", dist.Gamma(full(2.0), full(1.0)))
            words = pyro.sample("topic_words", dist.Dirichlet(full(1.0, self.words)))
        with pyro.plate("documents", len(x)):
            doc_topics = pyro.sample("doc_topics", dist.Dirichlet(weights))
            with pyro.plate("words", x.shape[1]):
                topic = pyro.sample("word_topics", dist.Categorical(doc_topics), infer=PARALLEL)
                pyro.sample("doc_words", dist.Categorical(words[topic]), obs=x.T)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("topics", self.topics):
            pyro.sample("topic_weights", dist.Gamma(*(2.0 * self.weights.exp())))
            pyro.sample("topic_words", dist.Dirichlet(3.0 * self.table.exp()))
        with pyro.plate("documents", len(x)):
            counts = nn.functional.one_hot(x, self.words).sum(1).double()
            pyro.sample("doc_topics", self.posterior(self.predictor(counts)))

    def posterior(self, h: Tensor) -> dist.Distribution:
        return dist.Dirichlet(nn.functional.softplus(h) + 1.0)


class PointLDA(LDA):
    """As it is there."""

    def posterior(self, h: Tensor) -> dist.Distribution:
        return dist.Delta(h.softmax(-1), event_dim=1)


class Mixture(nn.Module):
    """gmm.ipynb, but the guide draws the weights, the scale and the means of the components; assignments are summed."""

    def __init__(self):
        super().__init__()
        self.locs, self.weights, self.log_scale = parameter(2, 2, size=1.0), parameter(2), parameter(2, size=0.1)

    def data(self) -> dict[str, Tensor]:
        return {"x": torch.tensor([-2.0, -1.8, 0.1, 2.1, 1.7]).double()}

    def model(self, x: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(full(0.5, 2)))
        scale = pyro.sample("scale", dist.LogNormal(full(0.0), 2.0))
        with pyro.plate("components", 2):
            locs = pyro.sample("locs", dist.Normal(full(0.0), 10.0))
        with pyro.plate("data", len(x)):
            assignment = pyro.sample("assignment", dist.Categorical(weights), infer=PARALLEL)
            pyro.sample("obs", dist.Normal(locs[assignment], scale), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.sample("weights", dist.Dirichlet(2.0 + self.weights.exp()))
        pyro.sample("scale", dist.LogNormal(self.log_scale[0], self.log_scale[1].exp()))
        with pyro.plate("components", 2):
            pyro.sample("locs", dist.Normal(torch.tensor([-2.0, 2.0]).double() + self.locs[0], self.locs[1].exp()))


class Linear(PyroModule):
    """The Bayesian regression of Pyro's tutorial: the weights of a net are PyroSamples, the noise is a latent too."""

    def __init__(self, d: int):
        super().__init__()
        self.linear = PyroModule[nn.Linear](d, 1)
        self.linear.weight = PyroSample(dist.Normal(full(0.0), 1.0).expand([1, d]).to_event(2))
        self.linear.bias = PyroSample(dist.Normal(full(0.0), 10.0).expand([1]).to_event(1))

    def forward(self, x: Tensor, y: Tensor) -> None:
        sigma = pyro.sample("sigma", dist.Uniform(full(0.0), 10.0))
        mean = self.linear(x).squeeze(-1)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("obs", dist.Normal(mean, sigma), obs=y)


class Decoder(nn.Module):
    """A Bayesian decoder: its weights are latents, and each datum has a latent of its own. x [n, 4]."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.encoder = nn.Linear(4, 4).double()
            self.loc, self.log_scale = parameter(4, 2, size=1.0), nn.Parameter(full(-1.0, 4, 2))
        for weights in self.encoder.parameters():  # the guide stays near the prior, so that weights behave
            weights.data.mul_(0.2)

    def data(self, n: int = 9) -> dict[str, Tensor]:
        return {"x": torch.randn(n, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))}

    def model(self, x: Tensor) -> None:
        weight = pyro.sample("weight", dist.Normal(full(0.0, 4, 2), 1.0).to_event(2))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(full(0.0, 2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight.mT, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        self.weights()
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    def weights(self) -> None:
        pyro.sample("weight", dist.Normal(self.loc, self.log_scale.exp()).to_event(2))

    @staticmethod
    def log_marginal(x: Tensor, weight: Float[Tensor, "4 2"]) -> Float[Tensor, " n"]:
        """log p(x|weight), exact in z."""
        covariance = weight @ weight.T + torch.eye(4).double()
        return torch.distributions.MultivariateNormal(full(0.0, 4), covariance).log_prob(x)


class PointDecoder(Decoder):
    def weights(self) -> None:
        pyro.sample("weight", dist.Delta(self.loc, event_dim=2))


class Squeezed(nn.Module):
    """A rate of all data on (0, 1) as a function of an auxiliary normal, with the log_density that is asked for."""

    def __init__(self, density: float = 1.0):
        super().__init__()
        self.loc, self.density = nn.Parameter(full(0.3)), density

    def model(self, x: Tensor) -> None:
        rate = pyro.sample("rate", dist.Beta(full(2.0), full(2.0)))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(rate), obs=x)

    def guide(self, x: Tensor) -> None:
        u = pyro.sample("u", dist.Normal(self.loc, 0.5), infer={"is_auxiliary": True})
        rate = u.sigmoid()
        log_density = -(rate.log() + (1 - rate).log())
        pyro.sample("rate", dist.Delta(rate, log_density=self.density * log_density))
