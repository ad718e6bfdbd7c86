"""Which optimizer takes the steps: one of `torch.optim` by name, a function that makes one, or one of Pyro's."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pyro_vae.errors import RunError, UnknownName, find

MakeOptimizer = Callable[[Sequence[nn.Parameter]], Optimizer]

WITHOUT_STEPS = ("LBFGS", "SparseAdam")
"""LBFGS asks for the loss several times a step; SparseAdam takes no dense gradients."""

OPTIMIZERS: dict[str, type[Optimizer]] = {
    name.lower(): kind
    for name, kind in vars(torch.optim).items()
    if inspect.isclass(kind) and issubclass(kind, Optimizer) and kind is not Optimizer and name not in WITHOUT_STEPS
}
OURS = ("params", "lr", "fused", "foreach", "capturable", "differentiable", "maximize")
"""Parameters of torch's optimizers that are not the user's to set here."""


def make_optimizer(
    optimizer: str | MakeOptimizer | Any,
    parameters: Sequence[nn.Parameter],
    lr: float | Tensor,
    options: Mapping[str, Any],
) -> tuple[Optimizer, list[str]]:
    """An optimizer of these parameters, and sentences on what it cannot do.

    Args:
        optimizer: a name in `torch.optim` in any case ("adam", "adamw", "sgd", ...); a function from parameters to an
            optimizer, which has learning rates of its own; or an object of `pyro.optim`, of which the torch class and
            the options are taken, since it keeps its state in Pyro's parameter store.
        lr: the learning rate where the optimizer has none of its own; a tensor on a GPU, where steps are captured.
        options: further options of a named optimizer (`weight_decay`, `momentum`, ...).

    Raises:
        UnknownName: no such optimizer, or it has no such option; lists those that there are.
        RunError: an object that cannot be taken apart, or a function that makes no optimizer.
    """
    if isinstance(optimizer, str):
        kind = find_optimizer(optimizer)
        known = [name for name in inspect.signature(kind).parameters if name not in OURS]
        for name in options:
            if name not in known:
                raise UnknownName(f"option of the optimizer {optimizer!r}", name, known)
        return _of_class(kind, parameters, {"lr": lr, **options})
    if options:
        raise RunError(f"options go with an optimizer's name; give {', '.join(options)} to the optimizer itself")
    if hasattr(optimizer, "pt_optim_constructor"):
        return _of_class(_taken_apart(optimizer), parameters, {"lr": lr, **optimizer.pt_optim_args})
    if not callable(optimizer):
        raise RunError(
            f"optimizer is {type(optimizer).__name__}, neither a name nor a function; give a function that makes it: "
            "optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-3)"
        )
    made = optimizer(parameters)
    if not isinstance(made, Optimizer):
        raise RunError(f"the optimizer's function returned {type(made).__name__}, not a torch.optim.Optimizer")
    return made, _shortcomings(made)


def find_optimizer(name: str) -> type[Optimizer]:
    """The class of this name in `torch.optim`; raises `UnknownName` where there is none."""
    return find("optimizer", name.lower(), OPTIMIZERS)


def _taken_apart(optimizer: Any) -> type[Optimizer]:
    """The torch class of an object of `pyro.optim`."""
    name = type(optimizer).__name__
    if hasattr(optimizer, "pt_scheduler_constructor"):
        raise RunError(f"{name} holds a schedule; give its optimizer as optimizer= and the schedule as schedule=")
    if callable(optimizer.pt_optim_args):
        raise RunError("options by parameter name are Pyro's own; give a function: optimizer=lambda parameters: ...")
    if optimizer.pt_clip_args:
        raise RunError("gradients are clipped with clip=NORM here; leave the clip arguments of the Pyro optimizer out")
    return optimizer.pt_optim_constructor


def _of_class(
    kind: type[Optimizer], parameters: Sequence[nn.Parameter], options: Mapping[str, Any]
) -> tuple[Optimizer, list[str]]:
    known = inspect.signature(kind).parameters
    on_gpu = any(parameter.is_cuda for parameter in parameters)
    fast: dict[str, Any] = {"capturable": True} if on_gpu and "capturable" in known else {}
    ways = [{"fused": True, **fast}, fast] if "fused" in known else [fast]
    for way in ways:
        try:
            _try_step(kind, parameters, {**options, **way})
            made = kind(parameters, **options, **way)
            return made, _shortcomings(made)
        except RuntimeError as reason:  # a fused form does not exist for every device and dtype
            problem: Exception = reason
        except (TypeError, ValueError) as reason:
            raise RunError(f"the optimizer {kind.__name__} refuses its options: {reason}") from reason
    raise RunError(f"the optimizer {kind.__name__} cannot be used: {problem}") from problem


def _try_step(kind: type[Optimizer], parameters: Sequence[nn.Parameter], options: Mapping[str, Any]) -> None:
    """Take a step with a parameter that stands for the others: only then do some forms say that they do not exist."""
    like = next(iter(parameters), None)
    if options.get("fused") and like is not None and like.is_cuda:
        alike = nn.Parameter(torch.zeros(1, dtype=like.dtype, device=like.device))
        alike.grad = torch.zeros_like(alike)
        kind([alike], **options).step()


def restore(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Take up a state that an optimizer like this one had, here or on another device: how it computes stays its own.

    Raises:
        ValueError: the state is of another optimizer.
    """
    groups = [_own_ways(own, stored) for own, stored in zip(optimizer.param_groups, state["param_groups"], strict=True)]
    optimizer.load_state_dict({**state, "param_groups": groups})


def _own_ways(own: dict[str, Any], stored: dict[str, Any]) -> dict[str, Any]:
    """What is stored of a group of parameters, with its learning rate as a tensor where its own is one."""
    ways = {name: own[name] for name in ("fused", "foreach", "capturable") if name in own}
    lr = stored["lr"].item() if isinstance(stored["lr"], Tensor) else stored["lr"]
    return {**stored, **ways, "lr": torch.full_like(own["lr"], lr) if isinstance(own["lr"], Tensor) else lr}


def _shortcomings(optimizer: Optimizer) -> list[str]:
    """What an optimizer cannot do, in sentences."""
    name, defaults = type(optimizer).__name__, optimizer.defaults
    notes = [] if defaults.get("fused") else [f"optimizer: {name} has no fused step, so its steps take longer"]
    if any(group["params"][0].is_cuda for group in optimizer.param_groups) and not defaults.get("capturable"):
        notes.append(f"optimizer: {name} cannot be captured in a CUDA graph, so each step is launched by itself")
    return notes
