"""Annealed importance sampling from a proposal to the posterior, in coordinates in which it starts at about N(0, I)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyro_vae.evaluation.ais.annealing import HMC, Noise, anneal, sigmoid_path, tune
from pyro_vae.evaluation.ais.bridge import State
from pyro_vae.evaluation.blocks import seed_of
from pyro_vae.evaluation.log_likelihood.certificate import (
    FEW_CHAINS,
    LARGE_ERROR,
    TEMPERATURES,
    ZERO,
    Figures,
    reason_of,
)
from pyro_vae.evaluation.log_likelihood.costs import GRADIENT
from pyro_vae.evaluation.log_likelihood.normals import Normals
from pyro_vae.evaluation.log_likelihood.proposal import GUIDE, PRIOR, Proposal
from pyro_vae.evaluation.log_likelihood.sampling import Sampler
from pyro_vae.evaluation.log_likelihood.target import rows_of
from pyro_vae.evaluation.weights import WeightStream

LEAST_CHAINS, PILOTS, LEAPFROG, WARMUP = 32, 4, 2, 6
"""Chains at least, chains that only tune the step sizes, leapfrog steps of a move, and moves to settle the steps in."""

EXPECTED = 0.6
"""The relative variance of the chains' weights that their number is chosen for."""

MOVE = LEAPFROG * GRADIENT + 1
"""Model evaluations of a move."""

CHAINS, TUNING, MOVES = 7, 8, 9
"""What random numbers are for, as the last part of their seeds."""


def chains_for(tolerance: float) -> int:
    """How many chains reach a tolerance if their weights have the variance that is expected."""
    return max(LEAST_CHAINS, 32 * round(EXPECTED / (0.7 * tolerance) ** 2 / 32))


def temperatures_for(room: Float[Tensor, " data"], chains: int) -> Int[Tensor, " data"]:
    """A power of two T for which annealings with T and 2T temperatures fit into so many evaluations; 0 for none."""
    of_one = 3 * MOVE * (chains + PILOTS)
    most = (room - 2 * WARMUP * PILOTS * MOVE) / of_one
    return torch.where(most >= 2, 2 ** most.clamp(min=2).log2().floor(), 0).long()


@dataclass(frozen=True)
class _Bridge:
    """From the normals of a proposal to the posteriors of some data, at places of a frame."""

    sampler: Sampler
    proposal: Proposal
    frame: Normals
    data: Int[Tensor, " data"]

    def at(self, noise: Float[Tensor, "chains data dim"]) -> State:
        places, rows = self.frame.at(noise), rows_of(len(noise), self.data)
        end = self.sampler.target.weigh(places.flatten(0, 1), rows).log_joint.reshape(noise.shape[:2])
        self.sampler.costs.add(rows, 1)
        return State(noise, self._start(places).to(noise.dtype), end)

    def slope(self, noise: Float[Tensor, "chains data dim"], beta: float) -> Tensor:
        places, rows = self.frame.at(noise), rows_of(len(noise), self.data)
        of_end = self.sampler.target.slopes(places.flatten(0, 1), rows)[1].reshape(places.shape)
        self.sampler.costs.add(rows, GRADIENT)
        with torch.enable_grad():
            here = places.detach().requires_grad_()
            of_start = torch.autograd.grad(self._start(here).sum(), here)[0]
        slope = (1 - beta) * of_start + beta * of_end
        return self.frame.along(self.frame.scale.to(slope.dtype) * slope)

    def _start(self, places: Tensor) -> Float[Tensor, "chains data"]:
        none = torch.full(places.shape[:2], -torch.inf, dtype=torch.float64, device=places.device)
        return self.proposal.log_density(places, none)


def annealed(
    sampler: Sampler, proposal: Proposal, data: Int[Tensor, " data"], temperatures: int, chains: int, tolerance: float
) -> Figures:
    """Figures of 2T temperatures, fresh draws, after a trial of T, for data whose proposals are given."""
    half = _weigh(sampler, proposal, data, temperatures, chains)
    stream = _weigh(sampler, proposal, data, 2 * temperatures, chains)
    bound, before = stream.bound(), half.bound()
    tests = {
        TEMPERATURES: (bound - before).abs() < tolerance,
        LARGE_ERROR: stream.monte_carlo_error() < tolerance,
        FEW_CHAINS: stream.ess() > chains / 4,
        ZERO: bound.isfinite(),
    }
    nan = torch.full_like(bound, torch.nan)
    return Figures(bound, before, stream.monte_carlo_error(), stream.ess(), nan, reason_of(tests))


def _weigh(sampler: Sampler, proposal: Proposal, data: Tensor, temperatures: int, chains: int) -> WeightStream:
    stream = WeightStream(chains, len(data))
    stream.add(weigh_chains(sampler, proposal, data, temperatures, chains)[0])
    return stream


def weigh_chains(
    sampler: Sampler,
    proposal: Proposal,
    data: Int[Tensor, " data"],
    temperatures: int,
    chains: int,
    leapfrog: int = LEAPFROG,
) -> tuple[Float[Tensor, "chains data"], Float[Tensor, " data"]]:
    """Log weights of chains from the normals of a proposal to the posterior, and their acceptance."""
    shares = proposal.shares.clone()
    shares[:, [PRIOR, GUIDE]] = 0
    proposal = Proposal(proposal.normals, shares / shares.sum(1, keepdim=True), None)
    frame = _frame(proposal)
    bridge = _Bridge(sampler, proposal.counted(torch.full_like(data, chains)), frame, data)
    starts = [_starts(sampler, proposal, frame, data, *of) for of in ((PILOTS, TUNING), (chains, CHAINS))]
    noise = Noise([seed_of(*sampler.block.key, MOVES, temperatures)], [len(data)], starts[0])
    hmc, betas = HMC(bridge, torch.ones_like(starts[0][0]), leapfrog, noise), sigmoid_path(temperatures)
    steps = tune(hmc, bridge.at(starts[0]), betas, _untold, WARMUP)
    return anneal(hmc, bridge.at(starts[1]), betas, steps, _untold)


def _starts(
    sampler: Sampler, proposal: Proposal, frame: Normals, data: Tensor, count: int, purpose: int
) -> Float[Tensor, "count data dim"]:
    noise = sampler.noise(count, data, purpose)
    none = torch.zeros_like(noise)
    return frame.whitened(proposal.places(proposal.parts(count), noise, none, none))


def _frame(proposal: Proposal) -> Normals:
    """The largest component of each datum."""
    largest = proposal.shares[:, 2 : 2 + len(proposal.normals)].argmax(1)
    frame = proposal.normals[0]
    for number, normals in enumerate(proposal.normals[1:], start=1):
        mine = (largest == number).nonzero().squeeze(1)
        frame = frame.put(mine, normals.of(mine)) if len(mine) else frame
    return frame


def _untold(moves: int) -> None:
    """No progress is told of these moves."""
