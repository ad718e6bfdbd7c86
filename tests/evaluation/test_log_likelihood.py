"""log p(x) to a tolerance: closed forms, guides that are wrong on purpose, and pairs as users write them."""

import json
import math
import sys
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import integrate
from model_examples import build, example
from references import data_with_axes, gaussian_log_density, linear_vae, ppca_optimum
from torch import nn

import pyro_vae as pv
from pyro_vae.errors import ContractError, RunError, UnknownName
from pyro_vae.evaluation import chunks
from pyro_vae.evaluation.log_likelihood.certificate import REASONS, good_k
from pyro_vae.evaluation.log_likelihood.normals import eigen
from pyro_vae.evaluation.log_likelihood.ways import WAYS

sys.path.append(str(Path(__file__).parents[2] / "reports" / "bounds"))
from gaussians import LOST, UNIMODAL, Gaussians  # noqa: E402


def evaluated(pair, data, **options):
    return pv.evaluate(pair, data, "log_likelihood", progress=False, **options)


def check(result, exact, floor=0.02):
    """Certified figures are within three stated errors of log p(x), or within 0.02 nats, but for one in a hundred."""
    error = (result.log_likelihood - exact).abs()[result.certified]
    allowed = (3 * result.monte_carlo_error[result.certified]).clamp(min=floor)
    assert (error > allowed).double().mean() <= 0.01 + 1.5 / len(exact)
    assert not (error > 0.2).any()


@pytest.mark.parametrize("dim", [2, 10])
@pytest.mark.parametrize("guide", UNIMODAL)
def test_a_wrong_guide_of_one_mode_is_repaired(guide, dim):
    pair = Gaussians(dim, **UNIMODAL[guide])
    x = pair.draw(50)
    result = evaluated(pair, x)
    assert result.certified.double().mean() > 0.95
    check(result, pair.log_marginal(x).detach())


@pytest.mark.parametrize(
    ("guide", "dim"), [("1 of 2 modes, sharp", 2), ("1 of 4 modes, far", 2), ("3 of 4 modes, near", 10)]
)
def test_a_lost_mode_is_found_or_not_certified(guide, dim):
    pair = Gaussians(dim, **LOST[guide])
    x = pair.draw(40)
    result, exact = evaluated(pair, x), pair.log_marginal(x).detach()
    usual = pv.evaluate(pair, x, "importance", 200, progress=False)
    assert (usual.log_likelihood - exact).min() < -0.3, "the guide has lost nothing"
    assert result.certified.double().mean() > 0.8
    check(result, exact)


def turned_vae():
    """A linear VAE with a correlated posterior, its diagonal guide, its data and their exact log p(x)."""
    x = data_with_axes(120, 5)
    solution = ppca_optimum(x, 2).rotated(0.5)
    solution = solution._replace(variance=solution.variance * 0.5)
    return linear_vae(solution), x, gaussian_log_density(x, solution.mean, solution.covariance)


def test_probabilistic_pca():
    vae, x, exact = turned_vae()
    result = evaluated(vae, x)
    assert result.certified.all() and result.kind == "lower bound"
    check(result, exact)
    ratio = (result.log_likelihood - exact).exp()  # unbiased: the proposal never sees the draws that are reported
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / math.sqrt(len(x))


@pytest.mark.parametrize("name", ["hmm", "mixture", "regressor"])
def test_what_draws_nothing_is_exact_and_certified(name):
    pair, fields = build(name), example(name, 6)
    result, known = evaluated(pair, fields), pv.evaluate(pair, fields, "importance", progress=False)
    assert torch.equal(result.log_likelihood, known.log_likelihood)
    assert result.certified.all() and (result.monte_carlo_error == 0).all() and result.kind == "exact"
    assert result.estimate.summary["ways"] == {"exact": 6}


class Bounded(nn.Module):
    """Counts of a rate that is a Gamma, a LogNormal, or a Beta times 10: bounded latents, as users write them."""

    priors = {
        "gamma": (lambda: dist.Gamma(2.0, 0.5), lambda: dist.Gamma(3.0, 0.5)),
        "lognormal": (lambda: dist.LogNormal(0.5, 0.7), lambda: dist.LogNormal(0.7, 0.5)),
        "beta": (lambda: dist.Beta(2.0, 3.0), lambda: dist.Beta(2.0, 2.0)),
    }

    def __init__(self, prior):
        super().__init__()
        self.prior, self.proposal = self.priors[prior]
        self.times = 10.0 if prior == "beta" else 1.0

    def model(self, counts):
        with pyro.plate("shops", len(counts), dim=-1):
            rate = pyro.sample("rate", self.prior())
            pyro.sample(
                "sold", dist.Poisson(self.times * rate.unsqueeze(-1).expand(*rate.shape, 3)).to_event(1), obs=counts
            )

    def guide(self, counts):
        with pyro.plate("shops", len(counts), dim=-1):
            pyro.sample("rate", self.proposal())

    def log_marginal(self, counts):
        rate = torch.linspace(1e-6, 1 - 1e-6 if self.times > 1 else 60.0, 60_001, dtype=torch.float64)
        log_joint = dist.Poisson(self.times * rate[:, None, None]).log_prob(counts.double()).sum(-1)
        log_joint = log_joint + self.prior().log_prob(rate.float()).double()[:, None]
        return log_joint.logsumexp(0) + (rate[1] - rate[0]).log()


@pytest.mark.parametrize("prior", Bounded.priors)
def test_bounded_latents(prior):
    pair = Bounded(prior)
    counts = torch.poisson(torch.full((30, 3), 4.0), generator=torch.Generator().manual_seed(0))
    result = evaluated(pair, {"counts": counts})
    assert result.certified.double().mean() > 0.9
    check(result, pair.log_marginal(counts))


def test_functions_with_simplexes_and_hierarchies_of_sites_of_unequal_dims():
    """As a pair of plain functions: a Dirichlet of three, a scale above it, and a normal of two beside them."""

    def model(words):
        with pyro.plate("documents", len(words), dim=-1):
            width = pyro.sample("width", dist.HalfNormal(torch.ones(len(words)) if words.dim() == 2 else 1.0))
            shares = pyro.sample("shares", dist.Dirichlet(torch.ones(3)))
            shift = pyro.sample("shift", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            mean = torch.cat([shares, shift], -1) * width.unsqueeze(-1)
            pyro.sample("words", dist.Normal(mean, 0.5).to_event(1), obs=words)

    def guide(words):
        with pyro.plate("documents", len(words), dim=-1):
            pyro.sample("width", dist.HalfNormal(torch.ones(len(words))))
            pyro.sample("shares", dist.Dirichlet(torch.ones(3)))
            pyro.sample("shift", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    words = torch.randn(12, 5, generator=torch.Generator().manual_seed(0)) * 0.6 + 0.3
    pair = pv.as_pair(model, guide)
    result = evaluated(pair, {"words": words})
    known = pv.evaluate(pair, {"words": words}, "importance", 100_000, progress=False)
    assert result.certified.double().mean() > 0.8
    apart = (result.log_likelihood - known.log_likelihood).abs()
    assert (apart < 4 * (result.monte_carlo_error + known.monte_carlo_error) + 0.02)[result.certified].all()


@pytest.mark.slow
def test_the_latents_beyond_the_length_of_a_sequence_count_in_no_density():
    pair, fields = build("dmm"), example("dmm", 4)
    result = evaluated(pair, fields, budget=12_000)
    shorter = {**fields, "x": fields["x"].clone()}
    for row, length in enumerate(fields["length"].tolist()):
        shorter["x"][row, length:] = 0
    annealed = pv.evaluate(pair, shorter, "ais", 16, progress=False, distributions=60, leapfrog=4)
    apart = (result.log_likelihood - annealed.log_likelihood).abs()
    assert (apart < 4 * (result.monte_carlo_error + annealed.monte_carlo_error) + 0.1)[result.certified].all()


def test_a_guide_without_a_density_elsewhere_is_fitted_and_that_is_said():
    vae = pv.VAE((6,), latent_dim=2, hidden=(8,), posterior="planar")
    x = (torch.rand(20, 6, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    result = evaluated(vae, x)
    with torch.no_grad():
        exact = integrate(lambda z, rows: vae.likelihood(vae.decoder(z.float())).log_prob(x[rows]).double(), 20, 2)
    assert any("a normal fitted to the guide's draws takes its share" in warning for warning in result.warnings)
    assert result.certified.double().mean() > 0.9
    check(result, exact)


class Recurrent(nn.Module):
    """A decoder that torch has no second derivatives of."""

    def __init__(self):
        super().__init__()
        self.net, self.out = nn.LSTM(2, 4, batch_first=True), nn.Linear(4, 1)

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            hidden = self.net(z.unsqueeze(-2).expand(len(x), x.shape[1], 2))[0]
            pyro.sample("x", dist.Normal(self.out(hidden).squeeze(-1), 0.3).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def test_without_second_derivatives_the_search_is_of_first_order_and_that_is_said():
    torch.manual_seed(0)
    pair, x = Recurrent(), torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    result = evaluated(pair, x)
    known = pv.evaluate(pair, x, "importance", 20_000, progress=False)
    apart = (result.log_likelihood - known.log_likelihood).abs()
    assert (apart < 4 * (result.monte_carlo_error + known.monte_carlo_error) + 0.02)[result.certified].all()
    assert any("the search is of first order" in warning for warning in result.warnings)


@pytest.mark.parametrize("name", ["sigmoid_belief_net"])
def test_sampled_discrete_latents_are_not_certified(name):
    pair, fields = build(name), example(name, 4)
    result = evaluated(pair, fields, budget=500)
    assert not result.certified.any() and result.log_likelihood.isfinite().all()
    assert "not certified" in result.warnings[-1]


def test_the_budget_holds_and_the_columns_say_what_was_done():
    pair = Gaussians(4, modes=2, noise=3.0)
    x = pair.draw(30)
    for budget in (20, 800, 3000, 9000):
        result = evaluated(pair, x, budget=budget)
        assert (result.cost <= budget).all() and result.log_likelihood.isfinite().all()
        assert result.certified.any() == (budget >= 3000)
    entry = json.loads(json.dumps(result.entry(per_datum=True)))
    assert set(entry["per_datum"]["way"]) <= set(WAYS) and set(entry["per_datum"]["reason"]) <= set(REASONS)
    assert entry["certified"] == result.certified.double().mean().item() and entry["tolerance"] == 0.1
    assert sum(entry["ways"].values()) == sum(entry["reasons"].values()) == 30
    assert any(line.startswith("way local: ") for line in result.estimate.lines)


def test_a_smaller_tolerance_costs_more_and_is_kept():
    vae, x, exact = turned_vae()
    coarse, fine = evaluated(vae, x[:30], tolerance=0.2), evaluated(vae, x[:30], tolerance=0.02)
    assert (fine.monte_carlo_error[fine.certified] < 0.02).all() and fine.certified.double().mean() > 0.8
    assert fine.cost.mean() > coarse.cost.mean()
    check(fine, exact[:30], floor=0.005)


def test_figures_do_not_depend_on_how_the_memory_is_cut(monkeypatch):
    pair = Gaussians(3, modes=2, noise=3.0).double()
    x = pair.draw(12).double()
    whole = evaluated(pair, x)
    monkeypatch.setitem(chunks.CHUNK_BYTES, "cpu", 2**12)
    cut = evaluated(pair, x)
    assert torch.allclose(whole.log_likelihood, cut.log_likelihood, atol=1e-6)
    assert torch.equal(whole.cost, cut.cost) and torch.equal(whole.way, cut.way)


def test_the_compiled_engine_gives_the_same_figures(graphs):
    vae = pv.VAE((6,), latent_dim=2, hidden=(8,))
    x = (torch.rand(20, 6, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    eager, compiled = (evaluated(vae, x, engine=engine) for engine in ("eager", "compiled"))
    assert torch.allclose(eager.log_likelihood, compiled.log_likelihood, atol=1e-4)
    assert len(eager.cost) == 20


@pytest.mark.parametrize("wrong", [{"tolerance": 0.0}, {"tolerance": -1.0}, {"tolerance": math.nan}, {"budget": 0}])
def test_what_is_not_positive_is_refused(wrong):
    with pytest.raises(RunError, match=next(iter(wrong))):
        evaluated(Gaussians(2), torch.zeros(2, 2), **wrong)


def test_a_number_of_particles_is_refused():
    with pytest.raises(RunError, match="takes no number of particles: say tolerance"):
        pv.evaluate(Gaussians(2), torch.zeros(2, 2), "log_likelihood", 500, progress=False)


def test_a_loss_in_the_place_of_a_density_is_refused():
    class Factor(Gaussians):
        def model(self, x):
            super().model(x)
            with pyro.plate("data", len(x)):
                pyro.factor("penalty", torch.zeros(len(x)))

    with pytest.raises(ContractError, match="penalty"):
        evaluated(Factor(2), torch.zeros(2, 2))


def test_the_local_proposal_for_a_fixed_number_of_draws_and_of_chains():
    pair = Gaussians(4, modes=2, known=1, noise=3.0)
    x = pair.draw(40)
    exact = pair.log_marginal(x).detach()
    local = pv.evaluate(pair, x, "importance", 500, progress=False, proposal="laplace")
    assert ((local.log_likelihood - exact).abs() < 4 * local.monte_carlo_error + 0.01).all()
    annealed = pv.evaluate(pair, x, "ais", 32, progress=False, start="laplace", distributions=8, leapfrog=2)
    error = annealed.log_likelihood - exact
    assert error.mean().abs() < 0.05 and (error.abs() < 6 * annealed.monte_carlo_error + 0.02).all()
    with pytest.raises(UnknownName, match="laplace"):
        pv.evaluate(pair, x, "importance", progress=False, proposal="laplac")
    with pytest.raises(RunError, match="start=guide or start=prior"):
        pv.evaluate(pair, x, "ais", progress=False, start="laplace", bidirectional=True)


def test_good_k_is_that_of_arviz():
    assert good_k(100) == pytest.approx(0.5) and good_k(10_000) == 0.7


class Below(nn.Module):
    """A latent whose support is bounded by the datum."""

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Uniform(torch.zeros_like(x), x))
            pyro.sample("x", dist.Gamma(2.0, 1.0 + z), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Uniform(torch.zeros_like(x), x))


def test_a_support_that_depends_on_the_data_is_not_certified():
    x = torch.rand(5, generator=torch.Generator().manual_seed(0)) + 0.5
    result, known = evaluated(Below(), x), pv.evaluate(Below(), x, "importance", 5000, progress=False)
    assert not result.certified.any() and "depends on the data" in result.warnings[0]
    assert (result.log_likelihood - known.log_likelihood).abs().max() < 0.05


def test_a_latent_of_many_dimensions_is_local_along_some_axes_alone():
    pair = Gaussians(300, noise=2.0, seen=4)
    x = pair.draw(4)
    result = evaluated(pair, x)
    assert result.certified.any()
    check(result, pair.log_marginal(x).detach())


def test_a_matrix_whose_axes_are_not_found_is_taken_along_the_coordinates(monkeypatch):
    def fails(matrix):
        if (matrix[:, 0, 0] > 5).any():
            raise torch.linalg.LinAlgError("it did not converge")
        return eigh(matrix)

    eigh = torch.linalg.eigh
    matrices = torch.stack([torch.tensor([[2.0, 1.0], [1.0, 2.0]]), torch.tensor([[9.0, 0.5], [0.5, 4.0]])]).double()
    monkeypatch.setattr(torch.linalg, "eigh", fails)
    values, axes = eigen(matrices)
    assert torch.allclose((axes[0] * values[0]) @ axes[0].mT, matrices[0])
    assert values[1].tolist() == [9.0, 4.0] and torch.equal(axes[1], torch.eye(2).double())
