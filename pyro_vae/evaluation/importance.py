"""The importance-weighted bound L_K of each datum, with what tells whether to believe it."""

import operator
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_vae.errors import UnknownName
from pyro_vae.evaluation.blocks import Block, Blocks
from pyro_vae.evaluation.chunks import ChunkEngine, Runner, stream_terms
from pyro_vae.evaluation.draws import draws_of
from pyro_vae.evaluation.evaluator import Evaluator, Progress
from pyro_vae.evaluation.log_likelihood.laplace import laplace_weights
from pyro_vae.evaluation.result import Estimate, PerDatum, error_of_mean, quantiles
from pyro_vae.evaluation.weights import (
    MIN_FOR_TAIL,
    UNRELIABLE_K,
    WeightStream,
    check_weights,
    unreliable_share,
    warn_of_k,
)
from pyro_vae.pair.sites import is_point_mass

PROPOSALS = ("guide", "laplace")

NARROW, DRAWN = 7, 3
"""What random numbers are for, as the last part of their seeds, and how many draws tell whether they are one point."""


class Importance(Evaluator):
    """L_K = log 1/K sum_k p(x, z_k) / q(z_k|x) at K = particles draws of the guide: a lower bound on log p(x) in
    expectation, which rises with K (Burda, Grosse & Salakhutdinov 2016).

    Figures [n]: `log_likelihood` (L_K, nats), `half` (the same bound from the first K/2 particles, nats), `jackknife`
    (bias-corrected, nats: an estimate, no bound), `monte_carlo_error` (nats), `ess` (particles), `pareto_k` (-inf where
    the largest weights are equal), `exact` (whether all weights are equal up to rounding) and `narrow` (whether the
    guide's draws are one point).

    Args:
        engine: how the model runs: "eager", "compiled" (traced once for the shape of a chunk), or "auto", which
            compiles where data x particles repay it.
        proposal: what the draws are from: "guide", or "laplace", the local normals at the modes of each datum's
            posterior that `log_likelihood` starts from, with a share of the guide and of the prior.

    Raises:
        UnknownName: no engine, or no proposal, of this name.
        ContractError: the pair has no log-densities of each datum, or all weights of a datum are zero.
    """

    shareable = True

    def __init__(self, engine: str = "auto", proposal: str = "guide"):
        if proposal not in PROPOSALS:
            raise UnknownName("proposal", proposal, PROPOSALS)
        self.engine, self.proposal = engine, proposal
        self.needs_gradients = proposal == "laplace"

    def __call__(self, pair: nn.Module, blocks: Blocks, particles: int, progress: Progress) -> Estimate:
        if next(iter(blocks)).draws_nothing:
            return Estimate(blocks.figures(self.exactly, particles, progress), exact=True)
        samples = {shapes: particles * data for shapes, data in blocks.data_of_each_shape.items()}
        engine = ChunkEngine(self.engine, samples)

        def of_block(block: Block) -> PerDatum:
            stream = self.weigh(block, particles, progress, engine)
            check_weights(stream.bound(), block.rows.start, "guide draws")
            return {
                "log_likelihood": stream.bound(),
                "half": stream.bound_of_half(),
                "jackknife": stream.jackknife(),
                "monte_carlo_error": stream.monte_carlo_error(),
                "ess": stream.ess(),
                "pareto_k": stream.pareto_k(),
                "exact": stream.exact(),
                "narrow": self.narrow(block),
            }

        return Estimate(blocks.figures(of_block, particles, progress), engine.summary)

    def exactly(self, block: Block) -> PerDatum:
        """The figures of a block where nothing is drawn: a single weight is p(x)."""
        stream = self.weigh(block, 1, lambda samples: None, operator.call)
        check_weights(stream.bound(), block.rows.start, "data are")
        bound, zeros, ones = stream.bound(), torch.zeros(block.size), torch.ones(block.size)
        return {
            "log_likelihood": bound,
            "half": bound,
            "jackknife": bound,
            "monte_carlo_error": zeros,
            "ess": ones,
            "pareto_k": torch.full_like(zeros, -torch.inf),
            "exact": ones.bool(),
            "narrow": zeros.bool(),
        }

    def weigh(self, block: Block, particles: int, progress: Progress, run: Runner) -> WeightStream:
        """The weights log p(x, z) - log q(z) of a block at draws of the proposal that is asked for."""
        if self.proposal == "laplace":
            with torch.no_grad():
                stream = laplace_weights(block, particles)
            progress(particles * block.size)
            return stream
        stream = WeightStream(particles, block.size)
        for terms in stream_terms(block, particles, progress, run):
            stream.add(terms.log_weight, *terms[:3])
        return stream

    def narrow(self, block: Block) -> Bool[Tensor, " batch"]:
        """Whether the guide of a datum is so narrow that its draws are one point."""
        if self.proposal == "laplace":
            return torch.zeros(block.size, dtype=torch.bool)
        with block.seeded(NARROW):
            draws = draws_of(block, DRAWN)
        found = torch.zeros(block.size, dtype=torch.bool)
        for name, value in draws.values.items():
            site = block.guide[name]
            continuous = value.is_floating_point() and not (site.support or constraints.real).is_discrete
            if continuous or is_point_mass(site.fn):
                found |= (value == value[:1]).all(0).reshape(block.size, -1).any(1).cpu()
        return found

    def summarise(self, found: Estimate, particles: int) -> Estimate:
        summary = _summary(found.per_datum, particles)
        warnings = [] if found.exact else _warnings(found.per_datum, summary["gap_to_half"], particles)
        return replace(found, summary=found.summary | summary, warnings=warnings)


def _summary(per_datum: PerDatum, particles: int) -> dict[str, Any]:
    k = per_datum["pareto_k"]
    share = unreliable_share(k) if particles >= MIN_FOR_TAIL else None
    return {
        "monte_carlo_error": error_of_mean(per_datum["monte_carlo_error"]),
        "gap_to_half": (per_datum["log_likelihood"] - per_datum["half"]).mean().item(),
        "jackknife": per_datum["jackknife"].mean().item(),
        "ess": quantiles(per_datum["ess"]),
        "exact": per_datum["exact"].double().mean().item(),
        "pareto_k": {**quantiles(k), f"share_above_{UNRELIABLE_K}": share},
    }


def _warnings(per_datum: PerDatum, gap_to_half: float, particles: int) -> list[str]:
    found = []
    narrow = per_datum["narrow"].double().mean().item()
    if narrow > 0:
        found.append(
            f"the guide of {narrow:.1%} of the data is so narrow that its draws are one point in this precision: their "
            "weights are constant whatever the posterior is, so the bound holds, but its error and k-hat say nothing"
        )
    if particles < MIN_FOR_TAIL:
        few = f"{particles} particles are too few to judge the weights; k-hat needs at least {MIN_FOR_TAIL}"
        return [*found, few]
    found += warn_of_k(
        per_datum["pareto_k"],
        "for these L_K is a valid lower bound in expectation, but not a reliable estimate of log p(x), and its Monte "
        "Carlo error is understated; use more particles or ais",
    )
    if gap_to_half > 0.1:
        found.append(f"L_K still rises by {gap_to_half:.2f} nats from K/2 to K; use more particles")
    return found
