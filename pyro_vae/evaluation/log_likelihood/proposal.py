"""What latents are drawn from to weigh a datum: local normals, a share of the guide's draws, and of the prior's.

Each share has a fixed number of the draws, and all draws are weighed as draws of one mixture: deterministic mixture
weights (Veach & Guibas 1995; Owen & Zhou 2000). Their mean is unbiased for p(x).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyro_vae.evaluation.log_likelihood.guide import GuideDensity
from pyro_vae.evaluation.log_likelihood.normals import Normals
from pyro_vae.evaluation.log_likelihood.target import Densities

GOLDEN = (math.sqrt(5) - 1) / 2
WIDE = 2.0
"""How much wider than a component its second, wider normal is."""

PRIOR, GUIDE = 0, 1
"""The first two parts of a proposal; the others are its normals, first as they are, then the same wide ones."""


@dataclass(frozen=True)
class Proposal:
    """A mixture for each datum: the prior, the guide, and normals, each also `WIDE` times as wide.

    Attributes:
        normals: one for each component.
        shares: [data, parts] of the draws: of the prior, of the guide, of each component, of each wide one.
        guide: the guide's density, None where it is not used.
    """

    normals: Sequence[Normals]
    shares: Float[Tensor, "data parts"]
    guide: GuideDensity | None

    def of(self, data: Int[Tensor, " data"]) -> "Proposal":
        """That of some data, each named once and in order."""
        if len(data) == len(self.shares) or not len(data):
            return self
        guide = None if self.guide is None else self.guide.of(data)
        return Proposal([normals.of(data) for normals in self.normals], self.shares[data], guide)

    def parts(self, most: int) -> Int[Tensor, "most data"]:
        """Which part each draw is of: the shares in turn along the golden ratio, so that halves are alike."""
        turns = torch.arange(1, most + 1, dtype=torch.float64, device=self.shares.device) * GOLDEN % 1
        ends = self.shares.cumsum(1)
        chosen = torch.searchsorted(ends / ends[:, -1:], turns.expand(len(ends), -1).contiguous(), right=True)
        return chosen.clamp(max=self.shares.shape[1] - 1).T

    def counted(self, draws: Int[Tensor, " data"]) -> "Proposal":
        """The same, with the shares that so many draws really have."""
        most = int(draws.max())
        parts = self.parts(most)
        inside = torch.arange(most, device=draws.device)[:, None] < draws
        counts = torch.zeros_like(self.shares).scatter_add_(1, parts.T, inside.T.to(self.shares))
        return replace(self, shares=counts / draws[:, None])

    def places(
        self,
        parts: Int[Tensor, "draws data"],
        noise: Float[Tensor, "draws data dim"],
        of_prior: Tensor,
        of_guide: Tensor,
    ) -> Float[Tensor, "draws data dim"]:
        """Draws of these parts: of the normals from standard normal noise, of prior and guide as they are given."""
        chosen = torch.where((parts == PRIOR)[..., None], of_prior, of_guide)
        for number in range(len(self.normals)):
            data, normals = self.having(number)
            for part, width in self._parts_of(number):
                here = parts[:, data] == part
                if here.any():
                    drawn = torch.where(here[..., None], normals.at(noise[:, data], width), chosen[:, data])
                    chosen = chosen.index_copy(1, data, drawn)
        return chosen

    def _parts_of(self, number: int) -> tuple[tuple[int, float], tuple[int, float]]:
        """The two parts of a component, each with its width."""
        return (2 + number, 1.0), (2 + len(self.normals) + number, WIDE)

    def having(self, number: int) -> tuple[Int[Tensor, " data"], Normals]:
        """The data that have a component, and their normals."""
        data = (self.shares[:, [part for part, _ in self._parts_of(number)]].sum(1) > 0).nonzero().squeeze(1)
        normals = self.normals[number]
        return data, normals if len(data) == len(self.shares) else normals.of(data)

    def log_density(
        self, places: Float[Tensor, "draws data dim"], log_prior: Float[Tensor, "draws data"]
    ) -> Float[Tensor, "draws data"]:
        """Of the mixture, in nats."""
        log_shares = self.shares.log()
        terms = [log_shares[:, PRIOR] + log_prior]
        if self.guide is not None and bool((self.shares[:, GUIDE] > 0).any()):
            terms.append(log_shares[:, GUIDE] + self.guide(places))
        for number in range(len(self.normals)):
            data, normals = self.having(number)
            distance = normals.distance(places if len(data) == len(self.shares) else places[:, data])
            for part, width in self._parts_of(number):
                term = normals.log_density_at(distance, width) + log_shares[data, part]
                none = torch.full_like(log_prior, -torch.inf)
                terms.append(none.index_copy(1, data, term) if len(data) < len(self.shares) else term)
        return torch.stack(terms).logsumexp(0)

    def log_weights(self, places: Float[Tensor, "draws data dim"], found: Densities) -> Float[Tensor, "draws data"]:
        """log p(x, z) - log q(z) in nats; -inf where the model has no density."""
        shape = places.shape[:2]
        log_prior, log_joint = found.log_prior.double().reshape(shape), found.log_joint.double().reshape(shape)
        return (log_joint - self.log_density(places, log_prior)).nan_to_num(-torch.inf, torch.inf, -torch.inf)


def shares_of(
    masses: Float[Tensor, "data components"], prior: float, guide: Float[Tensor, " data"], wide: float | Tensor
) -> Float[Tensor, "data parts"]:
    """Shares of all parts: what prior and guide leave goes to the components by their masses, `wide` of it wide."""
    masses = masses / masses.sum(1, keepdim=True).clamp(min=1e-300)
    rest = (1 - prior - guide)[:, None]
    fixed = torch.stack([torch.full_like(guide, prior), guide], 1)
    return torch.cat([fixed, rest * (1 - wide) * masses, rest * wide * masses], 1)
