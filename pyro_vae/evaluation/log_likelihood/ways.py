"""How the log-likelihood of each datum of a block is found: by the first of several ways that reaches the tolerance."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyro_vae.evaluation.blocks import Block
from pyro_vae.evaluation.log_likelihood.adapt import adapted, component_masses
from pyro_vae.evaluation.log_likelihood.annealed import annealed, chains_for, temperatures_for
from pyro_vae.evaluation.log_likelihood.certificate import CERTIFIED, LEFT, SPENT, Figures, figures_of
from pyro_vae.evaluation.log_likelihood.costs import PREPARING, Costs
from pyro_vae.evaluation.log_likelihood.curvature import NONE, Curvature
from pyro_vae.evaluation.log_likelihood.guide import density_of_guide, narrow
from pyro_vae.evaluation.log_likelihood.local import (
    TRUST,
    WIDEN,
    cost_of_climb,
    cost_of_smoothing,
    noise_of,
    smoothed,
)
from pyro_vae.evaluation.log_likelihood.modes import Modes, find_modes
from pyro_vae.evaluation.log_likelihood.normals import Normals, from_draws
from pyro_vae.evaluation.log_likelihood.proposal import PRIOR, Proposal, shares_of
from pyro_vae.evaluation.log_likelihood.sampling import Drawn, Sampler
from pyro_vae.evaluation.log_likelihood.search import cost_of_search
from pyro_vae.evaluation.log_likelihood.target import Target

GUIDE, LOCAL, ADAPTED, ANNEALED, EXACT = range(5)
WAYS = ("guide", "local", "adapted", "ais", "exact")
"""What the whole numbers of the figure `way` stand for."""

PRIOR_STARTS, GUIDE_STARTS, GUIDE_DRAWS = 16, 4, 64

PRIOR_SHARE, GUIDE_SHARE, WIDE_SHARE = 0.03, 0.1, 0.05
PILOT_GUIDE_SHARE = 0.25
OF_GUIDE, ROUND_GUIDE = 0.8, 0.1
"""The guide's share, and the prior's, where the guide suffices; the rest is the normal with its moments, made wide."""

PILOT, SECOND, STEP = 100, 250, 250
"""Draws of a first pilot, and of a second one after more smoothing; and draws come in steps of so many."""

EASY, MOST_LOCAL = 1500, 3000
"""Where a pilot asks for more draws than the first, the proposal is smoothed once more; it gets the second at most
before it is adapted."""

ROUNDS, MORE = 3, 2
"""A proposal that fails is adapted so many times at most, each time with so many times as many draws at least."""

HIDDEN = 1.4
"""A pilot does not see all of the tail: the variance that it finds is taken this much larger."""

MORE_TRUST = (0.6, 0.5, 0.4, 0.3)
"""How far the curvature moves in each round of a second smoothing."""


SAFETY = 0.65
"""The standard error that is aimed at, in units of the tolerance: half of the draws have to agree with all of them."""

LEAST_COST = 2 * PRIOR_STARTS + cost_of_search(PRIOR_STARTS + GUIDE_STARTS) + 2 * PILOT
"""What finding a proposal costs where there is no curvature."""

STARTS, SMOOTHING, PILOTS, FINAL = 1, 2, 3, 4
"""What random numbers are for, as the last part of their seeds."""


@dataclass
class Found:
    """The figures of the data of a block, as far as they are known."""

    figures: Figures
    way: Int[Tensor, " data"]
    costs: Costs

    def put(self, data: Int[Tensor, " data"], figures: Figures, way: int) -> None:
        """Replace the figures of some data by those of another way."""
        for name, value in vars(figures).items():
            getattr(self.figures, name)[data] = value
        self.way[data] = way

    @property
    def open(self) -> Int[Tensor, " data"]:
        """The data that are not certified."""
        return (self.figures.reason != CERTIFIED).nonzero().squeeze(1)


class Ways:
    """The ways of one block of data.

    Args:
        tolerance: the standard error in nats that certifies a bound.
        budget: model evaluations that a datum may cost.
    """

    def __init__(self, block: Block, target: Target, tolerance: float, budget: int):
        self.block, self.target = block, target
        self.tolerance, self.budget = tolerance, budget
        self.costs = Costs(block.size, budget, target.device)
        self.sampler = Sampler(block, target, self.costs)
        coordinates = target.coordinates
        self.density, self.no_density = density_of_guide(block, coordinates, target.masked)
        self.everything = torch.arange(block.size, device=target.device)
        drawn = self.sampler.of_guide(GUIDE_DRAWS + GUIDE_STARTS, self.everything, STARTS)
        prior = self.sampler.of_prior(PRIOR_STARTS, self.everything, STARTS)
        self.scale = _scale(prior)
        self.known = (~narrow(drawn)).double() * (self.density is not None)
        self.of_guide = from_draws(drawn[:GUIDE_DRAWS], LEAST * self.scale)
        self.curvature = Curvature(target, self.scale)
        if cost_of_climb(self.curvature) + cost_of_smoothing(self.curvature) + LEAST_COST > PREPARING * budget:
            self.curvature.without("the budget is too small for them")
        self.starts = torch.cat([prior, drawn[GUIDE_DRAWS:]])
        self.last: list[Trial] = []

    @property
    def notes(self) -> list[str]:
        """What is missing here, in plain sentences."""
        found = []
        if self.density is None:
            found.append(f"a normal fitted to the guide's draws takes its share, since {self.no_density}")
        if self.curvature.kind == NONE:
            found.append(
                "the search is of first order, and covariances are those of the guide's draws, for want of second "
                f"derivatives: {self.curvature.reason}"
            )
        return found

    def __call__(self) -> Found:
        """Try the ways in turn."""
        modes = self._modes()
        local, guide, pilot = self._pilots(modes)
        found = Found(_nothing(self.block.size), torch.full((self.block.size,), LOCAL), self.costs)
        need, other = (self._need(HIDDEN * pilot.variance_under(proposal)) for proposal in (local, guide))
        by_guide = (other <= need).nonzero().squeeze(1)
        self._final(found, guide.of(by_guide), by_guide, other[by_guide], GUIDE)
        self._locally(found, local, found.open, need)
        self._annealed(found)
        found.figures.reason[modes.left & (found.figures.reason == CERTIFIED)] = LEFT
        return found

    def _locally(self, found: Found, local: Proposal, data: Int[Tensor, " data"], need: Int[Tensor, " data"]) -> None:
        """The local proposal where few draws of it suffice; else, and where these fail, adapted ones."""
        hard = data[need[data] > EASY]
        hard = hard[self.costs.allow(hard, cost_of_smoothing(self.curvature, MORE_TRUST) + SECOND)]
        if len(hard):
            local, need[hard] = self._smoother(local, hard)
        self._improve(found, self._final(found, local.of(data), data, need[data].clamp(max=MOST_LOCAL), LOCAL))

    def _smoother(self, local: Proposal, data: Int[Tensor, " data"]) -> tuple[Proposal, Int[Tensor, " data"]]:
        """The proposal smoothed once more for some data, and how many draws they need of it, by new pilots."""
        normals = []
        for number, old in enumerate(local.normals[:-1]):
            having = data[local.shares[data, 2 + number] > 0]
            normals.append(
                old.put(having, self._smoothed(old.of(having), having, 1, number, trust=MORE_TRUST))
                if len(having)
                else old
            )
        proposal = Proposal([*normals, local.normals[-1]], local.shares, local.guide)
        counts = torch.full_like(data, SECOND)
        pilot = self.sampler.draw(proposal.of(data), data, counts, PILOTS, 1)
        return proposal, self._need(HIDDEN * pilot.variance)

    def _smoothed(
        self, normals: Normals, data: Int[Tensor, " data"], *purpose: int, trust: Sequence[float] = TRUST
    ) -> Normals:
        noise = self.sampler.noise(noise_of(trust), data, SMOOTHING, *purpose)
        return smoothed(self.target, self.curvature, normals, noise, data, self.costs, trust)

    def _improve(self, found: Found, trial: "Trial | None") -> None:
        """Adapt a proposal to its own weighed draws, for the data that are not yet certified."""
        for round in range(ROUNDS):
            trial = trial and trial.left(found)
            if trial is None or trial.drawn.places is None:
                break
            normals = adapted(trial.proposal, trial.drawn, WIDEN)
            masses = component_masses(trial.proposal, trial.drawn)
            shares = shares_of(masses, PRIOR_SHARE, trial.proposal.shares[:, 1], WIDE_SHARE)
            proposal = Proposal(normals, shares, trial.proposal.guide)
            both = trial.drawn.variance_under(proposal).clamp(min=0) * trial.drawn.variance  # the first flatters itself
            need = torch.maximum(self._need(HIDDEN * both.sqrt()), MORE * trial.drawn.counts)
            trial = self._final(found, proposal, trial.data, need, ADAPTED, round) or Trial(
                trial.data, proposal, trial.drawn
            )
        if trial is not None:
            self.last.append(trial)

    def _annealed(self, found: Found) -> None:
        """Annealing for the data that are left, from the last proposal of each, in groups of as many temperatures."""
        chains = chains_for(self.tolerance)
        for trial in self.last:
            trial = trial.left(found)
            if trial is None:
                continue
            room = self.budget - self.costs.of_datum[trial.data]
            temperatures = temperatures_for(room, chains)
            for count in temperatures.unique().tolist():
                mine = (temperatures == count).nonzero().squeeze(1)
                if count:
                    data, proposal = trial.data[mine], trial.proposal.of(mine)
                    found.put(data, annealed(self.sampler, proposal, data, count, chains, self.tolerance), ANNEALED)

    def _modes(self) -> Modes:
        modes = find_modes(self.target, self.curvature, self.of_guide, self.starts, self.costs)
        for number, mass in enumerate(modes.log_mass):
            data = (mass > -torch.inf).nonzero().squeeze(1)
            data = data[self.costs.allow(data, cost_of_smoothing(self.curvature))]
            if not len(data):
                continue
            normals = modes.normals[number]
            smooth = self._smoothed(normals.of(data), data, 0, number)
            modes.normals[number] = normals.put(data, smooth.widened(WIDEN))
        return modes

    def laplace(self) -> Proposal:
        """The local proposal, as the search leaves it."""
        modes = self._modes()
        return self._with(modes, modes.masses, GUIDE_SHARE)

    def _with(self, modes: Modes, masses: Float[Tensor, "data components"], guide: float) -> Proposal:
        """The local normals by their masses, and this share of the guide, or of a normal fitted to its draws."""
        fitted = guide * (1 - self.known).unsqueeze(1)
        masses = masses / masses.sum(1, keepdim=True)
        masses = torch.cat([masses * (1 - fitted), fitted], 1)
        shares = shares_of(masses, PRIOR_SHARE, guide * self.known, WIDE_SHARE)
        return Proposal([*modes.normals, self.of_guide], shares, self.density)

    def _pilots(self, modes: Modes) -> tuple[Proposal, Proposal, Drawn]:
        """The local proposal and the guide's, and pilot draws that tell of both."""
        first = self._with(modes, modes.masses, PILOT_GUIDE_SHARE)
        counts = PILOT + PILOT // 2 * (torch.stack(modes.log_mass, 1) > -torch.inf).sum(1)
        counts = torch.minimum(counts, self._room(first, self.everything, 1).clamp(min=1))
        pilot = self.sampler.draw(first, self.everything, counts, PILOTS)
        local = self._with(modes, component_masses(first, pilot)[:, :-1], GUIDE_SHARE)
        alone = torch.zeros_like(modes.masses[:, :1]).expand(-1, len(modes.normals) + 1).clone()
        alone[:, -1] = 1.0
        wide = torch.where(self.known > 0, 1.0, 0.1).unsqueeze(1)
        shares = shares_of(alone, ROUND_GUIDE, OF_GUIDE * self.known, wide)
        return local, Proposal(local.normals, shares, self.density), pilot

    def _need(self, variance: Float[Tensor, " data"]) -> Int[Tensor, " data"]:
        """How many draws are needed where a weight has this relative variance."""
        least = (variance / (SAFETY * self.tolerance) ** 2 / STEP).nan_to_num(1e6, 1e6, 1e6)
        return least.ceil().clamp(1, 1e6).long() * STEP

    def _room(self, proposal: Proposal, data: Int[Tensor, " data"], step: int = STEP) -> Int[Tensor, " data"]:
        """How many draws the budget still allows, in steps of so many; one of the prior costs two evaluations."""
        left = self.budget - self.costs.of_datum[data] - 2
        return (left / (1 + proposal.shares[:, PRIOR]) / step).floor().clamp(min=0).long() * step

    def _final(
        self, found: Found, proposal: Proposal, data: Int[Tensor, " data"], need: Int[Tensor, " data"], *way: int
    ) -> "Trial | None":
        """Fresh draws of a proposal, as many as are needed and the budget allows, and their figures."""
        if not len(data):
            return None
        counts = torch.minimum(need, self._room(proposal, data, STEP if way[0] == ADAPTED else 1))
        found.figures.reason[data[counts == 0]] = SPENT
        going = (counts > 0).nonzero().squeeze(1)
        if not len(going):
            return None
        trial = Trial(
            data[going],
            proposal.of(going),
            self.sampler.draw(proposal.of(going), data[going], counts[going], FINAL, *way),
        )
        found.put(trial.data, figures_of(trial.drawn, self.tolerance), way[0])
        return trial


@dataclass(frozen=True)
class Trial:
    """A proposal for some data, and its weighed draws."""

    data: Int[Tensor, " data"]
    proposal: Proposal
    drawn: Drawn

    def left(self, found: Found) -> "Trial | None":
        """That of the data which are not certified; None where all are."""
        left = (found.figures.reason[self.data] != CERTIFIED).nonzero().squeeze(1)
        return Trial(self.data[left], self.proposal.of(left), self.drawn.of(left)) if len(left) else None


LEAST = 1e-3


def _scale(prior: Float[Tensor, "draws data dim"]) -> Float[Tensor, " dim"]:
    """The scale of the prior in each coordinate: half the width of its middle two thirds, which no tail moves."""
    flat = prior.flatten(0, 1).double()
    levels = torch.tensor([1 / 6, 5 / 6], dtype=flat.dtype, device=flat.device)
    low, high = flat.quantile(levels, 0)
    return ((high - low) / 1.935).clamp(min=1e-6).to(prior.dtype)


def _nothing(size: int) -> Figures:
    nan = torch.full((size,), torch.nan, dtype=torch.float64)
    return Figures(*[nan.clone() for _ in range(5)], torch.full((size,), SPENT))
