"""What draws of the guide tell of the latents of each datum: KL and mean of each unit, log densities of the draws."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyro_vae.errors import ContractError
from pyro_vae.evaluation.chunks import rows_that_fit
from pyro_vae.pair.checks import prior_before_guide
from pyro_vae.pair.pair import batch_size
from pyro_vae.pair.particles import Fields
from pyro_vae.pair.sites import Site, Sites, elements, is_point_mass, side_by_side, values_of
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


def codes_of(pair: nn.Module, batch: Fields, particles: int, kept: int, tick: Callable[[int], None]) -> Codes:
    """The codes of a batch, from `particles` draws, `kept` of which stay; `tick` is told of data x particles done.

    Where the guide has one site and its KL a closed form, draws beyond those kept would tell nothing and are not made.
    Raises `ContractError` where the pair breaks the contract, or the guide has a site that the model lacks.
    """
    size, seen, closed = batch_size(batch), 0, False
    step = max(1, rows_that_fit(batch) // size)
    kl: dict[str, _Moments] = defaultdict(_Moments)
    mean: dict[str, _Moments] = defaultdict(_Moments)
    values, log_guide, log_prior = [], [], []
    while seen < particles and not (closed and seen >= kept):
        ahead = kept - seen if seen < kept else particles - seen
        for count in counts(pair, batch, min(step, ahead)):
            guide, model = run_both(pair, batch, count)
            terms = reduce_sites(model, guide, count, size)
            closed = _add(guide, model, kl, mean)
            if seen < kept:
                values.append(values_of(guide))
                log_guide.append(terms.log_guide.double().cpu())
                log_prior.append(terms.log_prior.double().cpu())
            seen += count
            tick(count * size)
    tick((particles - seen) * size)
    return Codes(
        kl={name: moments.mean() for name, moments in kl.items()},
        mean={name: moments.mean() for name, moments in mean.items()},
        noise={name: moments.noise() for name, moments in mean.items()},
        values=side_by_side(values),
        log_guide=torch.cat(log_guide),
        log_prior=torch.cat(log_prior),
    )


def _add(guide: Sites, model: Sites, kl: dict[str, "_Moments"], mean: dict[str, "_Moments"]) -> bool:
    """Take the KL and the mean of each site; whether there is one site, whose KL has a closed form."""
    closed, settled = len(guide) == 1, prior_before_guide(model, guide)
    for name, site in guide.items():
        if site.auxiliary:
            raise ContractError(f"the guide's own site {name!r} leaves the latents without a density q(z|x)")
        divergence, known = unit_kl(site, model[name], settled[name])
        closed = closed and known
        means = site.mean()
        kl[name].add(divergence)
        mean[name].add(means.reshape(*means.shape[:2], -1))
    return closed


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
    it is one number for the site. No closed form holds unless the prior is `settled`: it depends on nothing that the
    guide draws after the site.
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
    kl = guide.unfold(kl, units)
    return (kl.flatten(2) if units else kl.unsqueeze(-1)), closed
