"""The importance-weighted bound L_K of each datum, with what tells whether to believe it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_vae.errors import ContractError
from pyro_vae.evaluation.blocks import Block, Blocks
from pyro_vae.evaluation.chunks import ChunkEngine
from pyro_vae.evaluation.draws import draws_of, stream_terms
from pyro_vae.evaluation.result import Estimate, quantiles
from pyro_vae.evaluation.weights import MIN_FOR_TAIL, WeightStream

UNRELIABLE_K = 0.7
"""Above it importance sampling is not reliable (Yao et al. 2018; Vehtari et al. 2024)."""

NARROW, DRAWN = 7, 3
"""What random numbers are for, as the last part of their seeds, and how many draws tell whether they are one point."""


class Importance:
    """log 1/K sum_k p(x, z_k) / q(z_k|x), K = particles: a lower bound on log p(x) in expectation that rises with K
    (Burda, Grosse & Salakhutdinov 2016).

    Per datum: `log_likelihood` (L_K, nats), `half` (L of the first K/2 particles), `jackknife` (bias-corrected: an
    estimate, no bound), `monte_carlo_error` (nats), `ess`, `pareto_k` (-inf where the largest weights are equal),
    `exact` (all weights are equal up to rounding) and `narrow` (the guide's draws are one point).

    Args:
        engine: how the model runs: "eager", "compiled" (traced once for the shape of a chunk), or "auto", which
            compiles where data x particles repay it.
    """

    def __init__(self, engine: str = "auto"):
        self.engine = engine

    def __call__(self, pair: nn.Module, blocks: Blocks, particles: int, progress: Callable[[int], None]) -> Estimate:
        engine = ChunkEngine(self.engine, blocks.size * particles)
        parts = []
        for block in blocks:
            found = figures(self.weigh(block, particles, progress, engine), block.rows.start)
            parts.append(found | {"narrow": self.narrow(block)})
        per_datum = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return Estimate(per_datum, engine.summary)

    def weigh(self, block: Block, particles: int, progress: Callable[[int], None], engine: ChunkEngine) -> WeightStream:
        """The weights log p(x, z) - log q(z|x) of a block at draws of the guide."""
        stream = WeightStream(particles, block.size)
        for terms in stream_terms(block, particles, progress, at=engine.terms_at):
            stream.add(terms.log_weight, *terms[:3])
        return stream

    def narrow(self, block: Block) -> Bool[Tensor, " batch"]:
        """Whether the guide of a datum is so narrow that its draws are one point."""
        with block.seeded(NARROW):
            draws = draws_of(block, DRAWN)
        found = torch.zeros(block.size, dtype=torch.bool)
        for name, value in draws.values.items():
            if value.is_floating_point() and not (block.guide[name].support or constraints.real).is_discrete:
                found |= (value == value[:1]).all(0).reshape(block.size, -1).any(1).cpu()
        return found

    def summarise(self, found: Estimate, particles: int) -> Estimate:
        return replace(
            found,
            summary=found.summary | summary(found.per_datum, particles),
            warnings=warnings(found.per_datum, particles),
        )


def figures(stream: WeightStream, first: int) -> dict[str, Float[Tensor, " batch"]]:
    """All figures of a finished block of data, the first of which is datum `first`.

    Raises:
        ContractError: every weight of a datum is zero, or one is not a number; names the datum.
    """
    bound = stream.bound()
    for bad, what in ((bound.isnan() | (bound == torch.inf), "not finite"), (bound == -torch.inf, "all zero")):
        if bad.any():
            raise ContractError(
                f"the importance weights of datum {first + int(bad.nonzero()[0])} are {what}: the guide draws where "
                "the model has no density, or the datum is outside the likelihood's support"
            )
    return {
        "log_likelihood": bound,
        "half": stream.bound_of_half(),
        "jackknife": stream.jackknife(),
        "monte_carlo_error": stream.monte_carlo_error(),
        "ess": stream.ess(),
        "pareto_k": stream.pareto_k(),
        "exact": stream.exact(),
    }


def summary(per_datum: dict[str, Tensor], particles: int) -> dict[str, Any]:
    """Figures over all data, for `evaluation.json`."""
    bound, errors = per_datum["log_likelihood"], per_datum["monte_carlo_error"]
    k = per_datum["pareto_k"]
    known = particles >= MIN_FOR_TAIL
    return {
        "monte_carlo_error": errors.square().sum().sqrt().item() / len(errors),
        "gap_to_half": (bound - per_datum["half"]).mean().item(),
        "jackknife": per_datum["jackknife"].mean().item(),
        "ess": quantiles(per_datum["ess"]),
        "exact": per_datum["exact"].double().mean().item(),
        "pareto_k": {
            **quantiles(k),
            "share_above_0.7": (k > UNRELIABLE_K).double().mean().item() if known else None,
        },
    }


def warnings(per_datum: dict[str, Tensor], particles: int) -> list[str]:
    """Plain sentences where L_K should not be trusted as an estimate of log p(x)."""
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
    share = (per_datum["pareto_k"] > UNRELIABLE_K).double().mean().item()
    if share > 0:
        found.append(
            f"k-hat is above 0.7 for {share:.1%} of the data: for these L_K is a valid lower bound in expectation, but "
            "not a reliable estimate of log p(x), and its Monte Carlo error is understated; use more particles or ais"
        )
    gap = (per_datum["log_likelihood"] - per_datum["half"]).mean().item()
    if gap > 0.1:
        found.append(f"L_K still rises by {gap:.2f} nats from K/2 to K; use more particles")
    return found
