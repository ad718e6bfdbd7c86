"""Where a number that is not finite comes from: the step, and the parameter or site of the pair."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NoReturn

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_vae.data import Split
from pyro_vae.errors import DivergenceError
from pyro_vae.pair.pair import evaluating
from pyro_vae.pair.particles import run_guide, run_model
from pyro_vae.pair.sites import values_of

Batch = Mapping[str, Tensor]
Step = tuple[Batch, Callable[[], Float[Tensor, ""]], Callable[[], None]]
"""A batch, what finds its loss and leaves gradients, and what updates the weights by them."""


def explain_divergence(
    epoch: int, steps: Iterable[Step], pair: nn.Module, kept: nn.Module, valid: Split, checkpoint: Path | None
) -> NoReturn:
    """Look at every step of an epoch that is run once more, and say where it breaks.

    Args:
        epoch: its number, from 1.
        steps: its steps, each taken when it is asked for.
        pair: the pair that is trained.
        kept: the pair that is validated, which holds the average of the weights where there is one.
        valid: what it is validated on.
        checkpoint: the last good one, or None.

    Raises:
        DivergenceError: always; names the epoch, the step, and the parameter or site.
    """

    def fail(what: str, pair: nn.Module, batch: Batch) -> NoReturn:
        cause = not_finite(pair, batch) or "a gradient or the objective itself"
        saved = f"; the last good checkpoint is {checkpoint}" if checkpoint else ""
        raise DivergenceError(f"{what}: {cause}; try a smaller lr, or clip{saved}")

    for number, (batch, find_loss, update) in enumerate(steps, start=1):
        rng = torch.get_rng_state()
        if not find_loss().isfinite():
            torch.set_rng_state(rng)
            fail(f"the loss is not finite at epoch {epoch}, step {number}", pair, batch)
        update()
        if not weights_are_finite(pair):
            fail(f"the weights are not finite after epoch {epoch}, step {number}", pair, batch)
    with evaluating(kept):
        for batch in valid.batches(1024):
            if not_finite(kept, batch):
                fail(f"the validation loss is not finite after epoch {epoch}", kept, batch)
    fail(f"the loss was not finite in epoch {epoch}", pair, batch)


def not_finite(pair: nn.Module, batch: Batch) -> str | None:
    """Which parameter or site of the pair is not finite on this batch, in words; None where all are."""
    for name, parameter in pair.named_parameters():
        if not parameter.isfinite().all():
            return f"parameter {name!r} is not finite"
    with torch.no_grad():
        guide = run_guide(pair, batch)
        model = run_model(pair, batch, values_of(guide))
        for program, sites in (("guide", guide), ("model", model)):
            for site in sites.values():
                if not site.log_prob().isfinite().all():
                    return f"log-probability of site {site.name!r} in the {program}"
    return None


def weights_are_finite(pair: nn.Module) -> bool:
    """Whether every parameter of the pair is, found by one question to the device."""
    return bool(torch.stack([parameter.isfinite().all() for parameter in pair.parameters()]).all())
