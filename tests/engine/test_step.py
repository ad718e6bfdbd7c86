"""The engines: a traced loss is the eager one, for every batch size and beta, or it is not used and says why."""

import math
import random

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch._dynamo.utils as dynamo
from model_examples import build, example
from pairs import SHAPE, Clusters, bits, counts, small_vae
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import pyro_vae as pv
from pyro_vae import plugins
from pyro_vae.engine import policy, tracing
from pyro_vae.engine.step import EagerStep, Loss, SharedStep, choose_step
from pyro_vae.errors import ContractError, UnknownName
from pyro_vae.objectives.elbo import TraceMeanFieldELBO
from pyro_vae.objectives.trace_graph import TraceGraphELBO
from pyro_vae.pair.pair import select_fields
from pyro_vae.training.loop import Trainer

TRACEABLE = [
    name for name in plugins.names("objective") if getattr(plugins.load("objective", name), "traceable", False)
]


REWEIGHTED = "reweighted_wake_sleep"
"""It refuses one particle."""


def loss_of(pair, objective=None, particles=1) -> Loss:
    return Loss(pair, objective or TraceMeanFieldELBO(), particles, data_size=100)


def value_and_gradients(step, pair, batch, beta):
    """What the pair writes into its buffers is put back, so that two steps start alike."""
    kept = [buffer.clone() for buffer in pair.buffers()]
    torch.manual_seed(5)
    value = step(batch, torch.tensor(beta))
    assert not value.requires_grad
    gradients = [parameter.grad for parameter in pair.parameters()]
    pair.zero_grad()
    for buffer, before in zip(pair.buffers(), kept, strict=True):
        buffer.copy_(before)
    return [value, *gradients]


def check_same(engine, loss, pair, sizes, batch):
    """The engine's loss and gradients are the eager ones, at batch sizes and a beta that were not traced."""
    for size in sizes:
        part = {name: value[:size] for name, value in batch.items()}
        expected = value_and_gradients(EagerStep(loss), pair, part, 0.3)
        for value, reference in zip(value_and_gradients(engine.run, pair, part, 0.3), expected, strict=True):
            assert (value is None) == (reference is None)
            if value is not None:
                assert torch.allclose(value, reference, rtol=1e-4, atol=1e-5)


# --- compiled -----------------------------------------------------------------------------------------------


def test_a_compiled_run_is_the_eager_run(compilations):
    """Batches of 16, 16 and 4, a beta and a learning rate that change at every step, clipping, averaging and several
    particles: the same losses from one compilation."""
    options = {"epochs": 6, "batch_size": 16, "kl_warmup": 4, "schedule": "cosine", "clip": 5.0, "ema": 0.9}
    options |= {"lr": 1e-2, "particles": 2, "objective": "iwae", "progress": False}
    compiled = pv.train(small_vae(), bits(40), engine="compiled", **options)
    assert compiled.engine == "compiled", compiled.notes
    assert len(compilations) == 1
    eager = pv.train(small_vae(), bits(40), engine="eager", **options)
    for ours, reference in zip(compiled.history, eager.history, strict=True):
        for key in ("loss", "valid_elbo", "valid_rate"):
            assert ours[key] == pytest.approx(reference[key], rel=1e-4), (key, ours["epoch"])
    for (name, value), reference in zip(compiled.pair.named_parameters(), eager.pair.parameters(), strict=True):
        assert torch.allclose(value, reference, atol=1e-3), name


@pytest.mark.parametrize("objective", TRACEABLE)
def test_no_step_traces_anew(objective, graphs):
    """Whatever changes between steps, a run of many epochs has one graph, and dynamo none."""
    before = dict(dynamo.counters["stats"])
    run = pv.train(
        small_vae(), bits(50), engine="compiled", objective=objective, epochs=5, batch_size=16, kl_warmup=3,
        lr_warmup=2, schedule="cosine", clip=1.0, ema=0.9, particles=2, progress=False,
    )  # fmt: skip
    assert run.engine == "compiled" and len(graphs) == 1
    assert dict(dynamo.counters["stats"]) == before


# --- traced -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", plugins.names("model"))
def test_every_registered_model_can_be_traced(name, graphs):
    pair, batch = build(name), example(name)
    objective = plugins.load("objective", "trace_elbo")()
    loss, batch = loss_of(pair, objective), select_fields(pair, batch)
    engine = choose_step("compiled", loss, batch, 1)
    assert engine.name == "compiled", engine.reason
    check_same(engine, loss, pair, (12, 5), batch)


COUNTED = [(name, particles) for name in TRACEABLE for particles in (1, 3) if (name, particles) != (REWEIGHTED, 1)]


@pytest.mark.parametrize("objective, particles", COUNTED)
def test_every_traceable_objective_can_be_traced(objective, particles, graphs):
    pair, batch = small_vae(), {"x": bits(12)}
    loss = loss_of(pair, plugins.load("objective", objective)(), particles)
    engine = choose_step("compiled", loss, batch, 1)
    assert engine.name == "compiled", engine.reason
    check_same(engine, loss, pair, (12, 5, 2), batch)


@pytest.mark.parametrize("gradient", ["stl", "dreg", "vimco"])
def test_every_estimator_can_be_traced(gradient, graphs):
    pair, batch = small_vae(), {"x": bits(12)}
    loss = loss_of(pair, plugins.load("objective", "iwae")(gradient), particles=3)
    engine = choose_step("compiled", loss, batch, 1)
    assert engine.name == "compiled", engine.reason
    check_same(engine, loss, pair, (12, 5), batch)


PARTS = [
    {"likelihood": "gaussian_net", "prior": "mixture"},
    {"likelihood": "gaussian_per_dimension", "posterior": "full_covariance"},
    {"likelihood": "continuous_bernoulli", "net": "conv"},
    {"likelihood": "discretized_logistic", "net": "residual"},
    {"likelihood": "categorical"},
    {"likelihood": "poisson"},
    {"posterior": "planar"},
    {"posterior": "radial", "prior": "laplace"},
    {"posterior": "iaf", "prior": "flow"},
    {"posterior": "neural_spline"},
    {"posterior": "delta", "prior": "flat", "net": "dictionary"},
    {"posterior": "fixed_normal", "prior": "flat"},
]


@pytest.mark.parametrize("parts", PARTS, ids=lambda parts: "-".join(parts.values()))
def test_every_part_can_be_traced(parts, graphs):
    pair, batch = small_vae(**parts), {"x": bits(12)}
    loss = loss_of(pair)
    engine = choose_step("compiled", loss, batch, 1)
    assert engine.name == "compiled", engine.reason
    check_same(engine, loss, pair, (12, 5), batch)


def test_a_discrete_pair_can_be_traced(graphs):
    pair, batch = Clusters(), {"counts": counts(12)}
    loss = loss_of(pair, plugins.load("objective", "trace_elbo")(), particles=2)
    engine = choose_step("compiled", loss, batch, 1)
    assert engine.name == "compiled", engine.reason
    check_same(engine, loss, pair, (12, 5), batch)


def test_a_traced_loss_shares_the_parameters_of_the_pair(graphs):
    pair, batch = small_vae(), {"x": bits(12)}
    loss = loss_of(pair)
    engine = choose_step("compiled", loss, batch, 1)
    before = value_and_gradients(engine.run, pair, batch, 1.0)[0]
    with torch.no_grad():
        pair.decoder.out.bias.add_(1.0)
    assert not torch.allclose(before, value_and_gradients(engine.run, pair, batch, 1.0)[0])
    check_same(engine, loss, pair, (12,), batch)


def test_choosing_leaves_generator_gradients_and_store_alone(graphs):
    pair, batch = small_vae(), {"x": bits(12)}
    before = torch.get_rng_state()
    choose_step("compiled", loss_of(pair), batch, 1)
    assert torch.equal(before, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in pair.parameters())
    assert len(pyro.get_param_store()) == 0


# --- which engine, and why ----------------------------------------------------------------------------------


def elements_repay(loss, batch):
    """Steps from which compiling repays, by the elements that torch counts as the outputs of what it computes."""
    computed = []

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **kwargs or {})
            outputs = result if isinstance(result, tuple | list) else [result]
            computed.extend(0 if function.is_view else value.numel() for value in outputs if torch.is_tensor(value))
            return result

    with Seen():
        EagerStep(loss)(batch, torch.ones(()))
    for parameter in loss.parameters():
        parameter.grad = None
    return math.ceil(policy.REPAYING_ELEMENTS["cpu"] / (sum(computed) + policy.HANDLERS))


def test_auto_compiles_on_a_cpu_where_enough_steps_follow(graphs):
    loss, batch = loss_of(small_vae()), {"x": bits(12)}
    repaying = elements_repay(loss, batch)
    few = choose_step("auto", loss, batch, round(0.99 * repaying))
    assert few.name == "eager" and isinstance(few.run, EagerStep) and "do not repay" in few.reason
    many = choose_step("auto", loss, batch, round(1.01 * repaying))
    assert many.name == "compiled" and "repay" in many.reason


def test_eager_is_eager():
    loss = loss_of(small_vae())
    engine = choose_step("eager", loss, {"x": bits(12)}, 10**9)
    assert isinstance(engine.run, EagerStep) and engine.reason == "asked for"


def test_an_unknown_engine_lists_those_there_are():
    with pytest.raises(UnknownName, match="known: compiled, .*"):
        choose_step("compile", loss_of(small_vae()), {"x": bits(12)}, 1)


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


class Branching(pv.VAE):
    """A pair that branches on its data."""

    def guide(self, x):
        super().guide(x if x.mean() > 0.5 else 1 - x)


class Counting(pv.VAE):
    """A pair whose temperature falls with every call, which a trace would see once."""

    calls = 0

    def model(self, x):
        self.calls += 1
        super().model(x * 1 if self.calls < 10**6 else x)


class Replacing(pv.VAE):
    """A pair that puts a new tensor in place of its buffer."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.register_buffer("seen", torch.zeros(()))

    def model(self, x):
        self.seen = self.seen + 1
        super().model(x)


REASONS = {
    Peeking: "compilation failed",
    Branching: "compilation failed",
    Fickle: "differ from the eager ones",
    Counting: "sets Counting.calls while it runs",
    Replacing: "replaces its buffer 'seen'",
}


@pytest.mark.parametrize("kind, words", REASONS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_what_cannot_be_traced_runs_eagerly_and_says_why(kind, words, graphs):
    pair = kind(SHAPE, hidden=(8,))
    loss = loss_of(pair)
    engine = choose_step("compiled", loss, {"x": bits(12)}, 1)
    assert engine.name == "eager" and isinstance(engine.run, EagerStep)
    assert words in engine.reason and "\n" not in engine.reason
    run = pv.train(kind(SHAPE, hidden=(8,)), bits(), epochs=1, batch_size=16, engine="compiled", progress=False)
    assert run.engine == "eager" and words in run.notes[0]


def test_an_objective_that_keeps_averages_is_not_traced():
    engine = choose_step("compiled", loss_of(Clusters(), TraceGraphELBO()), {"counts": counts(12)}, 1)
    assert engine.name == "eager" and "cannot be traced" in engine.reason


def test_a_broken_contract_is_not_hidden_by_falling_back(graphs):
    with pytest.raises(ContractError, match="2 particles"):
        choose_step("compiled", loss_of(small_vae(), plugins.load("objective", "iwae")("vimco")), {"x": bits(12)}, 1)


class Remembering(pv.VAE):
    """A pair with a buffer that it writes into, a parameter that is frozen, and one that nothing reads."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.register_buffer("seen", torch.zeros(()))
        self.unread = nn.Parameter(torch.zeros(3))
        self.decoder.out.bias.requires_grad_(False)

    def model(self, x):
        self.seen += x.shape[0]
        super().model(x)


def test_buffers_are_written_as_by_the_eager_pair_and_not_by_the_check(graphs):
    pair, batch = Remembering(SHAPE, hidden=(8,)), {"x": bits(12)}
    loss = loss_of(pair)
    engine = choose_step("compiled", loss, batch, 1)
    assert engine.name == "compiled", engine.reason
    assert pair.seen == 0 and pair.unread.grad is None
    engine.run(batch, torch.ones(()))
    assert pair.seen == 12 and pair.unread.grad is None and pair.decoder.out.bias.grad is None
    assert pair.posterior.heads.weight.grad is not None
    check_same(engine, loss, pair, (12, 7), batch)


def test_a_pair_that_takes_its_batch_size_as_a_number_is_traced_for_full_batches(graphs):
    class OneSize(pv.VAE):
        def guide(self, x):
            with self.plate(len(x)):
                pyro.sample("z", self.posterior(self.encoder(x)))

    pair, batch = OneSize(SHAPE, hidden=(8,)), {"x": bits(12)}
    loss = loss_of(pair)
    engine = choose_step("compiled", loss, batch, 1)
    assert engine.name == "compiled", engine.reason
    check_same(engine, loss, pair, (12, 5), batch)


def test_a_rounding_difference_at_a_kink_is_not_taken_for_a_wrong_graph(graphs, monkeypatch):
    """One of a few draws may differ, with what rounding does and without; a graph that is wrong differs in all."""
    outcomes = iter([False, False, True])
    monkeypatch.setattr(policy, "agree", lambda *_: next(outcomes))
    assert choose_step("compiled", loss_of(small_vae()), {"x": bits(12)}, 1).name == "compiled"
    monkeypatch.setattr(policy, "agree", lambda *_: False)
    assert choose_step("compiled", loss_of(small_vae()), {"x": bits(12)}, 1).name == "eager"


@pytest.mark.parametrize("factor, name", [(1.0, "compiled"), (1.01, "eager")])
def test_parity_allows_what_rounding_does_to_importance_weights(factor, name, monkeypatch):
    """Log-weights of hundreds of nats leave single precision four digits of a weight; 1% is no rounding."""

    def compiler(graph, inputs):
        return lambda *args: [value if i == 0 else factor * value for i, value in enumerate(graph(*args))]

    monkeypatch.setattr(tracing, "compile_graph", compiler)
    torch.manual_seed(0)
    loss = loss_of(pv.VAE((784,), latent_dim=5, hidden=(20,)), plugins.load("objective", "iwae")(), particles=20)
    engine = choose_step("compiled", loss, {"x": bits(12, (784,))}, 1)
    assert engine.name == name, engine.reason


def test_what_counts_as_the_same():
    """A tolerance relative to the largest, and what rounding does besides; NaN is NaN, nothing is nothing."""
    exact = torch.tensor([1000.0, 1.0, torch.nan, torch.inf])
    near = exact + torch.tensor([0.0, 1e-3, 0.0, 0.0])
    assert policy.agree([exact + 5e-3, None], [exact, None], 1e-5)
    assert not policy.agree([exact + 5e-2, None], [exact, None], 1e-5)
    assert policy.agree([exact + 1.5e-2], [exact], 1e-5, [near])
    assert not policy.agree([exact + 5e-2], [exact], 1e-5, [near])
    assert not policy.agree([exact + 2.0], [exact], 1e-5, [exact + 1e6])
    assert not policy.agree([exact.nan_to_num()], [exact], 1e-5)
    assert not policy.agree([None], [exact], 1e-5) and not policy.agree([exact], [None], 1e-5)
    assert not policy.agree([exact[:2]], [exact], 1e-5)


def test_the_line_says_how_several_particles_are_held():
    line = choose_step("eager", loss_of(small_vae(), particles=3), {"x": bits(12)}, 1).line
    assert line.startswith("engine: eager (asked for); particles: ")
    assert choose_step("eager", loss_of(small_vae()), {"x": bits(12)}, 1).line == "engine: eager (asked for)"


def test_a_step_of_several_processes_is_not_compiled():
    loss = loss_of(small_vae())
    shared = SharedStep(loss)
    for name, reason in (("compiled", "several processes"), ("auto", "several processes"), ("eager", "asked for")):
        engine = choose_step(name, loss, {"x": bits(12)}, 10**9, shared)
        assert engine.run is shared and (engine.name, engine.reason) == ("eager", reason)


# --- no synchronisation -------------------------------------------------------------------------------------


class NoReading(TorchDispatchMode):
    """Raises where a tensor's value is asked for by the host."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        reading = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique")
        assert not any(word in function.name() for word in reading), f"{function.name()} reads a value"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("objective", plugins.names("objective"))
def test_no_step_of_an_epoch_reads_a_value(objective, monkeypatch):
    """Batches, their order and binarisation, losses, clipping, averaging: all without asking the device."""
    steps = Trainer.steps

    def watched(self):
        with NoReading():
            yield from steps(self)

    monkeypatch.setattr(Trainer, "steps", watched)
    data = pv.load_data("digits", binarize="dynamic")
    small = pv.Dataset("small", data.train.head(48), data.valid.head(16), data.test.head(16))
    options = {"clip": 1.0, "ema": 0.9, "kl_warmup": 1, "particles": 2, "engine": "eager", "progress": False}
    pv.train(pv.VAE((1, 8, 8), hidden=(8,)), small, epochs=2, batch_size=16, objective=objective, **options)
