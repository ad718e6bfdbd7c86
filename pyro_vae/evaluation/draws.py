"""Log terms of many particles for every datum of a block, streamed: memory does not grow with their number.

Particles come in blocks of a fixed size too, with random numbers of their own.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_vae.evaluation.blocks import Block
from pyro_vae.pair.particles import FOLDED
from pyro_vae.pair.sites import Sites, side_by_side, values_of
from pyro_vae.pair.terms import LogTerms, model_terms, reduce_guide

PARTICLE_BLOCK = 250
CHUNK_BYTES = {"cpu": 2**24, "cuda": 2**31}
"""Rough size of the model's activations that are held at a time; on a CPU, what its caches hold."""

NAMES = ("log_likelihood", "log_prior", "log_guide")

CACHED = 2**16
"""Numbers that a processor's cache holds besides what is made of them."""

FOLDED_AT_ONCE = 10
"""Particles of a guide that are folded into a block of data at a time."""

TENSORS_PER_ROW = 4
"""About as many tensors of the size of one datum does a model hold for each particle."""


class Draws(NamedTuple):
    """Draws of the guide: values [particles, batch, *event] of each latent site, and log q(z|x) in nats."""

    values: dict[str, Tensor]
    log_guide: Float[Tensor, "particles batch"]

    def cut(self, particles: slice, data: slice) -> "Draws":
        """Some of the particles of some of the data."""
        values = {name: value[particles, data] for name, value in self.values.items()}
        return Draws(values, self.log_guide[particles, data])


TermsAt = Callable[[nn.Module, Mapping[str, Tensor], Draws], LogTerms]


def terms_at(pair: nn.Module, batch: Mapping[str, Tensor], draws: Draws) -> LogTerms:
    """Log terms of a batch at draws of its guide."""
    return LogTerms(*model_terms(pair, batch, draws.values, len(draws.log_guide)), draws.log_guide)


def stream_terms(
    block: Block,
    particles: int,
    progress: Callable[[int], None] = lambda samples: None,
    at: TermsAt = terms_at,
) -> Iterator[LogTerms]:
    """Log terms [some particles, batch] of exactly `particles` draws of the guide for every datum of a block.

    Args:
        progress: told the number of data x particles that are done.
        at: what gives the log terms of a chunk: `terms_at`, or a compiled form of it.

    Raises:
        ContractError: the pair breaks the contract, or has latents outside the data plate.
    """
    block.check()
    batch = block.batch()
    rows = rows_that_fit(batch)
    for index, first in enumerate(range(0, particles, PARTICLE_BLOCK)):
        with block.seeded(index):
            draws = draws_of(block, min(PARTICLE_BLOCK, particles - first))
        terms = terms_in_pieces(block.pair, batch, draws, rows, at)
        yield terms
        progress(terms.log_guide.numel())


def draws_of(block: Block, particles: int) -> Draws:
    """Fresh draws of the guide for the data of a block, log q taken where they are drawn."""
    pieces = [_drawn(sites, count, block.size) for sites, count in _pieces(block, particles)]
    values = side_by_side([piece.values for piece in pieces])
    log_guide = torch.cat([piece.log_guide for piece in pieces])
    return Draws(values, log_guide if values else log_guide.to(block.split.device))


def _pieces(block: Block, particles: int) -> Iterator[tuple[Sites, int]]:
    """The guide's sites of so many particles, some at a time; how many depends on nothing but the pair and its data."""
    step = particles
    if block.draws_apart:
        (site,) = block.guide.values()
        step = max(1, CACHED // max(1, site.value[0].numel()))
    elif block.ways.guide == FOLDED:
        step = FOLDED_AT_ONCE
    for first in range(0, particles, step):
        for count in block.ways.counts(min(step, particles - first)):
            yield block.draw(count), count


def _drawn(sites: Sites, count: int, size: int) -> Draws:
    return Draws(values_of(sites), reduce_guide(sites, count, size))


def terms_in_pieces(
    pair: nn.Module, batch: Mapping[str, Tensor], draws: Draws, rows: int, at: TermsAt = terms_at
) -> LogTerms:
    """Log terms with at most `rows` data x particles in the model at a time."""
    count, size = draws.log_guide.shape
    particle_step, data_step = even_step(count, max(1, rows // size)), min(size, rows)
    bands = []
    for start in range(0, size, data_step):
        data = slice(start, start + data_step)
        fields = {name: value[data] for name, value in batch.items()}
        pieces = [
            at(pair, fields, draws.cut(slice(first, first + particle_step), data))
            for first in range(0, count, particle_step)
        ]
        bands.append([torch.cat([getattr(piece, name) for piece in pieces]) for name in NAMES])
    return LogTerms(*[torch.cat(parts, 1) for parts in zip(*bands, strict=True)])


def even_step(count: int, most: int) -> int:
    """Particles at a time, at most so many, that cut a block of particles into pieces of one shape."""
    return count if count <= most else max(step for step in range(1, most + 1) if PARTICLE_BLOCK % step == 0)


def rows_that_fit(batch: Mapping[str, Tensor]) -> int:
    """Data x particles whose activations take about `CHUNK_BYTES`."""
    value = max(batch.values(), key=lambda field: field[0].numel())
    row = value[0].numel() * value.element_size() * TENSORS_PER_ROW
    return max(1, CHUNK_BYTES[value.device.type] // row)
