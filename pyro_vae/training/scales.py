"""Which sites a pair scales, seen where its programs run anyway."""

from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor, nn


class Scales(Messenger):
    """Keeps the scale of each site that runs inside it, as the pair has it: what objectives and plates multiply by is
    not in it. No tensor is read before `found` is asked for, nor one that stands for others while a graph is traced."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, Any] = {}

    def _pyro_sample(self, msg: dict) -> None:
        scale = msg["scale"]
        if isinstance(msg["fn"], _Subsample) or (
            isinstance(scale, Tensor) and type(scale) not in (Tensor, nn.Parameter)
        ):
            return
        for frame in msg["cond_indep_stack"]:
            scale = scale * frame.size / frame.full_size if frame.full_size else scale
        self.seen[msg["name"]] = scale.detach() if isinstance(scale, Tensor) else scale

    def found(self) -> dict[str, float]:
        """The scale of each site that has one, by name; the first that is not 1 where it differs between data."""
        numbers = {name: _other_than_one(scale) for name, scale in self.seen.items()}
        return {name: number for name, number in numbers.items() if abs(number - 1) > 1e-6}


def _other_than_one(scale: Any) -> float:
    if not isinstance(scale, Tensor):
        return float(scale)
    off = scale[(scale - 1).abs() > 1e-6]
    return off.flatten()[0].item() if off.numel() else 1.0
