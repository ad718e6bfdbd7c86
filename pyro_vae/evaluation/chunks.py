"""Log terms in chunks that fit into memory, each as one fused graph: Pyro's handlers ran once, while it was traced."""

import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from pyro_vae.engine.policy import Engine, Work, choose_engine
from pyro_vae.engine.tracing import Named, call_with, compile_function, named_tensors
from pyro_vae.evaluation.blocks import PARTICLE_BLOCK, Block, Shapes, shapes_of
from pyro_vae.evaluation.draws import Draws, draws_of
from pyro_vae.pair.particles import run_guide_at, run_model, ways
from pyro_vae.pair.terms import LogTerms, joined, model_terms, reduce_sites

CHUNK_BYTES = {"cpu": 2**24, "cuda": 2**31}
"""Rough size of the model's activations that are held at a time; on a CPU, what its caches hold."""

TENSORS_PER_ROW = 4
"""About as many tensors of the size of one datum does a model hold for each particle."""

GRAPHS: WeakKeyDictionary[nn.Module, dict[tuple, Callable[..., Sequence[Tensor]]]] = WeakKeyDictionary()
"""The graphs that were compiled for a pair, by what they were traced on; they live as long as the pair."""


class ModelTerms(nn.Module):
    """log p(x|z) and log p(z), each [particles, size], of some particles of some data, as a function of named tensors:
    the batch, and values of the latents; at draws of the model's own where there are none."""

    def __init__(self, pair: nn.Module, particles: int, size: int):
        super().__init__()
        self.pair, self.shape = pair, (particles, size)

    def forward(self, batch: Named, values: Named) -> Sequence[Tensor]:
        return model_terms(self.pair, batch, values, self.shape[0])


class PairTerms(nn.Module):
    """All log terms of some particles of some data, where the guide enumerates: then its log-probabilities are summed
    together with the model's."""

    def __init__(self, pair: nn.Module, particles: int, size: int):
        super().__init__()
        self.pair, self.shape = pair, (particles, size)

    def forward(self, batch: Named, values: Named) -> Sequence[Tensor]:
        particles, size = self.shape
        guide = run_guide_at(self.pair, batch, values, particles, summing=True)
        model = run_model(self.pair, batch, values, particles, summing=True)
        terms = reduce_sites(model, guide, particles, size, as_loss=True)
        return *terms[:3], terms.log_weight


Chunk = ModelTerms | PairTerms
Runner = Callable[[Chunk, Named, Named], Sequence[Tensor]]


class ChunkEngine:
    """Evaluates chunks by an engine for each shape of a datum, chosen for the first chunk of it; chunks of other sizes
    run eagerly.

    The name is "eager", "compiled", or "auto", which compiles where enough samples (data x particles) are to come.

    Args:
        samples: how many are to come of each shape.
    """

    def __init__(self, name: str, samples: Mapping[Shapes, int]):
        self.name, self.samples = name, samples
        self.engines: dict[Shapes, tuple[Engine, tuple[int, int]]] = {}

    def __call__(self, chunk: Chunk, batch: Named, values: Named) -> Sequence[Tensor]:
        """The terms of a chunk; raises `UnknownName` where no engine has the name."""
        key = shapes_of(batch)
        if key not in self.engines:
            self.engines[key] = choose_engine(self.name, self._work(chunk, batch, values)), chunk.shape
        engine, shape = self.engines[key]
        return (engine.run if chunk.shape == shape else chunk)(batch, values)

    @property
    def summary(self) -> dict[str, str]:
        """Which engine ran, and how the particles were held, for `evaluation.json`."""
        engines = {key: engine for key, (engine, _) in self.engines.items()}
        if not engines:
            return {}
        described = [engine.description for engine in engines.values()]
        if len(engines) > 1:  # sequences, whose blocks are cut
            described = [
                f"{dict(key)['x'][0]} time slices: {engine.description}, {engine.seconds:.1f} s to compile"
                for key, engine in engines.items()
            ]
        ways = dict.fromkeys(engine.way.line for engine in engines.values())
        return {"engine": "; ".join(described), "way": "; ".join(ways)}

    def _work(self, chunk: Chunk, batch: Named, values: Named) -> Work:
        device = next(iter(batch.values())).device
        return Work(
            module=chunk,
            device=device,
            eager=chunk,
            compile=lambda: compile_chunk(chunk, batch, values),
            kept=kept_chunk(chunk, batch, values),
            results=lambda run: run(batch, values),
            amount=self.samples.get(shapes_of(batch), 0),
            least=50_000,
            shown=math.prod(chunk.shape),
            unit="samples",
            way=ways(chunk.pair, batch),
        )


def compile_chunk(chunk: Chunk, batch: Named, values: Named) -> Callable[[Named, Named], Sequence[Tensor]]:
    """Trace the chunk once on these tensors, compile the graph for their shapes, and keep it with the pair."""
    tensors = named_tensors(chunk)
    graph = compile_function(partial(call_with, chunk), tensors, batch, values)
    GRAPHS.setdefault(chunk.pair, {})[_key(chunk, tensors, batch, values)] = graph
    return partial(graph, tensors)


def kept_chunk(chunk: Chunk, batch: Named, values: Named) -> Callable[[Named, Named], Sequence[Tensor]] | None:
    """The graph of an earlier evaluation of the same pair and shapes, with the parameters as they are now."""
    tensors = named_tensors(chunk)
    graph = GRAPHS.get(chunk.pair, {}).get(_key(chunk, tensors, batch, values))
    return None if graph is None else partial(graph, tensors)


def _key(chunk: Chunk, *arguments: Named) -> tuple:
    return type(chunk), chunk.shape, chunk.pair.training, *map(_layout, arguments)


def _layout(named: Named) -> tuple:
    return tuple((name, value.shape, value.stride(), value.dtype, value.device) for name, value in named.items())


def stream_terms(
    block: Block,
    particles: int,
    progress: Callable[[int], None] = lambda samples: None,
    run: Runner = operator.call,
) -> Iterator[LogTerms]:
    """Log terms [some particles, batch], in nats, of exactly `particles` draws of the guide for every datum of a block.

    They come one block of particles after another, so memory does not grow with their number. A chunk's terms are had
    by calling it, or by a `ChunkEngine`; `progress` is told of data x particles done. Raises `ContractError` where the
    pair breaks the contract, or has latents outside the data plate.
    """
    block.check()
    batch = block.batch()
    for count, noise in block.particle_blocks(particles):
        with noise:
            draws = draws_of(block, count)
        terms = _terms_in_chunks(block, batch, draws, run)
        yield terms
        progress(terms.log_guide.numel())


def _terms_in_chunks(block: Block, batch: Named, draws: Draws, run: Runner) -> LogTerms:
    """Log terms [particles, batch] in nats, with as many data x particles in the model at a time as fit."""
    (count, size), rows = draws.log_guide.shape, max(1, rows_that_fit(batch) // block.structure.states)
    summed = bool(block.structure.enumerated["guide"])
    particle_step, data_step = even_step(count, max(1, rows // size)), min(size, rows)
    of_data = []
    for start in range(0, size, data_step):
        data = slice(start, start + data_step)
        fields = {name: value[data] for name, value in batch.items()}
        chunks = []
        for first in range(0, count, particle_step):
            some = slice(first, first + particle_step), data
            values = {name: value[some] for name, value in draws.values.items()}
            log_guide = draws.log_guide[some]
            chunk = (PairTerms if summed else ModelTerms)(block.pair, *log_guide.shape)
            found = run(chunk, fields, values)
            chunks.append(LogTerms(*found[:3], weight=found[3]) if summed else LogTerms(*found, log_guide))
        of_data.append(joined(LogTerms, chunks))
    columns = zip(*of_data, strict=True)
    return LogTerms(*[None if column[0] is None else torch.cat(column, 1) for column in columns])


def even_step(count: int, most: int) -> int:
    """Particles in a chunk, at most `most`, so that the chunks of a block of particles have one shape."""
    return count if count <= most else max(step for step in range(1, most + 1) if PARTICLE_BLOCK % step == 0)


def rows_that_fit(batch: Named) -> int:
    """Data x particles whose activations take about `CHUNK_BYTES`."""
    value = max(batch.values(), key=lambda field: field[0].numel())
    row = value[0].numel() * value.element_size() * TENSORS_PER_ROW
    return max(1, CHUNK_BYTES[value.device.type] // row)
