"""What each datum of a block has cost, in evaluations of the model."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

GRADIENT = 3
"""Model evaluations that a gradient counts as."""


PREPARING = 0.75
"""The part of the budget that finding a proposal may take; the rest is for the draws that are reported."""


class Costs:
    """Model evaluations of each datum of a block, of which there may be so many as the budget says."""

    def __init__(self, size: int, budget: int, device: torch.device | str = "cpu"):
        self.budget = budget
        self.of_datum: Float[Tensor, " data"] = torch.zeros(size, dtype=torch.float64, device=device)

    def add(self, rows: Int[Tensor, " rows"], evaluations: float) -> None:
        """So many more for the datum of each row."""
        self.of_datum.index_add_(0, rows, torch.full_like(rows, evaluations, dtype=torch.float64))

    def allow(self, data: Int[Tensor, " data"], evaluations: float) -> Bool[Tensor, " data"]:
        """Whether these data may spend so many more before their bound is drawn."""
        return self.of_datum[data] + evaluations <= PREPARING * self.budget
