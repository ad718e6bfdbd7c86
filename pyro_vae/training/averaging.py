"""A moving average of a pair's weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Average:
    """Exponential moving average of a pair's parameters, from those of its first update; its buffers are the pair's.

    As `torch.optim.swa_utils.AveragedModel`, which asks the device a question at every step, and which copies the
    module: a program that knows its nets by name would run with the nets of the first. `decay`, in [0, 1), is the
    weight of the past at each step.
    """

    def __init__(self, pair: nn.Module, decay: float):
        self.pair, self.decay, self.started = pair, decay, False
        self.latest = list(pair.parameters())
        self.averaged = [parameter.detach().clone() for parameter in self.latest]

    @torch.no_grad()
    def update(self) -> None:
        torch._foreach_lerp_(self.averaged, self.latest, 1 - self.decay if self.started else 1.0)
        self.started = True

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The pair holds its averaged weights meanwhile."""
        latest = [parameter.detach().clone() for parameter in self.latest]
        self._hold(self.averaged)
        try:
            yield
        finally:
            self._hold(latest)

    @torch.no_grad()
    def _hold(self, values: list[Tensor]) -> None:
        torch._foreach_copy_(self.latest, values)

    def state_dict(self) -> dict[str, Any]:
        averaged = dict(zip(self._names(), self.averaged, strict=True))
        return {"module": self.pair.state_dict() | averaged, "started": self.started}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        torch._foreach_copy_(self.averaged, [state["module"][name] for name in self._names()])
        self.started = state["started"]

    def _names(self) -> list[str]:
        return [name for name, _ in self.pair.named_parameters()]
