"""When two ways to compute a tensor count as giving the same."""

import torch
from torch import Tensor

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}


def equal_up_to(tolerance: float, found: Tensor, expected: Tensor, least: float = 1e-8, more: float = 0.0) -> bool:
    """Whether two tensors have one shape, and each element differs by a tolerance at most; NaN equals NaN.

    Args:
        tolerance: relative to the element and to the largest of all, added.
        least: what the largest counts as where it is smaller.
        more: an absolute difference that is allowed besides.
    """
    allowed = tolerance * max(least, largest(expected)) + more
    return found.shape == expected.shape and torch.allclose(
        found, expected, rtol=tolerance, atol=allowed, equal_nan=True
    )


def same(found: Tensor, expected: Tensor) -> bool:
    """Whether two sets of log-probabilities, or of values, are equal up to rounding."""
    return equal_up_to(TOLERANCE.get(expected.dtype, 1e-2), found, expected, least=1.0)


def largest(tensor: Tensor) -> float:
    """The largest magnitude of a finite element; 0 where there is none."""
    return tensor.nan_to_num(posinf=0.0, neginf=0.0).abs().max().item() if tensor.numel() else 0.0
