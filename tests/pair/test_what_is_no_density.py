"""What is no density is never called one: such a pair trains as a loss, and evaluators of densities name the site.

Beside each stands the nearest pair that does have a density, held against its exact value.
"""

import math
from contextlib import contextmanager, nullcontext

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import normal_log_prob, reasons_to_doubt
from pyro import poutine
from torch import Tensor, nn
from torch.distributions import biject_to, constraints

import pyro_vae as pv
from pyro_vae.errors import ContractError, DataError, UserError

N = 40
DTYPE = torch.float64


class Written(nn.Module):
    """A pair put together from two functions of (self, x), with an encoder whose draws cover the posterior of
    z ~ N(0, 1), x ~ N(z, 1)."""

    def __init__(self, model, guide):
        super().__init__()
        self._model, self._guide = model, guide
        self.encoder = nn.Linear(1, 1).to(DTYPE)
        self.one = nn.Parameter(torch.ones((), dtype=DTYPE), requires_grad=False)
        with torch.no_grad():
            self.encoder.weight.fill_(0.45)
            self.encoder.bias.fill_(0.02)

    def loc(self, x: Tensor) -> Tensor:
        return self.encoder(x.unsqueeze(-1)).squeeze(-1)

    def model(self, x):
        return self._model(self, x)

    def guide(self, x):
        return self._guide(self, x)


def plate(x: Tensor, **arguments) -> pyro.plate:
    return pyro.plate("data", len(x), dim=-1, **arguments)


def readings(n: int = N) -> Tensor:
    """Drawn from the model."""
    return torch.randn(n, generator=torch.Generator().manual_seed(3), dtype=DTYPE) * math.sqrt(2)


def exact(x: Tensor) -> Tensor:
    """log p(x) of z ~ N(0, 1), x ~ N(z, 1)."""
    return normal_log_prob(x, 0.0, math.sqrt(2))


def normal_model(self, x):
    with plate(x):
        z = pyro.sample("z", dist.Normal(0 * self.one, self.one))
        pyro.sample("x", dist.Normal(z, self.one), obs=x)


def normal_guide(self, x):
    with plate(x):
        pyro.sample("z", dist.Normal(self.loc(x), 0.85 * self.one))


def importance(pair, data, particles=200, **options):
    return pv.evaluate(pair, data, evaluator="importance", particles=particles, progress=False, **options)


def test_the_pair_itself_is_right():
    x = readings()
    assert not reasons_to_doubt(Written(normal_model, normal_guide), {"x": x}, exact(x), floor=1e-4)


# --- what trains as a loss ----------------------------------------------------------------------------------


def delta_guide(self, x):
    """An autoencoder."""
    with plate(x):
        pyro.sample("z", dist.Delta(self.loc(x)))


def auto_delta_guide(self, x):
    """A point estimate, the same of every datum."""
    with plate(x):
        pyro.sample("z", dist.Delta(self.encoder.bias.expand(len(x))))


def kinds_model(self, x):
    with plate(x):
        kind = pyro.sample("kind", dist.OneHotCategorical(logits=0 * self.one.expand(3)))
        centre = kind @ torch.tensor([-1.0, 0.0, 1.0], dtype=x.dtype)
        pyro.sample("x", dist.Normal(centre, self.one), obs=x)


def gumbel_guide(self, x):
    with plate(x):
        logits = self.loc(x).unsqueeze(-1) * torch.tensor([-1.0, 0.0, 1.0], dtype=x.dtype)
        fn = dist.RelaxedOneHotCategoricalStraightThrough(0.7 * self.one, logits=logits)
        pyro.sample("kind", fn)


def relaxed_guide(self, x):
    with plate(x):
        logits = self.loc(x).unsqueeze(-1) * torch.tensor([-1.0, 0.0, 1.0], dtype=x.dtype)
        pyro.sample("kind", dist.RelaxedOneHotCategorical(0.7 * self.one, logits=logits))


def factor_model(self, x):
    with plate(x):
        z = pyro.sample("z", dist.Normal(0 * self.one, self.one))
        pyro.factor("penalty", -0.1 * z.abs())
        pyro.sample("x", dist.Normal(z, self.one), obs=x)


def improper_model(self, x):
    with plate(x):
        z = pyro.sample("z", dist.ImproperUniform(constraints.real, (), ()))
        pyro.sample("x", dist.Normal(z, self.one), obs=x)


def scaled_likelihood_model(self, x):
    with plate(x):
        z = pyro.sample("z", dist.Normal(0 * self.one, self.one))
        with poutine.scale(scale=0.2):
            pyro.sample("x", dist.Normal(z, self.one), obs=x)


def per_element(program):
    """Everything over n d, as losses are often averaged."""

    def scaled(self, x):
        with poutine.scale(scale=1.0 / x.numel()):
            program(self, x)

    return scaled


def annealed_model(self, x):
    with plate(x):
        with poutine.scale(None, 4.0):
            z = pyro.sample("z", dist.Normal(0 * self.one, self.one))
        pyro.sample("x", dist.Normal(z, self.one), obs=x)


def annealed_guide(self, x):
    with plate(x), poutine.scale(None, 4.0):
        pyro.sample("z", dist.Normal(self.loc(x), 0.85 * self.one))


LOSSES = {
    "a Delta guide, as an autoencoder's": (normal_model, delta_guide, ["z"]),
    "a Delta guide, as AutoDelta's": (normal_model, auto_delta_guide, ["z"]),
    "a straight-through guide": (kinds_model, gumbel_guide, ["kind"]),
    "a relaxed guide": (kinds_model, relaxed_guide, ["kind"]),
    "a factor": (factor_model, normal_guide, ["penalty"]),
    "an improper prior": (improper_model, normal_guide, ["z"]),
    "a scaled likelihood": (scaled_likelihood_model, normal_guide, ["x"]),
    "all of it scaled": (per_element(normal_model), per_element(normal_guide), ["x", "z"]),
    "annealed latents": (annealed_model, annealed_guide, ["z"]),
}

each_loss = pytest.mark.parametrize(("model", "guide", "sites"), LOSSES.values(), ids=LOSSES)


@each_loss
def test_a_pair_without_a_density_trains_as_a_loss(model, guide, sites):
    x = readings(100)
    pair = Written(model, guide)
    run = pv.train(pair, x, epochs=2, batch_size=30, lr=1e-2, progress=False, engine="eager")
    last = run.history[-1]
    assert math.isfinite(last["loss"]) and math.isfinite(last["valid_loss"])
    assert "valid_elbo" not in last
    said = [note for note in run.notes if "loss" in note]
    assert any(repr(site) in note for site in sites for note in said) or any("scale" in note for note in said)
    with pytest.raises(ContractError, match="|".join(repr(site) for site in sites)):
        importance(run.pair, x)


@each_loss
@pytest.mark.parametrize("evaluator", ["importance", "elbo", "ais"])
def test_no_evaluator_gives_it_a_log_likelihood(model, guide, sites, evaluator):
    """AIS from the prior needs no density of the guide; from the guide it does."""
    options = {"start": "guide", "distributions": 5} if evaluator == "ais" else {}
    try:
        pair = Written(model, guide)
        result = pv.evaluate(pair, readings(), evaluator=evaluator, particles=4, progress=False, **options)
    except UserError as refusal:
        assert any(repr(site) in str(refusal) for site in sites) and "\n" not in str(refusal)
    else:
        assert evaluator == "elbo", "the others estimate log p(x) or nothing"
        assert not {"log_likelihood", "elbo"} & result.estimate.per_datum.keys()


@pytest.mark.parametrize("guide", [delta_guide, auto_delta_guide], ids=["autoencoder", "AutoDelta"])
def test_annealing_from_the_prior_needs_no_density_of_the_guide(guide):
    x = readings()
    options = {"start": "prior", "distributions": 60, "leapfrog": 3}
    pair = Written(normal_model, guide)
    result = pv.evaluate(pair, x, evaluator="ais", particles=16, progress=False, **options)
    error = result.log_likelihood - exact(x)
    assert abs(error.mean()) < 4 * result.monte_carlo_error.square().sum().sqrt() / len(x) + 0.01
    assert (error.abs() < 6 * result.monte_carlo_error + 0.05).all()


@pytest.mark.parametrize("model", [factor_model, improper_model, scaled_likelihood_model, annealed_model])
def test_annealing_from_the_prior_refuses_a_model_without_a_density(model):
    pair = Written(model, normal_guide)
    options = {"start": "prior", "distributions": 5}
    with pytest.raises(ContractError):
        pv.evaluate(pair, readings(), evaluator="ais", particles=2, progress=False, **options)


def test_a_point_mass_on_a_discrete_latent_has_a_density():
    """q puts all on the middle kind, so every weight is p(x, middle)."""

    def guide(self, x):
        with plate(x):
            pyro.sample("kind", dist.Delta(torch.eye(3, dtype=x.dtype)[1].expand(len(x), 3), event_dim=1))

    x = readings()
    pair = Written(kinds_model, guide)
    try:
        bound = importance(pair, x).log_likelihood
    except ContractError as refusal:
        assert "'kind'" in str(refusal)
    else:
        assert torch.allclose(bound.double(), normal_log_prob(x, 0.0, 1.0) - math.log(3))


# --- what enters no bound -----------------------------------------------------------------------------------


def test_a_factor_in_the_guide_enters_no_bound():
    def guide(self, x):
        with plate(x):
            z = pyro.sample("z", dist.Normal(self.loc(x), 0.85 * self.one))
            pyro.factor("penalty", -5 * z.abs(), has_rsample=True)

    x = readings()
    with_factor, without = (importance(Written(normal_model, g), x) for g in (guide, normal_guide))
    assert torch.allclose(with_factor.log_likelihood, without.log_likelihood)
    assert not reasons_to_doubt(Written(normal_model, guide), {"x": x}, exact(x), floor=1e-4)


class Treated(nn.Module):
    """As Pyro's CEVAE: the guide observes the treatment, to train its net, and draws z given it."""

    def __init__(self, in_model: bool):
        super().__init__()
        self.in_model = in_model
        self.propensity = nn.Linear(1, 1)

    def model(self, x, t):
        with plate(x):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), torch.ones(())))
            if self.in_model:
                pyro.sample("t", dist.Bernoulli(torch.tensor(0.3)), obs=t)
            pyro.sample("x", dist.Normal(z + t, 1.0), obs=x)

    def guide(self, x, t):
        with plate(x):
            logits = self.propensity(x.unsqueeze(-1)).squeeze(-1)
            pyro.sample("t", dist.Bernoulli(logits=logits), obs=t, infer={"is_auxiliary": True})
            pyro.sample("z", dist.Normal((x - t) / 2, 0.85))


@pytest.mark.parametrize("in_model", [True, False], ids=["in the model too", "in the guide alone"])
def test_an_observed_site_of_the_guide_enters_no_bound(in_model):
    torch.manual_seed(0)
    x, t = readings().float(), torch.bernoulli(torch.full((N,), 0.3))
    marginal = exact(x.double() - t)
    if in_model:
        marginal = marginal + torch.where(t.bool(), math.log(0.3), math.log(0.7))
    assert not reasons_to_doubt(Treated(in_model), {"x": x, "t": t}, marginal)


# --- auxiliary sites ----------------------------------------------------------------------------------------


AUXILIARY = {"is_auxiliary": True}


def test_a_drawn_auxiliary_site_that_no_latent_is_a_function_of_is_refused():
    def guide(self, x):
        with plate(x):
            pyro.sample("a", dist.Normal(0 * self.one, 10 * self.one), infer=AUXILIARY)
            pyro.sample("z", dist.Normal(self.loc(x), 0.85 * self.one))

    for evaluator in ("importance", "elbo"):
        with pytest.raises(ContractError, match="'a'"):
            pv.evaluate(Written(normal_model, guide), readings(), evaluator=evaluator, particles=20, progress=False)


def positive_model(self, x):
    """z = exp(N(0, 1)), x ~ N(log z, 1)."""
    with plate(x):
        z = pyro.sample("z", dist.LogNormal(0 * self.one, self.one))
        pyro.sample("x", dist.Normal(z.log(), self.one), obs=x)


def as_auto_continuous(self, x):
    """A vector in unconstrained space, and a Delta with the transform's log-density, as AutoContinuous has them."""
    with plate(x):
        fn = dist.Normal(self.loc(x).unsqueeze(-1), 0.85 * self.one).to_event(1)
        unconstrained = pyro.sample("_latent", fn, infer=AUXILIARY)[..., 0]
        transform = biject_to(constraints.positive)
        value = transform(unconstrained)
        log_density = transform.inv.log_abs_det_jacobian(value, unconstrained)
        pyro.sample("z", dist.Delta(value, log_density=log_density))


def test_an_auxiliary_site_and_a_delta_with_its_log_density_are_right():
    x = readings()
    assert not reasons_to_doubt(Written(positive_model, as_auto_continuous), {"x": x}, exact(x), floor=1e-4)


def test_the_log_density_of_a_shift_is_zero():
    def guide(self, x):
        with plate(x):
            u = pyro.sample("u", dist.Normal(0 * self.one, 0.85 * self.one), infer=AUXILIARY)
            pyro.sample("z", dist.Delta(u + self.loc(x)))

    x = readings()
    assert not reasons_to_doubt(Written(normal_model, guide), {"x": x}, exact(x), floor=1e-4)


@pytest.mark.parametrize("stated", [True, False], ids=["stated", "missing"])
def test_a_missing_log_density_is_refused(stated):
    def guide(self, x):
        with plate(x):
            u = pyro.sample("u", dist.Normal(self.loc(x) / 2, 0.43 * self.one), infer=AUXILIARY)
            log_density = -math.log(2) * torch.ones_like(u) if stated else 0.0
            pyro.sample("z", dist.Delta(2 * u, log_density=log_density))

    x, pair = readings(), Written(normal_model, guide)
    if stated:
        assert not reasons_to_doubt(pair, {"x": x}, exact(x), floor=1e-4)
    else:
        with pytest.raises(ContractError, match="'z'|'u'"):
            importance(pair, x)


class Simplex(nn.Module):
    """p ~ Dirichlet, counts ~ Multinomial(p); the guide breaks a stick at two normals."""

    def __init__(self):
        super().__init__()
        self.concentration = nn.Parameter(torch.tensor([2.0, 3.0, 1.5], dtype=DTYPE))
        self.scale = nn.Parameter(torch.tensor(0.9, dtype=DTYPE))

    def model(self, x):
        with plate(x):
            p = pyro.sample("p", dist.Dirichlet(self.concentration))
            pyro.sample("x", dist.Multinomial(total_count=4, probs=p), obs=x)

    def guide(self, x):
        with plate(x):
            transform = biject_to(constraints.simplex)
            share = (x + self.concentration) / (x + self.concentration).sum(-1, keepdim=True)
            u = pyro.sample("u", dist.Normal(transform.inv(share), self.scale).to_event(1), infer=AUXILIARY)
            p = transform(u)
            pyro.sample("p", dist.Delta(p, log_density=-transform.log_abs_det_jacobian(u, p), event_dim=1))


def test_a_stick_breaking_transform_with_its_log_density_is_right():
    torch.manual_seed(0)
    pair = Simplex()
    x = dist.Multinomial(4, probs=torch.tensor([0.3, 0.5, 0.2], dtype=DTYPE)).sample((N,))
    marginal = dist.DirichletMultinomial(pair.concentration.detach(), total_count=4).log_prob(x)
    assert not reasons_to_doubt(pair, {"x": x}, marginal, floor=1e-4)


class TwoDeltas(nn.Module):
    """z ~ LogNormal, w ~ N(0, 1), x ~ N(log z + w, 1)."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind
        self.one = nn.Parameter(torch.ones((), dtype=DTYPE))

    def model(self, x):
        with plate(x):
            z = pyro.sample("z", dist.LogNormal(0 * self.one, self.one))
            w = pyro.sample("w", dist.Normal(0 * self.one, self.one))
            pyro.sample("x", dist.Normal(z.log() + w, self.one), obs=x)

    def guide(self, x):
        with plate(x):
            if self.kind == "one vector":
                loc = torch.stack([x / 3, x / 6], -1)
                scale = torch.tensor([0.9, 0.45], dtype=DTYPE)
                u, v = pyro.sample("uv", dist.Normal(loc, scale).to_event(1), infer=AUXILIARY).unbind(-1)
            else:
                u = pyro.sample("u", dist.Normal(x / 3, 0.9 * self.one), infer=AUXILIARY)
                v = pyro.sample("v", dist.Normal(x / 6, 0.45 * self.one), infer=AUXILIARY)
            pyro.sample("z", dist.Delta(u.exp(), log_density=-u))
            shift = 0.1 * u if self.kind == "triangular" else 0.0
            pyro.sample("w", dist.Delta(2 * v + shift, log_density=-math.log(2) * torch.ones_like(v)))


@pytest.mark.parametrize("kind", ["two sites", "one vector", "triangular"])
def test_two_latents_that_are_functions_of_auxiliary_sites_are_right(kind):
    """Where one latent is a function of both, the Jacobian is triangular: right as well, or refused."""
    x, pair = readings() * math.sqrt(1.5), TwoDeltas(kind)
    try:
        doubts = reasons_to_doubt(pair, {"x": x}, normal_log_prob(x, 0.0, math.sqrt(3)), floor=1e-4)
    except ContractError:
        assert kind == "triangular"
    else:
        assert not doubts


# --- scales and masks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["subsample_size", "subsample"])
def test_the_scale_of_a_subsampled_plate_is_divided_out(kind):
    def plate_of(x):
        chosen = {"subsample_size": len(x)} if kind == "subsample_size" else {"subsample": x}
        return pyro.plate("data", size=1000, dim=-1, **chosen)

    def model(self, x):
        with plate_of(x):
            z = pyro.sample("z", dist.Normal(0 * self.one, self.one))
            pyro.sample("x", dist.Normal(z, self.one), obs=x)

    def guide(self, x):
        with plate_of(x):
            pyro.sample("z", dist.Normal(self.loc(x), 0.85 * self.one))

    x = readings()
    assert not reasons_to_doubt(Written(model, guide), {"x": x}, exact(x), floor=1e-4)
    run = pv.train(Written(model, guide), x, epochs=1, batch_size=9, progress=False, engine="eager")
    assert 0 < run.history[-1]["loss"] < 10 and math.isfinite(run.history[-1]["valid_elbo"])


@contextmanager
def every_other(x: Tensor):
    with poutine.mask(mask=torch.arange(len(x)) % 2 == 0):
        yield


@pytest.mark.parametrize("where", ["model", "guide"])
def test_a_mask_on_a_latent_in_one_program_only_is_refused(where):
    def model(self, x):
        with plate(x):
            with every_other(x) if where == "model" else nullcontext():
                z = pyro.sample("z", dist.Normal(0 * self.one, self.one))
            pyro.sample("x", dist.Normal(z, self.one), obs=x)

    def guide(self, x):
        with plate(x), every_other(x) if where == "guide" else nullcontext():
            pyro.sample("z", dist.Normal(self.loc(x), 0.85 * self.one))

    with pytest.raises(ContractError, match="'z'"):
        importance(Written(model, guide), readings())


# --- two plates that could be the data's --------------------------------------------------------------------


def two_plates(with_latents: bool):
    """Words beside the data at dim -1: as many as a block has data."""

    def words(self):
        with pyro.plate("words", 100, dim=-1):
            if with_latents:
                return pyro.sample("word", dist.Normal(0 * self.one, self.one))
            return pyro.deterministic("word", torch.linspace(-1.0, 1.0, 100, dtype=DTYPE) * self.one)

    def model(self, x):
        shift = words(self).sum() * 0
        with plate(x):
            z = pyro.sample("z", dist.Normal(0 * self.one, self.one))
            pyro.sample("x", dist.Normal(z + shift, self.one), obs=x)

    def guide(self, x):
        if with_latents:
            words(self)
        normal_guide(self, x)

    return Written(model, guide)


def test_the_latents_of_a_second_plate_of_the_batch_s_length_are_those_of_all_data():
    found = importance(two_plates(with_latents=True), readings(100), global_draws=2)
    assert "'word'" in found.given and found.quantity == "log_predictive"


def test_a_pair_may_say_which_plate_is_the_data_s():
    x, pair = readings(100), two_plates(with_latents=False)
    pair.data_plate = "data"
    assert not reasons_to_doubt(pair, {"x": x}, exact(x), floor=1e-4)


# --- grey values --------------------------------------------------------------------------------------------


class Picture(nn.Module):
    """A Bernoulli likelihood of some function of the picture."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen
        self.decoder = nn.Linear(1, 16)
        self.encoder = nn.Linear(16, 2)

    def model(self, x):
        with plate(x):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), torch.ones(1)).to_event(1))
            fn = dist.Bernoulli(logits=self.decoder(z)).to_event(1)
            pyro.sample("x", fn, obs=self.seen(x))

    def guide(self, x):
        with plate(x):
            loc, log_scale = self.encoder(x.reshape(len(x), -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


SEEN = {
    "reshape": lambda x: x.reshape(len(x), -1),
    "view": lambda x: x.view(-1, 16),
    "flatten": lambda x: x.flatten(1),
    "to -1 and 1": lambda x: 2 * x.flatten(1) - 1,
    "clamped": lambda x: x.flatten(1).clamp(0.05, 0.95),
    "by a function": lambda x: torch.sqrt(x.flatten(1)),
}


def pictures(grey: str, n: int = 50) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.bernoulli(torch.full((n, 4, 4), 0.4), generator=generator)
    if grey == "one":
        x[37, 2, 3] = 0.3
    return torch.rand(x.shape, generator=generator) if grey == "all" else x


@pytest.mark.parametrize("grey", ["all", "one"])
@pytest.mark.parametrize("seen", SEEN)
def test_grey_values_under_a_bernoulli_are_refused_however_they_are_seen(seen, grey):
    x = pictures(grey)
    with pytest.raises(DataError):
        importance(Picture(SEEN[seen]), x)
    with pytest.raises(DataError):
        pv.train(Picture(SEEN[seen]), x, epochs=1, batch_size=10, progress=False, engine="eager")


@pytest.mark.parametrize("seen", ["reshape", "view", "flatten", "by a function"])
def test_bits_are_taken_however_they_are_seen(seen):
    torch.manual_seed(0)
    result = importance(Picture(SEEN[seen]), pictures("none"))
    assert result.log_likelihood.isfinite().all()


def test_grey_values_as_a_loss_that_is_asked_for_have_no_log_likelihood():
    x = pictures("all")
    result = importance(Picture(SEEN["reshape"]), x, relaxed=True)
    assert "log_likelihood" not in result.estimate.per_datum
    pair = Picture(SEEN["reshape"])
    run = pv.train(pair, x, epochs=1, batch_size=10, progress=False, engine="eager", relaxed=True)
    assert "valid_elbo" not in run.history[-1] and math.isfinite(run.history[-1]["valid_loss"])
