"""The gaps of linear-Gaussian pairs against closed forms, in float64."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from references import TwoLayers, data_with_axes, gaussian_log_density, linear_vae, ppca_optimum, z_scores
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.errors import ContractError, RunError
from pyro_vae.evaluation.blocks import Blocks
from pyro_vae.evaluation.gaps import Gaps, Refined
from pyro_vae.pair.terms import log_terms

N, D, Q = 40, 6, 3


@pytest.fixture
def x() -> Tensor:
    return data_with_axes(N, D)


def evaluate(pair: nn.Module, data: Tensor | dict[str, Tensor], particles: int = 1000, **options):
    return pv.evaluate(pair, data, Gaps(**options), particles=particles, progress=False)


def test_the_gaps_are_zero_where_the_guide_is_the_posterior(x):
    result = evaluate(linear_vae(ppca_optimum(x, Q)), x, particles=100, steps=5)
    for gap in (result.inference_gap, result.approximation_gap, result.amortisation_gap):
        assert gap.abs().max() < 1e-8
    assert not result.warnings


@pytest.fixture
def turned(x):
    """A linear-Gaussian model with a correlated posterior."""
    optimum = ppca_optimum(x, Q)
    return optimum._replace(loadings=optimum.loadings * torch.tensor([2.0, 1.0, 0.5])).rotated(0.7)


def best_diagonal_gap(solution) -> float:
    """KL from the best diagonal normal to a normal of precision M / variance: 1/2 [sum ln M_ii - ln det M]."""
    inner = solution.inner
    return 0.5 * (inner.diagonal().log().sum() - torch.logdet(inner)).item()


def test_the_approximation_gap_of_a_correlated_posterior_is_the_closed_form(x, turned):
    gap = best_diagonal_gap(turned)
    assert gap > 0.05, "or the test says nothing"
    result = evaluate(linear_vae(turned), x)
    assert abs(z_scores(result.approximation_gap, gap)) < 4
    assert result.approximation_gap.mean().item() == pytest.approx(gap, abs=0.02)
    assert result.amortisation_gap.abs().mean() < 0.005, "the guide is already the best of its family"
    assert abs((result.bound - gaussian_log_density(x, turned.mean, turned.covariance)).mean()) < 0.02


def test_a_wrong_guide_adds_its_own_gap_and_leaves_that_of_its_family(x, turned):
    """Means off by `shift`, scales by `stretch`: L[q*] - L[q] = KL(q || posterior) - KL(q* || posterior)."""
    shift, log_stretch = torch.tensor([0.3, -0.2, 0.1]).double(), torch.tensor([0.4, -0.5, 0.0]).double()
    pair = linear_vae(turned)
    pair.posterior.heads.bias.data += torch.cat([shift, log_stretch])
    precision = turned.inner / turned.variance
    expected = 0.5 * (shift @ precision @ shift + ((2 * log_stretch).exp() - 1 - 2 * log_stretch).sum())
    result = evaluate(pair, x)
    assert abs(z_scores(result.amortisation_gap, expected)) < 4
    assert result.amortisation_gap.mean().item() == pytest.approx(expected.item(), rel=0.03)
    assert result.approximation_gap.mean().item() == pytest.approx(best_diagonal_gap(turned), abs=0.03)
    assert torch.allclose(result.inference_gap, result.approximation_gap + result.amortisation_gap)
    summary = result.entry()
    assert summary["inference_gap"]["mean"] == pytest.approx(result.mean)
    assert summary["bound"] == pytest.approx(result.bound.mean().item())


@pytest.mark.parametrize("bottom_up", [True, False])
def test_every_site_of_a_two_layer_guide_is_refined(bottom_up):
    """A guide whose conditional means are exact and whose scales are too wide gains all that its family allows: for
    diagonal conditionals, KL(best) = 1/2 [sum ln P_ii - ln det P] for each site's exact conditional precision P."""
    pair = TwoLayers(bottom_up).match(widen=1.6)
    draw = torch.Generator().manual_seed(1)
    picture = (
        torch.randn(N, 4, dtype=torch.float64, generator=draw) @ torch.linalg.cholesky(pair.covariance().detach()).T
    )
    result = evaluate(pair, {"picture": picture}, steps=200)
    exact = gaussian_log_density(picture, torch.zeros(4).double(), pair.covariance().detach())
    gap = sum(0.5 * (p.diagonal().log().sum() - torch.logdet(p)) for p in conditional_precisions(pair)).item()
    assert (exact - result.refined_elbo).mean().item() == pytest.approx(gap, abs=0.03)
    assert result.amortisation_gap.mean() > 0.2
    assert abs((result.bound - exact).mean()) < 0.05


def conditional_precisions(pair: TwoLayers) -> list[Tensor]:
    """Of each site of the guide given the ones before it and the picture, under the exact posterior."""
    v, w = pair.v.detach(), pair.w.detach()
    joint = torch.zeros(5, 5).double()  # of (upper, lower) given the picture
    joint[:2, :2] = torch.eye(2) + v.T @ v / 0.8**2
    joint[2:, 2:] = torch.eye(3) / 0.8**2 + w.T @ w / 0.5**2
    joint[:2, 2:], joint[2:, :2] = -v.T / 0.8**2, -v / 0.8**2
    covariance = torch.linalg.inv(joint)
    if pair.bottom_up:
        return [torch.linalg.inv(covariance[2:, 2:]), joint[:2, :2]]
    return [torch.linalg.inv(covariance[:2, :2]), joint[2:, 2:]]


def test_a_refined_pair_starts_as_the_pair_and_leaves_it_as_it_was(x, turned):
    pair = linear_vae(turned)
    refined = Refined(pair, {"x": x})
    for count in (1, 4):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            before = log_terms(pair, {"x": x}, count)
            torch.manual_seed(0)
            after = log_terms(refined, {"x": x}, count)
        assert torch.allclose(before.log_weight, after.log_weight, atol=1e-10)
    evaluate(pair, x, steps=3)
    assert all(parameter.grad is None for parameter in pair.parameters())


def test_progress_is_told_of_every_sample(x, turned):
    told = []
    pair = linear_vae(turned)
    Gaps(steps=3)(pair, Blocks(pair, pv.data.as_split(x)), 30, told.append)
    assert sum(told) == 30 * N


class Positive(nn.Module):
    """A pair whose guide is the given distribution."""

    def __init__(self, guide: dist.Distribution):
        super().__init__()
        self.weight, self.proposal = nn.Parameter(torch.ones(())), guide

    def model(self, reading: Tensor) -> None:
        with pyro.plate("rows", len(reading), dim=-1):
            rate = pyro.sample("rate", dist.Gamma(2.0, 2.0))
            pyro.sample("seen", dist.Normal(self.weight * rate, 1.0), obs=reading)

    def guide(self, reading: Tensor) -> None:
        with pyro.plate("rows", len(reading), dim=-1):
            pyro.sample("rate", self.proposal)


def test_a_guide_that_is_no_diagonal_normal_is_named(x):
    pair = Positive(dist.LogNormal(torch.tensor(0.0), 0.5))
    with pytest.raises(ContractError, match="'rate' is no normal"):
        evaluate(pair, {"reading": torch.ones(3)}, steps=1)
    with pytest.raises(ContractError, match="'z' is no normal"):
        evaluate(pv.VAE((D,), 2, hidden=(), posterior="full_covariance", likelihood="gaussian").double(), x, steps=1)


def test_options_are_checked_and_weak_figures_are_warned_of(x, turned):
    for option in ("steps", "lr", "draws"):
        with pytest.raises(RunError, match=f"{option} must be positive"):
            Gaps(**{option: 0})
    assert "only 10 particles" in evaluate(linear_vae(turned), x, particles=10, steps=1).warnings[0]
    pair = linear_vae(turned)
    pair.posterior.heads.bias.data[Q:] -= 2
    narrow = evaluate(pair, x, particles=200, steps=1)
    assert any("k-hat" in warning for warning in narrow.warnings)
