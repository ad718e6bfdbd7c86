"""Annealed importance sampling along a bridge by Hamiltonian Monte Carlo, for many data and chains at once."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_vae.evaluation.ais.bridge import PairBridge, PerChain, State

TARGET_ACCEPTANCE = 0.65
WARMUP_MOVES, GAIN = 40, 0.5
JITTER = 0.2
"""Step sizes are scaled by a uniform number this close to 1, so that no trajectory is a period of the target."""

Betas = Float[Tensor, " points"]
Tick = Callable[[int], None]


class Noise:
    """Random numbers of blocks of data side by side; those of a block follow from its seed alone."""

    def __init__(self, seeds: list[int], sizes: list[int], like: Tensor):
        self.generators = [torch.Generator(like.device).manual_seed(seed) for seed in seeds]
        self.sizes = sizes
        self.kind = {"dtype": like.dtype, "device": like.device}

    def draw(self, numbers: Callable[..., Tensor], chains: int, *dim: int) -> Float[Tensor, "chains batch *dim"]:
        """What `numbers`, torch.rand or torch.randn, gives for each datum."""
        blocks = zip(self.generators, self.sizes, strict=True)
        return torch.cat([numbers(chains, n, *dim, generator=g, **self.kind) for g, n in blocks], 1)


@dataclass(frozen=True)
class HMC:
    """Hamiltonian Monte Carlo along a bridge (Neal 2011), so many leapfrog steps a move. The momenta are scaled by the
    inverse of `spread`, the rough scale of each coordinate."""

    bridge: PairBridge
    spread: Float[Tensor, "batch dim"]
    leapfrog: int
    noise: Noise

    def move(self, state: State, beta: float, step: Float[Tensor, " batch"]) -> tuple[State, PerChain]:
        """One move that leaves the density at `beta` as it is, and its acceptance probability."""
        chains, _, dim = state.place.shape
        size = step * (1 + JITTER * (2 * self.noise.draw(torch.rand, chains) - 1))
        stride = size.unsqueeze(-1) * self.spread
        momentum = self.noise.draw(torch.randn, chains, dim)
        energy = state.log_density(beta) - 0.5 * momentum.square().sum(-1)
        place = state.place + 0.5 * stride * momentum
        for left in reversed(range(self.leapfrog)):
            momentum = momentum + stride * self.bridge.slope(place, beta)
            place = place + (1.0 if left else 0.5) * stride * momentum
        proposal = self.bridge.at(place)
        log_ratio = proposal.log_density(beta) - 0.5 * momentum.square().sum(-1) - energy
        accepted = self.noise.draw(torch.rand, chains).log() < log_ratio  # false where the ratio is not a number
        masks = (accepted.unsqueeze(-1), accepted, accepted)
        chosen = State(*map(torch.where, masks, proposal, state))
        return chosen, log_ratio.nan_to_num(-torch.inf, neginf=-torch.inf).clamp(max=0).exp()


def anneal(
    hmc: HMC, state: State, betas: Betas, steps: Float[Tensor, "moves batch"], tick: Tick
) -> tuple[PerChain, Float[Tensor, " batch"]]:
    """Log weights (float64) of chains that move from betas[0] to betas[-1], and their mean acceptance.

    Where the chains start at exact draws of the density at betas[0], the weights' expectation is the ratio of the
    normalisers of the last and the first density (Neal 2001), also from end to start. `steps` must not depend on these
    chains.
    """
    log_weight = torch.zeros_like(state.start, dtype=torch.float64)
    accepted = torch.zeros_like(state.start)
    for (now, then), step in zip(pairwise(betas.tolist()), [*steps, None], strict=True):
        log_weight += (then - now) * (state.end.double() - state.start.double())
        if step is not None:
            state, probability = hmc.move(state, then, step)
            accepted += probability
            tick(len(accepted))
    moves = len(steps)
    return log_weight, (accepted / moves if moves else accepted.fill_(torch.nan)).mean(0)


def tune(hmc: HMC, state: State, betas: Betas, tick: Tick, warmup: int = WARMUP_MOVES) -> Float[Tensor, "moves batch"]:
    """A step size for each move of `anneal` along `betas` and each datum, from pilot chains that go the same way.

    The sizes first settle at the first move's density, in `warmup` moves, then follow the acceptance along the path:
    log step rises by GAIN (acceptance - TARGET_ACCEPTANCE) after each move.
    """
    dim = state.place.shape[-1]
    log_step = torch.full_like(state.start[0], dim**-0.25).log()
    steps = log_step.new_zeros(max(0, len(betas) - 2), len(log_step))
    between = betas[1:-1].tolist()
    for move, beta in enumerate([*between[:1] * warmup, *between], start=-warmup):
        if move >= 0:
            steps[move] = log_step.exp()
        state, probability = hmc.move(state, beta, log_step.exp())
        log_step = log_step + GAIN * (probability.mean(0) - TARGET_ACCEPTANCE)
        tick(len(probability))
    return steps


def moves_of(distributions: int, chains: int, pilots: int) -> int:
    """How many moves of single chains `tune` and `anneal` make for one datum."""
    between = distributions - 1
    return between * chains + (WARMUP_MOVES + between) * pilots if between else 0


def sigmoid_path(distributions: int) -> Betas:
    """`distributions` + 1 points from 0 to 1 along a sigmoid from -4 to 4, dense at both ends (Wu et al. 2017)."""
    raw = torch.sigmoid(torch.linspace(-4.0, 4.0, distributions + 1, dtype=torch.float64))
    return (raw - raw[0]) / (raw[-1] - raw[0])
