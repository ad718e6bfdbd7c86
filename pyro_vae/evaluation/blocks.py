"""Data in blocks of a fixed size, each with random numbers of its own.

A figure of a datum therefore depends on the seed alone: not on how the work is cut to fit into memory, nor on how many
processes share it.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from pyro_vae.data import Split
from pyro_vae.terms import Site, check_per_datum, check_sites, check_supports, run_guide, run_model, select_fields

DATA_BLOCK = 100


class Block:
    """Neighbouring data of a split, as a pair is given them.

    Args:
        pair: a model and a guide on one module.
        split: the data.
        rows: which of the split's.
        key: what their random numbers follow from.
    """

    def __init__(self, pair: nn.Module, split: Split, rows: slice, *key: int):
        self.pair, self.split, self.rows, self.key = pair, split, rows, key

    @property
    def size(self) -> int:
        """Number of data."""
        return min(self.rows.stop, self.split.size) - self.rows.start

    def seeded(self, *purpose: int) -> "seeded":
        """A context in which random numbers follow from the block's key and the purpose."""
        return seeded(*self.key, *purpose)

    def batch(self) -> dict[str, Tensor]:
        """The fields [size, ...] that the pair takes, presented anew at every call, always the same."""
        with self.seeded():
            return select_fields(self.pair, self.split.take(self.rows))

    @cached_property
    def guide(self) -> dict[str, Site]:
        """The guide's sites at one draw, values [size, *event]; the guide runs once, however often this is read."""
        with torch.inference_mode(False), torch.no_grad(), self.seeded():
            return run_guide(self.pair, self.batch())

    def draw(self, particles: int) -> dict[str, Site]:
        """The guide's sites at fresh draws, values [particles, size, *event], or [size, *event] for one particle.

        Where the guide has one site, its distribution is all there is to draw from, and the encoder does not run again.
        """
        if len(self.guide) != 1:
            return run_guide(self.pair, self.batch(), particles)
        (site,) = self.guide.values()
        return {site.name: replace(site, value=site.fn.sample((particles,) if particles > 1 else ()))}

    def check(self) -> None:
        """Raise `ContractError` where the pair has no per-datum terms, or its guide's support is not the prior's."""
        with self.seeded():
            model = run_model(self.pair, self.batch(), {name: site.value for name, site in self.guide.items()})
            check_sites(model, self.guide)
            check_per_datum(model, self.guide)
            check_supports(model, self.guide)


class Blocks:
    """The blocks of a split that fall to one of several processes.

    Args:
        pair: a model and a guide on one module.
        split: the data.
        seed: fixes all random numbers.
        rank, processes: which of how many equal shares, in the data's order.
        keep: keep the blocks, with what they hold of the guide, for another pass over them.
    """

    def __init__(
        self, pair: nn.Module, split: Split, seed: int = 0, rank: int = 0, processes: int = 1, keep: bool = False
    ):
        count = -(-split.size // DATA_BLOCK)
        self.pair, self.whole, self.seed, self.keep = pair, split, seed, keep
        self.indices = range(count * rank // processes, count * (rank + 1) // processes)
        self.kept: dict[int, Block] = {}

    def __iter__(self) -> Iterator[Block]:
        for index in self.indices:
            block = self.kept.get(index) or self._block(index)
            if self.keep:
                self.kept[index] = block
            yield block

    def __len__(self) -> int:
        """The number of blocks."""
        return len(self.indices)

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

    def _block(self, index: int) -> Block:
        return Block(self.pair, self.whole, slice(index * DATA_BLOCK, (index + 1) * DATA_BLOCK), self.seed, index)


class seeded:
    """A context in which torch's global random numbers follow from the given integers, and are untouched after."""

    def __init__(self, *key: int):
        self.seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]) >> 1

    def __enter__(self) -> None:
        self.fork = torch.random.fork_rng(devices=range(torch.cuda.device_count()))
        self.fork.__enter__()
        torch.manual_seed(self.seed)

    def __exit__(self, *exception: object) -> None:
        self.fork.__exit__(*exception)
