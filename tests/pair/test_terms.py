"""The seam: what `log_terms` sums, what it refuses, and what it leaves alone."""

import functools
import inspect

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from references import Conditional, Labelled, Scalar, SharedNoise, TwoLayers, normal_log_density, z_scores
from torch import nn
from torch.distributions import Distribution

import pyro_vae as pv
from pyro_vae.errors import ContractError, DataError
from pyro_vae.pair import bounds
from pyro_vae.pair.pair import field_names
from pyro_vae.pair.particles import run_guide, run_guide_at, run_model, run_program
from pyro_vae.pair.terms import elbo_terms, log_terms

N = 4


def reading(n: int = N) -> dict[str, torch.Tensor]:
    return {"reading": torch.linspace(-1.0, 2.0, n, dtype=torch.float64)}


class Parts(nn.Module):
    """A pair put together from two functions of (self, x)."""

    def __init__(self, model, guide, **parameters: torch.Tensor):
        super().__init__()
        self._model, self._guide = model, guide
        for name, value in parameters.items():
            self.register_parameter(name, nn.Parameter(value))

    def model(self, x):
        return self._model(self, x)

    def guide(self, x):
        return self._guide(self, x)


def data_plate(x):
    return pyro.plate("data", len(x), dim=-1)


def normal_model(self, x):
    with data_plate(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def normal_guide(self, x):
    with data_plate(x):
        pyro.sample("z", dist.Normal(x / 2, 1.0))


# --- the sums -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("particles", [1, 3, N])
def test_terms_are_the_log_densities_at_the_draws(particles):
    pair, batch = Scalar(N), reading()
    torch.manual_seed(0)
    z = run_guide(pair, batch, particles)["code"].value
    torch.manual_seed(0)
    terms = log_terms(pair, batch, particles)
    likelihood = normal_log_density(batch["reading"], pair.weight * z + pair.bias, pair.log_noise.exp())
    assert torch.allclose(terms.log_likelihood, likelihood)
    assert torch.allclose(terms.log_prior, normal_log_density(z, 0.0, 1.0))
    assert torch.allclose(terms.log_guide, normal_log_density(z, pair.loc, pair.log_scale.exp()))
    assert torch.allclose(terms.log_weight, terms.log_likelihood + terms.log_prior - terms.log_guide)
    assert terms.score is None and terms.shared is None
    assert particles == 1 or z.std(0).min() > 0, "every particle has its own draw"


@pytest.mark.parametrize("particles", [1, 3])
def test_several_sites_and_event_dims_are_summed_for_each_datum(particles):
    torch.manual_seed(0)
    pair, batch = Labelled(), {"counts": torch.randint(6, (N, 5)).double()}
    torch.manual_seed(1)
    guide = run_guide(pair, batch, particles)
    model = run_model(pair, batch, {name: site.value for name, site in guide.items()}, particles)
    torch.manual_seed(1)
    terms = log_terms(pair, batch, particles)
    kind, code = guide["kind"].value, guide["code"].value
    prior = torch.log_softmax(pair.logits, 0)[kind] + normal_log_density(code, pair.centres[kind], 1.0).sum(-1)
    rate = nn.functional.softplus(pair.decoder(code))
    likelihood = (batch["counts"] * rate.log() - rate - torch.lgamma(batch["counts"] + 1)).sum(-1)
    assert torch.allclose(terms.log_prior, prior) and torch.allclose(terms.log_likelihood, likelihood)
    assert torch.allclose(
        terms.score,
        torch.log_softmax(guide["kind"].fn.logits, -1).expand(particles, N, -1).gather(-1, kind[..., None])[..., 0],
    )
    assert {name for name, site in model.items() if site.observed} == {"seen"}


def test_each_datum_stands_for_itself():
    """The log weight of a datum depends on no other datum of the batch."""
    pair, x = Conditional(), {"target": torch.randn(N, 4).double(), "context": torch.randn(N, 3).double()}
    values = {"z": run_guide(pair, x)["z"].value}
    whole = run_model(pair, x, values)["target"].log_prob()
    for i in range(N):
        one = run_model(pair, {k: v[i : i + 1] for k, v in x.items()}, {"z": values["z"][:, i : i + 1]})
        assert torch.allclose(one["target"].log_prob(), whole[:, i : i + 1])


def test_scales_and_masks_count_in_a_loss_and_scales_are_refused_elsewhere():
    keep = torch.tensor([True, False, True, True])

    def scaled(program, scale):
        def masked(self, x):
            with poutine.mask(mask=keep[: len(x)]), poutine.scale(scale=scale):
                program(self, x)

        return masked

    results = []
    for factor in (None, 1.0, 2.5):
        programs = (normal_model, normal_guide)
        pair = Parts(*programs if factor is None else (scaled(program, factor) for program in programs))
        torch.manual_seed(0)
        x = torch.randn(N)
        drawn = log_terms(pair, {"x": x}, 3, as_loss=True)
        results.append([*drawn[:3], elbo_terms(pair, {"x": x}, 3, as_loss=True).kl])
        if factor == 2.5:
            with pytest.raises(ContractError, match="site 'z' of the model is scaled by 2.5"):
                log_terms(pair, {"x": x}, 3)
    plain, masked, scaled_too = results
    for one, other, third in zip(plain, masked, scaled_too, strict=True):
        assert torch.allclose(one * keep, other) and torch.allclose(2.5 * other, third)


@pytest.mark.parametrize("plate", [{"size": 100, "subsample_size": N}, {"size": 100, "subsample": torch.arange(N)}])
def test_the_subsampling_scale_of_the_data_plate_is_taken_out(plate):
    def inside(program):
        def subsampled(self, x):
            with pyro.plate("rows", dim=-1, **plate):
                program(self, x)

        return subsampled

    def model(self, x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        pyro.sample("z", dist.Normal(x / 2, 1.0))

    results = []
    for pair in (Parts(normal_model, normal_guide), Parts(inside(model), inside(guide))):
        torch.manual_seed(0)
        results.append(log_terms(pair, {"x": torch.linspace(-1, 1, N)}))
    for one, other in zip(*(result[:3] for result in results), strict=True):
        assert torch.allclose(one, other)


def test_fields_go_to_the_pair_by_name_and_optional_ones_where_they_are():
    class Optional(nn.Module):
        def model(self, x, weight=None):
            self.seen = weight
            normal_model(self, x)

        def guide(self, x, weight=None):
            normal_guide(self, x)

    pair, x = Optional(), torch.randn(N)
    log_terms(pair, {"x": x, "label": x})
    assert pair.seen is None
    log_terms(pair, {"weight": x, "x": x})
    assert pair.seen is x


def logged(program):
    @functools.wraps(program)
    def run(*args, **kwargs):
        return program(*args, **kwargs)

    return run


def decorated(decorate):
    """A pair whose methods are decorated in its class."""

    class Decorated(nn.Module):
        @decorate
        def model(self, x, weight=None):
            normal_model(self, x)

        @decorate
        def guide(self, x, weight=None):
            normal_guide(self, x)

    return Decorated()


def assigned(decorate):
    """A pair whose bound methods are decorated once it is made."""
    pair = decorated(lambda program: program)
    pair.model, pair.guide = decorate(pair.model), decorate(pair.guide)
    return pair


DECORATORS = {
    "wraps": logged,
    "config_enumerate": config_enumerate,
    "config_enumerate_with_options": config_enumerate(default="parallel"),
    "handler": lambda program: poutine.scale(program, scale=1.0),
    "messenger": poutine.scale(scale=1.0),
    "two_handlers": lambda program: config_enumerate(poutine.scale(program, scale=1.0)),
    "wraps_over_handler": lambda program: logged(config_enumerate(program)),
    "handler_over_wraps": lambda program: config_enumerate(logged(program)),
}


@pytest.mark.parametrize("build", [decorated, assigned])
@pytest.mark.parametrize("decorate", DECORATORS.values(), ids=DECORATORS)
def test_the_fields_of_decorated_methods_are_found(decorate, build):
    pair, x = build(decorate), torch.randn(N)
    assert field_names(pair) == (["x"], ["weight"], False)
    torch.manual_seed(0)
    terms = log_terms(pair, {"label": x, "x": x})
    torch.manual_seed(0)
    plain = log_terms(decorated(lambda program: program), {"x": x})
    assert torch.equal(terms.log_likelihood, plain.log_likelihood)


def test_signatures_are_read_once_also_of_decorated_methods(monkeypatch):
    pairs = [build(decorate) for build in (decorated, assigned) for decorate in DECORATORS.values()]
    before = [field_names(pair) for pair in pairs]
    monkeypatch.setattr(inspect, "signature", None)
    assert [field_names(pair) for pair in pairs] == before


def test_a_module_that_stands_for_a_method_is_looked_into():
    class Program(nn.Module):
        def __init__(self, program):
            super().__init__()
            self.program = program

        def forward(self, x):
            self.program(self, x)

    pair = nn.Module()
    pair.model, pair.guide = Program(normal_model), Program(normal_guide)
    assert log_terms(pair, {"label": torch.zeros(N), "x": torch.randn(N)}).log_guide.shape == (1, N)


def test_a_pair_may_name_further_fields_that_it_takes_where_the_data_have_them():
    class Exposed(pv.Pair):
        optional_fields = ("library", "exposure")

        def model(self, x, **fields):
            self.seen = sorted(fields)
            with self.plate(len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(self, x, **fields):
            with self.plate(len(x)):
                pyro.sample("z", dist.Normal(x, 1.0))

    pair = Exposed()
    log_terms(pair, {"x": torch.zeros(3), "library": torch.ones(3), "label": torch.ones(3)})
    assert pair.seen == ["library"]
    log_terms(pair, {"x": torch.zeros(3)})
    assert pair.seen == []


def test_a_pair_that_takes_any_field_by_name_is_handed_every_one():
    class Open(nn.Module):
        def model(self, **batch):
            self.seen = list(batch)
            normal_model(self, batch["x"])

        def guide(self, **batch):
            normal_guide(self, batch["x"])

    pair, x = Open(), torch.randn(N)
    assert log_terms(pair, {"x": x, "label": x}).log_prior.shape == (1, N)
    assert pair.seen == ["x", "label"]


def test_variable_arguments_beside_names_count_for_nothing():
    class Mixed(nn.Module):
        def model(self, x, *rest, **more):
            self.seen = rest, more
            normal_model(self, x)

        def guide(self, x):
            normal_guide(self, x)

    pair, x = Mixed(), torch.randn(N)
    log_terms(pair, {"x": x, "label": x})
    assert pair.seen == ((), {})


def test_unconditioned_observations_still_count_as_observed():
    sites = run_program(poutine.uncondition(Scalar(N).model), Scalar(N), reading())
    assert sites["observed reading"].observed and not sites["code"].observed
    assert not torch.equal(sites["observed reading"].value, reading()["reading"][None])


# --- the closed-form KL -------------------------------------------------------------------------------------


def at_one_seed(*arguments):
    """Both kinds of terms at the same draws."""
    results = []
    for terms in (elbo_terms, log_terms):
        torch.manual_seed(0)
        results.append(terms(*arguments))
    return results


def test_the_kl_of_a_hierarchy_is_closed_only_where_the_draws_allow():
    """Top down, every site's prior is settled when the guide draws it. Bottom up, `lower` is drawn before the `upper`
    that its prior depends on: its KL at a fixed `upper` would not be the expectation of log q - log p."""
    picture = {"picture": torch.randn(1, 4).double().expand(2000, 4)}
    for bottom_up in (False, True):
        pair = TwoLayers(bottom_up)
        closed, drawn = at_one_seed(pair, picture, 10)
        assert abs(z_scores((closed.kl - drawn.kl).flatten(), 0.0)) < 4
        assert closed.kl.var() < drawn.kl.var()


def test_an_auxiliary_site_of_the_guide_counts_in_the_kl():
    """q(z) = the law of u + 1 with u ~ N(x, 1) auxiliary: KL's closed form has no log q(u)."""

    def guide(self, x):
        with data_plate(x):
            u = pyro.sample("u", dist.Normal(x, 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(u + 1))

    closed, drawn = at_one_seed(Parts(normal_model, guide), {"x": torch.randn(N)}, 5)
    assert torch.allclose(closed.kl, drawn.kl)
    assert torch.allclose(bounds.elbo(closed), drawn.log_weight.mean(0))


# --- the frozen guide ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("particles", [1, 5])
def test_a_frozen_guide_gives_the_sticking_the_landing_gradient(particles):
    """d log w / dz along the path of z = loc + scale eps, and no other term (Roeder, Wu & Duvenaud 2017)."""
    pair, batch = Scalar(N), reading()
    torch.manual_seed(0)
    z = run_guide(pair, batch, particles)["code"].value.detach()
    torch.manual_seed(0)
    terms = log_terms(pair, batch, particles, frozen_guide=True)
    weight, bias, noise, loc, scale = pair.weight, pair.bias, pair.log_noise.exp(), pair.loc, pair.log_scale.exp()
    residual = batch["reading"] - weight * z - bias
    path = weight * residual / noise**2 - z + (z - loc) / scale**2
    parameters = [pair.loc, pair.log_scale, pair.weight]
    gradients = torch.autograd.grad(terms.log_weight.sum(), parameters)
    by_hand = [path.sum(0), (path * (z - loc)).sum(0), (residual * z / noise**2).sum(0)]
    for gradient, expected in zip(gradients, by_hand, strict=True):
        assert torch.allclose(gradient, expected)
    torch.manual_seed(0)
    assert torch.equal(log_terms(pair, batch, particles).log_weight, terms.log_weight), "the values are the same"


def test_a_frozen_guide_that_is_exact_has_no_gradient_at_all():
    """At q = p(z|x) sticking-the-landing has variance zero, which the ordinary gradient has not."""
    pair, batch = Scalar(N), reading()
    with torch.no_grad():
        precision = 1 + (pair.weight / pair.log_noise.exp()) ** 2
        pair.loc.copy_(pair.weight * (batch["reading"] - pair.bias) / pair.log_noise.exp() ** 2 / precision)
        pair.log_scale.copy_(-0.5 * precision.log())
    sizes = []
    for frozen in (True, False):
        torch.manual_seed(0)
        weights = log_terms(pair, batch, 3, frozen_guide=frozen).log_weight
        sizes.append(max(g.abs().max() for g in torch.autograd.grad(weights.sum(), [pair.loc, pair.log_scale])))
    assert sizes[0] < 1e-12 and sizes[1] > 0.1


def test_freezing_reaches_every_way_to_name_a_parameter():
    """pyro.module and pyro.param, as many pairs in the wild use."""

    class Wild(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.log_scale = nn.Linear(2, 2), nn.Parameter(torch.zeros(2))

        def model(self, x):
            with data_plate(x):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

        def guide(self, x):
            encoder = pyro.module("encoder", self.encoder)
            log_scale = pyro.param("log_scale", self.log_scale)
            with data_plate(x):
                pyro.sample("z", dist.Normal(encoder(x), log_scale.exp()).to_event(1))

    pair, batch = Wild().eval(), {"x": torch.randn(N, 2)}
    live = run_guide(pair, batch)
    fixed = run_guide_at(pair, batch, {"z": live["z"].value.detach()}, frozen=True)["z"]
    assert live["z"].log_prob().requires_grad and not fixed.log_prob().requires_grad
    assert torch.equal(fixed.log_prob(), live["z"].log_prob())
    assert all(parameter.requires_grad for parameter in pair.parameters())
    assert len(pyro.get_param_store()) == 0


# --- latents outside the plate ------------------------------------------------------------------------------


@pytest.mark.parametrize("particles", [1, 3])
def test_shared_latents_are_refused_unless_allowed(particles):
    with pytest.raises(ContractError, match=r"'log_noise' is outside the data plate.*move it inside"):
        log_terms(SharedNoise(), reading(), particles)
    pair = SharedNoise()
    torch.manual_seed(0)
    shared = torch.cat([run_guide(pair, reading())["log_noise"].value for _ in range(particles)])
    torch.manual_seed(0)
    terms = log_terms(pair, reading(), particles, allow_shared=True)
    expected = normal_log_density(shared, 0.0, 1.0) - normal_log_density(shared, pair.noise_loc, pair.noise_scale)
    assert terms.log_weight.shape == (particles, N) and torch.allclose(terms.shared, expected)


def test_an_observation_outside_the_plate_is_refused_also_where_shared_latents_are_allowed():
    """It would count once for all data, not once for each."""

    def model(self, x):
        with data_plate(x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    with pytest.raises(ContractError, match="'x' is outside the data plate"):
        log_terms(Parts(model, normal_guide), {"x": torch.randn(N)}, allow_shared=True)


# --- breaches of the contract -------------------------------------------------------------------------------


def outside_model(self, x):
    scale = pyro.sample("shared_scale", dist.LogNormal(0.0, 1.0))
    with data_plate(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, scale), obs=x)


def outside_guide(self, x):
    pyro.sample("shared_scale", dist.LogNormal(0.0, 1.0))
    normal_guide(self, x)


def two_latents(self, x):
    with data_plate(x):
        pyro.sample("w", dist.Normal(0.0, 1.0))
    normal_model(self, x)


def two_guides(self, x):
    with data_plate(x):
        pyro.sample("w", dist.Normal(0.0, 1.0))
    normal_guide(self, x)


def guided_observation(self, x):
    with data_plate(x):
        pyro.sample("x", dist.Normal(0.0, 1.0))
    normal_guide(self, x)


def column_model(self, x):
    with data_plate(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x.unsqueeze(-1))


def column_of_normals(self, x):
    with data_plate(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).to_event(1), obs=x)


def wide_latent(self, x):
    with data_plate(x):
        pyro.sample("z", dist.Normal(0.0, 1.0).expand([2, len(x)]))


def unsized_model(self, x):
    z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
    pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def stored_parameter(self, x):
    scale = pyro.param("scale", torch.ones(()))
    with data_plate(x):
        pyro.sample("z", dist.Normal(x / 2, scale))


BREACHES = {
    "a latent outside the plate": (outside_model, outside_guide, r"'shared_scale' is outside the data plate"),
    "no plate at all": (unsized_model, normal_guide, r"'z' is outside the data plate"),
    "a latent without a guide": (two_latents, normal_guide, r"latent site 'w' is not in the guide"),
    "a guide site of its own": (normal_model, two_guides, r"guide samples 'w', which the model lacks"),
    "a guide of an observation": (normal_model, guided_observation, r"guide samples 'x', which the model observes"),
    "a column for a vector": (column_model, normal_guide, r"site 'x': a value of shape \[4, 1\].*each of the 4 data"),
    "a vector for a column": (column_of_normals, normal_guide, r"site 'x': a value of shape \[4\]"),
    "a latent of two rows": (normal_model, wide_latent, r"site 'z': .* shape \[2, 4\]"),
    "a parameter of the store": (normal_model, stored_parameter, r"'scale' is not a torch.nn.Parameter of the pair"),
}


@pytest.mark.parametrize("particles", [1, 3, N])
@pytest.mark.parametrize("breach", BREACHES)
def test_a_breach_names_the_site_in_one_line(breach, particles):
    model, guide, message = BREACHES[breach]
    if breach == "a latent of two rows" and particles > 1:
        pytest.skip("Pyro itself cannot broadcast it")
    with pytest.raises(ContractError, match=message) as problem:
        log_terms(Parts(model, guide), {"x": torch.randn(N)}, particles)
    assert "\n" not in str(problem.value)
    assert len(pyro.get_param_store()) == 0


@pytest.mark.parametrize("particles", [0, -2])
def test_fewer_than_one_particle_is_refused(particles):
    with pytest.raises(ContractError, match=f"particles must be at least 1, not {particles}"):
        log_terms(Scalar(N), reading(), particles)


def test_a_missing_field_is_named_with_those_there_are():
    with pytest.raises(DataError, match="Conditional needs the field 'context'; the data have label, target"):
        log_terms(Conditional(), {"target": torch.zeros(N, 4), "label": torch.zeros(N)})


def test_what_is_no_pair():
    class Half(nn.Module):
        def model(self, x): ...

    class Differing(Half):
        def guide(self, x, y): ...

    class NoModule:
        def model(self, x): ...

        def guide(self, x): ...

    class Unnamed(Half):
        def guide(self, *args, **kwargs): ...

    class Empty(Half):
        def model(self): ...

        def guide(self): ...

    nameless = {
        Unnamed: r"the guide of Unnamed names no field; name those that it takes, as in def guide\(self, x\)",
        Empty: "the model of Empty names no field",
    }
    cases = {**nameless, Half: "has no method 'guide'", Differing: r"model takes \['x'\] but guide takes \['x', 'y'\]"}
    for kind, message in {**cases, NoModule: "is not a torch.nn.Module"}.items():
        with pytest.raises(ContractError, match=message):
            log_terms(kind(), {"x": torch.zeros(N)})


# --- the world outside --------------------------------------------------------------------------------------


def settings() -> dict[str, object]:
    return {
        "distributions": pyro.distributions.is_validation_enabled(),
        "inference": pyro.infer.util.is_validation_enabled(),
        "poutine": poutine.util.is_validation_enabled(),
        "torch": Distribution._validate_args,
        "dtype": torch.get_default_dtype(),
        "store": len(pyro.get_param_store()),
    }


@pytest.fixture(params=[True, False])
def validation(request):
    before = Distribution._validate_args
    with pyro.validation_enabled(request.param):
        yield
    Distribution.set_default_validate_args(before)


@pytest.mark.parametrize("torch_validates", [True, False])
def test_settings_and_store_stay_as_they_were_also_after_an_error(validation, torch_validates):
    Distribution.set_default_validate_args(torch_validates)
    before = settings()
    log_terms(Scalar(N), reading(), 3, frozen_guide=True)
    assert settings() == before
    with pytest.raises(ContractError):
        log_terms(SharedNoise(), reading())
    assert settings() == before


def test_terms_come_in_the_dtype_of_the_pair():
    for dtype in (torch.float32, torch.float64):
        vae = pv.VAE((6,), 2, hidden=(4,), likelihood="gaussian").to(dtype)
        batch = {"x": torch.randn(N, 6, dtype=dtype)}
        terms = (*log_terms(vae, batch, 2)[:3], *elbo_terms(vae, batch, 2)[:2])
        assert {term.dtype for term in terms} == {dtype}


class FoldedGuide(pv.Pair):
    """A guide whose second site concatenates, so that it takes [batch, ...] only; a model that broadcasts."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.out = nn.Linear(3, 2), nn.Linear(5, 2), nn.Linear(2, 3)

    def model(self, x):
        with self.plate(x.shape[0]):
            u = pyro.sample("u", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            v = pyro.sample("v", dist.Normal(u, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.out(v), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with self.plate(x.shape[0]):
            u = pyro.sample("u", dist.Normal(self.first(x), 0.5).to_event(1))
            pyro.sample("v", dist.Normal(self.second(torch.cat([x, u], -1)), 0.5).to_event(1))


def test_a_folded_guide_beside_a_model_that_broadcasts_has_its_kl_in_closed_form():
    torch.manual_seed(0)
    pair, x = FoldedGuide(), torch.randn(5, 3)
    many = elbo_terms(pair, {"x": x}, 4000)
    one_by_one = torch.stack([elbo_terms(pair, {"x": x}).kl[0] for _ in range(400)])
    error = (many.kl.var(0) / 4000 + one_by_one.var(0) / 400).sqrt()
    assert ((many.kl.mean(0) - one_by_one.mean(0)).abs() < 4.5 * error + 1e-5).all()
    assert pv.evaluate(pair, x, "latent", 20, progress=False).rate.shape == (5,)
