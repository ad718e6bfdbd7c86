"""Every registered model, and every combination of a VAE's parts, through the same checks."""

import random
import re

import numpy as np
import pyro
import pytest
import torch
from model_examples import build, example
from pairs import SHAPE, Clusters, bits, counts, same_state, small_vae
from pyro.infer import ELBO, SVI, Trace_ELBO, TraceEnum_ELBO
from torch.distributions import Distribution

import pyro_vae as pv
from pyro_vae import files, plugins, runs
from pyro_vae.errors import ContractError, DataError
from pyro_vae.pair import generation
from pyro_vae.pair.checks import density_faults
from pyro_vae.pair.global_latents import held_at_a_draw
from pyro_vae.pair.pair import batch_size, select_fields
from pyro_vae.pair.particles import run_guide, run_guide_at, run_model
from pyro_vae.pair.sites import Sites, is_improper, observed, values_of
from pyro_vae.pair.structure import structure_of
from pyro_vae.pair.terms import log_terms
from pyro_vae.runs.config import default_of
from pyro_vae.testing import CHECKS, check_pair

MODELS = plugins.names("model")
OBJECTIVES = plugins.names("objective")


def sites_of(pair: torch.nn.Module, batch: dict[str, torch.Tensor]):
    """The sites of the model and of the guide, given a draw of the latents that all data share."""
    pair = held_at_a_draw(pair, batch)
    guide = run_guide(pair, batch)
    return run_model(pair, batch, values_of(guide)), guide


def terms_of(pair: torch.nn.Module, batch: dict[str, torch.Tensor], particles: int = 1) -> pv.LogTerms:
    """The pair's terms: those of a loss, where that is all it has, given a draw of shared latents."""
    pair = held_at_a_draw(pair, batch)
    return log_terms(pair, batch, particles, as_loss=bool(density_faults(*sites_of(pair, batch))))


def means_of(pair: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Reconstructions of x."""
    return generation.center(generation.picture_site(generation.reconstruct(pair, batch)))


def log_prob(sites: Sites) -> torch.Tensor:
    """Of all sites together, [particles, batch]."""
    return sum(site.log_prob() for site in sites.values())


def pyros_elbo(pair: torch.nn.Module, batch: dict[str, torch.Tensor], **options) -> ELBO:
    """Pyro's estimator for a pair: one that sums, where the pair enumerates."""
    structure = structure_of(pair, batch)
    return TraceEnum_ELBO(max_plate_nesting=structure.depth, **options) if structure.sums else Trace_ELBO(**options)


def global_state() -> dict[str, object]:
    """What a library has no business to change."""
    return {
        "store": dict(pyro.get_param_store().items()),
        "pyro validates": pyro.settings.get("validate_distributions_pyro"),
        "poutine validates": pyro.settings.get("validate_poutine"),
        "infer validates": pyro.settings.get("validate_infer"),
        "torch validates": Distribution._validate_args,
        "dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul": torch.get_float32_matmul_precision(),
        "threads": torch.get_num_threads(),
        "rng": torch.get_rng_state().tolist(),
        "numpy": tuple(np.random.get_state()[1]),
        "random": random.getstate(),
    }


@pytest.fixture(params=[True, False], ids=["validating", "not_validating"])
def validation(request):
    """Pyro's and torch's checks of arguments set one way and the other, and put back afterwards."""
    before = Distribution._validate_args
    with pyro.validation_enabled(request.param):
        Distribution.set_default_validate_args(not request.param)
        yield
    Distribution.set_default_validate_args(before)


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request):
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(before)


# --- every registered model ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_every_model_passes_the_checks_that_plugin_authors_run(name):
    """Of a pair that has only a loss, generation and weights may be left out, and nothing else."""
    pair, batch = build(name), example(name)
    model, guide = sites_of(pair, batch)
    left_out = {"importance weights are finite"} if density_faults(model, guide) else set()
    left_out |= {"the model generates what it observes"} if any(is_improper(s.fn) for s in model.values()) else set()
    assert set(CHECKS) - set(check_pair(pair, batch)) == left_out


@pytest.mark.parametrize("particles, n", [(1, 5), (3, 5), (4, 4), (2, 1)])
@pytest.mark.parametrize("name", MODELS)
def test_log_terms_are_finite_and_one_for_each_particle_and_datum(name, particles, n):
    terms = terms_of(build(name).eval(), example(name, n), particles)
    for part in terms[:3]:
        assert part.shape == (particles, n) and part.isfinite().all()


@pytest.mark.parametrize("name", MODELS)
def test_each_datum_has_its_own_terms(name):
    """What a datum gets does not depend on its neighbours: no mixing of batch and event dims."""
    pair, batch = build(name).eval(), example(name, 6)
    fields = select_fields(pair, batch)
    drawn = values_of(run_guide(pair, fields))

    def rebuilt(rows: slice) -> Sites:
        part = {field: value[rows] for field, value in fields.items()}
        guide = run_guide_at(pair, part, {site: value[:, rows] for site, value in drawn.items()})
        return generation.reconstruct_from(pair, part, guide)

    with torch.no_grad():
        together, alone = rebuilt(slice(None)), rebuilt(slice(2, 3))
    assert generation.picture_site(together).seen.shape == (1, *batch["x"].shape)
    assert torch.allclose(log_prob(together)[:, 2:3], log_prob(alone), rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_gets_a_gradient(name):
    pair = build(name)
    plugins.load("objective", "trace_elbo")()(pair, example(name), particles=2).backward()
    for parameter_name, parameter in pair.named_parameters():
        assert parameter.grad is not None, f"{parameter_name} takes no part in the loss"
        assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, parameter_name


@pytest.mark.parametrize("fill", [0.0, 1.0])
@pytest.mark.parametrize("name", MODELS)
def test_extreme_data_are_finite_at_initialisation(name, fill):
    batch = {n: torch.full_like(v, fill) if v.is_floating_point() else v for n, v in example(name).items()}
    assert terms_of(build(name), batch).log_weight.isfinite().all()


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", MODELS)
def test_every_objective_gives_a_finite_loss_and_gradient_or_says_why_not(name, objective):
    pair, batch = build(name), example(name)
    try:
        loss = plugins.load("objective", objective)()(pair, batch, particles=2, beta=torch.tensor(0.5))
    except ContractError as refusal:
        assert re.search("use |or make it", str(refusal))
        return
    loss.backward()
    assert loss.shape == () and loss.isfinite()
    assert all(p.grad.isfinite().all() for p in pair.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", MODELS)
def test_the_model_makes_data_of_its_own_shape(name):
    pair = build(name)
    fields = select_fields(pair, example(name, 7))
    if any(is_improper(site.fn) for site in sites_of(pair, fields)[0].values()):
        with pytest.raises(ContractError, match="--ex_post"):
            generation.sample(pair, fields)
        return
    drawn = generation.picture_site(observed(generation.sample(pair, fields)))
    assert drawn.seen.shape == (1, *fields["x"].shape) and drawn.support.check(drawn.seen).all()
    assert not torch.equal(drawn.seen[0], fields["x"]), "observed values must be drawn, not copied"


@pytest.mark.parametrize("name", MODELS)
def test_plain_svi_lowers_its_loss_and_leaves_the_store_empty(name):
    pair, batch = build(name), select_fields(build(name), example(name, 40))
    svi = SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 3e-3}), pyros_elbo(pair, batch, num_particles=2))
    losses = [svi.step(*batch.values()) for _ in range(40)]
    first, last = np.mean(losses[:5]), np.mean(losses[-5:])
    assert last < first - 2.0 * np.std(losses[:5]), f"{first:.1f} -> {last:.1f}"
    assert len(pyro.get_param_store()) == 0


@pytest.mark.parametrize("name", MODELS)
def test_trace_elbo_as_a_module_works_with_a_torch_optimizer(name):
    pair, batch = build(name), select_fields(build(name), example(name, 40))
    loss = pyros_elbo(pair, batch)(pair.model, pair.guide)
    optimizer = torch.optim.Adam(pair.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        losses.append(loss(*batch.values()))
        losses[-1].backward()
        optimizer.step()
    assert np.mean([x.item() for x in losses[-5:]]) < np.mean([x.item() for x in losses[:5]]) - 20.0
    assert len(pyro.get_param_store()) == 0


@pytest.mark.parametrize("name", MODELS)
def test_a_loaded_checkpoint_gives_identical_outputs(name, tmp_path):
    pair, batch = build(name, seed=1).eval(), example(name)
    files.save(tmp_path / "best.pt", {"pair": pair.state_dict()})
    other = build(name, seed=2).eval()
    assert not same_state(pair, other)
    other.load_state_dict(files.load(tmp_path / "best.pt")["pair"])
    for program in (lambda p: terms_of(p, batch, 2).log_weight, lambda p: means_of(p, batch)):
        outputs = []
        for each in (pair, other):
            torch.manual_seed(3)
            outputs.append(program(each))
        assert torch.equal(*outputs)


@pytest.mark.parametrize("name", MODELS)
def test_a_trained_model_comes_back_from_its_run_folder(name, tmp_path):
    own = default_of("data", name)
    data = pv.load_data(own, binarize=getattr(plugins.load("dataset", own), "binarize", "static"))
    data = pv.Dataset("few", data.train.head(32), data.valid.head(8), data.test.head(8), undrawn=data.undrawn)
    facts = {"context_shape": (1, 8, 8)} | {k: v for k, v in data.facts.items() if k != "data_mean"}
    try:
        pair = runs.build_model(name, facts, {})
        fields = select_fields(pair, data.test.take(slice(None)))
    except DataError:
        pytest.skip("needs fields that digits lack")
    record = {"model": name, "options": {}, "facts": facts}
    run = pv.train(pair, data, epochs=1, batch_size=16, out=tmp_path / "run", progress=False, record=record)
    stored = pv.load_run(tmp_path / "run")
    assert same_state(run.pair, stored.pair) and not stored.pair.training
    assert {n: list(v.shape[1:]) for n, v in fields.items()} == {n: shape for n, (shape, _) in stored.fields.items()}


# --- the world outside --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_our_functions_leave_the_global_settings_as_they_were(name, validation):
    pair, batch = build(name), example(name, 30)
    before = global_state()
    terms_of(pair, batch, 2)
    pv.train(pair, batch, epochs=1, batch_size=16, progress=False)
    assert global_state() | {"rng": None} == before | {"rng": None}
    before = global_state()
    score = "trace_elbo" if structure_of(pair, select_fields(pair, batch)).sums else "trace_graph_elbo"
    pv.train(pair, batch, epochs=1, batch_size=16, progress=False, objective=score, seed=4)
    pv.evaluate(pair, batch, particles=3, progress=False)
    pv.evaluate(pair, batch, evaluator="reconstruction", progress=False)
    assert global_state() == before


def test_log_terms_uses_the_callers_generator_and_nothing_else(validation):
    pair, x = small_vae(), {"x": bits()}
    before = global_state()
    torch.manual_seed(5)
    first = pv.log_terms(pair, x).log_weight
    torch.manual_seed(5)
    assert torch.equal(first, pv.log_terms(pair, x).log_weight)
    assert global_state() | {"rng": None} == before | {"rng": None}


def test_a_failing_pair_leaves_the_global_settings_as_they_were(validation):
    class Broken(pv.VAE):
        def guide(self, x):
            super().guide(x)
            raise ZeroDivisionError

    pair = Broken(SHAPE, hidden=(4,))
    with pytest.raises(ZeroDivisionError):
        pv.log_terms(pair, {"x": bits()})
    before = global_state()
    for call in (pv.train, pv.evaluate):
        with pytest.raises(ZeroDivisionError):
            call(pair, {"x": bits(200)})
    assert global_state() == before


def test_double_precision_stays_double(dtype):
    pair, x = small_vae(), bits().to(dtype)
    run = pv.train(pair, x, epochs=1, batch_size=16, progress=False)
    assert {p.dtype for p in run.pair.parameters()} == {dtype}
    assert pv.log_terms(pair, {"x": x}).log_weight.dtype == dtype
    assert torch.get_default_dtype() == dtype


def test_discrete_latents_and_score_functions_leave_no_trace_either(validation):
    pair, before = Clusters(), global_state()
    pv.train(pair, {"counts": counts()}, epochs=2, batch_size=16, objective="trace_graph_elbo", progress=False)
    pv.evaluate(pair, {"counts": counts()}, progress=False)
    assert global_state() == before


def test_two_models_live_side_by_side():
    """Training another model in between, or keeping one alive, changes not one bit."""
    x = bits()
    alone = small_vae(seed=1)
    pv.train(alone, x, epochs=2, batch_size=16, progress=False)

    first, second = small_vae(seed=1), small_vae(seed=2, latent_dim=3)
    svi = SVI(second.model, second.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    svi.step(x)
    pv.train(first, x, epochs=2, batch_size=16, progress=False)
    held = {name: value.clone() for name, value in first.state_dict().items()}
    pv.train(second, x, epochs=2, batch_size=16, progress=False)
    svi.step(x)
    assert same_state(alone, first)
    assert all(torch.equal(held[name], value) for name, value in first.state_dict().items())


def test_svi_trains_two_models_of_one_class_without_mixing_them():
    x = bits()
    first, second = small_vae(seed=1), small_vae(seed=2)
    untouched = {name: value.clone() for name, value in second.state_dict().items()}
    optimizer = pyro.optim.Adam({"lr": 1e-2})
    SVI(first.model, first.guide, optimizer, Trace_ELBO()).step(x)
    assert all(torch.equal(untouched[name], value) for name, value in second.state_dict().items())
    SVI(second.model, second.guide, optimizer, Trace_ELBO()).step(x)
    assert not torch.equal(untouched["decoder.out.weight"], second.decoder.out.weight)


# --- every combination of parts -----------------------------------------------------------------------------


def fitting_data(likelihood: str, n: int = 6) -> torch.Tensor:
    """x [n, 1, 4, 4] in the support of a likelihood."""
    generator = torch.Generator().manual_seed(0)
    unit = torch.rand(n, *SHAPE, generator=generator)
    eight_bit, grey = (256 * unit).floor(), unit
    special = {
        "bernoulli": unit.round(),
        "categorical": eight_bit,
        "discretized_logistic": eight_bit,
        **dict.fromkeys(["poisson", "negative_binomial", "zero_inflated_negative_binomial"], (9 * unit).floor()),
    }
    return special.get(likelihood, grey)


def check_fit(x: torch.Tensor, options: dict[str, str]) -> None:
    """A VAE of these parts trains: its losses are finite, and every parameter moves."""
    torch.manual_seed(0)
    pair = pv.VAE(SHAPE, 3, hidden=(4, 3), activation="tanh", **options, data_mean=x.mean(0))
    start = {name: value.clone() for name, value in pair.named_parameters()}
    run = pv.train(pair, x, epochs=1, batch_size=5, progress=False)
    assert np.isfinite([run.history[0]["loss"], run.history[0]["valid_loss"]]).all(), options
    for name, value in run.pair.named_parameters():
        assert value.isfinite().all() and not torch.equal(value, start[name]), (options, name)


@pytest.mark.parametrize("likelihood", plugins.names("likelihood"))
def test_every_likelihood_fits_the_other_parts(likelihood):
    for net in plugins.names("net"):
        check_fit(fitting_data(likelihood), {"likelihood": likelihood, "net": net})
    for prior in plugins.names("prior"):
        check_fit(fitting_data(likelihood), {"likelihood": likelihood, "prior": prior})


@pytest.mark.parametrize("prior", plugins.names("prior"))
def test_every_prior_fits_every_posterior_or_says_why_not(prior):
    for posterior in plugins.names("posterior"):
        try:
            check_fit(fitting_data("bernoulli"), {"prior": prior, "posterior": posterior})
        except ContractError as refusal:
            assert prior == "vamp" and "choose another posterior" in str(refusal)


@pytest.mark.parametrize("likelihood", ["categorical", "discretized_logistic", "poisson"])
def test_an_encoder_of_large_numbers_starts_near_the_prior(likelihood):
    """Levels up to 255 would put exp(log scale) of fresh weights at infinity, or z far from every prior."""
    x = (256 * torch.rand(8, 1, 28, 28, generator=torch.Generator().manual_seed(0))).floor()
    torch.manual_seed(0)
    pair = pv.VAE(x.shape[1:], latent_dim=10, likelihood=likelihood)
    rate = pv.evaluate(pair, x, progress=False).rate
    assert (rate < 1000.0).all(), "nats; without scaling it is infinite, or millions"


@pytest.mark.parametrize("shape", [(5,), (3, 4), (3, 6, 5), (2, 3, 2, 2)])
def test_sizes_come_from_the_shape_of_the_data(shape):
    pair = pv.VAE(shape, latent_dim=2, hidden=(4,))
    x = bits(6, shape)
    assert generation.reconstruct(pair, {"x": x})["x"].fn.mean.shape == (6, *shape)
    assert pv.log_terms(pair, {"x": x}, 2).log_weight.shape == (2, 6)


def test_parts_may_be_objects_of_the_users_own():
    class Laplace(torch.nn.Module):
        def forward(self):
            return pyro.distributions.Laplace(torch.zeros(2), torch.ones(2)).to_event(1)

    pair = small_vae(prior=Laplace())
    assert pv.evaluate(pair, bits(), progress=False).elbo.isfinite().all()
    assert batch_size({"x": bits(7)}) == 7
