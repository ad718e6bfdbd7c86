"""Sequences of bits from a hidden Markov model that is known: chords that are held, and that follow each other."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pyro_vae.data.dataset import Dataset
from pyro_vae.data.files.assemble import assemble
from pyro_vae.errors import DataError, check_positive

CHORDS, KEYS = 4, 12
HELD, NEXT = 0.8, 0.15
STRUCK, BESIDE = 0.8, 0.05


class Law(NamedTuple):
    """What the sequences follow: probabilities of the first chord, of the next given each, and of each key."""

    first: Float[Tensor, " chords"]
    moves: Float[Tensor, "chords chords"]
    keys: Float[Tensor, "chords keys"]


def law() -> Law:
    """A chord is held with probability 0.85 or so, else mostly the next one follows; a key of it is down with 0.8, any
    other with 0.05. Each chord has three keys of its own."""
    stay, then = torch.eye(CHORDS), torch.eye(CHORDS).roll(1, 1)
    moves = HELD * stay + NEXT * then + (1 - HELD - NEXT) / CHORDS
    of_chord = torch.arange(KEYS) % CHORDS == torch.arange(CHORDS)[:, None]
    return Law(torch.full((CHORDS,), 1 / CHORDS), moves, torch.where(of_chord, STRUCK, BESIDE))


def planted_chains(seed: int = 0, sequences: int = 1000, steps: int = 16) -> Dataset:
    """Made-up sequences: binary x [n, time, 12] (which keys are down), `length` [n], divided 80/10/10; and the `chord`
    [n, time] behind each time slice, -1 beyond the end.

    Args:
        seed: draws the sequences and divides them; what they follow is the same for every seed.
        sequences: how many.
        steps: the longest length; the shortest is a third of it.

    Raises:
        DataError: no sequence, or no time slice.
    """
    check_positive(DataError, sequences=sequences, steps=steps)
    generator = torch.Generator().manual_seed(seed)
    first, moves, keys = law()
    chord = torch.multinomial(first, sequences, True, generator=generator)
    chords = [chord]
    for _ in range(steps - 1):
        chord = torch.multinomial(moves[chord], 1, generator=generator).squeeze(1)
        chords.append(chord)
    path = torch.stack(chords, 1)
    x = torch.bernoulli(keys[path], generator=generator)
    length = torch.randint(-(-steps // 3), steps + 1, (sequences,), generator=generator)
    beyond = torch.arange(steps) >= length[:, None]
    arrays = {
        "x": x.masked_fill(beyond.unsqueeze(2), 0).numpy().astype(np.uint8),
        "length": length.numpy(),
        "chord": path.masked_fill(beyond, -1).numpy(),
    }
    return assemble("planted_chains", arrays, seed, levels=1)
