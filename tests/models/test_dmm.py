"""The deep Markov model: its terms by hand, that its guide sees what it should, and that it gets as far as the Kalman
filter where the dynamics are linear."""

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

import pyro_vae as pv
from pyro_vae.errors import ContractError, DataError
from pyro_vae.models.dmm import DeepMarkovModel, turned
from pyro_vae.pair.particles import run_guide
from pyro_vae.pair.sites import values_of
from pyro_vae.pair.terms import log_terms

QUIET = {"progress": False, "device": "cpu"}
LENGTHS = torch.tensor([4, 1, 3, 2])
SIZES = {"latent_dim": 2, "hidden": (5,), "transition_dim": 6, "rnn_dim": 7}


def small(shape: tuple[int, ...] = (4, 3), **options) -> DeepMarkovModel:
    torch.manual_seed(0)
    return DeepMarkovModel(shape, **{**SIZES, **options}).double()


def data(seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.bernoulli(torch.full((4, 4, 3), 0.5), generator=generator).double()
    return {"x": x.masked_fill((torch.arange(4) >= LENGTHS[:, None]).unsqueeze(2), 0.0), "length": LENGTHS}


# --- the density --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian_net"])
def test_terms_are_those_of_each_sequence_by_itself(likelihood, particles):
    """log p(x|z), log p(z) and log q(z|x), one time slice after the other, with nothing filled up."""
    pair, given = small(likelihood=likelihood), data()
    torch.manual_seed(2)
    terms = log_terms(pair, given, particles)
    torch.manual_seed(2)
    drawn = values_of(run_guide(pair, given, particles))
    for row, length in enumerate(LENGTHS):
        x = given["x"][row : row + 1, :length]
        with torch.no_grad():
            ahead = pair.rnn(x.flip(1))[0].flip(1)
            for particle in range(particles):
                z, z_q, sums = pair.before, pair.before_q, torch.zeros(3).double()
                for t in range(int(length)):
                    value = drawn[f"z_{t}"][particle, row]
                    posterior = pair.posterior(0.5 * (torch.tanh(pair.combine(z_q)) + ahead[0, t]))
                    sums += torch.stack([
                        pair.likelihood(pair.decoder(value)).log_prob(x[0, t]),
                        pair.step(z).log_prob(value),
                        posterior.log_prob(value),
                    ])  # fmt: skip
                    z = z_q = value
                found = torch.stack([term[particle, row] for term in terms[:3]])
                assert torch.allclose(found, sums, rtol=1e-9)


def test_a_sequence_is_turned_within_its_length():
    x = torch.arange(1.0, 9.0).reshape(2, 4, 1)
    assert turned(x, torch.tensor([3, 1]))[..., 0].tolist() == [[3, 2, 1, 4], [5, 6, 7, 8]]
    assert torch.equal(turned(x, None), x.flip(1))


def test_the_guide_looks_ahead_and_not_back():
    """z_2 given z_1 depends on x_2 and x_3, not on x_0 and x_1."""
    pair, given = small(), data()

    def loc(changed: int | None) -> Tensor:
        x = given["x"].clone()
        if changed is not None:
            x[0, changed] = 1 - x[0, changed]
        with torch.no_grad():
            return pair.posterior(
                0.5 * (torch.tanh(pair.combine(torch.ones(2).double())) + pair.read(x, LENGTHS)[0, 2])
            ).mean

    assert all(torch.equal(loc(None), loc(before)) for before in (0, 1))
    assert all(not torch.equal(loc(None), loc(after)) for after in (2, 3))


def test_the_step_starts_as_one_that_stays():
    """Half way, to be exact: the gate is near a half, and the linear map is the identity."""
    torch.manual_seed(0)
    z = torch.randn(5, 2).double()
    step = small().step
    with torch.no_grad():
        gate, proposed = torch.sigmoid(step.gate(z)), step.net(z)
    assert torch.allclose(step(z).mean, (1 - gate) * z + gate * proposed)


@pytest.mark.parametrize("posterior", ["diagonal_normal", "full_covariance", "iaf"])
def test_any_posterior_serves(posterior):
    pair = small(posterior=posterior)
    result = pv.evaluate(pair, data(), "importance", particles=30, progress=False)
    assert result.kind == "lower bound" and result.log_likelihood.isfinite().all()


def test_a_series_of_one_number_each():
    torch.manual_seed(0)
    pair = DeepMarkovModel((6,), **SIZES, likelihood="gaussian_learned")
    run = pv.train(pair, torch.randn(40, 6), epochs=2, batch_size=20, engine="eager", **QUIET)
    assert run.history[-1]["valid_elbo"] > -100 and pv.sample(run, n=3)["x"].shape == (3, 6)


def test_samples_come_from_the_steps_and_end_with_their_length():
    run = pv.train(small(), data(), valid=data(), epochs=1, batch_size=4, engine="eager", **QUIET)
    drawn = pv.sample(run, n=8, data=data())
    assert drawn["x"].shape == (8, 4, 3) and drawn["z"].shape == (8, 4, 2)
    beyond = torch.arange(4) >= LENGTHS.repeat(2)[:, None]
    assert torch.equal(drawn["x"].isnan().all(2), beyond) and torch.equal(drawn["z"].isnan().all(2), beyond)
    codes = pv.encode(run, data())
    assert codes["z_mean"].shape == (4, 4, 2) and torch.equal(codes["z_scale"].isnan().all(2), beyond[:4])


# --- learning -----------------------------------------------------------------------------------------------

STEPS, DECAY, NOISE, SEEN = 10, 0.9, 0.5, 0.5
LOADING = torch.tensor([1.0, -0.7])


def linear(n: int, seed: int) -> Tensor:
    """x_t = c z_t + e, z_t = a z_t-1 + u, [n, 10, 2]."""
    generator = torch.Generator().manual_seed(seed)
    z, rows = torch.zeros(n), []
    for _ in range(STEPS):
        z = DECAY * z + NOISE * torch.randn(n, generator=generator)
        rows.append(z.unsqueeze(1) * LOADING + SEEN * torch.randn(n, 2, generator=generator))
    return torch.stack(rows, 1)


def kalman(x: Tensor) -> Tensor:
    """log p(x) of each sequence, what the Kalman filter gives: x is normal."""
    time = torch.arange(STEPS).double()
    steps = torch.tril(DECAY ** (time[:, None] - time).clamp(min=0))
    of_z = NOISE**2 * steps @ steps.T
    loading = LOADING.double()
    covariance = torch.kron(of_z, loading[:, None] * loading) + SEEN**2 * torch.eye(2 * STEPS).double()
    return MultivariateNormal(torch.zeros(2 * STEPS).double(), covariance).log_prob(x.double().flatten(1))


def filtered(x: Tensor) -> float:
    """The same for one sequence, by the filter itself."""
    loading, mean, variance, total = LOADING.double(), 0.0, 0.0, 0.0
    for row in x.double():
        mean, variance = DECAY * mean, DECAY**2 * variance + NOISE**2
        covariance = variance * loading[:, None] * loading + SEEN**2 * torch.eye(2).double()
        total += MultivariateNormal(loading * mean, covariance).log_prob(row).item()
        gain = variance * torch.linalg.solve(covariance, loading)
        mean = mean + (gain @ (row - loading * mean)).item()
        variance = variance * (1 - (gain @ loading).item())
    return total


def test_the_covariance_is_that_of_the_filter():
    x = linear(5, seed=3)
    assert kalman(x).tolist() == pytest.approx([filtered(row) for row in x], rel=1e-9)


@pytest.mark.slow
def test_linear_dynamics_are_learned_as_far_as_the_kalman_filter_knows_them():
    """On new data, minus the ELBO is within 0.05 nats a time slice of the true entropy rate."""
    torch.manual_seed(0)
    pair = DeepMarkovModel(
        (STEPS, 2), latent_dim=1, hidden=(), transition_dim=8, rnn_dim=16, likelihood="gaussian_learned"
    )
    run = pv.train(
        pair, linear(2000, 0), epochs=60, batch_size=200, lr=1e-2, schedule="cosine", engine="eager", **QUIET
    )
    new = linear(2000, 1)
    gap = kalman(new).mean().item() - pv.evaluate(run.pair, new, "elbo", particles=4, progress=False).mean
    assert -0.01 < gap / STEPS < 0.05


def test_it_learns_planted_chains():
    chains = pv.load_data("planted_chains", steps=8)
    run = pv.train("dmm", chains, epochs=6, batch_size=100, lr=5e-3, model_options=SIZES, engine="eager", **QUIET)
    losses = [row["valid_loss"] for row in run.history]
    assert losses[-1] < losses[0] - 1.0


# --- bad input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [0, 5])
def test_a_length_that_the_data_do_not_have_is_refused(wrong):
    given = data() | {"length": torch.tensor([4, 1, wrong, 2])}
    with pytest.raises(DataError, match=rf"^length\[2\] is {wrong}, but x has 4 time slices"):
        pv.train(small(), given, valid=data(), epochs=1, batch_size=2, **QUIET)


def test_sizes_that_are_not_positive_are_refused():
    with pytest.raises(ContractError, match="rnn_dim must be at least 1, not 0"):
        small(rnn_dim=0)
    with pytest.raises(ContractError, match=r"a sequence has the shape \[time, ...\]"):
        DeepMarkovModel((), **SIZES)
