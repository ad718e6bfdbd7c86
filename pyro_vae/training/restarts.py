"""Several starts of a model: each is trained for a while, and the best goes on."""

from collections.abc import Callable, Sequence

from torch import nn

from pyro_vae.runs.run import Run

SHARE = 10
"""A start is tried for the epochs of the training divided by this."""


def best_of(starts: Sequence[nn.Module], tried: Callable[[nn.Module], Run]) -> tuple[nn.Module, str]:
    """The start of the smallest validation loss, with the weights that it was tried with, and a line on the others.

    Args:
        tried: trains one in place for a while.
    """
    losses = [min(row["valid_loss"] for row in tried(start).history) for start in starts]
    best = min(range(len(starts)), key=losses.__getitem__)
    others = ", ".join(f"{loss:.2f}" for place, loss in enumerate(losses) if place != best)
    return starts[best], f"the best of {len(starts)} starts: validation loss {losses[best]:.2f}, of the others {others}"
