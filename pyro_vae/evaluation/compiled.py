"""A chunk of log terms as one fused graph: Pyro's handlers ran once, while it was traced."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_vae.engine import ENGINES, failure
from pyro_vae.errors import UnknownName, UserError
from pyro_vae.evaluation.stream import Draws, latents, terms_at
from pyro_vae.terms import LogTerms, reduce_model, run_model
from pyro_vae.tracing import call_with, compile_function, named_tensors

REPAYING_SAMPLES = {"cpu": 5_000_000, "cuda": 1_000_000_000}
"""Compiling takes about a quarter of a minute and saves microseconds a sample on a CPU, tens of
nanoseconds on a GPU."""

Pieces = tuple[Float[Tensor, "particles batch"], Float[Tensor, "particles batch"]]
ModelFunction = Callable[[dict[str, Tensor], dict[str, Tensor]], Pieces]


class ModelTerms(nn.Module):
    """log p(x|z) and log p(z) of a pair as a module: (batch, values of the latents) -> two of [particles, batch]."""

    def __init__(self, pair: nn.Module, particles: int, size: int):
        super().__init__()
        self.pair, self.particles, self.size = pair, particles, size

    def forward(self, batch: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> Pieces:
        return reduce_model(run_model(self.pair, batch, values, self.particles), self.particles, self.size)


class ChunkEngine:
    """`terms_at`, eagerly or compiled for the shape of the first chunk; chunks of another shape run eagerly.

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
        self.shape: torch.Size | None = None
        self.compiled: ModelFunction | None = None

    def __call__(self, pair: nn.Module, batch: Mapping[str, Tensor], draws: Draws) -> LogTerms:
        if self.shape is None:
            self.shape = draws.log_guide.shape
            if self.name != "eager":
                self._choose(pair, batch, draws)
        if self.compiled is None or draws.log_guide.shape != self.shape:
            return terms_at(pair, batch, draws)
        return LogTerms(*self.compiled(dict(batch), latents(draws)), draws.log_guide)

    def _choose(self, pair: nn.Module, batch: Mapping[str, Tensor], draws: Draws) -> None:
        if self.name == "auto" and self.samples < REPAYING_SAMPLES[draws.log_guide.device.type]:
            self.description = f"eager ({self.samples} samples do not repay compilation)"
            return
        try:
            compiled = compile_terms(pair, batch, draws)
            check_parity(compiled, pair, batch, draws)
        except UserError:
            raise
        except Exception as problem:
            self.description = f"eager ({failure(problem)})"
            return
        reason = "asked for" if self.name == "compiled" else f"{self.samples} samples repay it"
        self.compiled, self.description = compiled, f"compiled ({reason})"


def compile_terms(pair: nn.Module, batch: Mapping[str, Tensor], draws: Draws) -> ModelFunction:
    """Trace the model once at these draws and compile the graph for their shape."""
    module = ModelTerms(pair, *draws.log_guide.shape)
    tensors = named_tensors(module)
    compiled = compile_function(partial(call_with, module), tensors, batch, latents(draws))
    return lambda batch, values: compiled(tensors, batch, values)


def check_parity(compiled: ModelFunction, pair: nn.Module, batch: Mapping[str, Tensor], draws: Draws) -> None:
    """Raise `ArithmeticError` unless the compiled terms equal the eager ones, to 1e-5 relative."""
    eager = terms_at(pair, batch, draws)
    for value, reference in zip(compiled(dict(batch), latents(draws)), eager[:2], strict=True):
        scale = reference.detach().nan_to_num(posinf=0.0, neginf=0.0).abs().max().item()
        if not torch.allclose(value, reference, rtol=1e-5, atol=1e-5 * scale, equal_nan=True):
            raise ArithmeticError("the traced terms differ from the eager ones")
