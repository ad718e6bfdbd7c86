"""Gradients of several batches, accumulated into those of one step."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Gradients:
    """The mean over data of the gradients of batches, each the mean of its own data."""

    def __init__(self, parameters: Sequence[nn.Parameter]):
        self.parameters = parameters
        self.sums: list[Tensor | None] = [None] * len(parameters)
        self.batches, self.data = 0, 0

    @torch.no_grad()
    def add(self, size: int) -> None:
        """Take in the gradients that the parameters have, of a batch of so many data."""
        for place, parameter in enumerate(self.parameters):
            if parameter.grad is not None:
                weighted = size * parameter.grad
                self.sums[place] = weighted if self.sums[place] is None else self.sums[place] + weighted
        self.batches, self.data = self.batches + 1, self.data + size

    def hand_over(self) -> None:
        """Give the parameters the mean, and begin anew."""
        for parameter, total in zip(self.parameters, self.sums, strict=True):
            parameter.grad = None if total is None else total / self.data
        self.sums, self.batches, self.data = [None] * len(self.parameters), 0, 0
