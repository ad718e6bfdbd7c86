"""Missing elements, drawn from what a trained pair says of them given the elements that are observed."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from pyro_vae.data import Split
from pyro_vae.errors import DataError
from pyro_vae.evaluation.blocks import Block, Blocks
from pyro_vae.evaluation.weights import WeightStream, check_weights
from pyro_vae.pair.pair import evaluating
from pyro_vae.pair.particles import Values, run_guide, run_model
from pyro_vae.pair.posterior import hidden_sites, together
from pyro_vae.pair.sites import observed, side_by_side, values_of
from pyro_vae.pair.terms import reduce_sites

AT_ONCE = 10
"""Particles that are drawn and decoded together, whatever the memory holds: draws depend on the seed alone."""

FILLING = 9
"""What the random numbers of the elements are for, as the last part of their seeds."""


class Imputed(NamedTuple):
    """Draws of what is missing.

    Attributes:
        values: of each site that observes data with gaps, [draws, n, *event], by name: what is observed is as it is.
        ess: the effective number of draws of the guide that the weights leave, (sum w)^2 / sum w^2 (Kong 1992).
    """

    values: dict[str, Shaped[Tensor, "draws n ..."]]
    ess: Float[Tensor, " n"]


def imputations(
    pair: nn.Module,
    split: Split,
    draws: int,
    particles: int,
    seed: int = 0,
    progress: Callable[[int], None] = lambda samples: None,
) -> Imputed:
    """Draws of the missing elements given the observed ones, by importance resampling (Mattei & Frellsen 2019, eq. 13).

    Of `particles` draws of the guide for each datum, `draws` are picked by their weights p(x_observed, z) / q(z), and
    the missing elements are drawn from p(x_missing|z) there.

    Args:
        pair: allows values to be missing where the data lack them.

    Raises:
        DataError: nothing is missing.
        ContractError: the pair has no log-densities of each datum, or all weights of a datum are zero.
    """
    parts: list[Imputed] = []
    gaps: set[str] = set()
    with torch.no_grad(), evaluating(pair):
        blocks = Blocks(pair, split, seed)
        blocks.cut = False  # sequences stay as long as they are stored
        for block in blocks:
            parts.append(_of_block(block, draws, particles, gaps, progress))
    if not gaps:
        raise DataError("no value that the model observes is missing (NaN), so there is nothing to impute")
    values = side_by_side([part.values for part in parts], dim=1)
    return Imputed({name: values[name] for name in values if name in gaps}, torch.cat([part.ess for part in parts]))


def _of_block(block: Block, draws: int, particles: int, gaps: set[str], progress: Callable[[int], None]) -> Imputed:
    block.check()
    pair, batch, picked = block.pair, block.batch(), Picked(draws, block)
    stream = WeightStream(particles, block.size)
    for count, noise in block.particle_blocks(particles):
        with noise:
            for first in range(0, count, AT_ONCE):
                for some in block.ways.counts(min(AT_ONCE, count - first)):
                    guide = run_guide(pair, batch, some)  # what it enumerates is drawn
                    model = run_model(pair, batch, values_of(guide), some, summing=True)
                    log_weight = reduce_sites(model, guide, some, block.size).log_weight
                    stream.add(log_weight)
                    picked.offer(values_of(guide), log_weight)
                    progress(some * block.size)
    check_weights(stream.bound(), block.rows.start, "guide draws")
    with block.seeded(FILLING, FILLING):
        drawn = [_filled(block, picked.of(draw), gaps) for draw in range(draws)]
    return Imputed(side_by_side(drawn), stream.ess())


def _filled(block: Block, latents: Values, gaps: set[str]) -> dict[str, Tensor]:
    """What each site observes [1, batch, *event], with what is missing drawn at these latents; adds to `gaps` the sites
    that lack something."""
    pair, batch, found = block.pair, block.batch(), {}
    hidden = hidden_sites(pair, batch, latents)
    latents = {**latents, **(together(hidden, best=False) if hidden else {})}
    for name, site in observed(run_model(pair, batch, latents)).items():
        if site.in_plate:
            seen = site.seen
            missing = seen.isnan()
            gaps |= {name} if missing.any() else set()
            drawn = site.unfold(site.fn.sample(), len(site.event_shape))
            found[name] = torch.where(missing, drawn.to(seen.dtype), seen).cpu()
    return found


class Picked:
    """Some of a stream of particles, each picked with the probability of its weight, independently of the others.

    The largest of log w + Gumbel noise is such a pick (Efraimidis & Spirakis 2006), and can be kept while they come.
    """

    def __init__(self, draws: int, block: Block):
        self.draws, self.values = draws, {}
        self.best = torch.full((draws, block.size), -torch.inf, dtype=torch.float64, device=block.split.device)

    def offer(self, values: Values, log_weight: Float[Tensor, "particles batch"]) -> None:
        """Take the next particles, values [particles, batch, ...]."""
        uniform = torch.rand(self.draws, *log_weight.shape, dtype=torch.float64, device=log_weight.device)
        best, place = (log_weight.double() - (-uniform.log()).log()).max(1)
        better = best > self.best
        for name, value in values.items():
            new = value.expand(len(log_weight), *value.shape[1:])[
                place, torch.arange(value.shape[1], device=place.device)
            ]
            kept = better.reshape(*better.shape, *[1] * (new.dim() - 2))
            self.values[name] = torch.where(kept, new, self.values.get(name, new))
        self.best = torch.where(better, best, self.best)

    def of(self, draw: int) -> dict[str, Tensor]:
        """The values [1, batch, ...] of one pick of each datum."""
        return {name: value[draw : draw + 1] for name, value in self.values.items()}
