"""Free bits by hand: what the floor adds to the loss, which gradients it stops, and where there can be none."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs import bits, same_state, small_vae
from references import Clusters, ScalarMixture, SharedNoise, TwoLayers, exact_gradients, gradient_draws, z_scores
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.command_line import main as cli
from pyro_vae.errors import ContractError, RunError, UnknownName
from pyro_vae.objectives.elbo import TraceELBO, TraceMeanFieldELBO
from pyro_vae.pair.particles import run_guide, run_model
from pyro_vae.pair.sites import values_of
from pyro_vae.pair.terms import elbo_terms

BOTH = [TraceELBO, TraceMeanFieldELBO]
QUIET = {"progress": False, "batch_size": 16, "device": "cpu"}


class TwoSites(nn.Module):
    """wide ~ N(0, I_2), single ~ N(0, 1), reading ~ N(sum of all, 1), with a normal of its own for each datum."""

    def __init__(self, n: int = 5):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        spread = torch.tensor([0.1, 2.0, 0.4], dtype=torch.float64)
        self.loc = nn.Parameter(spread * torch.randn(n, 3, dtype=torch.float64, generator=generator))
        self.log_scale = nn.Parameter(0.1 * torch.randn(n, 3, dtype=torch.float64, generator=generator))

    def model(self, reading: Tensor) -> None:
        with pyro.plate("data", len(reading), dim=-1):
            wide = pyro.sample("wide", dist.Normal(reading.new_zeros(2), 1.0).to_event(1))
            single = pyro.sample("single", dist.Normal(reading.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(wide.sum(-1) + single, 1.0), obs=reading)

    def guide(self, reading: Tensor) -> None:
        scale = self.log_scale.exp()
        with pyro.plate("data", len(reading), dim=-1):
            pyro.sample("wide", dist.Normal(self.loc[:, :2], scale[:, :2]).to_event(1))
            pyro.sample("single", dist.Normal(self.loc[:, 2], scale[:, 2]))

    def kl(self) -> Tensor:
        """KL(N(m, s^2) || N(0, 1)) of each datum and dimension, those of `wide` first."""
        return 0.5 * (self.loc.square() + (2 * self.log_scale).exp() - 1) - self.log_scale


def readings(n: int = 5) -> dict[str, Tensor]:
    return {"reading": torch.linspace(-2, 2, n, dtype=torch.float64)}


def loss_and_gradient(objective, pair: TwoSites, beta: float) -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)
    loss = objective(pair, readings(), 4, beta)
    return loss.detach(), torch.autograd.grad(loss, pair.loc)[0]


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("per, groups", [("dimension", [[0], [1], [2]]), ("site", [[0, 1], [2]])])
def test_the_loss_is_that_of_the_floored_means(kind, per, groups):
    pair, floor, beta = TwoSites(), 0.3, 0.5
    means = torch.stack([pair.kl()[:, group].sum(1).mean() for group in groups])
    assert (means < floor).any() and (means > floor).any()
    free, _ = loss_and_gradient(kind().with_free_bits(floor, per), pair, beta)
    plain, _ = loss_and_gradient(TraceMeanFieldELBO(), pair, beta)
    assert torch.allclose(free - plain, beta * (means.clamp(min=floor) - means).sum())


@pytest.mark.parametrize("kind", BOTH)
def test_below_the_floor_the_kl_has_no_gradient_and_above_it_its_own(kind):
    pair = TwoSites()
    below = pair.kl().mean(0) < 0.3
    assert below.tolist() == [True, False, True]
    _, gradient = loss_and_gradient(kind().with_free_bits(0.3, "dimension"), pair, 1.0)
    _, without_kl = loss_and_gradient(TraceMeanFieldELBO(), pair, 0.0)
    _, plain = loss_and_gradient(TraceMeanFieldELBO(), pair, 1.0)
    assert torch.allclose(gradient, torch.where(below, without_kl, plain))
    assert torch.allclose((plain - without_kl)[:, below], pair.loc[:, below] / 5)


def test_no_floor_is_reached_where_it_is_tiny():
    pair, batch = TwoLayers(), {"picture": torch.randn(6, 4, dtype=torch.float64)}
    losses = []
    for objective in (TraceMeanFieldELBO(), TraceMeanFieldELBO().with_free_bits(1e-9, "site")):
        torch.manual_seed(1)
        losses.append(objective(pair, batch, 200))
    assert torch.allclose(*losses)


@pytest.mark.parametrize("per", ["dimension", "site"])
def test_a_hierarchy_that_is_drawn_bottom_up_is_floored_by_its_draws(per):
    """`upper` comes before `lower` in the model and after it in the guide, so `lower` has no closed form."""
    pair, batch = TwoLayers(bottom_up=True), {"picture": torch.randn(6, 4, dtype=torch.float64)}
    torch.manual_seed(1)
    free = TraceMeanFieldELBO().with_free_bits(0.8, per)(pair, batch, 3)
    torch.manual_seed(1)
    guide = run_guide(pair, batch, 3)
    model = run_model(pair, batch, values_of(guide), 3)
    q, p = (sites["lower"].fn.base_dist for sites in (guide, model))
    lower = q.log_prob(guide["lower"].value) - p.log_prob(guide["lower"].value)
    upper = torch.distributions.kl_divergence(guide["upper"].fn.base_dist, model["upper"].fn.base_dist)
    kl = 0.0
    for part in (lower, upper):
        means = part.mean((0, 1))
        kl = kl + (means if per == "dimension" else means.sum()).clamp(min=0.8).sum()
    assert torch.allclose(free, kl - model["seen"].log_prob().mean())


@pytest.mark.parametrize("particles", [1, 3])
def test_the_dimensions_add_up_to_the_kl_of_the_sites(particles):
    """Also under a mask, a scale and a prior that is broadcast."""
    pair = Masked()
    batch = {"x": torch.randn(4, 3), "seen": torch.tensor([1, 0, 1, 1]).bool()}
    terms = []
    for by_dimension in (False, True):
        torch.manual_seed(0)
        terms.append(elbo_terms(pair, batch, particles, as_loss=True, by_dimension=by_dimension))
    whole, parts = terms
    assert parts.kl_parts["z"].shape == (particles, 4, 3)
    assert torch.allclose(whole.kl, parts.kl) and (whole.kl[:, 1] == 0).all() and (whole.kl[:, 0] > 0).all()


class Masked(nn.Module):
    """z of three dimensions, which counts where the datum was seen, and half."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(3, 3)

    def model(self, x: Tensor, seen: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            with pyro.poutine.scale(scale=0.5), pyro.poutine.mask(mask=seen):
                z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor, seen: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1), pyro.poutine.scale(scale=0.5), pyro.poutine.mask(mask=seen):
            pyro.sample("z", dist.Normal(self.encoder(x), 1.0).to_event(1))


@pytest.mark.parametrize("kind", [Clusters, ScalarMixture])
def test_score_functions_stay_unbiased_above_the_floor(kind):
    torch.manual_seed(0)
    objective = TraceELBO().with_free_bits(1e-9, "site")
    draws = gradient_draws(objective, kind(40_000), 0.7)
    for name, expected in exact_gradients(kind, 0.7, alpha=1.0).items():
        closed_form = draws[name].std(0) < 1e-12
        off = torch.where(closed_form, draws[name][0] - expected, 0.0)
        assert off.abs().max() < 1e-9 and z_scores(draws[name], expected)[~closed_form].abs().le(4).all(), name


@pytest.mark.parametrize("objective", ["trace_elbo", "trace_mean_field_elbo"])
def test_the_compiled_engine_takes_free_bits(objective, graphs):
    runs = [
        pv.train(small_vae(), bits(), epochs=2, objective=objective, free_bits=0.05, engine=engine, **QUIET)
        for engine in ("eager", "compiled")
    ]
    assert [run.engine for run in runs] == ["eager", "compiled"]
    for eager, compiled in zip(*(run.history for run in runs), strict=True):
        assert compiled["loss"] == pytest.approx(eager["loss"], rel=1e-5)
        assert compiled["valid_elbo"] == pytest.approx(eager["valid_elbo"], rel=1e-4)


def test_the_validation_elbo_stays_the_true_one():
    floored, plain = (pv.train(small_vae(), bits(), 1, lr=1e-30, **QUIET, **o) for o in ({"free_bits": 9.0}, {}))
    (with_floor,), (without,) = floored.history, plain.history
    assert with_floor["loss"] > without["loss"] + 17
    assert with_floor["valid_elbo"] == without["valid_elbo"]


def test_a_run_with_free_bits_is_resumed_exactly_and_not_with_others(tmp_path):
    options = {"free_bits": 0.2, "free_bits_per": "site", **QUIET}
    whole = pv.train(small_vae(), bits(), epochs=4, **options)
    pv.train(small_vae(), bits(), epochs=2, out=tmp_path, **options)
    with pytest.raises(RunError, match="free_bits was 0.2"):
        pv.train(small_vae(), bits(), epochs=4, out=tmp_path, resume=True, **{**options, "free_bits": 0.1})
    resumed = pv.train(small_vae(seed=1), bits(), epochs=4, out=tmp_path, resume=True, **options)
    assert same_state(whole.pair, resumed.pair)


@pytest.mark.parametrize("objective", ["iwae", "renyi", "trace_graph_elbo", lambda pair, batch, *_: 0.0])
def test_an_objective_without_a_kl_of_its_own_refuses_them(objective):
    with pytest.raises(RunError, match="takes no free bits.*use trace_elbo or trace_mean_field_elbo"):
        pv.train(small_vae(), bits(), objective=objective, free_bits=0.1, **QUIET)


def test_the_command_line_takes_and_refuses_them_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train = ["train", "--epochs", "1", "--hidden", "8", "--quiet", "--device", "cpu", "--out", "run"]
    assert cli.main([*train, "--free_bits", "0.1", "--objective", "iwae"]) == 2
    assert cli.main([*train, "--free_bits", "-1"]) == 2
    assert cli.main([*train, "--free_bits", "0.1", "--free_bits_per", "datum"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and "takes no free bits" in lines[0] and "must not be negative" in lines[1]
    assert lines[2].endswith("known: dimension, site") or lines[2].endswith("known: site, dimension")
    assert cli.main([*train, "--free_bits", "0.1", "--free_bits_per", "site", "--print_config"]) == 0
    assert "  free_bits: 0.1\n  free_bits_per: site\n" in capsys.readouterr().out


def test_dimensions_that_depend_on_each_other_are_refused_and_their_site_is_not():
    pair, batch = small_vae(posterior="full_covariance"), {"x": bits(6)}
    with pytest.raises(ContractError, match="dimensions of site 'z' depend .* free_bits_per='site'"):
        TraceMeanFieldELBO().with_free_bits(0.1, "dimension")(pair, batch)
    assert TraceMeanFieldELBO().with_free_bits(0.1, "site")(pair, batch).isfinite()


def test_an_unknown_unit_lists_those_that_there_are():
    with pytest.raises(UnknownName, match="dimension"):
        TraceELBO().with_free_bits(0.1, "batch")
    with pytest.raises(UnknownName, match="unit of free bits 'datum'"):
        pv.train(small_vae(), bits(), free_bits_per="datum", **QUIET)


def test_a_kl_that_is_no_number_is_not_hidden_by_the_floor():
    pair = TwoSites()
    with torch.no_grad():
        pair.loc[0, 0] = torch.nan
    assert TraceMeanFieldELBO().with_free_bits(5.0, "dimension")(pair, readings()).isnan()


@pytest.mark.parametrize("kind", BOTH)
def test_latents_outside_the_plate_count_as_they_do_without(kind):
    """Their particles run one after another, and the parts are put together; the local `code` alone has a floor."""
    pair, batch = SharedNoise(), {"reading": torch.randn(5, dtype=torch.float64)}
    losses = []
    for objective in (TraceMeanFieldELBO(), kind().with_free_bits(0.7, "site")):
        torch.manual_seed(1)
        losses.append(objective(pair, batch, 3, 1.0, 50))
    terms = elbo_terms(pair, batch, 3, as_loss=True, allow_shared=True)
    assert terms.shared is not None and list(terms.kl_parts) == ["code"] and terms.kl_parts["code"].shape == (3, 5)
    assert terms.kl.mean() < 0.7 and torch.allclose(losses[1] - losses[0], 0.7 - terms.kl.mean())


def test_what_follows_an_auxiliary_site_is_one_part():
    pair, batch = Shifted(), {"x": torch.randn(4, 1)}
    terms = elbo_terms(pair, batch, 2, as_loss=True)
    (part,) = terms.kl_parts.values()
    assert torch.allclose(part, terms.kl)
    with pytest.raises(ContractError, match="free_bits_per='site'"):
        elbo_terms(pair, batch, as_loss=True, by_dimension=True)


class Shifted(nn.Module):
    """The guide gives `z` as a function of an auxiliary draw."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(0.3))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            u = pyro.sample("u", dist.Normal(x.new_zeros(1), 1.0).to_event(1), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(u + self.shift, torch.zeros(u.shape[:-1]), event_dim=1))
