"""A chunk of a model's terms as one fused graph: Pyro's handlers ran once, while it was traced."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from torch import Tensor, nn

from pyro_vae.engine.policy import Engine, Work, choose_engine
from pyro_vae.engine.tracing import Named, call_with, compile_function, named_tensors
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
    """Evaluates chunks by one engine, chosen for the first; chunks of another shape run eagerly.

    Args:
        name: "eager", "compiled", or "auto", which compiles where enough samples follow.
        samples: data x particles to come.
    """

    def __init__(self, name: str, samples: int):
        self.name, self.samples = name, samples
        self.engine: Engine | None = None
        self.shape: tuple[int, int] | None = None

    def __call__(self, chunk: Chunk, *arguments: Named) -> Sequence[Tensor]:
        """What the chunk gives for these tensors.

        Raises:
            UnknownName: no engine of this name.
        """
        if self.engine is None:
            self.engine, self.shape = choose_engine(self.name, self._work(chunk, arguments)), chunk.shape
        return (self.engine.run if chunk.shape == self.shape else chunk)(*arguments)

    @property
    def summary(self) -> dict[str, str]:
        """Which engine ran, and how the particles were held, for `evaluation.json`."""
        return {"engine": self.engine.description, "way": self.engine.way.line} if self.engine else {}

    def terms_at(self, pair: nn.Module, batch: Mapping[str, Tensor], draws: Draws) -> LogTerms:
        """Log terms of a batch at draws of its guide."""
        return LogTerms(*self(ModelTerms(pair, *draws.log_guide.shape), batch, draws.values), draws.log_guide)

    def _work(self, chunk: Chunk, arguments: Sequence[Named]) -> Work:
        device = next(iter(arguments[0].values())).device
        return Work(
            module=chunk,
            device=device,
            eager=chunk,
            compile=lambda: compile_chunk(chunk, *arguments),
            results=lambda run: run(*arguments),
            amount=self.samples,
            repaying=REPAYING_SAMPLES[device.type],
            unit="samples",
            way=ways(chunk.pair, arguments[0]),
        )


def compile_chunk(chunk: Chunk, *arguments: Named) -> ChunkFunction:
    """Trace the chunk once on these tensors and compile the graph for their shapes."""
    tensors = named_tensors(chunk)
    return partial(compile_function(partial(call_with, chunk), tensors, *arguments), tensors)
