"""The Monte Carlo estimate of log p(x), or of log p(x|c), with draws from the prior."""

import torch
from jaxtyping import Bool
from torch import Tensor

from pyro_vae.evaluation.blocks import Block
from pyro_vae.evaluation.chunks import ModelTerms, Runner, even_step, rows_that_fit
from pyro_vae.evaluation.evaluator import Progress
from pyro_vae.evaluation.importance import Importance
from pyro_vae.evaluation.weights import WeightStream


class PriorSampling(Importance):
    """log 1/K sum_k p(x|z_k) at K = particles draws of the prior p(z), or of p(z|c) where the model has a context
    (Sohn, Lee & Yan 2015, eq. 7): a lower bound on log p(x) in expectation, and a looser one than `importance`.

    The figures and the errors are those of `importance`.

    Args:
        engine: how the model runs: "eager", "compiled" (traced once for the shape of a chunk), or "auto", which
            compiles where data x particles repay it.
    """

    def __init__(self, engine: str = "auto"):
        super().__init__(engine)

    def weigh(self, block: Block, particles: int, progress: Progress, run: Runner) -> WeightStream:
        """The weights log p(x|z) of a block at draws of the prior."""
        block.check(of=["model"])
        batch, stream = block.batch(), WeightStream(particles, block.size)
        for count, noise in block.particle_blocks(particles):
            step = even_step(count, max(1, rows_that_fit(batch) // block.size))
            with noise:
                for _ in range(0, count, step):
                    log_likelihood, _ = run(ModelTerms(block.pair, step, block.size), batch, {})
                    stream.add(log_likelihood)
                    progress(log_likelihood.numel())
        return stream

    def narrow(self, block: Block) -> Bool[Tensor, " batch"]:
        """No guide draws here."""
        return torch.zeros(block.size, dtype=torch.bool)
