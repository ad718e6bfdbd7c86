"""How a step finds the loss and its gradients: eagerly, or by one graph, traced once and compiled.

The graph holds the forward and the backward pass of a batch of one shape. Pyro's handlers ran once, while it was
traced; it reads the pair's parameters where they are, and gives the eager numbers for the same seed.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_vae.engine import processes
from pyro_vae.engine.tracing import call_with, compile_function, named_tensors
from pyro_vae.errors import ProgramError, UnknownName, UserError
from pyro_vae.pair.particles import ways

ENGINES = ("auto", "eager", "compiled")
REPAYING_STEPS = 10_000
"""Compiling takes a quarter of a minute on a CPU and saves a millisecond or two a step."""

PARITY_DRAWS = 3
ROUNDINGS = 8
"""How much more than one rounding of each parameter a whole pass may do."""

Batch = dict[str, Tensor]


class Loss(nn.Module):
    """An objective of a pair as a module: (batch, beta) -> loss in nats per datum.

    Args:
        autocast: the context to compute it in, for mixed precision.
        tolerance: relative difference of two ways to compute it that its precision explains.
    """

    def __init__(
        self,
        pair: nn.Module,
        objective: Any,
        particles: int,
        data_size: int,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
        tolerance: float = 1e-5,
    ):
        super().__init__()
        self.pair, self.objective = pair, objective
        self.particles, self.data_size = particles, data_size
        self.autocast, self.tolerance = autocast, tolerance

    def forward(self, batch: Mapping[str, Tensor], beta: Float[Tensor, ""]) -> Float[Tensor, ""]:
        with self.autocast():
            return self.objective(self.pair, batch, self.particles, beta, self.data_size)


class EagerStep:
    """(batch, beta) -> loss, its gradients left at the parameters."""

    def __init__(self, loss: nn.Module):
        self.loss = loss
        self.parameters = list(loss.parameters())

    def __call__(self, batch: Batch, beta: Float[Tensor, ""]) -> Float[Tensor, ""]:
        return self._backward(batch, beta)

    def _backward(self, batch: Batch, beta: Float[Tensor, ""], weight: float = 1.0) -> Float[Tensor, ""]:
        for parameter in self.parameters:
            parameter.grad = None
        loss = weight * self.loss(batch, beta)
        loss.backward()
        return loss.detach()


class SharedStep(EagerStep):
    """The same by several processes, each with a share of the batch: all get the loss and gradients of the whole.

    They take the mean of the processes, so a share's loss is weighted by its part of the batch. Where a batch has fewer
    data than there are processes, those without a share run the whole batch, at weight 0, since all must take part.
    """

    def __call__(self, batch: Batch, beta: Float[Tensor, ""]) -> Float[Tensor, ""]:
        rank, world = processes.rank(), processes.world_size()
        size = len(next(iter(batch.values())))
        mine = len(range(size)[rank::world])
        share = {name: value[rank::world] for name, value in batch.items()} if mine else batch
        return processes.mean(self._backward(share, beta, mine * world / size))


class CompiledStep:
    """The same by one graph for batches like the example; a batch of another shape runs eagerly.

    Raises:
        Exception: the loss cannot be traced.
    """

    def __init__(self, loss: Loss, example: Mapping[str, Tensor]):
        ways(loss.pair, example, loss.particles)  # compared before the trace, which reads no values
        self.eager = EagerStep(loss)
        self.layout = {name: _layout(value) for name, value in example.items()}
        self.trained = [name for name, parameter in loss.named_parameters() if parameter.requires_grad]
        self.tensors = named_tensors(loss)
        self.reached: list[nn.Parameter] = []
        self.graph = compile_function(self._loss_and_gradients, self.tensors, example, {"beta": _one(example)})

    def _loss_and_gradients(self, tensors: Batch, batch: Batch, scalars: Batch) -> list[Tensor]:
        """What is traced: the loss, and the gradients of the parameters that it depends on."""
        leaves = {name: tensors[name].detach().requires_grad_() for name in self.trained}
        loss = call_with(self.eager.loss, {**tensors, **leaves}, batch, scalars["beta"])
        gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        parameters = dict(self.eager.loss.named_parameters())
        found = {parameters[name]: g for name, g in zip(leaves, gradients, strict=True) if g is not None}
        self.reached = list(found)
        return [loss.detach(), *found.values()]

    def __call__(self, batch: Batch, beta: Float[Tensor, ""]) -> Float[Tensor, ""]:
        if any(_layout(batch[name]) != layout for name, layout in self.layout.items()):
            return self.eager(batch, beta)
        with torch.no_grad():
            loss, *gradients = self.graph(self.tensors, batch, {"beta": beta})
        for parameter, gradient in zip(self.reached, gradients, strict=True):
            parameter.grad = gradient
        return loss


def _one(like: Mapping[str, Tensor]) -> Float[Tensor, ""]:
    return torch.ones((), device=next(iter(like.values())).device)


def _layout(tensor: Tensor) -> tuple:
    return tensor.shape, tensor.stride(), tensor.dtype


@dataclass(frozen=True)
class Engine:
    """What takes a step's loss and gradients, and why this one."""

    name: str
    reason: str
    step: Callable[[Batch, Float[Tensor, ""]], Float[Tensor, ""]]

    @property
    def line(self) -> str:
        return f"engine: {self.name} ({self.reason})"


def choose_engine(name: str, loss: Loss, example: Mapping[str, Tensor], steps: int) -> Engine:
    """The engine for `steps` further steps on batches like `example`.

    "auto" compiles on a GPU, and on a CPU where enough steps follow to repay it. What cannot be traced, or does not
    reproduce the eager loss and gradients, runs eagerly, and `reason` says why.

    Raises:
        UnknownName: no engine of this name.
    """
    if name not in ENGINES:
        raise UnknownName("engine", name, ENGINES)
    if name == "eager":
        return Engine("eager", "asked for", EagerStep(loss))
    device = next(iter(example.values())).device.type
    if name == "auto" and device == "cpu" and steps < REPAYING_STEPS:
        return Engine("eager", f"{steps} steps do not repay compilation", EagerStep(loss))
    if not getattr(loss.objective, "traceable", False):
        return Engine("eager", "this objective cannot be traced", EagerStep(loss))
    try:
        compiled = CompiledStep(loss, example)
        check_parity(compiled, example)
    except Exception as problem:
        return Engine("eager", failure(problem), EagerStep(loss))
    return Engine("compiled", "asked for" if name == "compiled" else f"{steps} steps repay it", compiled)


def failure(problem: Exception) -> str:
    """Why compilation failed, in one line; a user's mistake is raised again."""
    if isinstance(problem, ProgramError):
        problem = problem.__cause__ or problem
    elif isinstance(problem, UserError):
        raise problem
    cause = " ".join(str(problem).split())[:200]
    return f"compilation failed: {type(problem).__name__}: {cause}"


def check_parity(compiled: CompiledStep, example: Mapping[str, Tensor]) -> None:
    """Raise `ArithmeticError` unless both ways give the same loss and gradients for the same seed: to the tolerance of
    the precision, or to what rounding does to the eager ones, where that is more (importance weights amplify it).

    One of a few draws has to: a rectifier whose input is zero up to rounding may fall to either side. Parameters,
    buffers and generators are left as they were.
    """
    if not any(_agree(compiled, example, seed) for seed in range(PARITY_DRAWS)):
        raise ArithmeticError("the traced loss or its gradients differ from the eager ones")


def _agree(compiled: CompiledStep, example: Mapping[str, Tensor], seed: int) -> bool:
    eager, tolerance = compiled.eager, compiled.eager.loss.tolerance
    reference = _results(eager, eager, example, seed)
    with _rounded(eager.parameters):
        rounded = _results(eager, eager, example, seed)
    for exact, near, value in zip(reference, rounded, _results(compiled, eager, example, seed), strict=True):
        if (exact is None) != (value is None):
            return False
        if exact is not None:
            allowed = tolerance * exact.abs().max().clamp(min=1e-8)
            rounding = (ROUNDINGS * (near - exact).abs().max()).clamp(max=100 * allowed)
            if not ((value - exact).abs() <= allowed + rounding).all():
                return False
    return True


@contextmanager
def _rounded(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Each parameter moved by its last bit, up or down."""
    kept = [parameter.detach().clone() for parameter in parameters]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in parameters:
            up = torch.randint(0, 2, parameter.shape, generator=generator).to(parameter.device)
            parameter.mul_(1 + (2 * up - 1) * torch.finfo(parameter.dtype).eps)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)


def _results(
    step: Callable[..., Tensor], eager: EagerStep, example: Mapping[str, Tensor], seed: int
) -> list[Tensor | None]:
    """Loss and gradients of one way, at a seed."""
    parameters, buffers = eager.parameters, list(eager.loss.buffers())
    kept = [buffer.clone() for buffer in buffers]
    with torch.random.fork_rng(devices=_cuda_devices(example)):
        torch.manual_seed(seed)
        loss = step(dict(example), _one(example))
    gradients = [parameter.grad for parameter in parameters]
    with torch.no_grad():
        for buffer, value in zip(buffers, kept, strict=True):
            buffer.copy_(value)
    for parameter in parameters:
        parameter.grad = None
    return [loss, *gradients]


def _cuda_devices(batch: Mapping[str, Tensor]) -> list[int]:
    return sorted({tensor.device.index for tensor in batch.values() if tensor.device.type == "cuda"})
