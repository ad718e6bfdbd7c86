"""Annealed importance sampling of log p(x), from below and, on simulated data, from above."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_vae.data import Split
from pyro_vae.errors import RunError, UnknownName, check_positive
from pyro_vae.evaluation.ais.annealing import HMC, Noise, Tick, anneal, moves_of, sigmoid_path, tune
from pyro_vae.evaluation.ais.bridge import STARTS, PairBridge, Values
from pyro_vae.evaluation.blocks import DATA_BLOCK, Block, Blocks, seed_of
from pyro_vae.evaluation.chunks import rows_that_fit
from pyro_vae.evaluation.evaluator import Evaluator, Progress, ticker
from pyro_vae.evaluation.log_likelihood.laplace import laplace_chains
from pyro_vae.evaluation.result import Estimate, PerDatum, error_of_mean, mean_and_error, quantiles
from pyro_vae.evaluation.weights import WeightStream, check_weights
from pyro_vae.pair.dreams import dream
from pyro_vae.pair.particles import run_guide, run_model
from pyro_vae.pair.sites import latent, side_by_side, values_of

PILOTS = 4
"""Chains that only tune the step sizes."""

SPREAD_DRAWS = 32
"""Draws of the start whose spread scales the momenta; the pilot chains begin at the first of them."""

SIMULATION, PLACES, MOVES = 1, 2, 3
"""What random numbers are for, as the last part of their seeds."""


class AIS(Evaluator):
    """log 1/K sum_k w_k over the weights of K annealed chains (Neal 2001; Wu et al. 2017).

    A lower bound on log p(x) in expectation, tight where the path is fine enough.

    The path is start^(1-b) p(x, z)^b, with b along a sigmoid, and the chains follow it by HMC in unconstrained
    coordinates. Pilot chains first tune the step size of each datum along the path, to an acceptance of 0.65. The
    chains that are weighed keep these sizes, so that exp(log_likelihood) is unbiased.

    Figures [n]: `log_likelihood` and its `monte_carlo_error` (nats), `ess` (chains), `acceptance` (a share of the
    moves). If bidirectional also `simulated_lower` and `simulated_upper` (nats): bounds for data that are drawn from
    the model in place of each datum.

    Args:
        distributions: steps of the path; 1 is importance sampling.
        chains: chains for each datum; default: as many as particles, at most 16.
        leapfrog: leapfrog steps of a move.
        start: what the chains start from: "guide", "prior", or "laplace", the local normals at the modes of each
            datum's posterior that `log_likelihood` starts from.
        bidirectional: also bound log p(x) from both sides, on data drawn from the model. One exact draw of their
            posterior is known, and chains from it back to the start bound log p(x) from above (Grosse, Ghahramani &
            Adams 2015).

    Raises:
        UnknownName: a start that is not known.
        RunError: a number that is not positive, or bounds from both sides with start="laplace".
        ContractError: a latent that is discrete, outside the data plate, or whose support depends on another latent; a
            datum all of whose chains have a weight of zero.
    """

    needs_gradients = shareable = True

    def __init__(
        self,
        distributions: int = 1000,
        chains: int | None = None,
        leapfrog: int = 10,
        start: str = "guide",
        bidirectional: bool = False,
    ):
        if start not in STARTS:
            raise UnknownName("start", start, STARTS)
        check_positive(RunError, distributions=distributions, chains=chains, leapfrog=leapfrog)
        if bidirectional and start == "laplace":
            raise RunError("bidirectional bounds need start=guide or start=prior (--start), not laplace")
        self.distributions, self.chains, self.leapfrog = distributions, chains, leapfrog
        self.start, self.bidirectional = start, bidirectional

    @torch.no_grad()
    def __call__(self, pair: nn.Module, blocks: Blocks, particles: int, progress: Progress) -> Estimate:
        chains, blocks = self._chains(particles), blocks.of_one_shape
        moves = moves_of(self.distributions, chains, PILOTS)
        if self.bidirectional:
            moves += moves_of(self.distributions, 2 * chains, PILOTS)
        at_once = max(1, rows_that_fit(next(iter(blocks)).batch()) // (DATA_BLOCK * chains))

        def of_blocks(*chunk: Block) -> PerDatum:
            samples = sum(block.size for block in chunk) * particles
            return self._evaluate(chunk, chains, ticker(progress, samples, moves))

        figures = blocks.figures(of_blocks, particles, progress, at_once)
        per_datum = {name: value.double() for name, value in figures.items()}
        check_weights(per_datum["log_likelihood"], blocks.first, "chains start")
        return Estimate(per_datum)

    def summarise(self, found: Estimate, particles: int) -> Estimate:
        figures, chains = found.per_datum, self._chains(particles)
        summary = {
            "distributions": self.distributions,
            "chains": chains,
            "start": self.start,
            "monte_carlo_error": error_of_mean(figures["monte_carlo_error"]),
            "ess": quantiles(figures["ess"]),
            "acceptance": quantiles(figures["acceptance"]),
        }
        if self.bidirectional:
            summary["bidirectional"] = _bounds(figures)
        return replace(found, summary=summary, warnings=_warnings(figures, summary, chains))

    def _chains(self, particles: int) -> int:
        return self.chains or min(particles, 16)

    def _evaluate(self, blocks: Sequence[Block], chains: int, tick: Tick) -> PerDatum:
        if self.start == "laplace":
            found = [laplace_chains(block, self.distributions, chains, self.leapfrog) for block in blocks]
            log_weight, acceptance = (torch.cat(parts, -1) for parts in zip(*found, strict=True))
            tick(moves_of(self.distributions, chains, PILOTS))
        else:
            _, _, log_weight, acceptance = self._run(blocks, chains, tick)
        weights = _weigh(log_weight)
        found = {
            "log_likelihood": weights.bound(),
            "monte_carlo_error": weights.monte_carlo_error(),
            "ess": weights.ess(),
            "acceptance": acceptance,
        }
        return found | (self._sandwich(blocks, chains, tick) if self.bidirectional else {})

    def _sandwich(self, blocks: Sequence[Block], chains: int, tick: Tick) -> PerDatum:
        """Bounds on log p(x) of data drawn from the model in place of those of the blocks."""
        drawn, latents = zip(*[simulated(block) for block in blocks], strict=True)
        hmc, steps, log_weight, _ = self._run(drawn, chains, tick)
        truth = hmc.bridge.places(side_by_side(latents, dim=1))
        ends, betas = hmc.bridge.at(truth.expand(chains, -1, -1)), sigmoid_path(self.distributions)
        reverse, _ = anneal(hmc, ends, betas.flip(0), steps.flip(0), tick)
        return {"simulated_lower": _weigh(log_weight).bound(), "simulated_upper": -_weigh(reverse).bound()}

    def _run(self, blocks: Sequence[Block], chains: int, tick: Tick) -> tuple[HMC, Tensor, Tensor, Tensor]:
        """Tune the steps, then anneal from the start to the posterior, all blocks at once; also gives what moved the
        chains: their HMC and its steps [moves, batch]."""
        batch = side_by_side([block.batch() for block in blocks])
        bridge = PairBridge(blocks[0].pair, batch, self.start, max(1, rows_that_fit(batch) // chains))
        starts = [_starts(block, self.start, SPREAD_DRAWS + chains) for block in blocks]
        places = bridge.places(side_by_side(starts, dim=1))
        spread = places[:SPREAD_DRAWS].std(0).clamp(min=1e-6)
        noise = Noise([seed_of(*block.key, MOVES) for block in blocks], [block.size for block in blocks], places)
        hmc, betas = HMC(bridge, spread, self.leapfrog, noise), sigmoid_path(self.distributions)
        steps = tune(hmc, bridge.at(places[:PILOTS]), betas, tick)
        return hmc, steps, *anneal(hmc, bridge.at(places[SPREAD_DRAWS:]), betas, steps, tick)


def simulated(block: Block) -> tuple[Block, Values]:
    """Data drawn from the model in place of those of a block, and the latents [1, batch, *event] behind them.

    What the model conditions on stays; raises as `dream` does.
    """
    pair, batch = block.pair, block.batch()
    with block.seeded(SIMULATION):
        dreamt = dream(pair, batch, "leave bidirectional off, whose bound from above needs such data")
    fields = {**batch, **dreamt.fields}
    simulation = Block(pair, Split(fields), slice(0, block.size), *block.key, SIMULATION, whole=True)
    return simulation, dreamt.latents


def _starts(block: Block, start: str, count: int) -> Values:
    """Values [count, batch, *event] drawn from the start, one at a time: memory for one particle is enough."""
    pair, batch = block.pair, block.batch()
    with block.seeded(PLACES):
        draws = (run_guide(pair, batch) if start == "guide" else run_model(pair, batch, {}) for _ in range(count))
        return side_by_side([values_of(latent(draw)) for draw in draws])


def _weigh(log_weight: Float[Tensor, "chains batch"]) -> WeightStream:
    weights = WeightStream(*log_weight.shape)
    weights.add(log_weight)
    return weights


def _bounds(per_datum: PerDatum) -> dict[str, Any]:
    lower, upper = per_datum["simulated_lower"], per_datum["simulated_upper"]
    gap, error = mean_and_error(upper - lower).values()
    means = {"lower": lower.mean().item(), "upper": upper.mean().item(), "gap": gap}
    return {"on": "simulated", **means, "gap_standard_error": error}


def _warnings(per_datum: PerDatum, summary: Mapping[str, Any], chains: int) -> list[str]:
    found = []
    if chains == 1:
        found.append("a single chain tells nothing of its Monte Carlo error; use 16 particles")
    off = ((per_datum["acceptance"] < 0.4) | (per_datum["acceptance"] > 0.9)).double().mean().item()
    if off > 0.1:
        found.append(f"the acceptance of {off:.0%} of the data is outside 0.4 to 0.9; use more distributions")
    poor = (per_datum["ess"] < chains / 4).double().mean().item()
    if poor > 0.1:
        found.append(
            f"for {poor:.0%} of the data fewer than a quarter of the chains carry the weight: log_likelihood is a "
            "bound in expectation, but low; use more distributions"
        )
    gap = summary.get("bidirectional", {}).get("gap", 0.0)
    if gap > 1.0:
        found.append(f"on simulated data the bounds are {gap:.1f} nats apart; use more distributions")
    return found
