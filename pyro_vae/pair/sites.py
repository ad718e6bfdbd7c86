"""The sample statements of a program as they ran: distributions, values, and the log-probability of each datum."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float, Shaped
from pyro.distributions.torch_distribution import ExpandedDistribution
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import Independent, constraints, kl_divergence

from pyro_vae.errors import ContractError, ProgramError
from pyro_vae.pair.layout import Layout
from pyro_vae.pair.pair import validation_off


@dataclass
class Site:
    """One sample statement as it ran.

    Attributes:
        fn: its distribution, expanded over the plates of the program.
        raw: its value as the program had it.
        given: the same, but NaN where an element that it observes is missing.
        observed: whether the program observes it, also where `poutine.uncondition` made it draw.
        plates: the plates that it stands in, each with its dim.
        data_plate: the name of the data's plate.
        scale: what multiplies its log-probability; the subsampling scale of the data's plate is divided out.
        mask: what leaves log-probabilities out, or None.
        auxiliary: whether the guide marks it with infer={"is_auxiliary": True}.
        summed: whether the pair enumerates it, also where this run drew it.
        enumerated: the number of the enumeration that this run made of it, or None.
        dims: the dims of enumerations that its log-probability may have, each with the number of its enumeration.
    """

    name: str
    fn: Any
    raw: Tensor
    given: Tensor
    observed: bool
    plates: Mapping[str, int]
    data_plate: str | None
    scale: Any
    mask: Any
    auxiliary: bool
    layout: Layout
    summed: bool = False
    enumerated: int | None = None
    dims: Mapping[int, int] = field(default_factory=dict)

    @property
    def in_plate(self) -> bool:
        """Whether it stands in the plate of the data."""
        return self.data_plate in self.plates

    @property
    def inner(self) -> dict[str, int]:
        """A datum's own plates that it stands in, each with its dim, from left to right."""
        plates = {name: dim for name, dim in self.plates.items() if name != self.data_plate}
        return dict(sorted(plates.items(), key=lambda plate: plate[1]))

    @property
    def depends_on_enumeration(self) -> bool:
        """Whether its log-probability has the dim of an enumeration."""
        shape = self.density.shape
        return any(-dim <= len(shape) and shape[dim] > 1 for dim in self.dims)

    @property
    def event_shape(self) -> torch.Size:
        """The event shape of its distribution."""
        return self.fn.event_shape

    @property
    def datum_shape(self) -> torch.Size:
        """The shape of one datum's value: its own plates, and the event."""
        return self.value.shape[2:]

    @property
    def support(self) -> constraints.Constraint | None:
        """The support of the distribution; None where it declares none."""
        try:
            return self.fn.support
        except (NotImplementedError, AttributeError):
            return None

    @cached_property
    def density(self) -> Tensor:
        """log p(value) as the distribution gives it, with no scale and no mask."""
        try:
            with validation_off():
                return self.fn.log_prob(self.raw)
        except Exception as problem:
            what = f"(log_prob raised {type(problem).__name__}: {shortened(problem, 300)})"
            raise ProgramError(f"{self._misfit()} {what}") from problem

    @property
    def value(self) -> Shaped[Tensor, "particles batch ..."]:
        """Its value [particles, batch, *enumerations, *its own plates, *event]; [1, ...] for a site outside the data's
        plate."""
        return self._like_value(self.raw)

    @property
    def seen(self) -> Shaped[Tensor, "particles batch ..."]:
        """The same, NaN where an element that it observes is missing."""
        return self._like_value(self.given)

    def log_prob(self) -> Float[Tensor, "particles batch"]:
        """The log-probability of its value for each datum, scaled and masked as the program says, in nats; [1, 1] for
        a site outside the data's plate.

        Raises:
            ContractError: it has not one log-probability for each datum.
        """
        return self._of_datum(self.counting())

    def score(self) -> Float[Tensor, "particles batch"]:
        """The log-probability with no scale and no mask."""
        return self._of_datum(self.density)

    def counting(self, scaled: bool = True) -> Tensor:
        """The log-probability as the program has it, masked and, if so asked, scaled."""
        try:
            return scale_and_mask(self.density, self.scale if scaled else 1.0, self.mask)
        except RuntimeError as problem:
            raise self._misfit() from problem

    def mean(self) -> Shaped[Tensor, "particles batch ..."]:
        """The mean of its distribution, or its value where the mean is not a number."""
        try:
            mean = self.fn.mean
        except NotImplementedError:
            return self.value
        known = mean.isfinite()
        mean = torch.where(known, mean, self.raw.to(mean.dtype)) if known.any() else self.raw
        return self._like_value(mean)

    def mode(self) -> Shaped[Tensor, "particles batch ..."]:
        """The most probable value of its distribution, or its value where that has no formula."""
        try:
            return self._like_value(self.fn.mode)
        except (NotImplementedError, AttributeError):
            return self.value

    def deviation(self) -> Shaped[Tensor, "particles batch ..."]:
        """The standard deviation of its distribution; NaN where it has no formula."""
        try:
            deviation = self.fn.variance.sqrt()
        except NotImplementedError:
            deviation = torch.full_like(self.raw, torch.nan, dtype=torch.get_default_dtype())
        return self._like_value(deviation)

    def kl_to(self, prior: "Site") -> Float[Tensor, "particles batch"]:
        """KL(this || prior) of each datum in closed form, masked as this site. Where the two are scaled differently, it
        is the mean of log q - log p with their scales, of which a part is taken at the draw.

        Raises:
            NotImplementedError: none is known.
        """
        return self._of_datum(self.counting_kl(prior))

    def counting_kl(self, prior: "Site") -> Tensor:
        """The same with the dims of the program."""
        if (self.layout, [*self.inner.values()]) != (prior.layout, [*prior.inner.values()]):
            raise NotImplementedError
        q, p = self.fn, prior.fn
        if q.batch_shape != p.batch_shape:
            lead = torch.broadcast_shapes(q.batch_shape, p.batch_shape)  # which imports sympy
            q, p = q.expand(lead), p.expand(lead)
        kl = scale_and_mask(kl_divergence(q, p), self.scale, self.mask)
        if not self.scaled_like(prior):
            kl = kl + scale_and_mask(prior.density, self.scale - prior.scale, self.mask)
        return kl

    def scaled_like(self, other: "Site") -> bool:
        """Whether two sites are known to have one scale; what tensors hold is not read."""
        numbers = not (isinstance(self.scale, Tensor) or isinstance(other.scale, Tensor))
        return self.scale is other.scale or (numbers and self.scale == other.scale)

    def counted(self) -> Float[Tensor, "particles batch"]:
        """How many elements of its value count, for each datum: those that no mask leaves out."""
        counts = _counted(self.fn).to(torch.get_default_dtype())
        if self.mask is not None:
            counts = counts * (self.mask if isinstance(self.mask, Tensor) else float(self.mask))
        for dim in self.dims:
            counts = counts.narrow(dim, 0, 1) if -dim <= counts.dim() else counts
        return self._of_datum(counts)

    def check_shape(self) -> None:
        """Raise `ContractError` where the value misses a dim, which could broadcast against the particles unnoticed."""
        _ = self.value

    def unfold(self, tensor: Tensor, event_dims: int) -> Shaped[Tensor, "particles batch ..."]:
        """A tensor with the site's leading dims as [particles, batch, *enumerations, *its own plates, *event].

        Raises:
            ContractError: it has not one entry for each datum.
        """
        lead = tensor.dim() - event_dims
        rest = [*self.inner.values(), *[dim for dim in self.dims if -dim <= lead and tensor.shape[lead + dim] > 1]]
        try:
            return self.layout.unfold(tensor, event_dims, rest, shared=self.enumerated is not None)
        except ValueError as problem:
            raise self._misfit() from problem

    def _like_value(self, tensor: Tensor) -> Shaped[Tensor, "particles batch ..."]:
        return self.unfold(tensor, len(self.event_shape)) if self.in_plate else tensor.unsqueeze(0)

    def _of_datum(self, term: Tensor) -> Float[Tensor, "particles batch"]:
        """The sum of a term over the datum's own plates."""
        if not self.in_plate:
            return term.sum().reshape(1, 1)
        term = self.unfold(term, 0)
        return term if term.dim() == 2 else term.flatten(2).sum(2)

    def _misfit(self) -> ContractError:
        size = self.layout.size
        return ContractError(
            f"site {self.name!r}: a value of shape {list(self.raw.shape)} under a distribution of batch shape "
            f"{list(self.fn.batch_shape)} and event shape {list(self.event_shape)} does not give one "
            f"log-probability for each of the {size} data; make the value [{size}, *event shape], and call "
            ".to_event() for the dims of one datum"
        )


Sites = dict[str, Site]


OF_A_PROGRAM = (RuntimeError, ValueError, IndexError, KeyError, TypeError, AssertionError)
"""What a program of a user's may raise."""


def _raised(program: str, problem: Exception, last: tuple[str, Tensor] | None) -> ProgramError:
    """What a program raised, and where: after its last site, whose name and value are given."""
    where = "before its first site"
    if last is not None:
        where = f"after site {last[0]!r} with a value of shape {list(last[1].shape)}"
    return ProgramError(f"the {program} raised {type(problem).__name__} {where}: {shortened(problem, 300)}")


@contextmanager
def said(program: str, last: Callable[[], tuple[str, Tensor] | None] = lambda: None) -> Iterator[None]:
    """Say in one line, a `ProgramError`, what a program raises inside.

    Args:
        last: gives name and value of the last site that ran.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except OF_A_PROGRAM as problem:
        raise _raised(program, problem, last()) from problem


def shortened(problem: Exception, length: int) -> str:
    """What an error says, in one line of that many characters at most."""
    return " ".join(str(problem).split())[:length]


def elements(fn: Any) -> Any:
    """What `.to_event()` wraps: a distribution whose batch shape holds the event dims that it declared."""
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return fn


def layers(fn: Any) -> list[Any]:
    """A distribution and what it wraps by `.to_event()`, `.mask()` and `.expand()`, the innermost last."""
    inner = layers(fn.base_dist) if isinstance(fn, Independent | dist.MaskedDistribution | ExpandedDistribution) else []
    return [fn, *inner]


def unwrapped(fn: Any) -> Any:
    """The innermost distribution."""
    return layers(fn)[-1]


def is_point_mass(fn: Any) -> bool:
    """Whether a distribution is Pyro's `Delta`."""
    return isinstance(unwrapped(fn), dist.Delta)


def point_masses(sites: Mapping[str, Site]) -> list[str]:
    """The names of the latents that are point masses."""
    return [name for name, site in latent(sites).items() if is_point_mass(site.fn)]


def is_improper(fn: Any) -> bool:
    """Whether a distribution is Pyro's `ImproperUniform`, which nothing can be drawn from."""
    return isinstance(unwrapped(fn), dist.ImproperUniform)


def has_mask(site: Site) -> bool:
    """Whether a mask may leave elements of a site out."""
    found = layers(site.fn)
    masked = site.mask is not None or any(isinstance(fn, dist.MaskedDistribution) for fn in found)
    return masked or isinstance(getattr(found[-1], "mask", None), Tensor)


def _counted(fn: Any) -> Tensor:
    """Elements that count, of the batch shape of a distribution."""
    known = getattr(fn, "mask", None)
    if isinstance(known, Tensor):  # a likelihood that says which elements it is of
        return known.expand(*fn.batch_shape, *fn.event_shape).reshape(*fn.batch_shape, -1).sum(-1)
    if isinstance(fn, Independent):
        inner, dims = _counted(fn.base_dist), fn.reinterpreted_batch_ndims
        return inner.reshape(*inner.shape[: inner.dim() - dims], -1).sum(-1)
    if isinstance(fn, dist.MaskedDistribution):
        mask = fn._mask if isinstance(fn._mask, Tensor) else torch.tensor(fn._mask)
        return _counted(fn.base_dist) * mask
    if isinstance(fn, ExpandedDistribution):
        return _counted(fn.base_dist).expand(fn.batch_shape)
    return torch.full(fn.batch_shape, float(fn.event_shape.numel()))


def observed(sites: Mapping[str, Site]) -> Sites:
    """The observed sites among `sites`."""
    return {name: site for name, site in sites.items() if site.observed}


def latent(sites: Mapping[str, Site]) -> Sites:
    """The latent sites among `sites`."""
    return {name: site for name, site in sites.items() if not site.observed}


def values_of(sites: Mapping[str, Site]) -> dict[str, Tensor]:
    """The values [particles, batch, ...] of sites that were drawn; one that was enumerated has all its values."""
    return {name: site.value for name, site in sites.items() if site.enumerated is None}


def side_by_side(parts: Sequence[Mapping[str, Tensor]], dim: int = 0) -> dict[str, Tensor]:
    """Tensors by name, each put together from the parts along a dim."""
    return {name: torch.cat([part[name] for part in parts], dim) for name in parts[0]} if parts else {}
