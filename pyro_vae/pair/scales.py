"""What a pair multiplies log-probabilities by, as `poutine.scale` does: seen while its programs run, or left out."""

import math
from contextlib import nullcontext
from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor, nn


class Scales(Messenger):
    """Keeps the scales of each site that runs inside it, as the pair has them: what objectives and plates multiply by
    is not in them. No tensor is read before `found` is asked for, nor one that stands for others while a graph is
    traced."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[tuple[str, float | None], Any] = {}

    def _pyro_sample(self, msg: dict) -> None:
        scale = msg["scale"]
        if isinstance(msg["fn"], _Subsample) or (
            isinstance(scale, Tensor) and type(scale) not in (Tensor, nn.Parameter)
        ):
            return
        scale = scale / of_plates(msg)
        tensor = isinstance(scale, Tensor)  # of which the last is kept: both programs may scale a site, and differently
        self.seen[msg["name"], None if tensor else scale] = scale.detach() if tensor else scale

    def found(self) -> dict[str, float]:
        """The scale of each site that has one, by name; the first that is not 1 where there are several."""
        numbers: dict[str, float] = {}
        for (name, _), scale in self.seen.items():
            number = _other_than_one(scale)
            if abs(number - 1) > 1e-6:
                numbers.setdefault(name, number)
        return numbers


class Unscaled(Messenger):
    """Leaves each site that runs inside it the scale of its subsampled plates alone."""

    def _pyro_sample(self, msg: dict) -> None:
        msg["scale"] = of_plates(msg)


SCALES = {"refuse": nullcontext, "ignore": Unscaled}
"""What an evaluation does with the scales that a pair has under `eval()`: the context in which its programs run."""


def of_plates(msg: dict) -> float:
    """What the subsampled plates of a sample statement multiply it by."""
    return math.prod(frame.full_size / frame.size for frame in msg["cond_indep_stack"] if frame.full_size)


def _other_than_one(scale: Any) -> float:
    if not isinstance(scale, Tensor):
        return float(scale)
    off = scale[(scale - 1).abs() > 1e-6]
    return off.flatten()[0].item() if off.numel() else 1.0
