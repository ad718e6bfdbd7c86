"""A VAE whose latent is a direction in the plane, pictures that have one, and how far the two agree."""

import math
from collections.abc import Callable, Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import pyro_vae as pv

WIDTH = 0.3
"""Of the hand. Thinner ones share no pixels with their neighbours, and the circle is easily found twisted."""


class CircleVAE(pv.Pair):
    """z uniform on the circle; q(z|x) a projected normal, which unlike a von Mises has reparameterised draws.

    Args:
        data_shape: shape of one datum x; the data set's own on the command line.
        hidden: widths of the encoder's hidden layers; the decoder mirrors them.
        sharpness: how concentrated q may be at the start.
    """

    def __init__(self, data_shape: Sequence[int], hidden: Sequence[int] = (64,), sharpness: float = 1.0):
        super().__init__()
        self.encoder = pv.nets.MLPEncoder(data_shape, hidden, "relu")
        self.direction = nn.Linear(self.encoder.out_features, 2)
        self.decoder = pv.nets.MLPDecoder(2, hidden[::-1], "relu", data_shape, 1)
        self.log_sharpness = nn.Parameter(torch.tensor(math.log(sharpness)))
        self.event_dims = len(data_shape)

    def model(self, x: Tensor) -> None:
        with self.plate(x.shape[0]):
            z = pyro.sample("z", dist.ProjectedNormal(x.new_zeros(2)))
            logits = self.decoder(z).squeeze(-self.event_dims - 1)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(self.event_dims), obs=x)

    def guide(self, x: Tensor) -> None:
        with self.plate(x.shape[0]):
            pyro.sample("z", dist.ProjectedNormal(self.log_sharpness.exp() * self.direction(self.encoder(x))))


def hands(seed: int = 0, side: int = 12, size: int = 2000) -> pv.Dataset:
    """Grey pictures x [n, 1, side, side] of a clock with one hand, and its `angle` [n] in radians.

    Args:
        seed: draws the angles.
        side: pixels of an edge.
        size: how many for training; a fifth as many for validation, and for the test.
    """
    generator = torch.Generator().manual_seed(seed)

    def split(n: int) -> pv.Split:
        angle = 2 * math.pi * torch.rand(n, generator=generator)
        return pv.Split({"x": _picture(angle, side), "angle": angle})

    return pv.Dataset("hands", split(size), split(size // 5), split(size // 5))


def _picture(angle: Tensor, side: int) -> Tensor:
    """Grey levels in [0, 1] by the distance of each pixel from the hand."""
    place = torch.linspace(-1, 1, side)
    y, x = torch.meshgrid(place, place, indexing="ij")
    towards = torch.stack([angle.cos(), angle.sin()], -1) @ torch.stack([x.flatten(), y.flatten()])
    length = towards.clamp(0.0, 0.9)
    beside = (x.flatten() - length * angle.cos()[:, None]) ** 2 + (y.flatten() - length * angle.sin()[:, None]) ** 2
    return torch.exp(-beside / WIDTH).reshape(-1, 1, side, side)


class Angle(pv.evaluators.Evaluator):
    """How far the direction of q(z|x) is from the hand's, once the circle is turned, and mirrored, to fit best.

    Per datum: `angular_error` in radians; its mean is pi/2 where z knows nothing of the angle.
    """

    def __call__(
        self, pair: nn.Module, blocks: pv.evaluators.Blocks, particles: int, progress: Callable[[int], None]
    ) -> pv.evaluators.Estimate:
        found, true = [], []
        for block in blocks:
            towards = block.guide["z"].fn.concentration
            found.append(torch.atan2(towards[:, 1], towards[:, 0]))
            true.append(blocks.whole.take(block.rows)["angle"])
            progress(block.size * particles)
        found, true = torch.cat(found), torch.cat(true)
        errors = [_after_turning(sign * found, true) for sign in (1, -1)]
        return pv.evaluators.Estimate({"angular_error": min(errors, key=lambda error: error.mean().item())})


def _after_turning(found: Tensor, true: Tensor) -> Tensor:
    difference = torch.polar(torch.ones_like(true), true - found)
    return (difference / torch.polar(torch.ones(()), difference.mean().angle())).angle().abs()
