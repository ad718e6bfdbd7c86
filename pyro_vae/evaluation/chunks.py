"""Log terms in chunks that fit into memory, each as one fused graph: Pyro's handlers ran once, while it was traced."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from pyro_vae.engine.step import ENGINES, failure
from pyro_vae.engine.tracing import Named, call_with, compile_function, named_tensors
from pyro_vae.errors import UnknownName
from pyro_vae.evaluation.blocks import PARTICLE_BLOCK, Block, seeded
from pyro_vae.evaluation.draws import Draws, draws_of
from pyro_vae.pair.particles import ways
from pyro_vae.pair.terms import LogTerms, joined, model_terms

REPAYING_SAMPLES = {"cpu": 5_000_000, "cuda": 1_000_000_000}
"""Compiling takes about a quarter of a minute and saves microseconds a sample on a CPU, tens of
nanoseconds on a GPU."""

ChunkFunction = Callable[..., Sequence[Tensor]]


class Chunk(nn.Module):
    """Terms of some particles of some data, each [particles, size], as a function of named tensors."""

    def __init__(self, pair: nn.Module, particles: int, size: int):
        super().__init__()
        self.pair, self.shape = pair, (particles, size)


class ModelTerms(Chunk):
    """(batch, values of the latents) -> log p(x|z) and log p(z)."""

    def forward(self, batch: Named, values: Named) -> Sequence[Tensor]:
        return model_terms(self.pair, batch, values, self.shape[0])


class PriorTerms(Chunk):
    """(batch) -> log p(x|z) at draws z of the model's own."""

    def forward(self, batch: Named) -> Sequence[Tensor]:
        return model_terms(self.pair, batch, {}, self.shape[0])[:1]


class ChunkEngine:
    """Evaluates chunks, eagerly or compiled for the shape of the first; chunks of another shape run eagerly.

    "auto" compiles where enough samples follow to repay it. What cannot be traced, or does not reproduce the eager
    terms of the first chunk to 1e-5, runs eagerly. `description` says which engine ran, and why.

    Args:
        name: "auto", "eager" or "compiled".
        samples: data x particles to come.

    Raises:
        UnknownName: no engine of this name.
    """

    def __init__(self, name: str, samples: int):
        if name not in ENGINES:
            raise UnknownName("engine", name, ENGINES)
        self.name, self.samples = name, samples
        self.description = "eager (asked for)"
        self.shape: tuple[int, int] | None = None
        self.compiled: ChunkFunction | None = None

    def __call__(self, chunk: Chunk, *arguments: Named) -> Sequence[Tensor]:
        """What the chunk gives for these tensors."""
        if self.shape is None:
            self.shape = chunk.shape
            if self.name != "eager":
                self._choose(chunk, arguments)
        evaluate = chunk if self.compiled is None or chunk.shape != self.shape else self.compiled
        return evaluate(*arguments)

    def terms_at(self, pair: nn.Module, batch: Mapping[str, Tensor], draws: Draws) -> LogTerms:
        """Log terms of a batch at draws of its guide."""
        return LogTerms(*self(ModelTerms(pair, *draws.log_guide.shape), batch, draws.values), draws.log_guide)

    def _choose(self, chunk: Chunk, arguments: Sequence[Named]) -> None:
        if self.name == "auto" and self.samples < REPAYING_SAMPLES[_device(arguments)]:
            self.description = f"eager ({self.samples} samples do not repay compilation)"
            return
        ways(chunk.pair, arguments[0])  # compared before the trace, which reads no values
        try:
            compiled = compile_chunk(chunk, *arguments)
            check_parity(compiled, chunk, *arguments)
        except Exception as problem:
            self.description = f"eager ({failure(problem)})"
            return
        reason = "asked for" if self.name == "compiled" else f"{self.samples} samples repay it"
        self.compiled, self.description = compiled, f"compiled ({reason})"


def _device(arguments: Sequence[Named]) -> str:
    return next(iter(arguments[0].values())).device.type


def compile_chunk(chunk: Chunk, *arguments: Named) -> ChunkFunction:
    """Trace the chunk once on these tensors and compile the graph for their shapes."""
    tensors = named_tensors(chunk)
    return partial(compile_function(partial(call_with, chunk), tensors, *arguments), tensors)


def check_parity(compiled: ChunkFunction, chunk: Chunk, *arguments: Named) -> None:
    """Raise `ArithmeticError` unless the compiled terms equal the eager ones for the same seed, to 1e-5 relative."""
    with seeded(0):
        eager = chunk(*arguments)
    with seeded(0):
        found = compiled(*arguments)
    for value, reference in zip(found, eager, strict=True):
        scale = reference.detach().nan_to_num(posinf=0.0, neginf=0.0).abs().max().item()
        if not torch.allclose(value, reference, rtol=1e-5, atol=1e-5 * scale, equal_nan=True):
            raise ArithmeticError("the traced terms differ from the eager ones")


CHUNK_BYTES = {"cpu": 2**24, "cuda": 2**31}
"""Rough size of the model's activations that are held at a time; on a CPU, what its caches hold."""

TENSORS_PER_ROW = 4
"""About as many tensors of the size of one datum does a model hold for each particle."""

TermsAt = Callable[[nn.Module, Mapping[str, Tensor], Draws], LogTerms]


def terms_at(pair: nn.Module, batch: Mapping[str, Tensor], draws: Draws) -> LogTerms:
    """Log terms [particles, batch] of a batch, in nats, at draws of its guide."""
    return LogTerms(*model_terms(pair, batch, draws.values, len(draws.log_guide)), draws.log_guide)


def stream_terms(
    block: Block,
    particles: int,
    progress: Callable[[int], None] = lambda samples: None,
    at: TermsAt = terms_at,
) -> Iterator[LogTerms]:
    """Log terms [some particles, batch], in nats, of exactly `particles` draws of the guide for every datum of a block.

    They come one block of particles after another, so memory does not grow with their number.

    Args:
        progress: told the number of data x particles that are done.
        at: what gives the log terms of a chunk: `terms_at`, or a compiled form of it.

    Raises:
        ContractError: the pair breaks the contract, or has latents outside the data plate.
    """
    block.check()
    batch = block.batch()
    rows = rows_that_fit(batch)
    for count, noise in block.particle_blocks(particles):
        with noise:
            draws = draws_of(block, count)
        terms = terms_in_chunks(block.pair, batch, draws, rows, at)
        yield terms
        progress(terms.log_guide.numel())


def terms_in_chunks(
    pair: nn.Module, batch: Mapping[str, Tensor], draws: Draws, rows: int, at: TermsAt = terms_at
) -> LogTerms:
    """Log terms [particles, batch] in nats, with at most `rows` data x particles in the model at a time."""
    count, size = draws.log_guide.shape
    particle_step, data_step = even_step(count, max(1, rows // size)), min(size, rows)
    of_data = []
    for start in range(0, size, data_step):
        data = slice(start, start + data_step)
        fields = {name: value[data] for name, value in batch.items()}
        chunks = [
            at(pair, fields, draws.some(slice(first, first + particle_step), data))
            for first in range(0, count, particle_step)
        ]
        of_data.append(joined(LogTerms, chunks)[:3])
    return LogTerms(*[torch.cat(terms, 1) for terms in zip(*of_data, strict=True)])


def even_step(count: int, most: int) -> int:
    """Particles in a chunk, at most `most`, so that the chunks of a block of particles have one shape."""
    return count if count <= most else max(step for step in range(1, most + 1) if PARTICLE_BLOCK % step == 0)


def rows_that_fit(batch: Mapping[str, Tensor]) -> int:
    """Data x particles whose activations take about `CHUNK_BYTES`."""
    value = max(batch.values(), key=lambda field: field[0].numel())
    row = value[0].numel() * value.element_size() * TENSORS_PER_ROW
    return max(1, CHUNK_BYTES[value.device.type] // row)
