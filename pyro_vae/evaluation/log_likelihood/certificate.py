"""When a bound counts as log p(x): what is asked of the weights, and in words what they lack."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pyro_vae.evaluation.log_likelihood.sampling import Drawn
from pyro_vae.evaluation.weights import UNRELIABLE_K

REASONS = (
    "certified",
    "k-hat is too large for so many draws",
    "the standard error is above the tolerance",
    "half of the draws disagree with all of them",
    "the weights are all zero",
    "the search left a mode unexplored",
    "few of the chains carry the weight",
    "half as many temperatures disagree",
    "the budget is spent",
    "the latents have no unconstrained coordinates",
    "the budget is too small to search for modes",
)
"""What the whole numbers of the figure `reason` stand for."""

(
    CERTIFIED,
    LARGE_K,
    LARGE_ERROR,
    HALVES,
    ZERO,
    LEFT,
    FEW_CHAINS,
    TEMPERATURES,
    SPENT,
    NO_COORDINATES,
    NO_SEARCH,
) = range(len(REASONS))


@dataclass
class Figures:
    """What is reported of each datum, in nats where it is a logarithm; see `LogLikelihood`."""

    bound: Float[Tensor, " data"]
    half: Float[Tensor, " data"]
    error: Float[Tensor, " data"]
    ess: Float[Tensor, " data"]
    pareto_k: Float[Tensor, " data"]
    reason: Int[Tensor, " data"]


def good_k(draws: int) -> float:
    """The largest k-hat that so many draws can be trusted with, as ArviZ's `good_k` (Vehtari et al. 2024)."""
    return min(1 - 1 / math.log10(draws), UNRELIABLE_K) if draws > 1 else -math.inf


def figures_of(drawn: Drawn, tolerance: float) -> Figures:
    """Bound and diagnostics of weighed draws, and whether they are certified."""
    size = len(drawn.counts)
    names = ("bound", "half", "error", "ess", "pareto_k", "good")
    found = {name: torch.full((size,), math.nan, dtype=torch.float64) for name in names}
    for data, stream in drawn.streams():
        found["bound"][data] = stream.bound()
        found["half"][data] = stream.bound_of_half()
        found["error"][data] = stream.monte_carlo_error()
        found["ess"][data] = stream.ess()
        found["pareto_k"][data] = stream.pareto_k()
        found["good"][data] = good_k(stream.particles)
    good = found.pop("good")
    tests = {
        HALVES: (found["bound"] - found["half"]).abs() < tolerance,
        LARGE_ERROR: found["error"] < tolerance,
        LARGE_K: found["pareto_k"] < good,
        ZERO: found["bound"].isfinite(),
    }
    return Figures(**found, reason=reason_of(tests))


def reason_of(tests: Mapping[int, Bool[Tensor, " data"]]) -> Int[Tensor, " data"]:
    """What each datum lacks: the number of the last test that it fails, or `CERTIFIED`."""
    reason = torch.full_like(next(iter(tests.values())), CERTIFIED, dtype=torch.long)
    for number, passed in tests.items():
        reason[~passed] = number
    return reason
