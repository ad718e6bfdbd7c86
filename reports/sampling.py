"""Samples through the decoder per second when the importance-weighted bound is evaluated: ours, by hand, pythae."""

import time
from collections.abc import Callable

import torch
from measure import seconds_of
from peers import LATENT, SHAPE, PlainVAE, pythae_vae
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.evaluation.blocks import DATA_BLOCK, PARTICLE_BLOCK
from pyro_vae.evaluation.chunks import even_step, rows_that_fit


def net_and_images(count: int) -> tuple[pv.VAE, Tensor]:
    """The `burda` preset with random weights, and random binary images."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return pv.models.burda(SHAPE).eval(), torch.bernoulli(torch.rand(count, *SHAPE))


class Clocked(pv.evaluators.Evaluator):
    """An evaluator that notes when each block of samples was done."""

    def __init__(self, evaluator: pv.evaluators.Importance):
        self.evaluator = evaluator
        self.began, self.blocks = 0.0, []

    def __call__(
        self, pair: nn.Module, blocks: pv.evaluators.Blocks, particles: int, progress: Callable[[int], None]
    ) -> pv.evaluators.Estimate:
        def tick(samples: int) -> None:
            progress(samples)
            self.blocks.append((time.perf_counter(), samples))

        self.began = time.perf_counter()
        return self.evaluator(pair, blocks, particles, tick)

    def summarise(self, found: pv.evaluators.Estimate, particles: int) -> pv.evaluators.Estimate:
        return self.evaluator.summarise(found, particles)

    @property
    def rate(self) -> float:
        """Samples per second after the first block, in which the chunk is compiled."""
        (start, _), *later = self.blocks
        return sum(samples for _, samples in later) / (later[-1][0] - start)

    @property
    def seconds_to_first_block(self) -> float:
        return self.blocks[0][0] - self.began


def our_rate(engine: str, particles: int, images: Tensor, vae: pv.VAE, first: list[float]) -> float:
    clock = Clocked(pv.evaluators.Importance(engine))
    result = pv.evaluate(vae, images, clock, particles, progress=False)
    assert result.estimate.summary["engine"].startswith(engine), result.estimate.summary["engine"]
    first.append(clock.seconds_to_first_block)
    return clock.rate


def by_hand_rate(chunk: int, particles: int, images: Tensor, vae: pv.VAE) -> float:
    plain = PlainVAE(vae)
    return len(images) * particles / seconds_of(lambda: plain.log_likelihood(images, particles, chunk))


def pythae_rate(batch: int, particles: int, images: Tensor, vae: pv.VAE) -> float:
    """`get_nll` without gradients, in batches that divide the particles: it rounds their number down to such."""
    model = pythae_vae(vae, SHAPE, LATENT).eval()
    with torch.inference_mode():
        return len(images) * particles / seconds_of(lambda: model.get_nll(images, particles, batch))


@torch.inference_mode()
def products_rate(vae: pv.VAE, images: Tensor, samples: int) -> float:
    """The decoder's matrix products alone, on chunks of the shape that ours has."""
    rows = DATA_BLOCK * even_step(PARTICLE_BLOCK, rows_that_fit({"x": images}) // DATA_BLOCK)
    weights = [layer.weight.T for layer in vae.decoder.modules() if isinstance(layer, nn.Linear)]
    inputs = [torch.randn(rows, len(weight)) for weight in weights]
    outputs = [torch.empty(rows, weight.shape[1]) for weight in weights]
    count = max(1, samples // rows)

    def work() -> None:
        for _ in range(count):
            for x, weight, out in zip(inputs, weights, outputs, strict=True):
                torch.mm(x, weight, out=out)

    return count * rows / seconds_of(work)
