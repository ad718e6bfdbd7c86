"""A pair with latents that all data share: any evaluator, given each of several draws of them.

Two numbers come of it, each called what it is: of a datum its mean density over the draws, a predictive density and no
bound; and of all data together the importance-weighted bound, or the ELBO.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_vae.errors import RunError, check_positive
from pyro_vae.evaluation.blocks import Block, Blocks, seeded
from pyro_vae.evaluation.evaluator import Evaluator, Progress, ticker
from pyro_vae.evaluation.result import BOUNDED, Estimate, OfDataSet, PerDatum, quantiles
from pyro_vae.evaluation.weights import MIN_FOR_TAIL, UNRELIABLE_K, WeightStream
from pyro_vae.pair.global_latents import GlobalLatents, Held, draw_globals, look_at_globals

SHARED, GIVEN = 2**31 - 1, 11
"""What random numbers are for: shared draws, in place of the number of a block, and those of a block given one."""

LISTED = 3
"""So many names are listed."""


@dataclass(frozen=True)
class SharedDraws:
    """Draws of a pair's global latents, the same in all processes.

    Attributes:
        pair: the pair, which holds any of them.
        values: of each draw, the values of the guide's sites.
        log_ratio: log p - log q of each draw [draws], in nats.
    """

    seen: GlobalLatents
    pair: Held
    values: list[dict[str, Tensor]]
    log_ratio: Float[Tensor, " draws"]

    @property
    def words(self) -> str:
        """What figures are given, in words."""
        count = "1 draw" if len(self.values) == 1 else f"{len(self.values)} draws"
        drawn = f"given {count} of {_listed(self.seen.drawn)}" if self.seen.drawn else ""
        at = f"at a point estimate of {_listed(self.seen.estimates)}" if self.seen.estimates else ""
        return ", ".join(filter(None, [drawn, at]))


def shared_draws(block: Block, count: int, seed: int) -> SharedDraws | None:
    """So many draws of the guide's latents that all data share, one where all are point estimates; None where there are
    none. Raises as `look_at_globals` does."""
    check_positive(RunError, global_draws=count)
    batch = block.batch()
    seen = look_at_globals(block.pair, batch)
    if seen is None:
        return None
    draws = []
    with torch.no_grad():
        for number in range(count if seen.drawn else 1):
            with seeded(seed, SHARED, number):
                draws.append(draw_globals(block.pair, batch))
    values = [draw.values for draw in draws]
    log_ratio = torch.stack([draw.log_ratio for draw in draws]).double().cpu()
    return SharedDraws(seen, Held(block.pair, values[0]), values, log_ratio)


class GivenGlobals(Evaluator):
    """An evaluator given each of several draws of the latents that all data share.

    Figures [n] of a datum x, where theta are these latents and the evaluator bounds log p(x|theta):
    `log_predictive` = log 1/S sum_s p(x|theta_s), its `monte_carlo_error` over the S draws, and the `spread`, the
    standard deviation of log p(x|theta_s). Of an ELBO, its mean `elbo_given_globals`. All other figures are means over
    the draws as well. `data_set` is log 1/S sum_s p(theta_s)/q(theta_s) prod_n p(x_n|theta_s), or the ELBO of all data.
    At a point estimate alone the figures of a datum keep their names, and there is no bound of all data.
    """

    def __init__(self, evaluator: Evaluator, draws: SharedDraws):
        self.evaluator, self.draws = evaluator, draws
        self.needs_gradients, self.shareable = evaluator.needs_gradients, evaluator.shareable

    def __call__(self, pair: nn.Module, blocks: Blocks, particles: int, progress: Progress) -> Estimate:
        """What the evaluator finds, each figure [n, draws, ...]."""
        held, samples = self.draws.pair, blocks.size * particles
        tick, found = ticker(progress, samples, samples * len(self.draws.values)), []
        for number, values in enumerate(self.draws.values):
            held.hold(values)
            found.append(self.evaluator(held, _GivenBlocks(held, blocks, number), particles, tick))
        per_datum = {name: torch.stack([one.per_datum[name] for one in found], 1) for name in found[0].per_datum}
        warnings = dict.fromkeys(warning for one in found for warning in one.warnings)
        summary = _mean([one.summary for one in found])
        return replace(found[0], per_datum=per_datum, summary=summary, warnings=list(warnings))

    def summarise(self, found: Estimate, particles: int) -> Estimate:
        draws = len(self.draws.values)
        flat = {name: value.flatten(0, 1) for name, value in found.per_datum.items()}
        told = self.evaluator.summarise(replace(found, per_datum=flat), particles)
        figures = {name: value.unflatten(0, (-1, draws)) for name, value in told.per_datum.items()}
        headline = figures[told.quantity].double()
        told = replace(told, given=self.draws.words, data_set=self._of_data_set(told.quantity, headline))
        if not self.draws.seen.drawn:
            return replace(told, per_datum={name: value.squeeze(1) for name, value in figures.items()})
        of_draws = {name: value for name, value in figures.items() if name not in (told.quantity, *told.codes)}
        means = {name: value.double().mean(1) for name, value in of_draws.items()}
        own, summary = _predictive(headline) if told.quantity == "log_likelihood" else (_averaged(told, headline), {})
        return replace(
            told,
            per_datum=own | {name: value for name, value in means.items() if name not in own},
            summary={"global_draws": draws, **summary, "means_over_draws": told.summary},
            warnings=[*told.warnings, *self._warnings(told)],
            exact=False,
        )

    def _of_data_set(self, quantity: str, headline: Float[Tensor, "n draws"]) -> OfDataSet | None:
        """What the figures of each datum given each draw, and the draws' own densities, make of all data together."""
        faults, draws = self.draws.seen.faults, len(self.draws.values)
        if quantity not in (*BOUNDED, "loss") or (quantity == "log_likelihood" and faults):
            return None
        totals = headline.sum(0) * (-1.0 if quantity == "loss" else 1.0) + self.draws.log_ratio
        if quantity == "log_likelihood":
            weights = WeightStream(draws, 1)
            weights.add(totals.unsqueeze(1), headline.abs().sum(0).unsqueeze(1))
            bound, error, ess, k = weights.bound(), weights.monte_carlo_error(), weights.ess(), weights.pareto_k()
            return OfDataSet(quantity, bound.item(), error.item(), draws, ess.item(), k.item())
        whole = OfDataSet("elbo", totals.mean().item(), _error(totals).item(), draws)
        return whole.as_loss() if faults or quantity == "loss" else whole

    def _warnings(self, told: Estimate) -> Iterator[str]:
        """What to beware of in the figure of all data."""
        of_guide = [fault for fault in self.draws.seen.faults if told.quantity in (*BOUNDED, "loss")]
        yield from (f"of all data together there is no bound: {fault}" for fault in of_guide)
        whole = told.data_set
        if whole is None or whole.ess is None:
            return
        if whole.draws < MIN_FOR_TAIL:
            few = f"{whole.draws} draws of {_listed(self.draws.seen.drawn)} are too few to judge their weights"
            yield f"{few}; k-hat needs at least {MIN_FOR_TAIL}: set global_draws"
        elif whole.pareto_k > UNRELIABLE_K:
            yield (
                f"k-hat of the {whole.draws} shared draws is {whole.pareto_k:.2f}, above {UNRELIABLE_K}: "
                "the figure of all data together is a valid lower bound in expectation, but no reliable estimate; use "
                "more global_draws, and more particles"
            )


def _predictive(log_p: Float[Tensor, "n draws"]) -> tuple[PerDatum, dict[str, Any]]:
    """Figures of log 1/S sum_s p_s of each datum, and a summary of them."""
    draws = log_p.shape[1]
    log_predictive = log_p.logsumexp(1) - math.log(draws)
    share, spread = (log_p - log_predictive.unsqueeze(1)).exp(), _deviation(log_p.T)
    figures = {"log_predictive": log_predictive, "spread": spread, "monte_carlo_error": _error(share.T)}
    return figures, {"monte_carlo_error": _error(share.mean(0)).item(), "spread": quantiles(spread)}


def _averaged(told: Estimate, headline: Float[Tensor, "n draws"]) -> PerDatum:
    name = "elbo_given_globals" if told.quantity == "elbo" else told.quantity
    return {name: headline.mean(1)}


def _error(draws: Float[Tensor, "draws ..."]) -> Float[Tensor, "..."]:
    """The standard error of the mean of independent draws."""
    return _deviation(draws) / math.sqrt(len(draws))


def _deviation(draws: Float[Tensor, "draws ..."]) -> Float[Tensor, "..."]:
    """The standard deviation over draws; NaN for one."""
    return draws.std(0) if len(draws) > 1 else torch.full_like(draws[0], math.nan)


def _mean(values: Sequence[Any]) -> Any:
    """The mean of numbers, also of those under names; of anything else the first."""
    first = values[0]
    if isinstance(first, dict):
        return {name: _mean([value[name] for value in values if name in value]) for name in first}
    if isinstance(first, bool) or not isinstance(first, int | float):
        return first
    return sum(values) / len(values)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} others" if len(names) > LISTED else ""
    return ", ".join(map(repr, names[:LISTED])) + more


class _GivenBlocks(Blocks):
    """The same blocks under a pair that holds a draw of its global latents."""

    def __init__(self, held: Held, blocks: Blocks, draw: int):
        super().__init__(held, blocks.whole, blocks.seed)
        self.indices, self.cut, self.done, self.draw = blocks.indices, blocks.cut, blocks.done, draw

    def __iter__(self) -> Iterator[Block]:
        for block in super().__iter__():
            yield _GivenBlock(block, self.draw)


class _GivenBlock(Block):
    """A block whose data are presented as they are to every draw, with random numbers of its own for each."""

    def __init__(self, block: Block, draw: int):
        super().__init__(block.pair, block.split, block.rows, *block.key, GIVEN, draw, whole=block.whole)
        self.fields = block.batch()

    def batch(self) -> dict[str, Tensor]:
        return self.fields
