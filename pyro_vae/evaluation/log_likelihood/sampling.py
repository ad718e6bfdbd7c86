"""Draws of a proposal for the data of a block, weighed."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyro_vae.evaluation.blocks import DATA_BLOCK, PARTICLE_BLOCK, Block
from pyro_vae.evaluation.log_likelihood.costs import Costs
from pyro_vae.evaluation.log_likelihood.guide import guide_places, prior_places
from pyro_vae.evaluation.log_likelihood.proposal import GUIDE, PRIOR, Proposal
from pyro_vae.evaluation.log_likelihood.target import Densities, Target, rows_of
from pyro_vae.evaluation.weights import WeightStream

NOISE, FROM_PRIOR, FROM_GUIDE = 0, 1, 2
"""What random numbers are for, as the last part of their seeds."""

AT_ONCE = 2**21
"""About so many coordinates are drawn at a time."""

KEPT = 2**26
"""Up to so many coordinates are kept, for a proposal to be adapted to."""


@dataclass(frozen=True)
class Drawn:
    """Weighed draws of some data.

    Attributes:
        counts: how many draws each datum has.
        log_weights: log p(x, z) - log q(z), in nats; -inf beyond the count.
        log_joint, log_prior: log p(x, z) and log p(z) there.
        places: where they are; None where they are too many to keep.
    """

    counts: Int[Tensor, " data"]
    log_weights: Float[Tensor, "draws data"]
    log_joint: Float[Tensor, "draws data"]
    log_prior: Float[Tensor, "draws data"]
    places: Float[Tensor, "draws data dim"] | None

    def of(self, data: Int[Tensor, " data"]) -> "Drawn":
        """Those of some of the data."""
        most = int(self.counts[data].max()) if len(data) else 0
        places = None if self.places is None else self.places[:most, data]
        parts = (part[:most, data] for part in (self.log_weights, self.log_joint, self.log_prior))
        return Drawn(self.counts[data], *parts, places)

    @property
    def variance(self) -> Float[Tensor, " data"]:
        """The variance of a weight, in units of its squared mean."""
        total = self.log_weights.logsumexp(0)
        return (self.counts.log() + (2 * self.log_weights).logsumexp(0) - 2 * total).exp() - 1

    def variance_under(self, proposal: Proposal) -> Float[Tensor, " data"]:
        """What it would be for draws of another proposal."""
        log_weights = self.log_joint - proposal.log_density(self.places, self.log_prior)
        squared = (log_weights + self.log_weights).masked_fill(self.log_weights == -torch.inf, -torch.inf)
        total = self.log_weights.logsumexp(0)
        return (self.counts.log() + squared.logsumexp(0) - 2 * total).exp() - 1

    @property
    def shares(self) -> Float[Tensor, "draws data"]:
        """The weights of each datum, of sum 1."""
        return self.log_weights.softmax(0)

    def streams(self) -> list[tuple[Int[Tensor, " data"], WeightStream]]:
        """The weights of the data that have equally many draws, for each number of draws."""
        found = []
        for count in self.counts.unique().tolist():
            data = (self.counts == count).nonzero().squeeze(1)
            stream = WeightStream(count, len(data))
            stream.add(self.log_weights[:count, data], self.log_joint[:count, data].nan_to_num(0.0, 0.0, 0.0))
            found.append((data, stream))
        return found


class Sampler:
    """Draws from proposals for data of a block, and weighs the draws. Random numbers follow from the block, the purpose
    and which of its data are asked for."""

    def __init__(self, block: Block, target: Target, costs: Costs):
        self.block, self.target, self.costs = block, target, costs
        self.at_once = max(1, min(PARTICLE_BLOCK, AT_ONCE // (DATA_BLOCK * max(1, target.coordinates.dim))))

    def noise(self, count: int, data: Int[Tensor, " data"], *purpose: int) -> Float[Tensor, "count data dim"]:
        """Standard normal noise."""
        with self.block.seeded(*purpose, NOISE):
            shape = count, len(data), self.target.coordinates.dim
            return torch.randn(shape, dtype=self.target.coordinates.dtype).to(data.device)

    def of_prior(self, count: int, data: Int[Tensor, " data"], *purpose: int) -> Float[Tensor, "count data dim"]:
        """Draws of the prior, each of which costs an evaluation of the model."""
        self.costs.add(data, count)
        with self.block.seeded(*purpose, FROM_PRIOR):
            found = prior_places(self.block.pair, self.target.fields(data), self.target.coordinates, count)
            return self._filled(found, data)

    def of_guide(self, count: int, data: Int[Tensor, " data"], *purpose: int) -> Float[Tensor, "count data dim"]:
        """Draws of the guide."""
        with self.block.seeded(*purpose, FROM_GUIDE):
            found = guide_places(self.block.pair, self.target.fields(data), self.target.coordinates, count)
            return self._filled(found, data)

    def _filled(self, places: Float[Tensor, "count data dim"], data: Int[Tensor, " data"]) -> Tensor:
        """The same with standard normal noise where a mask leaves coordinates out."""
        if self.target.masked is None:
            return places
        return torch.where(self.target.masked[data] > 0, torch.randn_like(places), places)

    def draw(
        self, proposal: Proposal, data: Int[Tensor, " data"], counts: Int[Tensor, " data"], *purpose: int
    ) -> Drawn:
        """So many draws for each of some data, whose proposals are given; the seed follows from the purpose."""
        most, dim = int(counts.max()), self.target.coordinates.dim
        parts, counted = proposal.parts(most), proposal.counted(counts)
        keep = most * len(data) * dim <= KEPT
        weights = torch.full((most, len(data)), -torch.inf, dtype=torch.float64, device=data.device)
        joint, prior = weights.clone(), weights.clone()
        kept = weights.new_zeros(most if keep else 0, len(data), dim, dtype=self.target.coordinates.dtype)
        for number, first in enumerate(range(0, most, self.at_once)):
            some = slice(first, first + self.at_once)
            going = (counts > first).nonzero().squeeze(1)
            places = self._places(proposal.of(going), data[going], parts[some, going], *purpose, number)
            inside = torch.arange(first, first + len(places), device=data.device)[:, None] < counts[going]
            found = self._weigh(places, data[going], inside)
            here = counted.of(going).log_weights(places, found)
            weights[some, going] = here.masked_fill(~inside, -torch.inf)
            joint[some, going], prior[some, going] = found.log_joint.double(), found.log_prior.double()
            if keep:
                kept[some, going] = places
        return Drawn(counts, weights, joint, prior, kept if keep else None)

    def _weigh(self, places: Tensor, data: Tensor, inside: Tensor) -> Densities:
        """The densities [draws, data] at places; -inf where a datum has no such draw."""
        rows = rows_of(len(places), data)
        flat, asked = places.flatten(0, 1), inside.flatten()
        found = self.target.weigh(flat[asked], rows[asked])
        self.costs.add(rows[asked], 1)
        spread = [part.new_full((len(flat),), -torch.inf).masked_scatter(asked, part) for part in found]
        return Densities(*[part.reshape(inside.shape) for part in spread])

    def _places(self, proposal: Proposal, data: Tensor, parts: Tensor, *purpose: int) -> Tensor:
        """Places [draws, data, dim] in the model's precision, those of prior and guide as these draw them."""
        given = []
        for part, draw in ((PRIOR, self.of_prior), (GUIDE, self.of_guide)):
            turns = (parts == part).any(1).nonzero().squeeze(1)
            shape = *parts.shape, self.target.coordinates.dim
            found = torch.zeros(shape, dtype=self.target.coordinates.dtype, device=parts.device)
            if len(turns):
                found[turns] = draw(len(turns), data, *purpose)
            given.append(found)
        return proposal.places(parts, self.noise(len(parts), data, *purpose), *given)
