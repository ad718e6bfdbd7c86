"""How a step finds the loss and its gradients: eagerly, or by one graph, traced once and compiled.

The graph holds the forward and the backward pass of a batch of one shape. Pyro's handlers ran once, while it was
traced. It reads the pair's parameters where they are, and for the same seed gives the eager numbers.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_vae.engine import processes
from pyro_vae.engine.policy import Engine, Work, choose_engine
from pyro_vae.engine.tracing import call_with, compile_function, named_tensors
from pyro_vae.pair.pair import batch_size
from pyro_vae.pair.particles import ways

Batch = dict[str, Tensor]


class Loss(nn.Module):
    """An `Objective` of a pair as a module: (batch, beta) -> loss in nats per datum.

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
        self.pair, self.objective, self.further = pair, objective, objective.module
        self.particles, self.data_size = particles, data_size
        self.autocast, self.tolerance = autocast, tolerance

    def forward(self, batch: Mapping[str, Tensor], beta: Float[Tensor, ""]) -> Float[Tensor, ""]:
        with self.autocast():
            return self.objective(self.pair, batch, self.particles, beta, self.data_size)


class EagerStep:
    """(batch, beta) -> loss, its gradients left at the parameters; both are multiplied by `weight`."""

    def __init__(self, loss: nn.Module):
        self.loss = loss
        self.parameters = list(loss.parameters())

    def __call__(self, batch: Batch, beta: Float[Tensor, ""], weight: float = 1.0) -> Float[Tensor, ""]:
        for parameter in self.parameters:
            parameter.grad = None
        loss = weight * self.loss(batch, beta)
        loss.backward()
        return loss.detach()


class SharedStep(EagerStep):
    """The same by several processes, each with a share of the batch: all get the loss and gradients of the whole.

    Gradients are averaged over the processes, so each weights the loss of its share by the share's part of the batch.
    All must take part: where a batch has fewer data than there are processes, one without a share runs the whole batch
    at weight 0.
    """

    def __call__(self, batch: Batch, beta: Float[Tensor, ""]) -> Float[Tensor, ""]:
        rank, world = processes.rank(), processes.world_size()
        size = batch_size(batch)
        mine = len(range(size)[rank::world])
        share = {name: value[rank::world] for name, value in batch.items()} if mine else batch
        return processes.mean(super().__call__(share, beta, mine * world / size))


class CompiledStep:
    """The same by one graph for batches like the example; a batch of another shape runs eagerly.

    It raises where the loss cannot be traced.
    """

    def __init__(self, loss: Loss, example: Mapping[str, Tensor]):
        self.eager = EagerStep(loss)
        self.layout = {name: _layout(value) for name, value in example.items()}
        self.trained = {name: parameter for name, parameter in loss.named_parameters() if parameter.requires_grad}
        self.tensors = named_tensors(loss)
        self.reached: list[nn.Parameter] = []
        self.graph = compile_function(self._loss_and_gradients, self.tensors, example, {"beta": _one(example)})

    def _loss_and_gradients(self, tensors: Batch, batch: Batch, scalars: Batch) -> list[Tensor]:
        """What is traced: the loss, and the gradients of the parameters that it depends on."""
        leaves = {name: tensors[name].detach().requires_grad_() for name in self.trained}
        loss = call_with(self.eager.loss, {**tensors, **leaves}, batch, scalars["beta"])
        gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        found = {p: g for p, g in zip(self.trained.values(), gradients, strict=True) if g is not None}
        self.reached = list(found)
        return [loss.detach(), *found.values()]

    def __call__(self, batch: Batch, beta: Float[Tensor, ""]) -> Float[Tensor, ""]:
        if any(_layout(batch[name]) != layout for name, layout in self.layout.items()):
            return self.eager(batch, beta)
        with torch.no_grad():
            loss, *gradients = self.graph(self.tensors, batch, {"beta": beta})
        for parameter, gradient in zip(self.reached, gradients, strict=True):
            parameter.grad = _laid_out_like(parameter, gradient)
        return loss


def _laid_out_like(parameter: Tensor, gradient: Tensor) -> Tensor:
    """The gradient with the strides of its parameter, which fused optimizers count on."""
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


def _one(like: Mapping[str, Tensor]) -> Float[Tensor, ""]:
    return torch.ones((), device=next(iter(like.values())).device)


def _layout(tensor: Tensor) -> tuple:
    return tensor.shape, tensor.stride(), tensor.dtype


def choose_step(
    name: str, loss: Loss, example: Mapping[str, Tensor], steps: int, shared: SharedStep | None = None
) -> Engine:
    """The engine for `steps` further steps on batches like `example`.

    Args:
        name: "eager", "compiled", or "auto", which compiles on a GPU, and on a CPU where enough steps follow.
        shared: the step that several processes take together; none of it is compiled.

    Raises:
        UnknownName: no engine of this name.
    """
    eager, device = shared or EagerStep(loss), _one(example).device
    untraceable = "" if loss.objective.traceable else "this objective cannot be traced"
    work = Work(
        module=loss,
        device=device,
        eager=eager,
        compile=lambda: CompiledStep(loss, example),
        results=lambda step: _loss_and_gradients(step, eager.parameters, example),
        amount=steps,
        unit="steps",
        least=1_000,
        obstacle="several processes" if shared else untraceable,
        way=ways(loss.pair, example, loss.particles) if loss.particles > 1 else None,
        tolerance=loss.tolerance,
    )
    return choose_engine(name, work)


def _loss_and_gradients(
    step: Callable[..., Tensor], parameters: list[nn.Parameter], example: Mapping[str, Tensor]
) -> list[Tensor | None]:
    loss = step(dict(example), _one(example))
    gradients = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    return [loss, *gradients]
