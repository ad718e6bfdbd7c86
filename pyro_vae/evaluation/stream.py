"""Log terms of many particles for every datum of a block, streamed: memory does not grow with their number.

Particles come in blocks of a fixed size too, with random numbers of their own.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from pyro_vae.evaluation.blocks import Block
from pyro_vae.terms import LogTerms, Site, reduce_guide, reduce_model, run_model

PARTICLE_BLOCK = 250
CHUNK_BYTES = {"cpu": 2**24, "cuda": 2**31}
"""Rough size of the model's activations that are held at a time; on a CPU, what its caches hold."""

NAMES = ("log_likelihood", "log_prior", "log_guide")

CACHED = 2**16
"""Numbers that a processor's cache holds besides what is made of them."""

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


def latents(draws: Draws) -> dict[str, Tensor]:
    """The values of the latents as `run_model` takes them: [batch, *event] for one particle."""
    return (
        draws.values if len(draws.log_guide) > 1 else {name: value.squeeze(0) for name, value in draws.values.items()}
    )


def terms_at(pair: nn.Module, batch: Mapping[str, Tensor], draws: Draws) -> LogTerms:
    """Log terms of a batch at draws of its guide."""
    count, size = draws.log_guide.shape
    log_likelihood, log_prior = reduce_model(run_model(pair, batch, latents(draws), count), count, size)
    return LogTerms(log_likelihood, log_prior, draws.log_guide)


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
    """Fresh draws of the guide for the data of a block."""
    sites = block.draw(particles)
    if not sites:
        return Draws({}, torch.zeros(particles, block.size, device=block.split.device))
    values = {name: site.value if particles > 1 else site.value.unsqueeze(0) for name, site in sites.items()}
    step = particles
    if len(sites) == 1:
        (value,) = values.values()
        step = max(1, CACHED // value[0].numel())
    cuts = [slice(first, first + step) for first in range(0, particles, step)]
    log_guides = [_log_guide(sites, {name: value[cut] for name, value in values.items()}) for cut in cuts]
    return Draws(values, torch.cat(log_guides))


def _log_guide(
    sites: Mapping[str, Site], values: Mapping[str, Shaped[Tensor, "particles batch ..."]]
) -> Float[Tensor, "particles batch"]:
    count, size = next(iter(values.values())).shape[:2]
    placed = {
        name: replace(site, value=values[name] if count > 1 else values[name].squeeze(0))
        for name, site in sites.items()
    }
    return reduce_guide(placed, count, size)


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
