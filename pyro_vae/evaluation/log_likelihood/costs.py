"""What each datum of a block has cost, in evaluations of the model."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

GRADIENT = 3
"""Model evaluations that a gradient counts as."""


class Costs:
    """Model evaluations of each datum of a block."""

    def __init__(self, size: int, device: torch.device | str = "cpu"):
        self.of_datum: Float[Tensor, " data"] = torch.zeros(size, dtype=torch.float64, device=device)

    def add(self, rows: Int[Tensor, " rows"], evaluations: float) -> None:
        """So many more for the datum of each row."""
        self.of_datum.index_add_(0, rows, torch.full_like(rows, evaluations, dtype=torch.float64))
