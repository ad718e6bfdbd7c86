"""Active units, KL by dimension and the rate's decomposition against closed forms; what the traversals draw."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib.figure import Figure
from references import TwoLayers, z_scores
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal

import pyro_vae as pv
from pyro_vae.errors import RunError
from pyro_vae.evaluation import chunks
from pyro_vae.evaluation.blocks import Blocks
from pyro_vae.evaluation.latent.aggregate import log_aggregate, log_guide_at
from pyro_vae.evaluation.latent.latent import Latent
from pyro_vae.pair.generation import center
from pyro_vae.pair.terms import elbo_terms
from pyro_vae.plots.traversals import Unit, _row

GAIN, OFFSET, SCALE = 1.5, 0.3, 0.6


def linear_guide() -> nn.Module:
    """q(z|x): z[0] ~ N(GAIN x[0] + OFFSET, SCALE^2), and z[1] ~ N(0, 1) whatever x is: a dead unit."""
    pair = pv.VAE((4,), 2, hidden=(), likelihood="gaussian").double()
    with torch.no_grad():
        heads = pair.posterior.heads
        heads.weight.zero_()[0, 0] = GAIN
        heads.bias.copy_(torch.tensor([OFFSET, 0.0, math.log(SCALE), 0.0]))
    return pair


def normal_data(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def evaluate(pair: nn.Module, data, particles: int = 1, **options):
    return pv.evaluate(pair, data, Latent(**options), particles=particles, progress=False)


def test_the_rate_divides_into_information_and_marginal_kl():
    """For x ~ N(0, I): q(z[0]) = N(OFFSET, GAIN^2 + SCALE^2), so both parts have closed forms; q(z) of n data differs
    from it by O(1/n)."""
    result = evaluate(linear_guide(), normal_data(2000), particles=2)
    spread = GAIN**2 + SCALE**2
    information = 0.5 * math.log(spread / SCALE**2)
    marginal = 0.5 * (spread + OFFSET**2 - 1 - math.log(spread))
    assert abs(z_scores(result.mutual_information, information)) < 4
    assert abs(z_scores(result.marginal_kl, marginal)) < 4
    assert abs(result.mutual_information.mean() - information) < 0.03
    assert abs(result.marginal_kl.mean() - marginal) < 0.05
    assert abs(z_scores(result.mutual_information + result.marginal_kl - result.rate, 0.0)) < 4
    entry = result.entry()
    assert entry["mutual_information"] == pytest.approx(result.mutual_information.mean().item())
    assert entry["mutual_information_standard_error"] == pytest.approx(
        result.mutual_information.std().item() / math.sqrt(2000)
    )
    assert not result.warnings


def test_a_guide_that_ignores_x_carries_no_information():
    pair = linear_guide()
    pair.posterior.heads.weight.data.zero_()
    result = evaluate(pair, normal_data(150), particles=40)
    assert result.mutual_information.abs().max() < 1e-9
    assert abs(z_scores(result.marginal_kl - result.rate, 0.0)) < 4
    assert result.entry()["active_units"] == 0


def test_data_far_apart_carry_all_of_log_n():
    x = torch.zeros(2, 4).double()
    x[1, 0] = 1000.0
    result = evaluate(linear_guide(), x, particles=5)
    assert torch.allclose(result.mutual_information, torch.tensor(math.log(2)).double())
    assert "ceiling, log n = 0.69" in result.warnings[0]


def test_dead_units_are_not_active_and_the_kl_of_each_is_in_closed_form():
    x = normal_data(400)
    entry = evaluate(linear_guide(), x).entry()
    means = GAIN * x[:, 0] + OFFSET
    kl = 0.5 * (means.square() + SCALE**2 - 1 - 2 * math.log(SCALE))
    assert (entry["active_units"], entry["units"], entry["active_units_per_site"]) == (1, 2, {"z": 1})
    assert entry["kl_per_dimension"] == pytest.approx({"z[0]": kl.mean().item(), "z[1]": 0.0})
    assert entry["variance_of_mean"] == pytest.approx({"z[0]": means.var().item(), "z[1]": 0.0})


@pytest.mark.parametrize("options", [{"posterior": "full_covariance"}, {"prior": "mixture", "components": 3}])
def test_a_site_that_does_not_factorise_has_one_kl_by_draws(options):
    torch.manual_seed(0)
    pair = pv.VAE((4,), 2, hidden=(5,), likelihood="gaussian", **options).double()
    x = normal_data(50)
    result = evaluate(pair, x, particles=800)
    with torch.no_grad():
        terms = pv.log_terms(pair, {"x": x}, 800)
    difference = result.rate - (terms.log_guide - terms.log_prior).mean(0)
    assert list(result.entry()["kl_per_dimension"]) == ["z"]
    assert abs(z_scores(difference, 0.0)) < 4 and difference.abs().max() < 0.5


def test_a_full_covariance_guide_gives_the_exact_rate():
    torch.manual_seed(1)
    pair = pv.VAE((4,), 2, hidden=(5,), likelihood="gaussian", posterior="full_covariance").double()
    x = normal_data(50)
    with torch.no_grad():
        q = pair.posterior(pair.encoder(x))
        exact = torch.distributions.kl_divergence(q, MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double()))
    result = evaluate(pair, x, particles=2000)
    assert (result.rate - exact).abs().mean() < 0.05


@pytest.mark.parametrize("bottom_up", [True, False])
def test_sites_of_a_hierarchy_are_counted_one_by_one(bottom_up):
    """The second site's mean is averaged over the first, and the noise of that average is taken off its variance."""
    pair = TwoLayers(bottom_up).match()
    picture = normal_data(300)
    result = evaluate(pair, {"picture": picture}, particles=6)
    with torch.no_grad():
        lower = picture @ pair.lower_gain.T
        upper = lower @ pair.upper_gain.T
        if not bottom_up:
            upper = picture @ pair.top_gain.T
            lower = lower + upper @ pair.down_gain.T
    entry = result.entry()
    for site, means in {"lower": lower, "upper": upper}.items():
        for index, variance in enumerate(means.var(0).tolist()):
            assert entry["variance_of_mean"][f"{site}[{index}]"] == pytest.approx(variance, rel=0.15, abs=0.01)
    assert entry["units"] == 5
    with torch.no_grad():
        terms = elbo_terms(pair, {"picture": picture}, 400)
    assert sum(entry["kl_per_dimension"].values()) == pytest.approx(result.rate.mean().item())
    assert abs(z_scores(result.rate - terms.kl.mean(0), 0.0)) < 4


def test_the_aggregate_posterior_is_the_mean_over_data(monkeypatch):
    pair = TwoLayers().match()
    picture = normal_data(30)
    values = {"lower": normal_data(7, seed=1)[:, :3], "upper": normal_data(7, seed=2)[:, :2]}
    lower_scale, upper_scale = pair.log_scales.detach().exp()
    with torch.no_grad():
        of_lower = Normal(picture @ pair.lower_gain.T, lower_scale).log_prob(values["lower"].unsqueeze(1)).sum(-1)
        of_upper = Normal(values["lower"] @ pair.upper_gain.T, upper_scale).log_prob(values["upper"]).sum(-1)
        expected = of_lower + of_upper.unsqueeze(1)
        assert torch.allclose(log_guide_at(pair, {"picture": picture}, values), expected)
        halves = [{"picture": picture[:12]}, {"picture": picture[12:]}]
        whole = expected.logsumexp(1) - math.log(30)
        assert torch.allclose(log_aggregate(pair, halves, values), whole)
        monkeypatch.setitem(chunks.CHUNK_BYTES, "cpu", 1)
        assert torch.allclose(log_aggregate(pair, halves, values), whole), "one point at a time"


def test_figures_follow_from_the_seed_and_are_for_every_datum():
    x = normal_data(230)
    first, again = (evaluate(linear_guide(), x, particles=2, points=300) for _ in range(2))
    other = pv.evaluate(linear_guide(), x, Latent(), particles=2, seed=1, progress=False)
    for name in ("rate", "mutual_information", "marginal_kl"):
        assert getattr(first, name).shape == (230,)
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert not torch.equal(first.mutual_information, other.mutual_information)


def test_progress_is_told_of_every_sample():
    told = []
    pair = linear_guide()
    Latent()(pair, Blocks(pair, pv.data.as_split(normal_data(230))), 4, told.append)
    assert sum(told) == 230 * 4


# --- traversals ---------------------------------------------------------------------------------------------


def test_a_traversal_moves_one_unit_and_leaves_the_others_at_the_guides_mean():
    pair, x = linear_guide(), normal_data(1)
    values = torch.linspace(-2, 2, 5).double()
    with torch.no_grad():
        row = center(_row(pair, {"x": x}, Unit("z", 1, values)))
        mean = GAIN * x[0, 0] + OFFSET
        expected = pair.decoder(torch.stack([mean.expand(5), values], 1)).squeeze(1)
    assert torch.allclose(row, expected)


def test_sites_below_the_moved_one_follow_it():
    pair, picture = TwoLayers().match(), normal_data(1)
    values = torch.linspace(-2, 2, 5).double()
    with torch.no_grad():
        row = center(_row(pair, {"picture": picture}, Unit("upper", 0, values)))
        lower = picture @ pair.lower_gain.T
    change = torch.zeros(5, 2).double()
    change[:, 0] = values - values[0]
    assert torch.allclose(row - row[0], change @ pair.v.detach().T @ pair.w.detach().T)
    moved_lower = center(_row(pair, {"picture": picture}, Unit("lower", 1, values)))
    expected = lower.expand(5, 3).clone()
    expected[:, 1] = values
    assert torch.allclose(moved_lower, expected @ pair.w.detach().T)


@pytest.mark.parametrize("shape", [(4,), (1, 4, 4), (3, 4, 4)])
def test_the_figure_has_a_row_for_each_of_the_most_active_units(shape):
    torch.manual_seed(0)
    pair = pv.VAE(shape, latent_dim=12, hidden=(8,))
    x = torch.bernoulli(torch.full((30, *shape), 0.5))
    result = evaluate(pair, x)
    figure = result.estimate.figures["traversals"]
    assert isinstance(figure, Figure)
    variance = result.entry()["variance_of_mean"]
    ranked = sorted(variance, key=variance.get, reverse=True)[:10]
    axes = figure.axes
    shown = [a.get_ylabel() for a in axes] if len(shape) == 1 else [t.get_text() for t in axes[0].get_yticklabels()]
    assert shown == ranked


class Kinds(nn.Module):
    """A discrete latent only."""

    def __init__(self):
        super().__init__()
        self.logits, self.centres = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.tensor([-4.0, 0.0, 4.0]))

    def model(self, reading: Tensor) -> None:
        with pyro.plate("rows", len(reading), dim=-1):
            kind = pyro.sample("kind", dist.Categorical(logits=self.logits))
            pyro.sample("seen", dist.Normal(self.centres[kind], 1.0), obs=reading)

    def guide(self, reading: Tensor) -> None:
        with pyro.plate("rows", len(reading), dim=-1):
            distance = (reading.unsqueeze(-1) - self.centres).square()
            pyro.sample("kind", dist.Categorical(logits=-0.5 * distance))


def test_discrete_latents_have_information_and_no_traversal():
    draw = torch.Generator().manual_seed(0)
    reading = torch.tensor([-4.0, 0.0, 4.0]).repeat(60) + torch.randn(180, generator=draw)
    result = evaluate(Kinds(), {"reading": reading}, particles=20)
    assert result.estimate.figures == {}
    assert list(result.entry()["kl_per_dimension"]) == ["kind[0]"], "a scalar site has one unit"
    with torch.no_grad():
        posterior = torch.softmax(-0.5 * (reading.unsqueeze(1) - Kinds().centres).square(), 1)
    mixture = posterior.mean(0)
    information = (posterior * (posterior.log() - mixture.log())).nan_to_num().sum(1)
    assert abs(z_scores(result.mutual_information - information, 0.0)) < 4
    assert result.rate.mean().item() == pytest.approx(
        (posterior * (posterior * 3).log()).nan_to_num().sum(1).mean().item(), rel=1e-4
    )


def test_there_is_a_point_for_each_datum():
    with pytest.raises(RunError, match="points must be at least 1"):
        Latent(points=0)
