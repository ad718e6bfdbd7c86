"""Learning rates and KL weights as functions of how far training has come: no state, so nothing to resume."""

import math
from collections.abc import Callable


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


def ramp(step: int, steps: int) -> float:
    """Linear from 1/steps at step 0 to 1 at step `steps` - 1 and after; 1 where there is no ramp."""
    return min(1.0, (step + 1) / steps) if steps > 0 else 1.0
