"""The engines: a traced loss is the eager one, for every batch size and beta, or it is not used and says why."""

import random

import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs import SHAPE, Clusters, bits, counts, small_vae
from torch._dynamo.utils import counters

import pyro_vae as pv
from pyro_vae import plugins, runs
from pyro_vae.engine import REPAYING_STEPS, Loss, choose_engine
from pyro_vae.errors import ContractError, UnknownName
from pyro_vae.objectives import TraceGraphELBO, TraceMeanFieldELBO
from pyro_vae.pair import select_fields

TRACEABLE = [
    name for name in plugins.names("objective") if getattr(plugins.load("objective", name), "traceable", False)
]


def loss_of(pair, objective=None, particles=1) -> Loss:
    return Loss(pair, objective or TraceMeanFieldELBO(), particles, data_size=100)


@pytest.fixture
def uncompiled(monkeypatch):
    """Traced graphs run as they are: a second where the compiler takes ten."""
    monkeypatch.setattr(torch, "compile", lambda program, **_: program)


def value_and_gradients(function, pair, batch, beta):
    torch.manual_seed(5)
    value = function(batch, torch.tensor(beta))
    return [value.detach(), *torch.autograd.grad(value, list(pair.parameters()), allow_unused=True)]


def check_same(engine, loss, pair, sizes, batch):
    """The engine's loss and gradients are the eager ones, at batch sizes and a beta that were not traced."""
    for size in sizes:
        part = {name: value[:size] for name, value in batch.items()}
        expected = value_and_gradients(loss, pair, part, 0.3)
        for value, reference in zip(value_and_gradients(engine.loss, pair, part, 0.3), expected, strict=True):
            assert (value is None) == (reference is None)
            if value is not None:
                assert torch.allclose(value, reference, rtol=1e-4, atol=1e-5)


# --- compiled -----------------------------------------------------------------------------------------------


def test_a_compiled_run_is_the_eager_run():
    """Batches of 16, 16 and 4, a beta that changes at every step: the same losses from at most three graphs."""
    torch._dynamo.reset()
    counters.clear()
    options = {"epochs": 6, "batch_size": 16, "kl_warmup": 4, "lr": 1e-2, "progress": False}
    compiled = pv.train(small_vae(), bits(40), engine="compiled", **options)
    assert compiled.engine == "compiled", compiled.notes
    graphs = counters["stats"]["unique_graphs"]
    assert 1 <= graphs <= 3, "traced for a batch size or a beta anew"
    eager = pv.train(small_vae(), bits(40), engine="eager", **options)
    for ours, reference in zip(compiled.history, eager.history, strict=True):
        for key in ("loss", "valid_elbo", "valid_rate"):
            assert ours[key] == pytest.approx(reference[key], rel=1e-4), (key, ours["epoch"])
    for (name, value), reference in zip(compiled.pair.named_parameters(), eager.pair.parameters(), strict=True):
        assert torch.allclose(value, reference, atol=1e-3), name


# --- traced -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", plugins.names("model"))
def test_every_registered_model_can_be_traced(name, uncompiled):
    shape, n = (1, 8, 8), 12
    batch = {"x": bits(n, shape), "context": bits(n, shape, seed=1), "label": torch.arange(n) % 10}
    facts = {"data_shape": shape, "data_mean": batch["x"].mean(0), "context_shape": shape, "num_labels": 10}
    pair = runs.build_model(name, facts, {})
    objective = plugins.load("objective", "trace_elbo")()
    loss, batch = loss_of(pair, objective), select_fields(pair, batch)
    engine = choose_engine("compiled", loss, batch, 1)
    assert engine.name == "compiled", engine.reason
    check_same(engine, loss, pair, (12, 5), batch)


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("objective", TRACEABLE)
def test_every_traceable_objective_can_be_traced(objective, particles, uncompiled):
    pair, batch = small_vae(), {"x": bits(12)}
    loss = loss_of(pair, plugins.load("objective", objective)(), particles)
    engine = choose_engine("compiled", loss, batch, 1)
    assert engine.name == "compiled", engine.reason
    check_same(engine, loss, pair, (12, 5, 2), batch)


@pytest.mark.parametrize("gradient", ["stl", "dreg", "vimco"])
def test_every_estimator_can_be_traced(gradient, uncompiled):
    pair, batch = small_vae(), {"x": bits(12)}
    loss = loss_of(pair, plugins.load("objective", "iwae")(gradient), particles=3)
    engine = choose_engine("compiled", loss, batch, 1)
    assert engine.name == "compiled", engine.reason
    check_same(engine, loss, pair, (12, 5), batch)


PARTS = [
    {"likelihood": "gaussian_net", "prior": "mixture"},
    {"likelihood": "gaussian_per_dimension", "posterior": "full_covariance"},
    {"likelihood": "continuous_bernoulli", "net": "conv"},
    {"likelihood": "discretized_logistic", "net": "residual"},
    {"likelihood": "categorical"},
    {"likelihood": "poisson"},
]


@pytest.mark.parametrize("parts", PARTS, ids=lambda parts: "-".join(parts.values()))
def test_every_part_can_be_traced(parts, uncompiled):
    pair, batch = small_vae(**parts), {"x": bits(12)}
    loss = loss_of(pair)
    engine = choose_engine("compiled", loss, batch, 1)
    assert engine.name == "compiled", engine.reason
    check_same(engine, loss, pair, (12, 5), batch)


def test_a_discrete_pair_can_be_traced(uncompiled):
    pair, batch = Clusters(), {"counts": counts(12)}
    loss = loss_of(pair, plugins.load("objective", "trace_elbo")(), particles=2)
    engine = choose_engine("compiled", loss, batch, 1)
    assert engine.name == "compiled", engine.reason
    check_same(engine, loss, pair, (12, 5), batch)


def test_a_traced_loss_shares_the_parameters_of_the_pair(uncompiled):
    pair, batch = small_vae(), {"x": bits(12)}
    loss = loss_of(pair)
    engine = choose_engine("compiled", loss, batch, 1)
    before = value_and_gradients(engine.loss, pair, batch, 1.0)[0]
    with torch.no_grad():
        pair.decoder.out.bias.add_(1.0)
    assert not torch.allclose(before, value_and_gradients(engine.loss, pair, batch, 1.0)[0])
    check_same(engine, loss, pair, (12,), batch)


def test_choosing_leaves_generator_gradients_and_store_alone(uncompiled):
    pair, batch = small_vae(), {"x": bits(12)}
    before = torch.get_rng_state()
    choose_engine("compiled", loss_of(pair), batch, 1)
    assert torch.equal(before, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in pair.parameters())
    assert len(pyro.get_param_store()) == 0


# --- which engine, and why ----------------------------------------------------------------------------------


def test_auto_compiles_on_a_cpu_where_enough_steps_follow(uncompiled):
    loss, batch = loss_of(small_vae()), {"x": bits(12)}
    few = choose_engine("auto", loss, batch, REPAYING_STEPS - 1)
    assert few.name == "eager" and few.loss is loss and "do not repay" in few.reason
    many = choose_engine("auto", loss, batch, REPAYING_STEPS)
    assert many.name == "compiled" and "repay" in many.reason


def test_eager_is_eager():
    loss = loss_of(small_vae())
    engine = choose_engine("eager", loss, {"x": bits(12)}, 10**9)
    assert engine.loss is loss and engine.reason == "asked for"


def test_an_unknown_engine_lists_those_there_are():
    with pytest.raises(UnknownName, match="known: compiled, .*"):
        choose_engine("compile", loss_of(small_vae()), {"x": bits(12)}, 1)


class Peeking(pv.VAE):
    """A pair that reads a value on the host, which no trace can follow."""

    def model(self, x):
        if x.sum().item() > 0:
            super().model(x)


class Fickle(pv.VAE):
    """A pair whose likelihood depends on a number that Python draws, which a trace freezes."""

    def model(self, x):
        with self.plate(x.shape[0]):
            z = pyro.sample("z", self.prior())
            logits = self.decoder(z).squeeze(-4) * random.random()
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(3), obs=x)


class OneSize(pv.VAE):
    """A pair that takes its batch size as a Python number."""

    def guide(self, x):
        with self.plate(len(x)):
            pyro.sample("z", self.posterior(self.encoder(x)))


REASONS = {Peeking: "compilation failed", Fickle: "differ from the eager ones", OneSize: "x.shape[0], not len(x)"}


@pytest.mark.parametrize("kind, words", REASONS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_what_cannot_be_traced_runs_eagerly_and_says_why(kind, words, uncompiled):
    pair = kind(SHAPE, hidden=(8,))
    loss = loss_of(pair)
    engine = choose_engine("compiled", loss, {"x": bits(12)}, 1)
    assert engine.name == "eager" and engine.loss is loss
    assert words in engine.reason and "\n" not in engine.reason
    run = pv.train(kind(SHAPE, hidden=(8,)), bits(), epochs=1, batch_size=16, engine="compiled", progress=False)
    assert run.engine == "eager" and words in run.notes[0]


def test_an_objective_that_keeps_averages_is_not_traced():
    engine = choose_engine("compiled", loss_of(Clusters(), TraceGraphELBO()), {"counts": counts(12)}, 1)
    assert engine.name == "eager" and "cannot be traced" in engine.reason


def test_a_broken_contract_is_not_hidden_by_falling_back(uncompiled):
    with pytest.raises(ContractError, match="2 particles"):
        choose_engine("compiled", loss_of(small_vae(), plugins.load("objective", "iwae")("vimco")), {"x": bits(12)}, 1)
