"""The Monte Carlo estimate of log p(x), or of log p(x|c), with draws from the prior."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from pyro_vae.evaluation.blocks import Block, Blocks
from pyro_vae.evaluation.compiled import ChunkEngine, PriorTerms
from pyro_vae.evaluation.importance import figures, summary, warnings
from pyro_vae.evaluation.result import Estimate
from pyro_vae.evaluation.stream import PARTICLE_BLOCK, even_step, rows_that_fit
from pyro_vae.evaluation.weights import WeightStream


class PriorSampling:
    """log 1/K sum_k p(x|z_k), z_k ~ p(z), K = particles; z_k ~ p(z|c) where the model has a context (Sohn, Lee & Yan
    2015, eq. 7): a lower bound in expectation, and a looser one than `importance`.

    Per datum, in nats: as `importance`.

    Args:
        engine: how the model runs, as for `importance`.
    """

    def __init__(self, engine: str = "auto"):
        self.engine = engine

    def __call__(self, pair: nn.Module, blocks: Blocks, particles: int, progress: Callable[[int], None]) -> Estimate:
        engine = ChunkEngine(self.engine, blocks.size * particles)
        parts = [figures(_weigh(block, particles, progress, engine), block.rows.start) for block in blocks]
        per_datum = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return Estimate(per_datum, {"engine": engine.description})

    def summarise(self, found: Estimate, particles: int) -> Estimate:
        return replace(
            found,
            summary=found.summary | summary(found.per_datum, particles),
            warnings=warnings(found.per_datum, particles),
        )


def _weigh(block: Block, particles: int, progress: Callable[[int], None], engine: ChunkEngine) -> WeightStream:
    block.check()
    batch, stream = block.batch(), WeightStream(particles, block.size)
    for index, first in enumerate(range(0, particles, PARTICLE_BLOCK)):
        count = min(PARTICLE_BLOCK, particles - first)
        step = even_step(count, max(1, rows_that_fit(batch) // block.size))
        with block.seeded(index):
            for _ in range(0, count, step):
                (log_likelihood,) = engine(PriorTerms(block.pair, step, block.size), batch)
                stream.add(log_likelihood)
                progress(log_likelihood.numel())
    return stream
