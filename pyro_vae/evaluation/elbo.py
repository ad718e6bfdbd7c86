"""The ELBO of each datum and its two parts: rate (KL) and distortion (minus the expected log-likelihood)."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from pyro_vae.evaluation.blocks import Block, Blocks
from pyro_vae.evaluation.evaluator import Evaluator, Progress
from pyro_vae.evaluation.result import Estimate, PerDatum, quantiles
from pyro_vae.pair import bounds
from pyro_vae.pair.particles import FOLDED, run_model
from pyro_vae.pair.sites import values_of
from pyro_vae.pair.terms import ElboTerms, reduce_to_elbo, run_both

AT_ONCE = 10
"""Particles that are drawn and decoded together, whatever the memory holds: figures depend on the seed alone."""


class ELBO(Evaluator):
    """E_q[log p(x|z)] - KL(q || p), the KL in closed form wherever one is known (Kingma & Welling 2014, eq. 3).

    Figures [n] in nats, the mean over `particles` draws: `elbo` (a lower bound on log p(x)), `rate`, `distortion`.
    Where the pair has no density (a scale excepted, which is refused), `loss` stands in place of `elbo`, and a warning
    says why.

    Raises:
        ContractError: the pair breaks the contract, or its log-probabilities are scaled; names the site.
    """

    shareable = True

    def __call__(self, pair: nn.Module, blocks: Blocks, particles: int, progress: Progress) -> Estimate:
        first = next(iter(blocks))
        faults = first.faults()
        if not faults or not all(fault.is_loss for fault in faults):
            first.check()
        found = super().__call__(pair, blocks, particles, progress)
        found = replace(found, exact=not faults and not first.guide)
        warnings = [f"these figures are a loss, not a bound: {fault.line}" for fault in faults]
        return replace(found.as_loss(), warnings=warnings) if faults else found

    def of_block(self, block: Block, particles: int, progress: Progress) -> PerDatum:
        total = torch.zeros(2, block.size, dtype=torch.float64)
        for terms in _terms(block, particles):
            count = len(terms.kl)
            total += count * torch.stack([bounds.rate(terms), bounds.distortion(terms)]).double().cpu()
            progress(count * block.size)
        rate, distortion = total / particles
        return {"elbo": -rate - distortion, "rate": rate, "distortion": distortion}

    def summarise(self, found: Estimate, particles: int) -> Estimate:
        return replace(found, summary={name: quantiles(found.per_datum[name]) for name in ("rate", "distortion")})


def _terms(block: Block, particles: int) -> Iterator[ElboTerms]:
    """ELBO terms of exactly so many particles, in chunks."""
    batch = block.batch()
    for size, noise in block.particle_blocks(particles):
        with noise:
            for first in range(0, size, AT_ONCE):
                for count in block.ways.counts(min(AT_ONCE, size - first)):
                    yield _drawn(block, batch, count)


def _drawn(block: Block, batch: dict[str, Tensor], count: int) -> ElboTerms:
    if block.draws_apart and block.ways.model != FOLDED:
        guide = block.draw(count)
        model = run_model(block.pair, batch, values_of(guide), count, summing=True)
    else:
        guide, model = run_both(block.pair, batch, count, summing=True)
    return reduce_to_elbo(model, guide, count, block.size, as_loss=True)
