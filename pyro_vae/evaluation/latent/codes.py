"""What draws of the guide tell of the latents of each datum: KL and mean of each unit, log densities of the draws."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyro_vae.errors import ContractError
from pyro_vae.evaluation.chunks import rows_that_fit
from pyro_vae.pair.checks import prior_before_guide
from pyro_vae.pair.pair import batch_size
from pyro_vae.pair.sites import Site, Sites, elements, is_point_mass, side_by_side
from pyro_vae.pair.terms import counts, reduce_sites, run_both


@dataclass(frozen=True)
class Codes:
    """The latents of some data: numbers in float64 on the CPU, and draws.

    Attributes:
        kl: KL(q || p) in nats [batch, units] of each site, or [batch, 1] where the units do not factorise.
        mean: E_q[z|x], [batch, units].
        noise: variance [batch, units] of these means over the draws that they are averages of.
        values: draws [kept, batch, *event] of each site, as the guide made them.
        log_guide, log_prior: log q(z|x) and log p(z) of these draws, [kept, batch] in nats.
    """

    kl: dict[str, Tensor]
    mean: dict[str, Tensor]
    noise: dict[str, Tensor]
    values: dict[str, Tensor]
    log_guide: Float[Tensor, "kept batch"]
    log_prior: Float[Tensor, "kept batch"]

    @classmethod
    def side_by_side(cls, parts: Sequence["Codes"]) -> "Codes":
        """The codes of all data of the parts."""
        return cls(
            kl=side_by_side([part.kl for part in parts]),
            mean=side_by_side([part.mean for part in parts]),
            noise=side_by_side([part.noise for part in parts]),
            values=side_by_side([part.values for part in parts], dim=1),
            log_guide=torch.cat([part.log_guide for part in parts], 1),
            log_prior=torch.cat([part.log_prior for part in parts], 1),
        )

    def variances(self) -> dict[str, Float[Tensor, " units"]]:
        """Var_x E_q[z|x] of each unit, less what the noise of the means adds to it; zeros for a single datum."""
        if self.log_guide.shape[1] == 1:
            return {name: torch.zeros_like(mean[0]) for name, mean in self.mean.items()}
        return {name: (mean.var(0) - self.noise[name].mean(0)).clamp(min=0) for name, mean in self.mean.items()}


def codes_of(
    pair: nn.Module, batch: Mapping[str, Tensor], particles: int, kept: int, tick: Callable[[int], None]
) -> Codes:
    """The codes of a batch, from `particles` draws, `kept` of which stay.

    Where the guide has one site and its KL a closed form, draws beyond those kept would tell nothing and are not made.

    Args:
        tick: told the number of data x particles that are done.

    Raises:
        ContractError: the pair breaks the contract, or the guide has a site that the model lacks.
    """
    size = batch_size(batch)
    tally, step = _Tally(size, kept), max(1, rows_that_fit(batch) // size)
    while tally.seen < particles and not (tally.closed and tally.seen >= kept):
        ahead = kept - tally.seen if tally.seen < kept else particles - tally.seen
        for count in counts(pair, batch, min(step, ahead)):
            guide, model = run_both(pair, batch, count)
            tally.add(guide, model, count)
            tick(count * size)
    tick((particles - tally.seen) * size)
    return tally.codes()


class _Tally:
    """Running sums over draws of a batch of `size` data."""

    def __init__(self, size: int, kept: int):
        self.size, self.kept, self.seen, self.closed = size, kept, 0, False
        self.kl: dict[str, _Moments] = {}
        self.mean: dict[str, _Moments] = {}
        self.draws: list[tuple[dict[str, Tensor], Tensor, Tensor]] = []

    def add(self, guide: Sites, model: Sites, count: int) -> None:
        terms = reduce_sites(model, guide, count, self.size)
        lead, closed, settled = (count, self.size), len(guide) == 1, prior_before_guide(model, guide)
        for name, site in guide.items():
            if site.auxiliary:
                raise ContractError(f"the guide's own site {name!r} leaves the latents without a density q(z|x)")
            kl, known = unit_kl(site, model[name], settled[name])
            closed = closed and known
            self.kl.setdefault(name, _Moments()).add(kl.reshape(*lead, -1))
            self.mean.setdefault(name, _Moments()).add(site.mean().reshape(*lead, -1))
        if self.seen < self.kept:
            values = {name: site.value for name, site in guide.items()}
            self.draws.append((values, terms.log_guide.double().cpu(), terms.log_prior.double().cpu()))
        self.seen, self.closed = self.seen + count, closed

    def codes(self) -> Codes:
        values, log_guide, log_prior = zip(*self.draws, strict=True)
        return Codes(
            kl={name: moments.mean() for name, moments in self.kl.items()},
            mean={name: moments.mean() for name, moments in self.mean.items()},
            noise={name: moments.noise() for name, moments in self.mean.items()},
            values={name: torch.cat([value[name] for value in values]) for name in values[0]},
            log_guide=torch.cat(log_guide),
            log_prior=torch.cat(log_prior),
        )


class _Moments:
    """Mean over draws, and the variance of that mean, of numbers [draws, batch, units]."""

    def __init__(self) -> None:
        self.count, self.sum, self.squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, numbers: Float[Tensor, "draws batch units"]) -> None:
        numbers = numbers.double().cpu()
        self.count += len(numbers)
        self.sum, self.squares = self.sum + numbers.sum(0), self.squares + numbers.square().sum(0)

    def mean(self) -> Float[Tensor, "batch units"]:
        return self.sum / self.count

    def noise(self) -> Float[Tensor, "batch units"]:
        """Zeros for one draw, which says nothing about it."""
        spread = (self.squares / self.count - self.mean().square()).clamp(min=0)
        return spread / max(1, self.count - 1)


def unit_kl(guide: Site, model: Site, settled: bool) -> tuple[Float[Tensor, "particles batch units"], bool]:
    """KL(q || p) in nats of each unit of a site, and whether this is the closed form.

    Where no closed form is known it is log q - log p at the draw. Where guide or prior does not factorise over units,
    it is one number for the site.

    Args:
        settled: whether the prior depends on nothing that the guide draws after the site; else no closed form holds.
    """
    q, p, units = elements(guide.fn), elements(model.fn), len(guide.event_shape)
    if q.event_shape or p.event_shape:
        q, p, units = guide.fn, model.fn, 0
    kl, closed = q.log_prob(guide.raw) - p.log_prob(guide.raw), False
    if settled and not is_point_mass(guide.fn):
        try:
            kl, closed = kl_divergence(q.expand(p.batch_shape) if q.batch_shape != p.batch_shape else q, p), True
        except NotImplementedError:
            pass
    kl = guide.layout.unfold(kl, units)
    return (kl.flatten(2) if units else kl.unsqueeze(-1)), closed
