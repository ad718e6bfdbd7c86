"""The sample statements of a program as they ran: distributions, values, and the log-probability of each datum."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from jaxtyping import Float, Shaped
from pyro.distributions.torch_distribution import ExpandedDistribution
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.distributions import Independent, constraints, kl_divergence

from pyro_vae.errors import ContractError, ProgramError

PARTICLES = "_particles"
ONE_PLATE = (
    "a pair has one plate, of the data at dim=-1, and what a datum has several of belongs in the event dims (.to_event)"
)


class Layout(NamedTuple):
    """How a program holds `particles` draws for each of `size` data: in a dim of their own at -2, or folded into the
    batch, particle after particle. One particle has no dim.

    Everywhere else a value is [particles, batch, *event]; here alone it becomes what the program takes, and back.
    """

    particles: int
    size: int
    folded: bool = False

    @property
    def rows(self) -> int:
        """The length of the data's plate."""
        return self.particles * self.size if self.folded else self.size

    @property
    def draws(self) -> torch.Size:
        """The particles' dim: [particles] where they have one of their own, else []."""
        return torch.Size([] if self.folded or self.particles == 1 else [self.particles])

    def unfold(self, tensor: Shaped[Tensor, "..."], event_dims: int) -> Shaped[Tensor, "particles batch ..."]:
        """A tensor of the program as [particles, batch, *event]; what all particles share is expanded.

        Raises:
            ValueError: its leading dims are not those of a site in the data's plate.
        """
        lead, expected = tuple(tensor.shape[: tensor.dim() - event_dims]), (*self.draws, self.rows)
        event = tensor.shape[len(lead) :]
        if lead == expected:
            return tensor.reshape(self.particles, self.size, *event)
        if lead == (self.size,) and not self.folded:
            return tensor.expand(self.particles, self.size, *event)
        raise ValueError(f"leading dims {list(lead)} are not {list(expected)}")

    def fold(self, value: Shaped[Tensor, "particles batch ..."]) -> Shaped[Tensor, "..."]:
        """A value [particles, batch, ...] as the program takes it."""
        if self.particles == 1:
            return value.squeeze(0)
        return value.flatten(0, 1) if self.folded else value

    def repeat(self, field: Shaped[Tensor, "batch ..."]) -> Shaped[Tensor, "rows ..."]:
        """A field as the program takes it."""
        return torch.cat([field] * self.particles) if self.folded else field


@dataclass
class Site:
    """One sample statement as it ran.

    Attributes:
        fn: its distribution, expanded over the plates of the program.
        raw: its value as the program had it.
        observed: whether the program observes it, also where `poutine.uncondition` made it draw.
        plate: the plate at dim -1 that it stands in, or None.
        in_plate: whether that is the plate of the data.
        scale: what multiplies its log-probability; the subsampling scale of the data's plate is divided out.
        mask: what leaves log-probabilities out, or None.
        auxiliary: whether the guide marks it with infer={"is_auxiliary": True}.
    """

    name: str
    fn: Any
    raw: Tensor
    observed: bool
    plate: str | None
    in_plate: bool
    scale: Any
    mask: Any
    auxiliary: bool
    layout: Layout

    @property
    def event_shape(self) -> torch.Size:
        """The shape of one datum's value."""
        return self.fn.event_shape

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
            return self.fn.log_prob(self.raw)
        except Exception as problem:
            what = f"(log_prob raised {type(problem).__name__}: {shortened(problem, 300)})"
            raise ProgramError(f"{self._misfit()} {what}") from problem

    @property
    def value(self) -> Shaped[Tensor, "particles batch ..."]:
        """Its value [particles, batch, *event]; [1, ...] for a site outside the data's plate."""
        return self._like_value(self.raw)

    def log_prob(self) -> Float[Tensor, "particles batch"]:
        """The log-probability of its value for each datum, scaled and masked as the program says, in nats; [1, 1] for
        a site outside the data's plate.

        Raises:
            ContractError: it has not one log-probability for each datum.
        """
        try:
            term = scale_and_mask(self.density, self.scale, self.mask)
        except RuntimeError as problem:
            raise self._misfit() from problem
        return self._of_datum(term)

    def score(self) -> Float[Tensor, "particles batch"]:
        """The log-probability with no scale and no mask."""
        return self._of_datum(self.density)

    def mean(self) -> Shaped[Tensor, "particles batch ..."]:
        """The mean of its distribution, or its value where the mean is not a number."""
        try:
            mean = self.fn.mean
        except NotImplementedError:
            return self.value
        known = mean.isfinite()
        mean = torch.where(known, mean, self.raw.to(mean.dtype)) if known.any() else self.raw
        return self._like_value(mean)

    def deviation(self) -> Shaped[Tensor, "particles batch ..."]:
        """The standard deviation of its distribution; NaN where it has no formula."""
        try:
            deviation = self.fn.variance.sqrt()
        except NotImplementedError:
            deviation = torch.full_like(self.raw, torch.nan, dtype=torch.get_default_dtype())
        return self._like_value(deviation)

    def kl_to(self, prior: "Site") -> Float[Tensor, "particles batch"]:
        """KL(this || prior) of each datum in closed form, scaled and masked as this site.

        Raises:
            NotImplementedError: none is known.
        """
        lead = prior.fn.batch_shape
        fn = self.fn if self.fn.batch_shape == lead else self.fn.expand(lead)
        return self._of_datum(scale_and_mask(kl_divergence(fn, prior.fn), self.scale, self.mask))

    def counted(self) -> Float[Tensor, "particles batch"]:
        """How many elements of its value count, for each datum: those that no mask leaves out."""
        counts = _counted(self.fn).to(torch.get_default_dtype())
        if self.mask is not None:
            counts = counts * (self.mask if isinstance(self.mask, Tensor) else float(self.mask))
        return self._of_datum(counts)

    def check_shape(self) -> None:
        """Raise `ContractError` where the value misses a dim, which could broadcast against the particles unnoticed."""
        _ = self.value

    def _like_value(self, tensor: Tensor) -> Shaped[Tensor, "particles batch ..."]:
        return self._unfold(tensor, len(self.event_shape)) if self.in_plate else tensor.unsqueeze(0)

    def _of_datum(self, term: Tensor) -> Float[Tensor, "particles batch"]:
        return self._unfold(term, 0) if self.in_plate else term.sum().reshape(1, 1)

    def _unfold(self, tensor: Tensor, event_dims: int) -> Tensor:
        try:
            return self.layout.unfold(tensor, event_dims)
        except ValueError as problem:
            raise self._misfit() from problem

    def _misfit(self) -> ContractError:
        size = self.layout.size
        return ContractError(
            f"site {self.name!r}: a value of shape {list(self.raw.shape)} under a distribution of batch shape "
            f"{list(self.fn.batch_shape)} and event shape {list(self.event_shape)} does not give one "
            f"log-probability for each of the {size} data; make the value [{size}, *event shape], and call "
            ".to_event() for the dims of one datum"
        )


Sites = dict[str, Site]


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


class Record(Messenger):
    """Records the sample sites of a program, giving the named ones the values they are told to have.

    Args:
        values: values of latents, as the program takes them.
        data_plate: the name of the data's plate; None: the plate at dim -1 that is as long as the batch.
        free: point masses draw their own value, whatever they are told.
        settle: log-probabilities are taken where the site is drawn.
    """

    def __init__(self, layout: Layout, values: Mapping[str, Tensor], data_plate: str | None, free: bool, settle: bool):
        super().__init__()
        self.layout, self.values, self.data_plate = layout, values, data_plate
        self.free, self.settle = free, settle
        self.seen: list[tuple[Site, Any]] = []

    def _pyro_sample(self, msg: dict) -> None:
        if isinstance(msg["fn"], _Subsample):
            if msg["value"] is None and msg["fn"].subsample_size == self.layout.rows:  # the batch is the subsample
                msg["value"], msg["done"] = torch.arange(self.layout.rows, device=msg["fn"].device), True
        elif msg["is_observed"]:
            if isinstance(msg["value"], Tensor) and msg["value"].dtype == torch.bool:
                msg["value"] = msg["value"].to(torch.get_default_dtype())
        elif msg["name"] in self.values and not (self.free and is_point_mass(msg["fn"])):
            msg["value"], msg["done"] = self.values[msg["name"]], True

    def _pyro_post_sample(self, msg: dict) -> None:
        infer = msg["infer"] or {}
        if isinstance(msg["fn"], _Subsample) or infer.get("_deterministic"):
            return
        for frame in msg["cond_indep_stack"]:
            if frame.dim != -1 and frame.name != PARTICLES:
                raise ContractError(
                    f"site {msg['name']!r} is inside plate {frame.name!r} at dim {frame.dim}; {ONE_PLATE}"
                )
        frame = next((frame for frame in msg["cond_indep_stack"] if frame.dim == -1), None)
        site = Site(
            name=msg["name"],
            fn=msg["fn"],
            raw=msg["value"],
            observed=msg["is_observed"] or "was_observed" in infer,
            plate=frame.name if frame is not None else None,
            in_plate=False,  # which plate is the data's is known at the end
            scale=msg["scale"],
            mask=msg["mask"],
            auxiliary=bool(infer.get("is_auxiliary")),
            layout=self.layout,
        )
        if self.settle:
            _ = site.density
        self.seen.append((site, frame))

    @property
    def last(self) -> str:
        """Where the program is, in words."""
        if not self.seen:
            return "before its first site"
        last, _ = self.seen[-1]
        return f"after site {last.name!r} with a value of shape {list(last.raw.shape)}"

    def sites(self) -> Sites:
        """The sites by name, to be asked for once: that of the data's plate is known now, and its scale divided out.

        Raises:
            ContractError: two plates could be the data's.
        """
        plate = self._plate_of_data()
        for site, frame in self.seen:
            site.in_plate = frame is not None and frame.name == plate
            own = frame.full_size / frame.size if site.in_plate and frame.full_size else 1.0
            site.scale = _without(site.scale, own)
        return {site.name: site for site, _ in self.seen}

    def _plate_of_data(self) -> str | None:
        if self.data_plate is not None:
            return self.data_plate
        frames = [frame for _, frame in self.seen if frame is not None]
        names = list(dict.fromkeys(frame.name for frame in frames if frame.size in (self.layout.rows, -1)))
        if len(names) > 1:
            listed = " and ".join(map(repr, names))
            raise ContractError(
                f"the plates {listed} at dim -1 are both as long as the batch of {self.layout.rows}, so either could "
                f"be the data's; say which: data_plate = {names[0]!r} as an attribute of the pair"
            )
        return names[0] if names else None


def _without(scale: Any, own: float) -> Any:
    """A scale divided by the plate's own; 1.0 exactly where nothing is left."""
    if isinstance(scale, Tensor):
        return scale if own == 1.0 else scale / own
    return 1.0 if math.isclose(scale, own, rel_tol=1e-9) else scale / own


def observed(sites: Mapping[str, Site]) -> Sites:
    """The observed sites among `sites`."""
    return {name: site for name, site in sites.items() if site.observed}


def latent(sites: Mapping[str, Site]) -> Sites:
    """The latent sites among `sites`."""
    return {name: site for name, site in sites.items() if not site.observed}


def values_of(sites: Mapping[str, Site]) -> dict[str, Tensor]:
    """The values [particles, batch, *event] of sites."""
    return {name: site.value for name, site in sites.items()}


def side_by_side(parts: Sequence[Mapping[str, Tensor]], dim: int = 0) -> dict[str, Tensor]:
    """Tensors by name, each put together from the parts along a dim."""
    return {name: torch.cat([part[name] for part in parts], dim) for name in parts[0]} if parts else {}
