"""Bits back: a code of data without loss, as long as minus their ELBO (Hinton & van Camp 1993; Townsend et al. 2019).

A datum takes bits off a stack to draw its latent from q(z|x), puts x on it by p(x|z), and z by p(z). Read from the top,
each datum gives its bits back, so that all data together cost minus the ELBO, and the first bits that there have to be.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from pyro_vae.errors import ContractError, DataError
from pyro_vae.pair.checks import check_density, check_sites
from pyro_vae.pair.pair import device_of, evaluating, field_names
from pyro_vae.pair.particles import run_guide, run_model
from pyro_vae.pair.sites import Site, elements, latent, observed

PRECISION = 26
"""Probabilities are multiples of 2^-26."""

BUCKETS = 2**12
"""Each number of a latent is one of so many, equally probable under the prior."""

WORD = 32
FIRST_WORDS = 64
"""Words of noise that a stack begins with, for the first datum to take its bits from."""


class Stack:
    """Bits that symbols are pushed onto and popped from, the last first, each at the cost of -log2 of its probability.

    It is an asymmetric numeral system (Duda 2009): a number below 2^64, and 32-bit words that did not fit into it.

    Args:
        words: what it holds at first.
    """

    def __init__(self, words: Sequence[int]):
        self.tail, self.head = [int(word) for word in words], 1 << WORD

    @property
    def bits(self) -> int:
        """How many it holds."""
        return WORD * len(self.tail) + self.head.bit_length()

    def push(self, start: int, mass: int) -> None:
        """A symbol that has the interval from `start` on, `mass` long, of 2^PRECISION."""
        if self.head >= mass << (2 * WORD - PRECISION):
            self.tail.append(self.head & ((1 << WORD) - 1))
            self.head >>= WORD
        self.head = (self.head // mass << PRECISION) + self.head % mass + start

    def pop(self, cumulative: Callable[[int], int], symbols: int) -> int:
        """The symbol on top; symbol i has the interval from cumulative(i) to cumulative(i + 1)."""
        place = self.head & ((1 << PRECISION) - 1)
        symbol = bisect_right(range(symbols), place, key=cumulative) - 1
        start = cumulative(symbol)
        self.head = (cumulative(symbol + 1) - start) * (self.head >> PRECISION) + place - start
        if self.head < 1 << WORD:
            if not self.tail:
                raise DataError("the stack of bits is empty; it does not hold what it is asked for")
            self.head = self.head << WORD | self.tail.pop()
        return symbol


@dataclass(frozen=True)
class Message:
    """Data as bits.

    Attributes:
        words: the stack's 32-bit words.
        head: the stack's number.
        count: how many data.
        shape: that of a datum.
        initial_bits: how many bits of noise there had to be at first. They are there again when all data are read.
    """

    words: tuple[int, ...]
    head: int
    count: int
    shape: tuple[int, ...]
    initial_bits: int

    @property
    def bits(self) -> int:
        """The length of the message."""
        return WORD * len(self.words) + self.head.bit_length()

    @property
    def net_bits(self) -> int:
        """What the data added."""
        return self.bits - self.initial_bits


class BitsBack:
    """Codes data by a pair with one latent, normal in model and guide, and discrete data. Data are coded one by one,
    because a net gives other last digits in a larger batch.

    Args:
        pair: of one field, which the model observes.

    Raises:
        ContractError: the pair is of another kind; says which.
    """

    def __init__(self, pair: nn.Module):
        names = field_names(pair)
        if len(names.required) != 1:
            raise ContractError(f"bits-back coding takes a pair of one field, not of {', '.join(names.required)}")
        (self.field,) = names.required
        self.pair, self.device = pair, device_of(pair)
        places = (torch.arange(BUCKETS + 1).double() / BUCKETS, (torch.arange(BUCKETS).double() + 0.5) / BUCKETS)
        self.edges, self.centres = (dist.Normal(0.0, 1.0).icdf(shares).tolist() for shares in places)

    def compress(self, x: Shaped[Tensor, "n ..."], seed: int = 0) -> Message:
        """The data as bits; the seed fixes the noise that the stack begins with."""
        noise = np.random.default_rng(seed).integers(0, 2**WORD, FIRST_WORDS)
        stack = Stack(noise)
        initial = stack.bits
        with torch.no_grad(), torch.random.fork_rng(), evaluating(self.pair):
            for datum in x.to(self.device).split(1):
                guide, prior = self._latent(datum)
                buckets = [stack.pop(self._guide_masses(*q), BUCKETS) for q in guide]
                table, support = self._likelihood(datum, prior, buckets)
                for row, index in zip(table, _indices(support, datum), strict=True):
                    stack.push(row[index], row[index + 1] - row[index])
                for bucket in buckets:
                    stack.push(_uniform(bucket), _uniform(1))
        return Message(tuple(stack.tail), stack.head, len(x), tuple(x.shape[1:]), initial)

    def restore(self, message: Message) -> Shaped[Tensor, "n ..."]:
        """The data of a message."""
        stack, found = Stack(message.words), []
        stack.head = message.head
        with torch.no_grad(), torch.random.fork_rng(), evaluating(self.pair):
            blank = torch.zeros(1, *message.shape, device=self.device)
            size = len(self._latent(blank)[0])
            for _ in range(message.count):
                _, prior = self._latent(blank)
                buckets = [stack.pop(_uniform, BUCKETS) for _ in range(size)][::-1]
                table, support = self._likelihood(blank, prior, buckets)
                symbols = [stack.pop(row.__getitem__, len(row) - 1) for row in reversed(table)][::-1]
                datum = support[symbols].reshape(1, *message.shape).to(self.device)
                guide, _ = self._latent(datum)
                for bucket, q in reversed([*zip(buckets, guide, strict=True)]):
                    start, end = map(self._guide_masses(*q), (bucket, bucket + 1))
                    stack.push(start, end - start)
                found.append(datum)
        return torch.cat(found[::-1]).cpu()

    def _latent(self, datum: Shaped[Tensor, "1 ..."]) -> tuple[list[tuple[float, float]], tuple[str, Any]]:
        """Mean and scale of each number of the latent under the guide, where the prior is standard; and the prior."""
        guide = run_guide(self.pair, {self.field: datum})
        if len(latent(guide)) != 1:
            raise ContractError(f"bits-back coding takes a pair of one latent, not of {', '.join(latent(guide))}")
        ((name, site),) = latent(guide).items()
        model = run_model(self.pair, {self.field: datum}, {name: site.value})
        check_sites(model, guide)
        check_density(model, guide)
        q, p = elements(site.fn), elements(model[name].fn)
        if type(q) is not dist.Normal or type(p) is not dist.Normal:
            raise ContractError(
                f"bits-back coding takes a latent that is normal in model and guide, as {name!r} is not"
            )
        loc, scale = ((q.loc - p.loc) / p.scale).double(), (q.scale / p.scale).double()
        return [*zip(loc.flatten().tolist(), scale.flatten().tolist(), strict=True)], (name, p)

    def _guide_masses(self, loc: float, scale: float) -> Callable[[int], int]:
        """Where the buckets begin under q; each has the smallest mass at least."""
        room = 2**PRECISION - BUCKETS

        def cumulative(bucket: int) -> int:
            below = 0.5 * math.erfc((loc - self.edges[bucket]) / (scale * math.sqrt(2)))
            return int(room * below) + bucket

        return cumulative

    def _likelihood(
        self, datum: Shaped[Tensor, "1 ..."], prior: tuple[str, Any], buckets: Sequence[int]
    ) -> tuple[list[list[int]], Float[Tensor, " values"]]:
        """Where the values of each element of x begin under p(x|z), and the values."""
        name, p = prior
        standard = torch.tensor([self.centres[bucket] for bucket in buckets]).to(p.loc).reshape(p.loc.shape)
        z = (p.loc + p.scale * standard).unsqueeze(0)
        seen = observed(run_model(self.pair, {self.field: datum}, {name: z}))
        if len(seen) != 1:
            raise ContractError(f"bits-back coding takes a model that observes one site, not {', '.join(seen)}")
        return _table(next(iter(seen.values())))


def _table(site: Site) -> tuple[list[list[int]], Float[Tensor, " values"]]:
    fn = elements(site.fn)
    if not getattr(fn, "has_enumerate_support", False):
        raise ContractError(f"site {site.name!r} is no discrete distribution of few values, so x has no code by it")
    support = fn.enumerate_support(expand=False)
    mass = fn.log_prob(support).double().exp().reshape(len(support), -1).T.cpu()
    room = 2**PRECISION - len(support)
    below = (room * (mass.cumsum(1) / mass.sum(1, keepdim=True))).long() + torch.arange(1, len(support) + 1)
    below[:, -1] = 2**PRECISION
    return torch.cat([torch.zeros(len(below), 1, dtype=torch.long), below], 1).tolist(), support.flatten().cpu()


def _indices(support: Float[Tensor, " values"], datum: Tensor) -> list[int]:
    values = datum.flatten().to(support)
    found: Int[Tensor, " elements"] = torch.searchsorted(support, values).clamp(max=len(support) - 1)
    if not torch.equal(support[found], values):
        raise DataError("the data have values that the likelihood does not have")
    return found.tolist()


def _uniform(bucket: int) -> int:
    return bucket * 2**PRECISION // BUCKETS
