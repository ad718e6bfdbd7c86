"""One policy for training and evaluation: work runs compiled or eagerly, and the reason is said."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyro_vae.engine.devices import cuda_devices
from pyro_vae.errors import ProgramError, UnknownName, UserError
from pyro_vae.pair.equality import equal_up_to, largest
from pyro_vae.pair.particles import Ways

ENGINES = ("auto", "eager", "compiled")

REPAYING_ELEMENTS = {"cpu": 12_000_000_000, "cuda": 0}
"""Compiling takes some ten seconds on a CPU, and saves nearly a nanosecond for each element of a tensor that the eager
engine computes."""

HANDLERS = 1_000_000
"""What Pyro's handlers take for an example, in elements."""

PARITY_DRAWS = 3
ROUNDINGS = 8
"""How much more than one rounding of each parameter a whole pass may do; never more than 100 tolerances."""

Function = Callable[..., Any]
Tensors = Sequence[Tensor | None]


@dataclass(frozen=True)
class Work:
    """What an engine is chosen for."""

    module: nn.Module  # holds the parameters and buffers that the work reads
    device: torch.device
    eager: Function  # the work as it is written
    compile: Callable[[], Function]  # gives the same function as one compiled graph; raises where there is none
    results: Callable[[Function], Tensors]  # what either function gives for an example
    amount: int  # how many units of work are to come
    unit: str  # what is counted, in words
    least: int  # the amount below which compilation is never repaid
    shown: int = 1  # how many units the example is
    kept: Function | None = None  # the graph of earlier work of the same kind, used if it still gives the eager results
    obstacle: str = ""  # why the work cannot be compiled
    way: Ways | None = None  # how the pair holds several particles; None where there is one
    tolerance: float = 1e-5  # relative difference of two ways to compute that the precision explains


@dataclass(frozen=True)
class Engine:
    """What runs the work, and why this and no other."""

    name: str
    reason: str
    run: Function
    way: Ways | None = None
    seconds: float = 0.0  # what compiling and checking took

    @property
    def description(self) -> str:
        return f"{self.name} ({self.reason})"

    @property
    def line(self) -> str:
        """Which engine, why, what it took to compile, and how several particles are held."""
        compiling = f", {self.seconds:.1f} s to compile" if self.seconds else ""
        return f"engine: {self.description}{compiling}" + (f"; {self.way.line}" if self.way else "")


def choose_engine(name: str, work: Work) -> Engine:
    """The engine for some work: "eager", "compiled", or "auto", which compiles where that is repaid.

    Work that cannot be traced, or whose graph does not reproduce the eager results, runs eagerly, and `reason` says
    why.

    Raises:
        UnknownName: no engine of this name.
        UserError: what the work itself raises where the user made a mistake.
    """
    if name not in ENGINES:
        raise UnknownName("engine", name, ENGINES)
    if name == "eager":
        reason = "asked for"
    elif work.obstacle:
        reason = work.obstacle
    elif name == "auto" and work.kept is None and work.amount < repaying_amount(work):
        reason = f"{work.amount} {work.unit} do not repay compilation"
    else:
        began = time.perf_counter()
        try:
            # what is looked at once is seen now, before the trace, which reads no values
            first = _results(work, work.eager, 0)
            compiled = work.kept
            if compiled is None or not reproduces(work, compiled, first):
                compiled = work.compile()
                if not reproduces(work, compiled, first):
                    raise ArithmeticError("the compiled results differ from the eager ones")
            reason = "asked for" if name == "compiled" else f"{work.amount} {work.unit} repay it"
            reason = "compiled before" if name == "auto" and compiled is work.kept else reason
            return Engine("compiled", reason, compiled, work.way, time.perf_counter() - began)
        except Exception as problem:
            reason = failure(problem)
    return Engine("eager", reason, work.eager, work.way)


def repaying_amount(work: Work) -> int:
    """The amount of work from which compiling it is repaid."""
    worth = REPAYING_ELEMENTS[work.device.type]
    if not worth or work.amount < work.least:
        return min(worth, work.least)
    elements = Elements()

    def counted(*arguments: Any) -> Any:
        with elements:
            return work.eager(*arguments)

    try:
        _results(work, counted, 0)
    except Exception:  # the work will raise it where it is said which program did it
        return work.amount + 1
    return math.ceil(worth * work.shown / (elements.count + HANDLERS))


class Elements(TorchDispatchMode):
    """Counts the elements of all tensors that are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = function(*args, **kwargs or {})
        if not function.is_view:
            self.count += sum(leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        return result


def failure(problem: Exception) -> str:
    """Why compilation failed, in one line; a user's mistake is raised again."""
    if isinstance(problem, ProgramError):
        problem = problem.__cause__ or problem
    elif isinstance(problem, UserError):
        raise problem
    cause = " ".join(str(problem).split())[:200]
    return f"compilation failed: {type(problem).__name__}: {cause}"


def reproduces(work: Work, compiled: Function, first: Tensors) -> bool:
    """Whether the compiled function gives what the eager one does for the same seed.

    They may differ by the tolerance, or by what rounding does to the eager results, where that is more: importance
    weights amplify it. One seed of a few has to agree, because a rectifier whose input is zero up to rounding may fall
    to either side. Parameters, buffers and generators are left as they were.

    Args:
        first: the eager results for the seed 0.
    """
    for seed in range(PARITY_DRAWS):
        expected = _results(work, work.eager, seed) if seed else first
        found = _results(work, compiled, seed)
        if agree(found, expected, work.tolerance):
            return True
        if agree(found, expected, work.tolerance, _results(work, work.eager, seed, rounded=True)):
            return True
    return False


def agree(found: Tensors, expected: Tensors, tolerance: float, near: Tensors | None = None) -> bool:
    """Whether two lists of tensors are equal up to a tolerance, and up to what rounding does.

    Args:
        near: the expected tensors as rounding changes them; None: it does nothing.
    """
    for value, exact, other in zip(found, expected, near or expected, strict=True):
        if value is None or exact is None:
            if value is not exact:
                return False
            continue
        rounding = min(ROUNDINGS * largest(other - exact), 100 * tolerance * largest(exact))
        if not equal_up_to(tolerance, value, exact, more=rounding):
            return False
    return True


def _results(work: Work, function: Function, seed: int, rounded: bool = False) -> Tensors:
    state = [*work.module.parameters(), *work.module.buffers()]
    kept = [tensor.detach().clone() for tensor in state]
    try:
        if rounded:
            _round(work.module)
        with torch.random.fork_rng(devices=cuda_devices(work.device)):
            torch.manual_seed(seed)
            return work.results(function)
    finally:
        with torch.no_grad():
            for tensor, value in zip(state, kept, strict=True):
                if not torch.equal(tensor, value):
                    tensor.copy_(value)


@torch.no_grad()
def _round(module: nn.Module) -> None:
    """Move each parameter by its last bit, up or down."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        if parameter.is_floating_point():
            up = torch.randint(0, 2, parameter.shape, generator=generator).to(parameter.device)
            parameter.mul_(1 + (2 * up - 1) * torch.finfo(parameter.dtype).eps)
