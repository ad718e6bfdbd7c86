"""A moving average of a pair's weights."""

import copy
from typing import Any

import torch
from torch import nn


class Average:
    """Exponential moving average of a pair's parameters, from those of its first update; its buffers are the pair's.

    As `torch.optim.swa_utils.AveragedModel`, which asks the device a question at every step. `decay`, in [0, 1), is the
    weight of the past at each step.
    """

    def __init__(self, pair: nn.Module, decay: float):
        self.module = copy.deepcopy(pair)
        self.decay, self.started = decay, False
        self.averaged, self.latest = (list(module.parameters()) for module in (self.module, pair))
        self.buffers = list(zip(self.module.buffers(), pair.buffers(), strict=True))

    @torch.no_grad()
    def update(self) -> None:
        torch._foreach_lerp_(self.averaged, self.latest, 1 - self.decay if self.started else 1.0)
        self.started = True
        for kept, buffer in self.buffers:
            kept.copy_(buffer)

    def state_dict(self) -> dict[str, Any]:
        return {"module": self.module.state_dict(), "started": self.started}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["module"])
        self.started = state["started"]
