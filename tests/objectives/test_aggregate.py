"""Objectives of the aggregate posterior against brute force and closed forms, and the penalty on a decoder."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae import plugins
from pyro_vae.errors import ContractError
from pyro_vae.models.presets import autoencoder
from pyro_vae.objectives.mmd import squared_mmd
from pyro_vae.objectives.total_correlation import total_correlation
from pyro_vae.pair.particles import run_guide

N = 12


class Turned(pv.Pair):
    """q(z|x) = N(x, s^2) in two dims, so that the aggregate posterior of normal x is normal."""

    def __init__(self, scale: float = 0.5):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(2, dtype=torch.float64))
        self.log_scale = nn.Parameter(torch.full((2,), math.log(scale), dtype=torch.float64))

    def model(self, x):
        with self.plate(len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with self.plate(len(x)):
            pyro.sample("z", dist.Normal(self.gain * x, self.log_scale.exp()).to_event(1))


class Columns(Turned):
    """The same with the data at dim -2, in plain Pyro."""

    def model(self, x):
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x.unsqueeze(1))

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Normal((self.gain * x).unsqueeze(1), self.log_scale.exp()).to_event(1))


class Leaning(pv.Pair):
    """An exponential latent for counts: another family, and a net that takes [batch, features] only."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(2, 2), nn.Flatten(1), nn.Softplus()).double()

    def model(self, x):
        with self.plate(len(x)):
            z = pyro.sample("rate", dist.Exponential(x.new_ones(2)).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with self.plate(len(x)):
            pyro.sample("rate", dist.Exponential(self.encoder(x) + 0.1).to_event(1))


def data(n: int = N, seed: int = 0) -> Tensor:
    """Normal, with a correlation of 0.8."""
    x = torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.stack([x[:, 0], 0.8 * x[:, 0] + 0.6 * x[:, 1]], 1)


def loss(name: str, pair: nn.Module, x: Tensor, particles: int = 1, beta: float = 1.0, seed: int = 0, **options):
    torch.manual_seed(seed)
    objective = plugins.load("objective", name)(**options)
    return objective(pair, {"x": x}, particles=particles, beta=beta, data_size=len(x))


# --- total correlation --------------------------------------------------------------------------------------


def brute_force(pair: nn.Module, x: Tensor, z: Tensor) -> Tensor:
    """log q(z) - sum_d log q(z_d) [k, n] under the mean of q(z|x) over all data, datum by datum."""
    with torch.no_grad():
        posteriors = [run_guide(pair, {"x": x[j : j + 2]}) for j in range(len(x) - 1)]
        fns = [next(iter(sites.values())).fn.base_dist for sites in posteriors]
        last = fns[-1].log_prob(z.unsqueeze(-2))[..., -1, :]
        parts = torch.stack([fn.log_prob(z.unsqueeze(-2))[..., 0, :] for fn in fns] + [last])
    return parts.sum(-1).logsumexp(0) - parts.logsumexp(0).sum(-1) + math.log(len(x))


@pytest.mark.parametrize("pair", [Turned(), Leaning()], ids=["normal", "exponential"])
@pytest.mark.parametrize("particles", [1, 3])
def test_the_total_correlation_of_all_data_is_exact(pair, particles):
    x = data()
    site = next(iter(run_guide(pair, {"x": x}, particles).values()))
    found = total_correlation(site, N)
    assert found.shape == (particles, N)
    assert torch.allclose(found, brute_force(pair, x, site.value.detach()))


def test_a_batch_stands_for_all_data():
    """KL(N(0, S) || N(0, diag S)) = -1/2 log(1 - correlation^2), from batches of 100 of 2,000 data."""
    x, scale = data(2000), 0.5
    cov = torch.cov(x.T, correction=0) + scale**2 * torch.eye(2, dtype=torch.float64)
    exact = -0.5 * math.log(1 - (cov[0, 1] ** 2 / cov[0, 0] / cov[1, 1]).item())
    with torch.no_grad():
        sites = [run_guide(Turned(scale), {"x": x[i : i + 100]}, 3)["z"] for i in range(0, 2000, 100)]
        found = torch.stack([total_correlation(site, 2000).mean() for site in sites]).mean().item()
    assert exact > 0.2 and found == pytest.approx(exact, abs=0.03)


@pytest.mark.parametrize("pair", [Turned(), Columns(), Leaning()], ids=["Turned", "Columns", "Leaning"])
@pytest.mark.parametrize("particles", [1, 4])
def test_beta_weighs_the_total_correlation_alone(pair, particles):
    x = data()
    one, three = (loss("beta_tcvae", pair, x, particles, beta) for beta in (1.0, 3.0))
    assert torch.allclose(one, loss("trace_mean_field_elbo", pair, x, particles))
    torch.manual_seed(0)
    way = particles if not isinstance(pair, Leaning) else 1
    runs = [run_guide(pair, {"x": x}, way) for _ in range(particles // way)]
    found = torch.cat([total_correlation(next(iter(guide.values())), N) for guide in runs]).mean()
    assert torch.allclose((three - one) / 2, found)
    grads = torch.autograd.grad(three, list(pair.parameters()))
    assert all(grad.isfinite().all() and grad.abs().max() > 0 for grad in grads)


def test_a_batch_of_one_datum_has_no_total_correlation():
    x = data(1)
    assert torch.allclose(loss("beta_tcvae", Turned(), x, beta=5.0), loss("beta_tcvae", Turned(), x, beta=1.0))


# --- maximum mean discrepancy -------------------------------------------------------------------------------


def test_the_discrepancy_is_unbiased():
    """Of N(0, I) from N(m, s^2 I) in three dims, from 5 draws each: its mean is the closed form."""
    dim, shift, scale = 3, 0.7, 0.5

    def kernel(variance: float, distance: float) -> float:
        return (dim / (dim + variance)) ** (dim / 2) * math.exp(-(distance**2) * dim / (2 * (dim + variance)))

    exact = kernel(2.0, 0.0) + kernel(2 * scale**2, 0.0) - 2 * kernel(1 + scale**2, shift)
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(40_000, 5, dim, dtype=torch.float64, generator=generator) for _ in range(2))
    found = squared_mmd(first, shift + scale * second)
    assert exact > 0.05 and abs(found.mean() - exact) < 4 * found.std() / math.sqrt(len(found))


@pytest.mark.parametrize("alpha, beta", [(1.0, 1.0), (0.0, 1.0), (0.25, 2.0)])
def test_info_vae_weighs_the_kl_and_the_discrepancy(alpha, beta):
    x = data()
    pair = Turned()
    with_mmd, without = (loss("info_vae", pair, x, beta=beta, alpha=alpha, mmd=mmd) for mmd in (10.0, 0.0))
    assert torch.allclose(without, loss("trace_mean_field_elbo", pair, x, beta=(1 - alpha) * beta))
    torch.manual_seed(0)
    z = run_guide(pair, {"x": x})["z"].value
    drawn = dist.Normal(torch.zeros(N, 2, dtype=torch.float64), 1.0).to_event(1).rsample()
    assert torch.allclose(with_mmd - without, 10 * squared_mmd(z, drawn.unsqueeze(0)).squeeze())


def test_the_discrepancy_draws_the_codes_of_an_autoencoder_to_the_prior():
    """The Wasserstein autoencoder: its codes end near N(0, I), which those of a plain one do not."""
    x = 3 * torch.randn(400, 4, generator=torch.Generator().manual_seed(0))
    far = []
    for objective, options in (("info_vae", {"mmd": 200.0}), ("trace_elbo", {})):
        torch.manual_seed(0)
        pair = autoencoder((4,), 2, hidden=(16,), prior="standard_normal")
        pv.train(
            pair, x, epochs=30, batch_size=90, lr=1e-2, objective=objective, objective_options=options,
            beta=0.0, progress=False, engine="eager",
        )  # fmt: skip
        codes = run_guide(pair, {"x": x})["z"].value[0].detach()
        far.append((torch.cov(codes.T) - torch.eye(2)).abs().max().item() + codes.mean(0).abs().max().item())
    assert far[0] < 0.5 < far[1]


# --- what they refuse ---------------------------------------------------------------------------------------


class Two(Turned):
    def model(self, x):
        with self.plate(len(x)):
            pyro.sample("more", dist.Normal(x.new_zeros(len(x)), 1.0))
        super().model(x)

    def guide(self, x):
        with self.plate(len(x)):
            pyro.sample("more", dist.Normal(self.gain[0] * x[:, 0], 1.0))
        super().guide(x)


class Correlated(Turned):
    def guide(self, x):
        with self.plate(len(x)):
            tril = torch.eye(2).to(x) + 0.1
            pyro.sample("z", dist.MultivariateNormal(self.gain * x, scale_tril=tril.tril()))


class Scaled(Turned):
    def model(self, x):
        with pyro.poutine.scale(scale=0.5):
            super().model(x)


def double(pair: nn.Module) -> nn.Module:
    return pair.double()


@pytest.mark.parametrize(
    "objective, make, line",
    [
        ("beta_tcvae", Two, "takes pairs of one latent site, not 'more' and 'z'; use"),
        ("info_vae", Two, "takes pairs of one latent site, not 'more' and 'z'; use"),
        ("beta_tcvae", Correlated, "the elements of 'z' must be independent given x.*use trace_elbo"),
        ("beta_tcvae", Scaled, "takes 'z' unmasked, unscaled.*use trace_elbo"),
        ("beta_tcvae", lambda: double(autoencoder((2,))), "'z' must be independent given x and have a density"),
        ("info_vae", lambda: double(autoencoder((2,))), "the prior of 'z' .* gives no draws with a gradient.*use"),
        ("info_vae", lambda: double(pv.VAE((2,), prior="mixture", likelihood="gaussian")), "gives no draws.*use"),
        ("l2_elbo", Turned, "the pair has no part 'decoder' to penalise; use the name of one that it has: none"),
    ],
)
def test_what_they_cannot_take_is_refused_in_one_line(objective, make, line):
    with pytest.raises(ContractError, match=line) as caught:
        loss(objective, make(), data())
    assert "\n" not in str(caught.value)


def test_weights_that_make_no_loss_are_refused():
    for name, options in (("info_vae", {"alpha": 1.5}), ("info_vae", {"mmd": -1.0}), ("l2_elbo", {"l2": -1.0})):
        with pytest.raises(ContractError, match="must"):
            plugins.load("objective", name)(**options)


# --- the regularised autoencoder ----------------------------------------------------------------------------


def test_a_regularised_autoencoder_has_squares_of_the_code_and_of_the_decoder():
    x, beta, l2 = data(), 0.3, 0.01
    pair = autoencoder((2,), 2, hidden=(5,), prior="standard_normal").double()
    code = pair.posterior.code(pair.encoder(x))
    error = (x - pair.decoder(code).squeeze(1)).square().sum(1)
    weights = sum(w.square().sum() for w in pair.decoder.parameters())
    by_hand = (0.5 * error + beta * 0.5 * code.square().sum(1)).mean() + l2 / 2 * weights
    constants = math.log(2 * math.pi) * (1 + beta)
    found = loss("l2_elbo", pair, x, beta=beta, l2=l2)
    assert found.item() == pytest.approx(by_hand.item() + constants, rel=1e-9)
