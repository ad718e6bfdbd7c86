"""What the latents carry: active units, the KL of each dimension, their information about x, and what they do to it."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyro_vae.data import Split
from pyro_vae.evaluation.aggregate import check_guide, log_aggregate
from pyro_vae.evaluation.elements import elements
from pyro_vae.evaluation.result import Estimate
from pyro_vae.evaluation.stream import DATA_BLOCK, rows_that_fit, seeded
from pyro_vae.evaluation.ticker import ticker
from pyro_vae.evaluation.traversal import Unit, traversals
from pyro_vae.generation import center
from pyro_vae.terms import Site, batch_size, reduce_sites, run_guide, run_model, select_fields

ACTIVE = 0.01
"""A unit is active where the variance over data of its posterior mean is above this (Burda et al. 2016)."""

TRAVERSED, COLUMNS = 10, 9
DRAWS = 1
"""What random numbers are for, as the last part of their seeds."""

Batch = Mapping[str, Tensor]


class Latent:
    """Active units, KL of each dimension, and the rate's two parts (Burda et al. 2016; Hoffman & Johnson 2016).

    rate = E_x KL(q(z|x) || p(z)) = I_q(x; z) + KL(q(z) || p(z)), q(z) = 1/n sum_i q(z|x_i) over the n data evaluated.
    Per datum, in nats: `rate`, and its shares `mutual_information` and `marginal_kl`, by Monte Carlo. A dimension's KL
    is in closed form where one is known, else by draws; a site whose guide or prior does not factorise has one KL for
    all its dimensions. Figure `traversals`: the mean of p(x|z) along the most active units.

    Args:
        points: draws at which q(z) is evaluated, in all; at least one for each datum, at most `particles`.

    Raises:
        ContractError: the guide's density of the latents is not known, or latents outside the data plate.
    """

    def __init__(self, points: int = 10_000):
        self.points = points

    def __call__(
        self, pair: nn.Module, split: Split, particles: int, seed: int, progress: Callable[[int], None]
    ) -> Estimate:
        kept = max(1, min(particles, self.points // split.size))
        blocks = -(-split.size // DATA_BLOCK)
        tick = ticker(progress, split.size * particles, split.size * (particles + kept * blocks))
        parts = []
        for block, batch in enumerate(_batches(pair, split, seed)):
            with seeded(seed, block, DRAWS):
                parts.append(_look(pair, batch, particles, kept, tick))
        found = Findings.joined(parts)
        values = {name: value.flatten(0, 1) for name, value in found.values.items()}
        log_marginal = log_aggregate(pair, _batches(pair, split, seed), values, tick).reshape(kept, -1)
        per_datum = {
            "rate": sum(kl.sum(1) for kl in found.kl.values()),
            "mutual_information": (found.log_guide - log_marginal).mean(0),
            "marginal_kl": (log_marginal - found.log_prior).mean(0),
        }
        variances = found.variances()
        figure = traversals(pair, next(_batches(pair, split.head(1), seed)), _units(variances, found.values))
        figures = {} if figure is None else {"traversals": figure}
        return Estimate(per_datum, _summary(per_datum, found, variances), _warnings(per_datum), figures)


@dataclass
class Findings:
    """What the draws of some data tell; numbers in float64.

    Attributes:
        kl: nats [batch, units] of each site, or [batch, 1] where its dimensions do not factorise; mean over draws.
        means: posterior means [batch, units] of each site, averaged over the draws of the sites that they depend on.
        noise: variance [batch, units] of that average.
        values, log_guide, log_prior: some draws [kept, batch, *event] with log q(z|x) and log p(z) [kept, batch].
    """

    kl: dict[str, Tensor]
    means: dict[str, Tensor]
    noise: dict[str, Tensor]
    values: dict[str, Tensor]
    log_guide: Float[Tensor, "kept batch"]
    log_prior: Float[Tensor, "kept batch"]

    @classmethod
    def joined(cls, parts: list["Findings"]) -> "Findings":
        """The findings of all data."""

        def join(name: str, dim: int) -> Any:
            first = getattr(parts[0], name)
            if isinstance(first, Tensor):
                return torch.cat([getattr(part, name) for part in parts], dim)
            return {site: torch.cat([getattr(part, name)[site] for part in parts], dim) for site in first}

        over_data = {name: join(name, 0) for name in ("kl", "means", "noise")}
        return cls(**over_data, **{name: join(name, 1) for name in ("values", "log_guide", "log_prior")})

    def variances(self) -> dict[str, Float[Tensor, " units"]]:
        """Var_x E_q[z|x] of each unit, less what the noise of the means adds to it; zeros for a single datum."""
        if len(self.log_guide[0]) == 1:
            return {name: torch.zeros_like(means[0]) for name, means in self.means.items()}
        return {name: (means.var(0) - self.noise[name].mean(0)).clamp(min=0) for name, means in self.means.items()}


def _batches(pair: nn.Module, split: Split, seed: int) -> Iterator[Batch]:
    for block, start in enumerate(range(0, split.size, DATA_BLOCK)):
        with seeded(seed, block):
            batch = select_fields(pair, split.take(slice(start, start + DATA_BLOCK)))
        yield batch


def _look(pair: nn.Module, batch: Batch, particles: int, kept: int, tick: Callable[[int], None]) -> Findings:
    """Findings of one block of data. Beyond `kept`, draws are made only where they say more than one does."""
    check_guide(pair, batch)
    size = batch_size(pair, batch)
    step = max(1, min(particles, rows_that_fit(batch) // size))
    kl, means, draws = defaultdict(_Moments), defaultdict(_Moments), []
    for first in range(0, particles, step):
        count = min(step, particles - first)
        guide = run_guide(pair, batch, count)
        model = run_model(pair, batch, {name: site.value for name, site in guide.items()}, count)
        terms = reduce_sites(model, guide, count, size)
        closed = []
        for name, site in guide.items():
            divergence, is_closed = unit_kl(site, model[name])
            closed.append(is_closed)
            kl[name].add(divergence.reshape(count, size, -1))
            means[name].add(center(site).reshape(count, size, -1))
        values = {name: site.value.reshape(count, size, *site.fn.event_shape) for name, site in guide.items()}
        draws.append(_Draws(values, terms.log_guide.double().cpu(), terms.log_prior.double().cpu()))
        enough = first + count >= kept
        ...
