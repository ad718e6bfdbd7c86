"""Learning rates and KL weights as functions of how far training has come, and torch's schedulers."""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from pyro_vae.errors import RunError


def constant(progress: float) -> float:
    """1 throughout."""
    return 1.0


def cosine(progress: float) -> float:
    """From 1 to 0 along half a cosine (Loshchilov & Hutter 2017)."""
    return 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))


def burda_steps(progress: float) -> float:
    """10^(-i/7) for a share 3^i/3280 of the training, i = 0..7 (Burda, Grosse & Salakhutdinov 2016, sec. 5)."""
    epoch, end = 3280 * progress, 0
    for i in range(8):
        end += 3**i
        if epoch < end:
            return 10 ** (-i / 7)
    return 0.1


SCHEDULES: dict[str, Callable[[float], float]] = {"constant": constant, "cosine": cosine, "burda_steps": burda_steps}
"""The factor of the learning rate as a function of progress in [0, 1]."""

TORCHS: dict[str, type[LRScheduler]] = {
    name.lower(): kind
    for name, kind in vars(torch.optim.lr_scheduler).items()
    if inspect.isclass(kind) and issubclass(kind, LRScheduler) and not name.startswith("_") and name != "LRScheduler"
}
"""Torch's schedulers by their names in lower case; they step once an epoch."""

RISING = 0.5
"""The part of a cycle in which the weight of the KL rises."""


class Scheduler:
    """A scheduler of torch's, which steps once an epoch.

    Args:
        schedule: a name in `torch.optim.lr_scheduler`, in any case, or a function from an optimizer to a scheduler.
        options: those of a named one (`step_size`, `gamma`, ...).

    Raises:
        RunError: options that it does not take, or a function that makes no scheduler.
    """

    def __init__(
        self, schedule: str | Callable[[Optimizer], LRScheduler], optimizer: Optimizer, options: Mapping[str, Any]
    ):
        make = TORCHS[schedule.lower()] if isinstance(schedule, str) else schedule
        try:
            self.scheduler = make(optimizer, **options)
        except (TypeError, ValueError) as reason:
            raise RunError(f"the schedule {getattr(make, '__name__', make)} refuses its options: {reason}") from reason
        if not isinstance(self.scheduler, LRScheduler):
            raise RunError(f"the schedule's function returned {type(self.scheduler).__name__}, not a torch scheduler")

    def step(self, valid_loss: float) -> None:
        """An epoch is over."""
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(valid_loss)
        else:
            self.scheduler.step()


def is_torchs(schedule: Any) -> bool:
    """Whether a schedule is one of torch's, or a function that makes one."""
    return not isinstance(schedule, str) or schedule.lower() in TORCHS


def cyclical(progress: float, cycles: int) -> float:
    """From 0 to 1 in the first half of each of so many cycles, then 1 (Fu et al. 2019); 1 throughout for no cycle."""
    if not cycles:
        return 1.0
    return min(1.0, (progress * cycles % 1.0) / RISING)


def ramp(step: int, steps: int) -> float:
    """Linear from 1/steps at step 0 to 1 at step `steps` - 1 and after; 1 where there is no ramp."""
    return min(1.0, (step + 1) / steps) if steps > 0 else 1.0
