"""The compiled chunk of the importance evaluator: the eager figures, or eager with a reason."""

import gc
import weakref

import pytest
import torch
from pairs import SHAPE, Clusters, bits, counts, small_vae

import pyro_vae as pv
from pyro_vae.engine import policy, tracing
from pyro_vae.errors import UnknownName
from pyro_vae.evaluation import chunks
from pyro_vae.evaluation.blocks import PARTICLE_BLOCK
from pyro_vae.evaluation.chunks import ChunkEngine, ModelTerms, even_step


def importance(pair, data, particles, engine):
    return pv.evaluate(pair, data, "importance", particles, progress=False, engine=engine)


def check_same(pair, data, particles, evaluator="importance"):
    result, eager = (
        pv.evaluate(pair, data, evaluator, particles, progress=False, engine=engine) for engine in ("compiled", "eager")
    )
    assert result.estimate.summary["engine"] == "compiled (asked for)"
    for name in ("log_likelihood", "half", "jackknife", "ess"):
        value, reference = (r.estimate.per_datum[name] for r in (result, eager))
        assert torch.allclose(value, reference, rtol=1e-4, atol=1e-4, equal_nan=True), name


@pytest.mark.parametrize("evaluator", ["importance", "prior"])
def test_a_compiled_evaluation_is_the_eager_one(evaluator, compilations):
    """Two blocks of data, the second smaller, in chunks of one shape: one graph."""
    check_same(small_vae(), bits(130), 600, evaluator)
    assert len(compilations) == 1, "traced for a ragged chunk"


@pytest.mark.parametrize("particles", [1, 7, 300])
def test_any_number_of_particles_can_be_traced(particles, graphs):
    check_same(small_vae(), bits(130), particles)


def test_a_discrete_pair_and_chunks_of_some_of_the_data_can_be_traced(graphs, monkeypatch):
    check_same(Clusters(), {"counts": counts(12)}, 40)
    monkeypatch.setitem(chunks.CHUNK_BYTES, "cpu", 2**13)
    check_same(small_vae(), bits(130), 9)


class Peeking(pv.VAE):
    """A pair that reads a value on the host, which no trace can follow."""

    def model(self, x):
        if x.sum().item() > 0:
            super().model(x)


def test_what_cannot_be_traced_runs_eagerly_and_says_why():
    pair = Peeking(SHAPE, hidden=(8,))
    result = importance(pair, bits(30), 10, "compiled")
    assert result.estimate.summary["engine"].startswith("eager (compilation failed: ")
    assert torch.equal(result.log_likelihood, importance(pair, bits(30), 10, "eager").log_likelihood)


def test_a_wrong_graph_is_not_used(monkeypatch):
    monkeypatch.setattr(chunks, "compile_chunk", lambda *_: lambda batch, values: (torch.zeros(10, 30),) * 2)
    result = importance(small_vae(), bits(30), 10, "compiled")
    assert "differ from the eager ones" in result.estimate.summary["engine"]
    assert result.mean < -1


class Writing(pv.VAE):
    """A pair that counts its calls in a buffer."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.register_buffer("calls", torch.zeros(()))

    def model(self, x):
        self.calls += 1
        super().model(x)


def test_the_check_leaves_buffers_alone(graphs):
    pair, batch = Writing(SHAPE, hidden=(8,)).eval(), {"x": bits(5)}
    values = {"z": torch.zeros(4, 5, 2)}
    engine = ChunkEngine("compiled", {})
    with torch.no_grad():
        ModelTerms(pair, 4, 5)(batch, values)  # sees the ways
        before = pair.calls.clone()
        engine(ModelTerms(pair, 4, 5), batch, values)
    assert engine.summary["engine"] == "compiled (asked for)"
    assert pair.calls == before + 1


def test_a_small_difference_is_seen(monkeypatch):
    monkeypatch.setattr(tracing, "compile_graph", lambda graph, _: lambda *args: [1.001 * v for v in graph(*args)])
    result = importance(small_vae(), bits(30), 10, "compiled")
    assert "differ from the eager ones" in result.estimate.summary["engine"]


def test_auto_compiles_where_enough_samples_follow(graphs, monkeypatch):
    few = importance(small_vae(), bits(30), 10, "auto").estimate.summary["engine"]
    assert few == "eager (300 samples do not repay compilation)"
    monkeypatch.setattr(policy, "repaying_amount", lambda work: 300)
    assert importance(small_vae(), bits(30), 10, "auto").estimate.summary["engine"] == "compiled (300 samples repay it)"


class Scaled(pv.VAE):
    """A pair with a number that a graph holds as a constant."""

    height = 1.0

    def model(self, x):
        return super().model(x * self.height)


def test_a_pair_is_compiled_once_and_again_only_where_it_changed(monkeypatch):
    compiled, compile_graph = [], lambda graph, _: compiled.append(1) or graph
    monkeypatch.setattr(tracing, "compile_graph", compile_graph)
    pair, x = Scaled(SHAPE, hidden=(8,)), bits(30)
    first = importance(pair, x, 10, "compiled").log_likelihood
    assert torch.equal(importance(pair, x, 10, "auto").log_likelihood, first) and len(compiled) == 1
    with torch.no_grad():
        pair.decoder.out.bias += 1
    assert not torch.allclose(importance(pair, x, 10, "compiled").log_likelihood, first) and len(compiled) == 1
    pair.height = 0.0
    eager = importance(pair, x, 10, "eager").log_likelihood
    assert torch.allclose(importance(pair, x, 10, "compiled").log_likelihood, eager) and len(compiled) == 2
    importance(pair, x, 20, "compiled")
    assert len(compiled) == 3


def test_graphs_die_with_their_pair():
    pair = small_vae()
    importance(pair, bits(30), 10, "compiled")
    known = weakref.ref(pair)
    assert pair in chunks.GRAPHS
    del pair
    gc.collect()
    assert known() is None


def test_an_unknown_engine_lists_those_there_are():
    with pytest.raises(UnknownName, match="known: compiled, .*"):
        importance(small_vae(), bits(30), 10, "compile")


@pytest.mark.parametrize("most", [1, 3, 13, 26, 249])
def test_a_block_of_particles_has_even_chunks(most):
    assert even_step(PARTICLE_BLOCK, most) <= most and PARTICLE_BLOCK % even_step(PARTICLE_BLOCK, most) == 0
    assert even_step(most, most) == most
