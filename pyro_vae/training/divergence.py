"""Where a number that is not finite comes from: the parameter or site of the pair."""

from pathlib import Path

import torch
from torch import nn

from pyro_vae.errors import DivergenceError
from pyro_vae.objectives.objective import Batch
from pyro_vae.pair.particles import run_guide, run_model
from pyro_vae.pair.sites import values_of


def divergence(what: str, pair: nn.Module, batch: Batch, checkpoint: Path | None) -> DivergenceError:
    """The error that says what happened, which parameter or site of the pair is at fault, and what is saved."""
    cause = not_finite(pair, batch) or "a gradient or the objective itself"
    saved = f"; the last good checkpoint is {checkpoint}" if checkpoint else ""
    return DivergenceError(f"{what}: {cause}; try a smaller lr, or clip{saved}")


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
