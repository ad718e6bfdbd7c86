"""Enumerated sites are summed out, exactly and for each datum.

A site's log-probability is a factor: a tensor whose dims are the particles, the data, a datum's own plates, and the
enumerations that it depends on. Factors of the model that hang together are contracted over the model's enumerations
by Pyro's variable elimination, so that a chain costs what its length costs. What the guide enumerates is averaged
under the guide.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from opt_einsum import get_symbol, shared_intermediates
from pyro.ops.contract import contract_tensor_tree
from pyro.ops.rings import LogRing
from torch import Tensor

from pyro_vae.errors import ContractError
from pyro_vae.pair.sites import Site, Sites

DATA, PARTICLES = get_symbol(0), get_symbol(1)
TIED = "what is enumerated, and the rest"
FIRST_PLATE, FIRST_NUMBER = 2, 100
"""Where the symbols of a datum's own plates begin, and those of enumerations."""


@dataclass(frozen=True)
class Factor:
    """A log-probability in nats, its dims by their symbols, and the datum's own plates that it stands in."""

    tensor: Tensor
    dims: str
    plates: frozenset[str] = frozenset()

    def over(self, numbers: Iterable[str]) -> bool:
        """Whether it depends on one of these enumerations."""
        return not set(numbers).isdisjoint(self.dims)

    def aligned(self, dims: str) -> Tensor:
        """The tensor with these dims, of size 1 where it has none."""
        order = [self.dims.index(dim) for dim in dims if dim in self.dims]
        sizes = [self.tensor.shape[self.dims.index(dim)] if dim in self.dims else 1 for dim in dims]
        return self.tensor.permute(order).reshape(sizes)


def enumerates(*programs: Sites) -> bool:
    """Whether a run of a program enumerated a site."""
    return any(site.enumerated is not None for sites in programs for site in sites.values())


class Enumeration:
    """Sums over the enumerated sites of a model and a guide that ran at the same draws.

    Each is [particles, batch] in nats. Without a guide, all of the model's enumerated sites are summed out.

    Raises:
        ContractError: what hangs together is scaled differently, or reaches across plates.
    """

    def __init__(self, model: Sites, guide: Sites, particles: int, size: int):
        self.particles, self.size = particles, size
        self.model, self.guide = (
            {name: site for name, site in sites.items() if site.in_plate} for sites in (model, guide)
        )
        sites = [*self.guide.values(), *self.model.values()]
        self.zero = sites[0].density.new_zeros(particles, size) if sites else torch.zeros(particles, size)
        self.plates = {
            name: get_symbol(FIRST_PLATE + place)
            for place, name in enumerate(dict.fromkeys(name for site in sites for name in site.inner))
        }
        self.of_guide = {symbol_of(s.enumerated): s for s in self.guide.values() if s.enumerated is not None}
        self.of_model = {symbol_of(s.enumerated) for s in sites if s.enumerated is not None} - self.of_guide.keys()
        self.made: dict[tuple[int, int], tuple[Tensor, Factor]] = {}  # a factor by its site and its term, kept alive
        self.scores = self._scores() if torch.is_grad_enabled() else []

    # --- the terms of a pair ---

    def model_terms(self, drawn: bool = False) -> tuple[Tensor, Tensor]:
        """log p(x|z), which is what is left of log p(x, z) when log p(z) is taken away; and log p(z).

        Args:
            drawn: the latents are draws of the model itself, so that log p(x|z) is averaged over what is enumerated
                together with them, and there is no log p(z).
        """
        sites = {n: s for n, s in self.model.items() if s.observed or s.enumerated is not None or not drawn}
        tied = [site for name, site in sites.items() if name in self.tied]
        alone = [site for name, site in sites.items() if name not in self.tied]
        log_likelihood = self._mean([self.factor(site) for site in alone if site.observed])
        log_prior = self._mean([self.factor(site) for site in alone if not site.observed])
        of_prior = 0.0 if drawn else self.of_prior
        of_both = self._marginal(tied) if tied else 0.0
        return log_likelihood + of_both - of_prior, log_prior + of_prior

    @cached_property
    def tied(self) -> dict[str, Site]:
        """The model's sites that depend on what it enumerates alone."""
        return {name: site for name, site in self.model.items() if self.unscaled(site).over(self.of_model)}

    @cached_property
    def of_prior(self) -> Tensor | float:
        """log sum_y p(y, z) of the latents z that are tied; 0 where there are none."""
        hidden = [site for site in self.tied.values() if not site.observed]
        return self._marginal(hidden) if any(site.enumerated is None for site in hidden) else 0.0

    def log_guide(self) -> Tensor:
        """log q(z|x), averaged over what the guide enumerates."""
        return self._mean([self.factor(site) for site in self.guide.values() if not site.observed])

    def extra(self) -> Tensor | None:
        """What the guide observes."""
        found = [self.factor(site) for site in self.guide.values() if site.observed]
        return self._mean(found) if found else None

    def kl_parts(self, closed: Collection[str]) -> dict[str, Tensor]:
        """The KL of each latent of the guide, and of those together that the model's enumerations tie to each other: of
        the sites `closed` in closed form if there is one, else log q - log p at the draws."""
        parts: dict[str, Tensor] = {}
        for name, site in self.guide.items():
            if not site.observed:
                prior = self.model.get(name)
                part = self._mean(self._divergence(site, None if name in self.tied else prior, name in closed))
                name = TIED if prior is None or name in self.tied else name
                parts[name] = parts[name] + part if name in parts else part
        if TIED in parts:
            parts[TIED] = parts[TIED] - self.of_prior
        return parts

    def _divergence(self, site: Site, prior: Site | None, closed: bool) -> list[Factor]:
        """Factors whose sum is the KL of a site; without a prior, its log q."""
        if prior is None:
            return [self.factor(site)]
        if closed and site.enumerated is None:
            try:
                return [self.factor(site, site.counting_kl(prior), like=prior)]
            except NotImplementedError:
                pass
        return [self.factor(site), _times(self.factor(prior), -1.0)]

    def log_weight(self) -> Tensor | None:
        """log of sum_y p(x, y, z_y) / q(z_y), where y is what is enumerated.

        None where the guide enumerates nothing, because it is the sum of the terms there.
        """
        if not self.of_guide:
            return None
        factors = [self.unscaled(site) for site in self.model.values()]
        drawn = [site for site in self.guide.values() if not site.observed and site.enumerated is None]
        factors += [_times(self.factor(site), -1.0) for site in drawn]
        return self.total(self.contracted(factors, {*self.of_model, *self.of_guide}))

    def log_marginal(self) -> Tensor:
        """log of sum_y q(y, z|x) at given values z of what the guide draws."""
        factors = [self.unscaled(site) for site in self.guide.values() if not site.observed]
        return self.total(self.contracted(factors, set(self.of_guide)))

    # --- factors ---

    def factor(self, site: Site, term: Tensor | None = None, like: Site | None = None) -> Factor:
        """A term of a site, by default its log-probability with its mask and scale.

        Args:
            like: another site that the term depends on.
        """
        term = site.counting() if term is None else term
        key = id(site), id(term)
        if key not in self.made:
            self.made[key] = term, self._factor(site, term, like)
        return self.made[key][1]

    def _factor(self, site: Site, term: Tensor, like: Site | None) -> Factor:
        layout, numbers = site.layout, {**site.dims, **(like.dims if like else {})}
        numbers = {dim: n for dim, n in numbers.items() if -dim <= term.dim() and term.shape[dim] > 1}
        symbols = {dim: self.plates[name] for name, dim in site.inner.items()}
        symbols |= {dim: symbol_of(number) for dim, number in numbers.items()}
        plates = frozenset(self.plates[name] for name in site.inner)
        rest = "".join(symbols[dim] for dim in sorted(symbols))
        try:
            tensor = layout.unfold(term, 0, list(symbols), shared=True)
        except ValueError as problem:
            raise ContractError(
                f"site {site.name!r} has a log-probability of shape {list(term.shape)}, which its plates and the sites "
                "that are enumerated do not explain"
            ) from problem
        return Factor(tensor, PARTICLES + DATA + rest, plates)

    def unscaled(self, site: Site) -> Factor:
        """What counts of a site in a sum: of an enumerated one its probability, whether masked or not."""
        return self.factor(site, site.density if site.enumerated is not None else site.counting(scaled=False))

    def _scores(self) -> list[Factor]:
        """Factors of value 1, whose gradient is the score of a site that has no pathwise one and depends on what the
        guide enumerates (Foerster et al. 2018)."""
        found = []
        for site in self.guide.values():
            drawn = not site.observed and site.enumerated is None and not getattr(site.fn, "has_rsample", False)
            if drawn and self.factor(site).over(self.of_guide):
                factor = self.factor(site, site.density)
                found.append(Factor(factor.tensor - factor.tensor.detach(), factor.dims, factor.plates))
        return found

    # --- sums ---

    def _marginal(self, sites: Sequence[Site]) -> Tensor:
        """The model's enumerations summed out of the product of some sites, the guide's averaged."""
        scales = {number for site in sites for number in _numbers(site.scale)}
        if len(scales) > 1:
            names = ", ".join(repr(site.name) for site in sites)
            raise ContractError(
                f"the sites {names} hang together by what is enumerated, but have different scales "
                f"{sorted(scales)[:3]}; give them one"
            )
        summed = self.contracted([self.unscaled(site) for site in sites], self.of_model)
        scale = next(iter(sites)).scale
        scale = scale.flatten()[0] if isinstance(scale, Tensor) else scale
        return self._mean([_times(factor, scale) for factor in summed])

    def contracted(self, factors: Sequence[Factor], numbers: set[str]) -> list[Factor]:
        """The product of factors with some enumerations summed out: one factor for each part that hangs together."""
        tree: OrderedDict[frozenset, list[Tensor]] = OrderedDict()
        for factor in factors:
            tensor = factor.tensor.view_as(factor.tensor)
            tensor._pyro_dims = factor.dims
            tree.setdefault(factor.plates, []).append(tensor)
        try:
            with shared_intermediates() as cache:
                found = contract_tensor_tree(tree, set(numbers), ring=LogRing(cache))
        except NotImplementedError as problem:
            raise ContractError(f"enumerated sites hang together across plates of a datum: {problem}") from problem
        return [Factor(term, term._pyro_dims, plates) for plates, terms in found.items() for term in terms]

    def _mean(self, factors: Sequence[Factor]) -> Tensor:
        """The sum of factors, each averaged over the guide's enumerations that it depends on."""
        return self.total([self._averaged(factor) for factor in factors])

    def _averaged(self, factor: Factor) -> Factor:
        numbers = [dim for dim in factor.dims if dim in self.of_guide]
        scores = [score for score in self.scores if score.plates <= factor.plates]
        if not numbers and not scores:
            return factor
        probability = self.probability(numbers, scores)
        if not probability.plates <= factor.plates:
            names = ", ".join(repr(self.of_guide[number].name) for number in numbers)
            raise ContractError(f"a site outside a plate of a datum depends on {names}, enumerated inside that plate")
        dims = "".join(dict.fromkeys(factor.dims + probability.dims))
        weight, value = probability.aligned(dims), factor.aligned(dims)
        product = weight * torch.where(weight > 0, value, value.new_zeros(()))
        return Factor(product.sum([dims.index(n) for n in numbers]), _left(dims, numbers), factor.plates)

    def probability(self, numbers: Sequence[str], scores: Sequence[Factor]) -> Factor:
        """The joint probability under the guide of some of its enumerations."""
        factors, needed = list(scores), list(numbers) + [d for s in scores for d in s.dims if d in self.of_guide]
        seen: set[str] = set()
        while needed:
            number = needed.pop()
            if number not in seen:
                seen.add(number)
                site = self.of_guide[number]
                factors.append(self.factor(site, site.density))
                needed += [dim for dim in factors[-1].dims if dim in self.of_guide]
        terms = []
        for factor in factors:
            terms.append(factor.tensor.view_as(factor.tensor))
            terms[-1]._pyro_dims = factor.dims
        joint = LogRing().sumproduct(terms, seen - set(numbers))
        return Factor(joint.exp(), joint._pyro_dims, frozenset().union(*(factor.plates for factor in factors)))

    def total(self, factors: Sequence[Factor]) -> Tensor:
        """The sum of factors without enumerations, summed over the datum's own plates: [particles, batch]."""
        total = None
        for factor in factors:
            own = [place for place, dim in enumerate(factor.dims) if dim not in (PARTICLES, DATA)]
            tensor = factor.tensor.sum(own) if own else factor.tensor
            tensor = Factor(tensor, _left(factor.dims, [factor.dims[place] for place in own])).aligned(PARTICLES + DATA)
            total = tensor if total is None else total + tensor
        return self.zero if total is None else total.expand(self.particles, self.size)


def symbol_of(number: int) -> str:
    return get_symbol(FIRST_NUMBER + number)


def _left(dims: str, without: Iterable[str]) -> str:
    return "".join(dim for dim in dims if dim not in without)


def _times(factor: Factor, scale: Any) -> Factor:
    return Factor(factor.tensor * scale, factor.dims, factor.plates)


def _numbers(scale: Any) -> list[float]:
    return scale.detach().flatten().tolist() if isinstance(scale, Tensor) else [float(scale)]
