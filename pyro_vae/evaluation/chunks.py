"""A chunk of a model's terms as one fused graph: Pyro's handlers ran once, while it was traced."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from pyro_vae.engine.step import ENGINES, failure
from pyro_vae.engine.tracing import Named, call_with, compile_function, named_tensors
from pyro_vae.errors import UnknownName
from pyro_vae.evaluation.blocks import seeded
from pyro_vae.evaluation.draws import Draws
from pyro_vae.pair.particles import ways
from pyro_vae.pair.terms import LogTerms, model_terms

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
