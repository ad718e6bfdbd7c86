"""Annealed importance sampling against exact marginals: in float64, from both starts, from below and from above."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from references import (
    Conditional,
    TwoLayers,
    data_with_axes,
    gaussian_log_density,
    linear_vae,
    ppca_optimum,
    z_scores,
)
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.errors import ContractError, RunError, UnknownName
from pyro_vae.evaluation import chunks
from pyro_vae.evaluation.ais.ais import AIS, simulated
from pyro_vae.evaluation.blocks import Blocks

STARTS = ["guide", "prior"]
N = 60


def turned_vae(angle: float = 0.6) -> nn.Module:
    """A linear VAE whose posterior is correlated, so that no diagonal guide is exact."""
    optimum = ppca_optimum(data_with_axes(200, 5), 3).rotated(angle)
    return linear_vae(optimum._replace(variance=torch.tensor(3.0).double()))


def exact(pair: nn.Module, fields: dict[str, Tensor]) -> Tensor:
    """log p(x) of the linear-Gaussian pairs."""
    with torch.no_grad():
        if isinstance(pair, Conditional):
            return pair.log_marginal(**fields)
        if isinstance(pair, TwoLayers):
            return gaussian_log_density(fields["picture"], torch.zeros(4).double(), pair.covariance())
        loadings, sigma = pair.decoder.out.weight, pair.likelihood.log_sigma.exp()
        covariance = loadings @ loadings.T + sigma**2 * torch.eye(len(loadings)).double()
        return gaussian_log_density(fields["x"], pair.decoder.out.bias, covariance)


def linear_gaussian(kind: str, n: int = N) -> tuple[nn.Module, dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(5)
    normal = {size: torch.randn(n, size, dtype=torch.float64, generator=draw) for size in (4, 3)}
    if kind == "vae":
        return turned_vae(), {"x": data_with_axes(200, 5)[:n]}
    if kind == "conditional":
        return Conditional().match(), {"target": normal[4], "context": normal[3]}
    return TwoLayers(bottom_up=kind == "bottom up").match(), {"picture": normal[4]}


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("kind", ["vae", "bottom up", "top down", "conditional"])
def test_lands_on_the_exact_value(kind, start):
    pair, fields = linear_gaussian(kind)
    ais = AIS(distributions=60, chains=48, leapfrog=3, start=start)
    result = pv.evaluate(pair, fields, ais, progress=False)
    error = result.log_likelihood - exact(pair, fields)
    assert abs(error.mean()) < 0.05
    assert abs(error.mean()) < 4 * result.entry()["monte_carlo_error"]
    assert error.abs().max() < 6 * result.monte_carlo_error.max()
    assert abs(result.acceptance.mean() - 0.65) < 0.1
    assert not result.warnings


@pytest.mark.parametrize("start", STARTS)
def test_exp_of_the_estimate_is_unbiased_from_below_and_from_above(start):
    """Also with far too few distributions, where its logarithm is clearly low or high (z-scores, seed fixed).

    The likelihood is weak and the guide no wider than the posterior, so that w and 1/w both have a variance.
    """
    pair, fields = linear_gaussian("conditional", 1500)
    pair.w.data *= 0.4
    pair.match(widen=1.0).gain.data += 0.3
    ais = AIS(distributions=3, leapfrog=1, start=start, bidirectional=True)
    result = pv.evaluate(pair, fields, ais, particles=2, progress=False)
    below = result.log_likelihood - exact(pair, fields)
    assert abs(z_scores(below.exp(), 1.0)) < 4
    assert z_scores(below, 0.0) < -5

    drawn = drawn_in_place_of(fields, pair)
    lower, upper = (getattr(result, name) - exact(pair, drawn) for name in ("simulated_lower", "simulated_upper"))
    assert abs(z_scores(lower.exp(), 1.0)) < 4
    assert abs(z_scores((-upper).exp(), 1.0)) < 4
    assert z_scores(lower, 0.0) < -5 and z_scores(upper, 0.0) > 5


def drawn_in_place_of(fields: dict[str, Tensor], pair: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """The data that a bidirectional evaluation draws in place of the fields."""
    drawn = [simulated(block)[0].batch() for block in Blocks(pair, pv.data.as_split(fields), seed)]
    return {name: torch.cat([batch[name] for batch in drawn]) for name in fields}


@pytest.mark.parametrize("kind", ["bottom up", "conditional"])
def test_forward_and_reverse_chains_bracket_the_exact_value(kind):
    pair, fields = linear_gaussian(kind)
    ais = AIS(distributions=12, leapfrog=2, start="prior", bidirectional=True)
    result = pv.evaluate(pair, fields, ais, particles=4, progress=False)
    truth = exact(pair, drawn_in_place_of(fields, pair)).mean().item()
    found = result.entry()["bidirectional"]
    assert found["on"] == "simulated"
    assert found["lower"] < truth < found["upper"]
    assert found["gap"] == pytest.approx(found["upper"] - found["lower"])
    assert 0.05 < found["gap"] < 1.0


def test_simulated_data_follow_the_model_and_keep_what_it_conditions_on():
    pair, fields = linear_gaussian("conditional", 2000)
    drawn = drawn_in_place_of(fields, pair)
    assert torch.equal(drawn["context"], fields["context"])
    centred = drawn["target"] - fields["context"] @ (pair.w @ pair.c + pair.d).T.detach()
    covariance = (pair.w @ pair.w.T + 0.36 * torch.eye(4)).detach()
    assert torch.allclose(torch.cov(centred.T), covariance, atol=0.12)


@pytest.mark.parametrize("distributions", [1, 7])
def test_an_exact_guide_gives_exact_weights(distributions):
    x = data_with_axes(30, 5)
    pair = linear_vae(ppca_optimum(x, 3))
    result = pv.evaluate(pair, x, AIS(distributions=distributions, leapfrog=2), particles=5, progress=False)
    assert torch.allclose(result.log_likelihood, exact(pair, {"x": x}), atol=1e-9)
    assert torch.allclose(result.ess, torch.tensor(5.0).double())


class Bounded(nn.Module):
    """Latents that are positive, within bounds that depend on the datum, and on a simplex; counts are Poisson."""

    def __init__(self, site: str):
        super().__init__()
        self.site, self.unused = site, nn.Parameter(torch.zeros(()))
        self.priors = {
            "positive": lambda bound: dist.Gamma(2.0, bound),
            "interval": lambda bound: dist.Uniform(torch.zeros_like(bound), bound),
            "simplex": lambda bound: dist.Dirichlet(torch.stack([bound, torch.full_like(bound, 2.0)], -1)),
        }
        self.guides = {
            "positive": lambda bound: dist.LogNormal(torch.zeros_like(bound), 0.8),
            "interval": lambda bound: dist.Uniform(torch.zeros_like(bound), bound),
            "simplex": lambda bound: dist.Dirichlet(torch.full((*bound.shape, 2), 1.5).to(bound)),
        }

    def rate(self, latent: Tensor) -> Tensor:
        return 4 * latent[..., 0] if self.site == "simplex" else latent

    def model(self, count: Tensor, bound: Tensor) -> None:
        with pyro.plate("rows", len(count), dim=-1):
            latent = pyro.sample(self.site, self.priors[self.site](bound))
            pyro.sample("count", dist.Poisson(0.1 + self.rate(latent)), obs=count)

    def guide(self, count: Tensor, bound: Tensor) -> None:
        with pyro.plate("rows", len(count), dim=-1):
            pyro.sample(self.site, self.guides[self.site](bound))

    def quadrature(self, count: Tensor, bound: Tensor) -> Tensor:
        """log of the integral of p(count, latent), by the trapezoidal rule."""
        unit = torch.linspace(1e-6, 1 - 1e-6, 20_001, dtype=torch.float64).unsqueeze(1)
        top = {"positive": torch.full_like(bound, 40.0), "interval": bound, "simplex": torch.ones_like(bound)}[
            self.site
        ]
        nodes = unit * top
        latent = torch.stack([nodes, 1 - nodes], -1) if self.site == "simplex" else nodes
        prior = self.priors[self.site](bound).log_prob(latent)
        joint = prior + dist.Poisson(0.1 + self.rate(latent)).log_prob(count)
        return torch.trapezoid(joint.exp(), nodes, dim=0).log()


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("site", ["positive", "interval", "simplex"])
def test_bounded_latents_agree_with_quadrature(site, start):
    pair = Bounded(site)
    fields = {"count": torch.tensor([0.0, 1.0, 2.0, 5.0] * 6).double()}
    fields["bound"] = torch.tensor([0.5, 1.0, 3.0] * 8).double()
    ais = AIS(distributions=40, chains=64, leapfrog=3, start=start)
    result = pv.evaluate(pair, fields, ais, progress=False)
    error = result.log_likelihood - pair.quadrature(**fields)
    assert abs(error.mean()) < 0.05
    assert error.abs().max() < 6 * result.monte_carlo_error.max()


def test_a_mixture_prior_agrees_with_quadrature():
    torch.manual_seed(3)
    pair = pv.VAE((4,), latent_dim=1, hidden=(5,), prior="mixture", components=3).double()
    x = torch.bernoulli(torch.full((20, 4), 0.5)).double()
    z = torch.linspace(-12, 12, 4001, dtype=torch.float64).reshape(-1, 1, 1)
    with torch.no_grad():
        joint = pair.prior().log_prob(z) + pair.likelihood(pair.decoder(z)).log_prob(x)
        truth = torch.trapezoid(joint.exp(), z[:, 0, 0], dim=0).log()
    result = pv.evaluate(pair, x, AIS(distributions=30, chains=64, leapfrog=3), progress=False)
    assert abs((result.log_likelihood - truth).mean()) < 0.05


def test_results_depend_on_the_seed_and_not_on_the_chunks(monkeypatch):
    pair = turned_vae()
    x = data_with_axes(120, 5)

    def evaluated(data: Tensor, seed: int = 0) -> Tensor:
        ais = AIS(distributions=4, leapfrog=1, bidirectional=True)
        result = pv.evaluate(pair, data, ais, particles=3, seed=seed, progress=False)
        return torch.stack([result.log_likelihood, result.simulated_lower, result.simulated_upper])

    whole = evaluated(x)
    assert torch.allclose(evaluated(x[:110])[:, :100], whole[:, :100], atol=1e-8)
    assert (evaluated(x, seed=1) - whole).abs().min() > 1e-6
    row = 5 * 8 * chunks.TENSORS_PER_ROW
    monkeypatch.setitem(chunks.CHUNK_BYTES, "cpu", 3 * 60 * row)
    assert torch.allclose(evaluated(x), whole, atol=1e-8)


def test_chains_are_the_particles_up_to_sixteen_unless_they_are_given():
    pair, x = turned_vae(), data_with_axes(3, 5)

    def chains(**options) -> int:
        particles = options.pop("particles", 1)
        return pv.evaluate(pair, x, "ais", particles, progress=False, distributions=2, leapfrog=1, **options).entry()[
            "chains"
        ]

    assert [chains(particles=5), chains(particles=5000), chains(particles=5000, chains=3)] == [5, 16, 3]


def test_the_pair_is_left_without_gradients_and_progress_is_told_of_every_sample():
    pair, fields = linear_gaussian("vae", 7)
    told = []
    split = pv.data.as_split(fields)
    AIS(distributions=5, leapfrog=1, bidirectional=True)(pair, Blocks(pair, split), 4, told.append)
    assert sum(told) == 7 * 4
    assert all(parameter.grad is None for parameter in pair.parameters())


def test_warnings_tell_of_single_chains_and_of_weights_that_vary():
    pair, fields = linear_gaussian("vae")
    single = pv.evaluate(pair, fields, AIS(distributions=3, leapfrog=1), particles=1, progress=False)
    assert "single chain" in single.warnings[0] and single.monte_carlo_error.isnan().all()
    pair.posterior.heads.bias.data[:3] += 3
    coarse = pv.evaluate(
        pair, fields, AIS(distributions=3, leapfrog=1, bidirectional=True), particles=16, progress=False
    )
    assert any("quarter of the chains" in warning for warning in coarse.warnings)
    assert any("simulated data" in warning for warning in coarse.warnings)


class Awkward(nn.Module):
    """A pair with one fault, which its parts bring in."""

    def __init__(self, prior=None, guide=None, observe=None):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.prior = prior or (lambda: dist.Normal(0.0, 1.0))
        self.proposal = guide or (lambda: pyro.sample("code", dist.Normal(0.0, self.weight)))
        self.observe = observe or (lambda reading: reading)

    def model(self, reading: Tensor) -> None:
        with pyro.plate("rows", len(reading), dim=-1):
            code = pyro.sample("code", self.prior())
            pyro.sample("seen", dist.Normal(code, 1.0), obs=self.observe(reading))

    def guide(self, reading: Tensor) -> None:
        with pyro.plate("rows", len(reading), dim=-1):
            self.proposal()


def prior_within_another_latent() -> nn.Module:
    class Nested(Awkward):
        def model(self, reading: Tensor) -> None:
            with pyro.plate("rows", len(reading), dim=-1):
                top = pyro.sample("top", dist.Gamma(2.0, 2.0))
                code = pyro.sample("code", dist.Uniform(torch.zeros_like(top), top))
                pyro.sample("seen", dist.Normal(code, 1.0), obs=reading)

        def guide(self, reading: Tensor) -> None:
            with pyro.plate("rows", len(reading), dim=-1):
                top = pyro.sample("top", dist.Gamma(2.0, 2.0))
                pyro.sample("code", dist.Uniform(torch.zeros_like(top), top))

    return Nested()


def discrete() -> nn.Module:
    return Awkward(lambda: dist.Bernoulli(0.5), lambda: pyro.sample("code", dist.Bernoulli(0.5)))


def with_auxiliary_site() -> None:
    pyro.sample("helper", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
    pyro.sample("code", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        (discrete(), "'code' is discrete"),
        (prior_within_another_latent(), "support of site 'code' depends on another latent"),
        (Awkward(guide=lambda: pyro.sample("code", dist.Delta(torch.zeros(())))), "'code'; use start=prior"),
        (Awkward(guide=with_auxiliary_site), "'helper'; use start=prior"),
        (Awkward(prior=lambda: dist.Gamma(2.0, 2.0)), "site 'code': the prior has no density where the guide"),
        (Awkward(observe=lambda reading: 2 * reading), "'seen' observes no field"),
        (Awkward(guide=lambda: pyro.sample("code", dist.Gamma(2.0, 2.0))), "site 'code': the guide cannot draw all"),
    ],
)
def test_what_cannot_be_annealed_is_named(pair, words):
    reading = torch.zeros(4, dtype=torch.float64)
    with pytest.raises(ContractError, match=words):
        pv.evaluate(pair, {"reading": reading}, AIS(distributions=2, leapfrog=1, bidirectional=True), progress=False)


def test_options_are_checked():
    with pytest.raises(UnknownName, match="prior, laplace, guide"):
        AIS(start="posterior")
    for option in ("distributions", "chains", "leapfrog"):
        with pytest.raises(RunError, match=f"{option} must be at least 1"):
            AIS(**{option: 0})


def test_weights_of_zero_name_their_datum():
    """The start reaches only codes where the second datum has no density."""
    pair = Awkward(observe=lambda reading: torch.where(reading > 0, torch.inf, reading))
    with pytest.raises(ContractError, match="datum 1"):
        pv.evaluate(pair, {"reading": torch.tensor([0.0, 1.0])}, AIS(distributions=2), progress=False)
