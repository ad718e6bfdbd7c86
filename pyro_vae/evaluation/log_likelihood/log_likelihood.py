"""log p(x) of each datum to a tolerance: an evaluator that is asked for an error, not for a number of draws."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.errors import ContractError, RunError, check_positive
from pyro_vae.evaluation.blocks import Block, Blocks
from pyro_vae.evaluation.chunks import ChunkEngine
from pyro_vae.evaluation.evaluator import Evaluator, Progress
from pyro_vae.evaluation.importance import Importance
from pyro_vae.evaluation.log_likelihood.certificate import CERTIFIED, NO_COORDINATES, NO_SEARCH, REASONS
from pyro_vae.evaluation.log_likelihood.costs import PREPARING
from pyro_vae.evaluation.log_likelihood.target import Engines, Target
from pyro_vae.evaluation.log_likelihood.unaided import by_guide_alone
from pyro_vae.evaluation.log_likelihood.ways import EXACT, LEAST_COST, WAYS, Found, Ways
from pyro_vae.evaluation.result import Estimate, PerDatum, error_of_mean, quantiles

EXPECTED = 1000
"""So many model evaluations are expected of a datum, and as many gradients' worth."""


class LogLikelihood(Evaluator):
    """log p(x) of each datum, as far as a search for its modes reaches, at no more cost than a tolerance needs.

    Each datum is searched for modes, from draws of the prior and of the guide. Pilot draws then tell which is the
    first of these ways that reaches the tolerance, and with how many draws: importance sampling from the guide with a
    share of wider draws; from local normals at the modes, with shares of guide and prior; from these normals adapted to
    their own weighed draws; and annealed importance sampling from there. The bound is that of fresh draws of this way,
    so it is a lower bound on log p(x) in expectation whichever way was taken.

    A datum is certified where the standard error is below the tolerance, half of the draws agree with all of them
    within it, and k-hat is below ArviZ's `good_k`; of annealing, where a quarter of the chains carry the weight, and
    half as many temperatures agree. The bound holds in any case. "Certified" says that the estimate has converged on
    all that the search found: a mode that no start reaches cannot be seen.

    Figures [n]: `log_likelihood` (nats), its `monte_carlo_error` (nats), `half` (nats: from half of the draws, or of
    the temperatures), `ess` (draws or chains), `pareto_k` (NaN for annealing), `cost` (model evaluations, where a
    gradient counts as three), `certified`, and as whole numbers `way` and `reason`, whose names are in the estimate's
    `codes`. Sources: deterministic mixture weights, Veach & Guibas 1995 and Owen & Zhou 2000; smoothed local normals,
    Opper & Archambeau 2009; adaptation by moments, Cappe et al. 2004; k-hat, Vehtari et al. 2024.

    Args:
        tolerance: the standard error in nats that each datum is to reach.
        budget: the most model evaluations that a datum may cost.
        engine: how the model runs: "eager", "compiled" (traced once for the shape of a chunk), or "auto", which
            compiles where the model evaluations that are to be expected repay it.

    Raises:
        UnknownName: no engine of this name.
        RunError: a tolerance or a budget that is not positive, or `particles`, of which there is no fixed number.
        ContractError: the pair has no log-densities of each datum.
    """

    needs_gradients = shareable = True

    def __init__(self, tolerance: float = 0.1, budget: int = 20_000, engine: str = "auto"):
        if not 0 < tolerance < math.inf:
            raise RunError(f"tolerance must be a positive number of nats, not {tolerance}")
        check_positive(RunError, budget=budget)
        self.tolerance, self.budget, self.engine = tolerance, budget, engine
        self.notes: dict[str, None] = {}
        self.engines: Engines | None = None

    @torch.no_grad()
    def __call__(self, pair: nn.Module, blocks: Blocks, particles: int, progress: Progress) -> Estimate:
        if particles != 1:
            raise RunError(
                "log_likelihood takes no number of particles: say tolerance=0.1 (--tolerance) for the error that is "
                "asked for, and budget=20000 (--budget) for the most that a datum may cost"
            )
        self.notes, self.engines = {}, None
        if next(iter(blocks)).draws_nothing:
            return Estimate(blocks.figures(self._exactly, particles, progress), exact=True, codes=CODES)
        samples = {shapes: EXPECTED * data for shapes, data in blocks.data_of_each_shape.items()}
        self.engines = Engines(ChunkEngine(self.engine, samples), ChunkEngine(self.engine, samples))
        figures = blocks.figures(lambda block: self.of_block(block, particles, progress), particles, progress)
        return Estimate(figures, {"notes": list(self.notes), **self.engines.densities.summary}, codes=CODES)

    def of_block(self, block: Block, particles: int, progress: Progress) -> PerDatum:
        found = _figures(self._found(block))
        progress(block.size)
        return found

    def _found(self, block: Block) -> Found:
        block.check(of=["model"])
        try:
            target = Target.of_block(block, self.engines)
        except ContractError as problem:
            self.notes[str(problem)] = None
            return by_guide_alone(block, self.budget, NO_COORDINATES)
        if PREPARING * self.budget < LEAST_COST:
            return by_guide_alone(block, self.budget, NO_SEARCH)
        ways = Ways(block, target, self.tolerance, self.budget)
        self.notes |= dict.fromkeys(ways.notes)
        return ways()

    def _exactly(self, block: Block) -> PerDatum:
        """The figures of a block where nothing is drawn."""
        found = Importance().exactly(block)
        whole = torch.full((block.size,), EXACT)
        names = ("log_likelihood", "monte_carlo_error", "half", "ess", "pareto_k")
        certified = {"certified": torch.ones(block.size, dtype=torch.bool)}
        codes = {"way": whole, "reason": torch.full_like(whole, CERTIFIED)}
        return {name: found[name] for name in names} | {"cost": torch.ones(block.size)} | certified | codes

    def summarise(self, found: Estimate, particles: int) -> Estimate:
        figures = found.per_datum
        notes = found.summary.get("notes", [])
        summary = {
            **{name: value for name, value in found.summary.items() if name != "notes"},
            "tolerance": self.tolerance,
            "budget": self.budget,
            "certified": figures["certified"].double().mean().item(),
            "monte_carlo_error": error_of_mean(figures["monte_carlo_error"]),
            "cost": quantiles(figures["cost"]),
            "pareto_k": quantiles(figures["pareto_k"]),
            "ways": _counts(figures["way"], WAYS),
            "reasons": _counts(figures["reason"], REASONS),
        }
        return replace(found, summary=summary, warnings=_warnings(summary, notes), lines=_lines(figures))


CODES: Mapping[str, tuple[str, ...]] = {"way": WAYS, "reason": REASONS}


def _figures(found: Found) -> PerDatum:
    figures = found.figures
    return {
        "log_likelihood": figures.bound,
        "monte_carlo_error": figures.error,
        "half": figures.half,
        "ess": figures.ess,
        "pareto_k": figures.pareto_k,
        "cost": found.costs.of_datum,
        "certified": figures.reason == CERTIFIED,
        "way": found.way,
        "reason": figures.reason,
    }


def _counts(codes: Tensor, names: tuple[str, ...]) -> dict[str, int]:
    """How many data have each code that occurs, by its name."""
    return {name: int((codes == number).sum()) for number, name in enumerate(names) if (codes == number).any()}


def _lines(figures: PerDatum) -> list[str]:
    """A line for each way that was taken."""
    found = []
    for name, count in _counts(figures["way"], WAYS).items():
        mine = figures["way"] == WAYS.index(name)
        certified, cost = figures["certified"][mine].double().mean().item(), figures["cost"][mine].mean().item()
        error = figures["monte_carlo_error"][mine].double().nanmean().item()
        found.append(
            f"way {name}: {count} of {len(mine)} data, {certified:.1%} of them certified, at a mean cost of "
            f"{cost:,.0f} model evaluations and a mean error of {error:.3f} nats"
        )
    return found


def _warnings(summary: Mapping[str, Any], notes: list[str]) -> list[str]:
    found = list(notes)
    lacking = 1 - summary["certified"]
    if lacking > 0:
        why = {name: count for name, count in summary["reasons"].items() if name != REASONS[CERTIFIED]}
        listed = "; ".join(f"{name} ({count})" for name, count in sorted(why.items(), key=lambda item: -item[1]))
        found.append(
            f"{lacking:.1%} of the data are not certified: their figures are lower bounds in expectation, but no "
            f"reliable estimates of log p(x): {listed}"
        )
    return found
