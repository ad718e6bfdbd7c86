"""How the loss of a step runs: eagerly, or traced once and compiled.

A traced loss is a plain graph: Pyro's handlers ran once, while tracing. It shares the pair's parameters, takes every
batch size, and gives the same value for the same seed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_vae.compiler import compile_graph
from pyro_vae.errors import UnknownName, UserError

ENGINES = ("auto", "eager", "compiled")
REPAYING_STEPS = 50_000
"""Compiling takes about half a minute on a CPU and saves some tenths of a millisecond a step."""

LossFunction = Callable[[dict[str, Tensor], Tensor], Tensor]


class Loss(nn.Module):
    """An objective of a pair as a module: (batch, beta) -> loss in nats per datum."""

    def __init__(self, pair: nn.Module, objective: Any, particles: int, data_size: int):
        super().__init__()
        self.pair, self.objective = pair, objective
        self.particles, self.data_size = particles, data_size

    def forward(self, batch: Mapping[str, Tensor], beta: Float[Tensor, ""]) -> Float[Tensor, ""]:
        return self.objective(self.pair, batch, self.particles, beta, self.data_size)


@dataclass(frozen=True)
class Engine:
    """What runs the loss, and why this one."""

    name: str
    reason: str
    loss: LossFunction


def choose_engine(name: str, loss: Loss, example: Mapping[str, Tensor], steps: int) -> Engine:
    """The engine for `steps` further steps on batches like `example`.

    "auto" compiles on a GPU, and on a CPU where enough steps follow to repay it. What cannot be traced, or does not
    reproduce the eager loss and gradients to 1e-5, runs eagerly, and `reason` says why.

    Raises:
        UnknownName: no engine of this name.
    """
    if name not in ENGINES:
        raise UnknownName("engine", name, ENGINES)
    if name == "eager":
        return Engine("eager", "asked for", loss)
    device = next(iter(example.values())).device.type
    if name == "auto" and device == "cpu" and steps < REPAYING_STEPS:
        return Engine("eager", f"{steps} steps do not repay compilation", loss)
    if not getattr(loss.objective, "traceable", False):
        return Engine("eager", "this objective cannot be traced", loss)
    try:
        compiled = compile_loss(loss, example)
        check_parity(loss, compiled, example)
    except UserError:
        raise
    except Exception as problem:
        return Engine("eager", failure(problem), loss)
    return Engine("compiled", "asked for" if name == "compiled" else f"{steps} steps repay it", compiled)


def failure(problem: Exception) -> str:
    """Why compilation failed, in one line."""
    cause = " ".join(str(problem).split())[:200]
    return f"compilation failed: {type(problem).__name__}: {cause}"


def compile_loss(loss: Loss, example: Mapping[str, Tensor]) -> LossFunction:
    """Trace the loss once with `torch.export` (non-strict) and compile the graph, for any batch size."""
    beta = torch.ones((), device=next(iter(example.values())).device)
    batch_dims = {name: {0: torch.export.Dim.AUTO} for name in example}
    with torch.random.fork_rng(devices=_cuda_devices(example)):
        program = torch.export.export(loss, (dict(example), beta), strict=False, dynamic_shapes=(batch_dims, None))
    traced = program.module()
    check_batch_size_is_free(loss, traced, example)
    return compile_graph(traced)


def check_batch_size_is_free(loss: Loss, traced: LossFunction, example: Mapping[str, Tensor]) -> None:
    """Raise `ValueError` where the trace holds for the example's batch size only, as `len(x)` in a pair makes it."""
    smaller = {name: value[:-1] for name, value in example.items()}
    try:
        if next(iter(smaller.values())).shape[0]:
            check_parity(loss, traced, smaller)
    except AssertionError as reason:
        raise ValueError("the pair fixes its batch size; take it from x.shape[0], not len(x)") from reason


def check_parity(loss: Loss, compiled: LossFunction, example: Mapping[str, Tensor]) -> None:
    """Raise `ArithmeticError` unless both give the same loss and gradients for the same seed, to 1e-5 relative."""
    results = [_loss_and_gradients(function, loss, example) for function in (loss, compiled)]
    for reference, value in zip(*results, strict=True):
        scale = reference.abs().max().clamp(min=1e-8)
        if not torch.allclose(value / scale, reference / scale, rtol=1e-5, atol=1e-5):
            raise ArithmeticError("the traced loss or its gradients differ from the eager ones")


def _loss_and_gradients(function: LossFunction, loss: Loss, example: Mapping[str, Tensor]) -> list[Tensor]:
    parameters = [p for p in loss.pair.parameters() if p.requires_grad]
    beta = torch.ones((), device=next(iter(example.values())).device)
    with torch.random.fork_rng(devices=_cuda_devices(example)):
        torch.manual_seed(0)
        value = function(dict(example), beta)
        gradients = torch.autograd.grad(value, parameters, allow_unused=True)
    return [value.detach(), *[g for g in gradients if g is not None]]


def _cuda_devices(batch: Mapping[str, Tensor]) -> list[int]:
    return sorted({tensor.device.index for tensor in batch.values() if tensor.device.type == "cuda"})
