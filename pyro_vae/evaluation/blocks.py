"""Data and their particles in blocks of a fixed size, each with random numbers of its own.

A figure of a datum therefore depends on the seed alone: not on the chunks that fit into memory, nor on how many
processes share the work.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import copy
from dataclasses import replace
from functools import cached_property
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn

from pyro_vae.data import Split
from pyro_vae.data.sequences import are_sequences
from pyro_vae.errors import ContractError
from pyro_vae.evaluation.result import PerDatum
from pyro_vae.evaluation.unfinished import Done
from pyro_vae.pair.checks import (
    BOTH,
    Fault,
    check_auxiliary,
    check_density,
    check_per_datum,
    check_sites,
    check_supports,
    density_faults,
)
from pyro_vae.pair.pair import select_fields
from pyro_vae.pair.particles import OWN_DIM, Ways, run_guide, run_model, ways
from pyro_vae.pair.sequences import cut_fields
from pyro_vae.pair.sites import Sites, side_by_side, values_of
from pyro_vae.pair.structure import Structure, structure_of

DATA_BLOCK, PARTICLE_BLOCK = 100, 250

Shapes = tuple[tuple[str, torch.Size], ...]
"""The shape of one datum of each field."""


class Block:
    """Neighbouring data of a split, as a pair is given them; their random numbers follow from the integers `key`.

    Args:
        whole: leave sequences as long as they are stored.
    """

    def __init__(self, pair: nn.Module, split: Split, rows: slice, *key: int, whole: bool = False):
        self.pair, self.split, self.rows, self.key, self.whole = pair, split, rows, key, whole

    @property
    def name(self) -> str:
        """A name that no other block of the same data has, with other random numbers either."""
        return "-".join(map(str, self.key))

    @property
    def size(self) -> int:
        """Number of data."""
        return min(self.rows.stop, self.split.size) - self.rows.start

    def seeded(self, *purpose: int) -> AbstractContextManager[None]:
        """A context in which random numbers follow from the block's key and the purpose."""
        return seeded(*self.key, *purpose)

    def batch(self) -> dict[str, Tensor]:
        """The fields [size, ...] that the pair takes, presented anew at every call, always the same."""
        with self.seeded():
            return (select_fields if self.whole else cut_fields)(self.pair, self.split.take(self.rows))

    def particle_blocks(self, particles: int) -> Iterator[tuple[int, AbstractContextManager[None]]]:
        """The number of particles of each of their blocks, and the context in which its random numbers are drawn."""
        for index, first in enumerate(range(0, particles, PARTICLE_BLOCK)):
            yield min(PARTICLE_BLOCK, particles - first), self.seeded(index)

    @cached_property
    def guide(self) -> Sites:
        """The guide's sites at one draw; the guide runs once, however often this is read."""
        with torch.inference_mode(False), torch.no_grad(), self.seeded():
            return run_guide(self.pair, self.batch())

    @cached_property
    def ways(self) -> Ways:
        """How the pair's programs hold several particles."""
        return ways(self.pair, self.batch())

    @property
    def draws_apart(self) -> bool:
        """Whether the guide has one site and broadcasts: then its distribution is all there is to draw from, and the
        encoder does not run again."""
        if len(self.guide) != 1 or self.ways.guide != OWN_DIM or self.structure.enumerated["guide"]:
            return False
        (site,) = self.guide.values()
        return len(site.fn.batch_shape) == site.layout.depth

    @property
    def draws_nothing(self) -> bool:
        """Whether the guide draws nothing, because there is no latent or all of them are enumerated."""
        return all(site.observed or site.summed for site in self.guide.values())

    @cached_property
    def structure(self) -> Structure:
        """Which plate of the pair is the data's, and what it enumerates."""
        return structure_of(self.pair, self.batch())

    def draw(self, particles: int) -> Sites:
        """The guide's sites at fresh draws."""
        if not self.draws_apart:
            return run_guide(self.pair, self.batch(), particles, summing=True)
        (site,) = self.guide.values()
        layout = self.structure.layout("guide", particles, self.size, folded=False)
        with torch.no_grad():
            value = site.fn(layout.draws)  # no copy of it: a flow knows its draw by the very tensor
        return {site.name: replace(site, raw=value, layout=layout)}

    def check(self, of: Sequence[str] = BOTH) -> None:
        """Raise `ContractError` where the pair has no log-densities of each datum in the programs that `of` names, or
        its guide's support is not the prior's."""
        with self.seeded():
            model = self._model()
            check_per_datum(model, self.guide)
            check_density(model, self.guide, of)
            if "guide" in of:
                check_supports(model, self.guide)
                if any(site.auxiliary and not site.observed for site in self.guide.values()):
                    check_auxiliary(self.pair, self.batch())

    def refuse_hidden(self, why: str) -> None:
        """Raise `ContractError` where the model alone enumerates a site.

        Args:
            why: what cannot do with that, in words.
        """
        found = self.structure.enumerated["model"] - self.structure.enumerated["guide"]
        if found:
            raise ContractError(f"{why}, but {min(found)!r} is enumerated; use encode for its probabilities and draws")

    def faults(self) -> list[Fault]:
        """Why the terms of the pair are no log-densities."""
        with self.seeded():
            return density_faults(self._model(), self.guide)

    def _model(self) -> Sites:
        model = run_model(self.pair, self.batch(), values_of(self.guide))
        check_sites(model, self.guide)
        return model


class Blocks:
    """The blocks of a split that fall to process `rank` of several, which share them equally, in the data's order.

    Args:
        keep: keep the blocks, with what they hold of the guide, for another pass over them.

    Attributes:
        cut: whether the blocks of sequences are cut, each to a length of its own.
        done: the figures of blocks that are done already, where these are kept.
    """

    cut = True
    done: Done | None = None

    def __init__(
        self, pair: nn.Module, split: Split, seed: int = 0, rank: int = 0, processes: int = 1, keep: bool = False
    ):
        count = -(-split.size // DATA_BLOCK)
        self.pair, self.whole, self.seed, self.keep = pair, split, seed, keep
        self.indices = range(count * rank // processes, count * (rank + 1) // processes)
        self.kept: dict[int, Block] = {}

    def __iter__(self) -> Iterator[Block]:
        for index in self.indices:
            rows = slice(index * DATA_BLOCK, (index + 1) * DATA_BLOCK)
            block = self.kept.get(index) or Block(self.pair, self.whole, rows, self.seed, index, whole=not self.cut)
            if self.keep:
                self.kept[index] = block
            yield block

    def __len__(self) -> int:
        return len(self.indices)

    def together(self, count: int) -> Iterator[list[Block]]:
        """The blocks, so many neighbours at a time."""
        blocks = iter(self)
        while some := list(islice(blocks, count)):
            yield some

    def figures(
        self, of: Callable[..., PerDatum], particles: int, progress: Callable[[int], None], at_once: int = 1
    ) -> PerDatum:
        """The figures [size, ...] of all data, by name, from those of each block. Where blocks that are done are kept,
        these are not done again, and the others are kept as soon as they are done.

        Args:
            of: gives the figures of so many neighbouring blocks as are `at_once`; it tells `progress` of their samples.
            progress: is told of the samples, `particles` for each datum, of blocks that are done already.
        """
        kept, parts = self._recall(at_once), []
        for blocks in self.together(at_once):
            found = kept.get(blocks[0].name)
            if found is None:
                found = {name: value.cpu() for name, value in of(*blocks).items()}
                if self.done is not None:
                    self.done.keep(*_kept_as(blocks), found)
            else:
                progress(particles * sum(block.size for block in blocks))
            parts.append(found)
        return side_by_side(parts)

    def _recall(self, at_once: int) -> dict[str, PerDatum]:
        """The figures that are kept, by the name of the first block of each. Where only the last and smaller of several
        blocks is left, the first is done again: it is the one that an engine is chosen for."""
        if self.done is None:
            return {}
        found, sizes = {}, []
        for blocks in self.together(at_once):
            found[blocks[0].name] = self.done.recall(*_kept_as(blocks))
            sizes.append(blocks[0].size)
        names, left = list(found), [name for name, figures in found.items() if figures is None]
        if at_once == 1 and left == names[-1:] and sizes[-1] < sizes[0]:
            found[names[0]] = None
        return {name: figures for name, figures in found.items() if figures is not None}

    def going_on(self, done: Done | None) -> "Blocks":
        """The same blocks, of which some are done."""
        if done is None:
            return self
        blocks = copy(self)
        blocks.done = done
        blocks.__dict__.pop("of_one_shape", None)  # which would know of no block that is done
        return blocks

    @cached_property
    def of_one_shape(self) -> "Blocks":
        """The same, for what puts data of several blocks together: sequences stay as long as they are stored."""
        if not are_sequences(next(iter(self)).batch()):
            return self
        blocks = copy(self)
        blocks.cut, blocks.kept = False, {}
        return blocks

    @cached_property
    def data_of_each_shape(self) -> Counter[Shapes]:
        """How many of the data have each shape of their fields."""
        first = next(iter(self)).batch()
        if not are_sequences(first):
            return Counter({shapes_of(first): self.size})
        return sum((Counter({shapes_of(block.batch()): block.size}) for block in self), Counter())

    @property
    def first(self) -> int:
        """Which datum of all is the first of these blocks."""
        return self.indices.start * DATA_BLOCK

    @property
    def split(self) -> Split:
        """The data of these blocks."""
        return self.whole.between(self.first, self.indices.stop * DATA_BLOCK)

    @property
    def size(self) -> int:
        """The number of data in these blocks."""
        return max(0, self.split.size)


def _kept_as(blocks: Sequence[Block]) -> tuple[str, list[dict[str, Tensor]]]:
    """What neighbouring blocks are kept under: their name, and their data."""
    name = blocks[0].name if len(blocks) == 1 else f"{blocks[0].name}_{len(blocks)}"
    return name, [block.batch() for block in blocks]


def shapes_of(batch: Mapping[str, Tensor]) -> Shapes:
    """The shapes of one datum of these fields [batch, ...]."""
    return tuple((name, value.shape[1:]) for name, value in batch.items())


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Let torch's global random numbers follow from the given integers, and leave them untouched after."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed_of(*key))  # torch.manual_seed takes milliseconds
        if devices:
            torch.cuda.manual_seed_all(seed_of(*key))
        yield


def seed_of(*key: int) -> int:
    """One seed for several integers."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]) >> 1
