"""Draws of the guide for the data of a block, with log q of each."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_vae.evaluation.blocks import Block
from pyro_vae.pair.particles import FOLDED
from pyro_vae.pair.sites import Sites, side_by_side, values_of
from pyro_vae.pair.terms import reduce_guide

CACHED = 2**16
"""Numbers that a processor's cache holds besides what is made of them."""

FOLDED_AT_ONCE = 10
"""Particles of a guide that are folded into a block of data at a time."""


class Draws(NamedTuple):
    """Draws of the guide: values [particles, batch, *event] of each latent site, and log q(z|x) in nats.

    Where the guide enumerates, it is zero here: there it is summed together with the model.
    """

    values: dict[str, Tensor]
    log_guide: Float[Tensor, "particles batch"]


def draws_of(block: Block, particles: int) -> Draws:
    """Fresh draws of the guide for the data of a block."""
    chunks = [Draws(values_of(guide), _log_guide(block, guide, n)) for guide, n in _guides(block, particles)]
    values = side_by_side([chunk.values for chunk in chunks])
    log_guide = torch.cat([chunk.log_guide for chunk in chunks])
    return Draws(values, log_guide if values else log_guide.to(block.split.device))


def _log_guide(block: Block, guide: Sites, particles: int) -> Float[Tensor, "particles batch"]:
    if block.structure.enumerated["guide"]:
        return torch.zeros(particles, block.size, device=block.split.device)
    return reduce_guide(guide, particles, block.size)


def _guides(block: Block, particles: int) -> Iterator[tuple[Sites, int]]:
    """The guide's sites in chunks of particles, whose sizes depend on nothing but the pair and its data."""
    chunk = particles
    if block.draws_apart:
        (site,) = block.guide.values()
        chunk = max(1, CACHED // max(1, site.value[0].numel()))
    elif block.ways.guide == FOLDED:
        chunk = FOLDED_AT_ONCE
    for first in range(0, particles, chunk):
        for count in block.ways.counts(min(chunk, particles - first)):
            yield block.draw(count), count
