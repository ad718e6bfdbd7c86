"""How much of log p(x) the guide gives away: to its family (approximation), and to its encoder (amortisation)."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_vae import bounds
from pyro_vae.data import Split
from pyro_vae.errors import ContractError, RunError
from pyro_vae.evaluation.elements import elements
from pyro_vae.evaluation.result import Estimate, quantiles
from pyro_vae.evaluation.stream import DATA_BLOCK, draws_of, rows_that_fit, seeded, terms_at
from pyro_vae.evaluation.weights import WeightStream
from pyro_vae.terms import Site, log_terms, run_guide, select_fields

REFINING, GUIDE, REFINED = 1, 2, 3
"""What random numbers are for, as the last part of their seeds."""

FEW = 100
PerDatum = dict[str, Float[Tensor, " batch"]]


class Gaps:
    """log p(x) - ELBO in two parts: what the guide's family and what its encoder costs (Cremer, Li & Duvenaud 2018).

    q* is the guide with the mean and the scale of every normal site refined for each datum by itself, by Adam on the
    ELBO. Per datum, in nats: `inference_gap` = log p - L[q], `approximation_gap` = log p - L[q*], `amortisation_gap` =
    L[q*] - L[q], `elbo` = L[q], `refined_elbo` = L[q*], `bound`: the importance-weighted bound that stands for log p,
    of q* or of q, whichever is higher in the mean. The ELBOs and the bound take `particles` draws.

    Args:
        steps: gradient steps for each datum.
        lr: step size at the start, in units of the guide's scale; falls to 0 along a cosine.
        draws: draws of each gradient.

    Raises:
        RunError: a number that is not positive.
        ContractError: a guide site that is no normal with independent elements; names it.
    """

    needs_gradients = True

    def __init__(self, steps: int = 300, lr: float = 0.05, draws: int = 10):
        for name, value in {"steps": steps, "lr": lr, "draws": draws}.items():
            if not value > 0:
                raise RunError(f"{name} must be positive, not {value}")
        self.steps, self.lr, self.draws = steps, lr, draws

    def __call__(
        self, pair: nn.Module, split: Split, particles: int, seed: int, progress: Callable[[int], None]
    ) -> Estimate:
        parts = []
        for block, start in enumerate(range(0, split.size, DATA_BLOCK)):
            with seeded(seed, block):
                batch = select_fields(pair, split.take(slice(start, start + DATA_BLOCK)))
            with seeded(seed, block, REFINING):
                refined = self.refine(pair, batch)
            with torch.no_grad():
                part = {}
                for name, program, use in (("elbo", pair, GUIDE), ("refined_elbo", refined, REFINED)):
                    with seeded(seed, block, use):
                        part[name], part[f"{name}_bound"] = evaluate_guide(program, batch, particles)
            parts.append(part)
            progress(particles * len(part["elbo"]))
        figures = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return _estimate(figures, particles)

    def refine(self, pair: nn.Module, batch: Mapping[str, Tensor]) -> "Refined":
        """The pair with the guide that is best for each datum of the batch, as far as the steps reach.

        The gradient goes along the path of z only (Roeder, Wu & Duvenaud 2017): it is free of noise where the guide is
        the posterior.
        """
        refined = Refined(pair, batch)
        moved = [*refined.shifts.values(), *refined.log_stretches.values()]
        optimizer = torch.optim.Adam(moved, self.lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        for _ in range(self.steps):
            bound = bounds.elbo(log_terms(refined, batch, self.draws, frozen_guide=True)).sum()
            for parameter, gradient in zip(moved, torch.autograd.grad(-bound, moved), strict=True):
                parameter.grad = gradient
            optimizer.step()
            schedule.step()
        return refined
