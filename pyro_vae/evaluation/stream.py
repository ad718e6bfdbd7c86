"""Log terms of many particles for every datum, streamed: memory does not grow with the number of particles.

Random numbers belong to blocks of data x particles whose sizes are fixed, so a figure depends on its seed alone and
not on how the work is cut to fit into memory.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_vae.data import Split
from pyro_vae.terms import (
    LogTerms,
    check_per_datum,
    check_sites,
    check_supports,
    reduce_guide,
    reduce_model,
    run_guide,
    run_model,
    select_fields,
)

DATA_BLOCK = 100
PARTICLE_BLOCK = 250
CHUNK_BYTES = {"cpu": 2**24, "cuda": 2**31}
"""Rough size of the model's activations that are held at a time; on a CPU, what its caches hold."""

NAMES = ("log_likelihood", "log_prior", "log_guide")

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


class Chunk(NamedTuple):
    """Log terms [particles, batch] of a block of data, the particles from `first` on."""

    rows: slice
    first: int
    terms: LogTerms


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
    pair: nn.Module,
    split: Split,
    particles: int,
    seed: int = 0,
    progress: Callable[[int], None] = lambda samples: None,
    chunk_rows: int | None = None,
    at: TermsAt = terms_at,
) -> Iterator[Chunk]:
    """Log terms of exactly `particles` draws of the guide for every datum of a split: block of data after block of
    data, and within each all its particles.

    The guide runs once for each block of data if it has one latent site, else once for each block of particles.

    Args:
        seed: fixes the draws, whatever the chunks.
        progress: told the number of data x particles that are done.
        chunk_rows: data x particles at a time; default: what fits into `CHUNK_BYTES`.
        at: what gives the log terms of a chunk: `terms_at`, or a compiled form of it.

    Raises:
        ContractError: the pair breaks the contract, or has latents outside the data plate.
    """
    for block, start in enumerate(range(0, split.size, DATA_BLOCK)):
        with seeded(seed, block):
            batch = select_fields(pair, split.take(slice(start, start + DATA_BLOCK)))
            draw = draws_of(pair, batch)
        rows = chunk_rows or rows_that_fit(batch)
        for particle_block, first in enumerate(range(0, particles, PARTICLE_BLOCK)):
            with seeded(seed, block, particle_block):
                draws = draw(min(PARTICLE_BLOCK, particles - first))
            terms = terms_in_pieces(pair, batch, draws, rows, at)
            yield Chunk(slice(start, start + terms.log_guide.shape[1]), first, terms)
            progress(terms.log_guide.numel())


def draws_of(pair: nn.Module, batch: Mapping[str, Tensor]) -> Callable[[int], Draws]:
    """A function from a number of particles to fresh draws of the guide.

    The encoder runs only once where the guide has one latent site: its distribution is all there is to draw from.
    """
    once = run_guide(pair, batch)
    model = run_model(pair, batch, {name: site.value for name, site in once.items()})
    check_sites(model, once)
    check_per_datum(model, once)
    check_supports(model, once)
    size = len(next(iter(batch.values())))
    reduce_guide(once, 1, size)

    def from_the_guide(count: int) -> Draws:
        sites = run_guide(pair, batch, count)
        values = {name: site.value if count > 1 else site.value.unsqueeze(0) for name, site in sites.items()}
        return Draws(values, reduce_guide(sites, count, size))

    def from_one_site(count: int) -> Draws:
        (site,) = once.values()
        drawn = replace(site, value=site.fn.sample((count,)))
        return Draws({site.name: drawn.value}, drawn.log_prob())

    return from_one_site if len(once) == 1 else from_the_guide


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


class seeded:
    """A context in which torch's global random numbers follow from the given integers, and are untouched after."""

    def __init__(self, *key: int):
        self.seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)

    def __enter__(self) -> None:
        self.fork = torch.random.fork_rng(devices=range(torch.cuda.device_count()))
        self.fork.__enter__()
        torch.manual_seed(self.seed)

    def __exit__(self, *exception: object) -> None:
        self.fork.__exit__(*exception)
