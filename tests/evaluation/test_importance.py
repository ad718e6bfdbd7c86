"""The importance-weighted bound against exact marginals, and what it says of itself."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from references import (
    Conditional,
    Labelled,
    TwoLayers,
    data_with_axes,
    gaussian_log_density,
    linear_vae,
    ppca_mean_log_likelihood,
    ppca_optimum,
)
from torch import nn

import pyro_vae as pv
from pyro_vae.arviz_adapter import arviz, pareto_k
from pyro_vae.errors import ContractError, DataError, RunError
from pyro_vae.evaluation import chunks
from pyro_vae.evaluation.blocks import Block
from pyro_vae.evaluation.weights import WeightStream


def importance(pair, data, particles, **options):
    return pv.evaluate(pair, data, "importance", particles, progress=False, **options)


def turned_vae():
    """A linear VAE with a correlated posterior, its diagonal guide, its data and their exact log p(x)."""
    x = data_with_axes(300, 5)
    solution = ppca_optimum(x, 2).rotated(0.5)
    solution = solution._replace(variance=solution.variance * 0.5)
    return linear_vae(solution), x, gaussian_log_density(x, solution.mean, solution.covariance)


def test_the_bound_rises_with_k_to_the_exact_value():
    vae, x, exact = turned_vae()
    results = {k: importance(vae, x, k) for k in (1, 4, 16, 2000)}
    means = [results[k].mean for k in (1, 4, 16, 2000)]
    assert means == sorted(means)
    # E[w] = p(x), so that exp(L_K - log p) averages to 1 at any K
    for k in (4, 16, 2000):
        ratio = (results[k].log_likelihood - exact).exp()
        assert abs(ratio.mean() - 1) < 4 * ratio.std() / math.sqrt(len(x))
    last = results[2000]
    error = (last.log_likelihood - exact).mean().item()
    assert abs(error) < 4 * last.entry()["monte_carlo_error"] + 2e-3


def test_at_the_optimum_one_particle_is_exact_and_the_weights_are_equal():
    x = data_with_axes(200, 5)
    vae = linear_vae(ppca_optimum(x, 2))
    one, many = importance(vae, x, 1), importance(vae, x, 100)
    expected = ppca_mean_log_likelihood(x, 2)
    assert one.mean == pytest.approx(expected, rel=1e-10)
    assert many.mean == pytest.approx(expected, rel=1e-10)
    assert (many.pareto_k == -math.inf).all()
    assert torch.allclose(many.ess, torch.full_like(many.ess, 100.0))
    assert torch.allclose(many.monte_carlo_error, torch.zeros_like(many.ess), atol=1e-6)
    assert not many.warnings


@pytest.mark.parametrize("bottom_up", [True, False])
def test_two_layers_against_the_exact_marginal(bottom_up):
    pair = TwoLayers(bottom_up=bottom_up).match()
    picture = torch.randn(60, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        exact = gaussian_log_density(picture, torch.zeros(4).double(), pair.covariance())
    result = importance(pair, {"picture": picture}, 5000)
    assert abs((result.log_likelihood - exact).mean()) < 4 * result.entry()["monte_carlo_error"] + 2e-3


def test_a_conditional_pair_against_the_exact_conditional():
    pair, draw = Conditional().match(), torch.Generator().manual_seed(2)
    fields = {
        name: torch.randn(60, size, dtype=torch.float64, generator=draw)
        for name, size in (("target", 4), ("context", 3))
    }
    with torch.no_grad():
        exact = pair.log_marginal(**fields)
    result = importance(pair, fields, 5000)
    assert abs((result.log_likelihood - exact).mean()) < 4 * result.entry()["monte_carlo_error"] + 2e-3


class Kinds(nn.Module):
    """A user's pair: two latent sites, one of them discrete, Poisson counts, and names that no pair of ours uses."""

    def __init__(self):
        super().__init__()
        self.rates = nn.Parameter(torch.tensor([[0.5, 1.0, 2.0], [3.0, 1.0, 0.3]]))
        self.shift = nn.Parameter(torch.tensor(0.7))

    def model(self, tally):
        with pyro.plate("shops", len(tally), dim=-1):
            sort = pyro.sample("sort", dist.Bernoulli(tally.new_tensor(0.3)))
            busy = pyro.sample(
                "busy", dist.Categorical(logits=self.shift * torch.stack([sort, 1 - sort, 0 * sort], -1))
            )
            rate = self.rates[sort.long()] * (1.0 + busy.to(tally).unsqueeze(-1))
            pyro.sample("sold", dist.Poisson(rate).to_event(1), obs=tally)

    def guide(self, tally):
        with pyro.plate("shops", len(tally), dim=-1):
            pyro.sample("sort", dist.Bernoulli((0.2 + 0.1 * tally[:, 0]).clamp(0.1, 0.9)))
            pyro.sample("busy", dist.Categorical(tally.new_tensor([0.4, 0.3, 0.3])))

    def direct_sum(self, tally):
        total = torch.zeros(len(tally))
        for sort in (0, 1):
            logits = self.shift * torch.tensor([float(sort), 1.0 - sort, 0.0])
            for busy, weight in enumerate(logits.softmax(0)):
                seen = torch.distributions.Poisson(self.rates[sort] * (1.0 + busy)).log_prob(tally).sum(-1)
                total = total + (0.3 if sort else 0.7) * weight * seen.exp()
        return total.log()


def test_a_users_discrete_pair_against_a_direct_sum():
    pair = Kinds()
    tally = torch.poisson(torch.full((80, 3), 1.5), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        exact = pair.direct_sum(tally)
    result = importance(pair, {"tally": tally}, 4000)
    assert abs((result.log_likelihood - exact).mean()) < 4 * result.entry()["monte_carlo_error"] + 2e-3
    assert result.bits_per_dim == pytest.approx(-result.mean / (3 * math.log(2)))


@pytest.mark.parametrize("particles", [1, 2, 7, 260])
def test_figures_do_not_depend_on_the_chunks(monkeypatch, particles):
    vae, x, _ = turned_vae()
    whole = importance(vae, x[:130], particles)
    for size in (2**13, 2**16):
        monkeypatch.setitem(chunks.CHUNK_BYTES, "cpu", size)
        cut = importance(vae, x[:130], particles)
        for name, value in whole.estimate.per_datum.items():
            assert torch.allclose(cut.estimate.per_datum[name], value, rtol=1e-6, atol=1e-6, equal_nan=True), name


def test_a_limit_takes_whole_blocks_of_data_as_they_are():
    vae, x, _ = turned_vae()
    limited = importance(vae, x, 30, limit=200).log_likelihood
    assert torch.equal(limited, importance(vae, x, 30).log_likelihood[:200])


def test_exactly_k_particles_and_one_pass_of_the_encoder():
    vae, x, _ = turned_vae()
    importance(vae, x[:2], 2)  # the ways to hold particles have been compared
    calls, rows = [], []
    vae.encoder.register_forward_hook(lambda *_: calls.append(1))
    vae.decoder.register_forward_hook(lambda module, inputs, _: rows.append(inputs[0].shape[:-1].numel()))
    list(chunks.stream_terms(Block(vae, pv.data.as_split(x[:100]), slice(0, 100), 0), 777))
    assert len(calls) == 1
    assert sum(rows) == 777 * 100 + 100  # and the one run that checks the pair


@pytest.mark.parametrize("shape", [0.2, 0.6, 1.1])
@pytest.mark.parametrize("particles", [30, 400, 5000])
def test_the_stream_of_weights_against_the_weights_at_once(shape, particles):
    random = np.random.default_rng(0)
    log_weight = -shape * np.log(random.random((particles, 3)))
    stream_ = WeightStream(particles, 3)
    for piece in np.array_split(log_weight, 7):
        stream_.add(torch.from_numpy(piece))
    weight = np.exp(log_weight)
    total = weight.sum(0)
    assert np.allclose(stream_.bound(), np.log(total / particles))
    assert np.allclose(stream_.bound_of_half(), np.log(weight[: particles // 2].mean(0)))
    assert np.allclose(stream_.ess(), total**2 / (weight**2).sum(0))
    relative = weight.std(0, ddof=1) / weight.mean(0) / math.sqrt(particles)
    assert np.allclose(stream_.monte_carlo_error(), relative)
    without = np.log((total - weight) / (particles - 1)).mean(0)
    jackknife = particles * np.log(total / particles) - (particles - 1) * without
    assert np.allclose(stream_.jackknife(), jackknife, atol=1e-5)
    assert np.allclose(stream_.pareto_k(), [pareto_k(column) for column in log_weight.T], rtol=1e-10)


def test_a_guide_made_too_narrow_is_flagged():
    vae, x, _ = turned_vae()
    with torch.no_grad():
        vae.posterior.heads.bias[2:] -= 2.0  # log w is then close to an exponential variable: a tail with k close to 1
    result = importance(vae, x, 3000)
    assert result.entry()["pareto_k"]["share_above_0.7"] > 0.85
    assert result.entry()["pareto_k"]["mean"] == pytest.approx(0.95, abs=0.1)
    assert any("not a reliable estimate" in warning for warning in result.warnings)


def test_no_parameter_and_no_global_state_changes():
    vae, x, _ = turned_vae()
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    state = torch.get_rng_state()
    vae.train()
    importance(vae, x, 10)
    assert vae.training and torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    assert len(pyro.get_param_store()) == 0


class Writes(pv.Pair):
    """A pair that counts its calls in a buffer."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(()))
        self.register_buffer("calls", torch.zeros(()))

    def model(self, x):
        self.calls += 1
        with self.plate(len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        with self.plate(len(x)):
            pyro.sample("z", dist.Normal(self.loc, 1.0))


def test_a_pair_that_writes_to_its_state_is_refused():
    with pytest.raises(ContractError, match="calls"):
        importance(Writes(), torch.zeros(3), 2)


class Wrong(pv.Pair):
    """z ~ prior, x ~ N(z, 1), with whatever guide and observation a test wants."""

    def __init__(self, prior, guide, column=False):
        super().__init__()
        self.prior_, self.guide_, self.column = prior, guide, column
        self.unused = nn.Parameter(torch.zeros(()))

    def model(self, x):
        with self.plate(len(x)):
            z = pyro.sample("z", self.prior_)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x.unsqueeze(-1) if self.column else x)

    def guide(self, x):
        with self.plate(len(x)):
            pyro.sample("z", self.guide_)


NORMAL = dist.Normal(torch.tensor(0.0), 1.0)
HALF = dist.HalfNormal(torch.tensor(1.0))


@pytest.mark.parametrize(
    ("pair", "particles", "error", "message"),
    [
        (Wrong(NORMAL, NORMAL), 0, RunError, "particles must be at least 1"),
        (Wrong(NORMAL, NORMAL), -3, RunError, "particles must be at least 1"),
        (Wrong(NORMAL, HALF), 5, ContractError, "'z'.*guide cannot draw all that the prior draws"),
        (Wrong(HALF, NORMAL), 5, ContractError, "'z'.*prior has no density where the guide draws"),
        (Wrong(NORMAL, NORMAL, column=True), 5, ContractError, r"'x'.*\[20, 1\]"),
        (Wrong(NORMAL, NORMAL, column=True), 20, ContractError, r"'x'.*\[20, 1\]"),
    ],
)
def test_bad_input_is_one_line(pair, particles, error, message):
    with pytest.raises(error, match=message) as caught:
        importance(pair, torch.zeros(20), particles)
    assert "\n" not in str(caught.value)


class Upto(dist.Normal):
    """No density above 1, and no normaliser that would say so."""

    def log_prob(self, value):
        return torch.where(value > 1.0, -torch.inf, super().log_prob(value))


def test_weights_that_are_all_zero_name_the_datum():
    class Truncated(Wrong):
        def model(self, x):
            with self.plate(len(x)):
                z = pyro.sample("z", self.prior_)
                pyro.sample("x", Upto(z, 1.0), obs=x)

    x = torch.zeros(7)
    x[4] = 2.0
    with pytest.raises(ContractError, match="datum 4 are all zero"):
        importance(Truncated(NORMAL, NORMAL), x, 5)


def test_relaxed_grey_values_are_a_loss_and_no_likelihood():
    vae = pv.VAE((4,), hidden=(3,))
    grey = torch.full((9, 4), 0.3)
    with pytest.raises(DataError, match="relaxed"):
        importance(vae, grey, 5)
    result = importance(vae, grey, 5, relaxed=True)
    assert result.quantity == "loss" and result.mean > 0
    assert any("not a log-likelihood" in warning for warning in result.warnings)
    with pytest.raises(AttributeError, match="log_likelihood"):
        _ = result.log_likelihood


def test_several_sites_and_discrete_ones_agree_between_seeds():
    pair = Labelled()
    counts = torch.poisson(torch.full((40, 5), 2.0), generator=torch.Generator().manual_seed(0)).double()
    one, other = (importance(pair, {"counts": counts}, 1000, seed=seed) for seed in (0, 1))
    error = math.hypot(one.entry()["monte_carlo_error"], other.entry()["monte_carlo_error"])
    assert abs(one.mean - other.mean) < 4 * error
    assert not torch.equal(one.log_likelihood, other.log_likelihood)


def test_inference_data_is_written_and_read_as_netcdf(tmp_path):
    vae, x, _ = turned_vae()
    exported = pv.inference_data(vae, x, draws=5, limit=6)
    exported.to_netcdf(str(tmp_path / "run.nc"))
    read = arviz.from_netcdf(str(tmp_path / "run.nc"))
    assert np.array_equal(read["posterior"]["z"].values, exported["posterior"]["z"].values)
    assert np.array_equal(read["observed_data"]["x"].values, x[:6].numpy())


def test_inference_data_has_every_group():
    vae, x, _ = turned_vae()
    exported = pv.inference_data(vae, x, draws=50, limit=6)
    assert exported["posterior"]["z"].shape == (1, 50, 6, 2)
    assert exported["prior"]["z"].shape == (1, 50, 6, 2)
    assert exported["posterior_predictive"]["x"].shape == (1, 50, 6, 5)
    assert exported["prior_predictive"]["x"].shape == (1, 50, 6, 5)
    assert exported["log_likelihood"]["x"].shape == (1, 50, 6)
    assert exported["observed_data"]["x"].shape == (6, 5)
    weights = torch.tensor(exported["sample_stats"]["log_weight"].values)[0]
    bound = weights.logsumexp(0) - math.log(50)
    with torch.no_grad():
        exact = gaussian_log_density(
            x[:6],
            vae.decoder.out.bias,
            vae.decoder.out.weight @ vae.decoder.out.weight.T
            + vae.likelihood.log_sigma.mul(2).exp() * torch.eye(5).double(),
        )
    assert torch.allclose(bound, exact, atol=0.5)


@pytest.mark.parametrize("particles", [40, 400])
def test_a_tail_of_equal_weights_is_bounded_and_no_reason_to_doubt(particles):
    """A discrete latent gives few different weights; ArviZ 0.x calls such a tail infinitely heavy, 1.x raises."""
    seen = WeightStream(particles, 1)
    weights = torch.full((particles, 1), -3.0, dtype=torch.float64)
    weights[: particles // 2] = -1.0
    seen.add(weights[torch.randperm(particles)])
    assert seen.pareto_k() == -math.inf
