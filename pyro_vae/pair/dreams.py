"""Dreams: what the model draws in the place of the data that it observes, as fields that the guide can be given."""

import weakref
from typing import NamedTuple

import pyro.distributions as dist
import torch
from jaxtyping import Shaped
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from torch import Tensor, nn

from pyro_vae.errors import ContractError
from pyro_vae.pair.equality import same
from pyro_vae.pair.pair import drawing_apart, evaluating, missing_fields, select_fields
from pyro_vae.pair.particles import Fields, run_model, run_program, seen_as
from pyro_vae.pair.sites import Sites, is_improper, latent, unwrapped, values_of


class Dream(NamedTuple):
    """Data of the model's own.

    Attributes:
        fields: those that the pair takes: drawn where the model observes them, else as they were given.
        latents: the values [1, batch, *event] behind them, by site.
    """

    fields: dict[str, Shaped[Tensor, "batch ..."]]
    latents: dict[str, Shaped[Tensor, "1 batch ..."]]


_SEEN: "weakref.WeakKeyDictionary[nn.Module, set[tuple]]" = weakref.WeakKeyDictionary()
"""The pairs, with the shapes of their data, whose dreams were seen to be draws of p(x, z)."""


def dream(pair: nn.Module, batch: Fields, instead: str) -> Dream:
    """A draw of p(x, z) in the place of each datum. What the model conditions on stays, and so do gaps (NaN).

    When a pair first dreams of data of a shape, its dream is given to it as data, which reads values: the model must
    say of it what it said when it drew it.

    Args:
        instead: what a user of a pair that cannot dream can do, in words.

    Raises:
        ContractError: a site observes what is no part of a field, or the model uses observed data in another way than
            by observing them, or it has no proper prior; names the site.
    """
    given = select_fields(pair, batch)
    key, seen = seen_as(pair, given), _SEEN.setdefault(pair, set())
    if key not in seen:
        _look(pair, given, instead)
        seen.add(key)
    found, _ = _drawn(pair, given, instead)
    gaps = {name: given[name] for name in missing_fields(pair) if name in given}
    kept = {name: torch.where(gap.isnan(), gap, found.fields[name]) for name, gap in gaps.items()}
    return found._replace(fields=found.fields | kept)


def _look(pair: nn.Module, given: Fields, instead: str) -> None:
    """Raise `ContractError` where what the model draws is no draw of p(x, z)."""
    with drawing_apart(given), evaluating(pair), torch.no_grad():
        found, drawn = _drawn(pair, given, instead)
        again = run_model(pair, found.fields, found.latents)
        for name, site in drawn.items():
            if name not in again or not same(again[name].density, site.density):
                raise ContractError(
                    f"site {name!r} depends on data that the model observes in another way than by what pyro.sample "
                    f"returns, so what the model draws in their place is no draw of p(x, z); {instead}"
                )


def _drawn(pair: nn.Module, given: Fields, instead: str) -> tuple[Dream, Sites]:
    """A dream without gaps, and the sites of the model as it drew them."""
    copies = {name: value.clone() for name, value in given.items()}
    dreaming = _Dreaming(instead)

    def model(**fields: Tensor) -> None:
        with dreaming:
            pair.model(**fields)

    with torch.no_grad():
        sites = run_program(model, pair, copies)
    fields = dict(copies)
    for name, seen in dreaming.seen.items():
        field, value = _field_of(seen, copies), dreaming.drawn[name]
        if field is None or seen.shape != value.shape:
            raise ContractError(
                f"site {name!r} observes no field as it is given, nor a part of one, so what the model draws in its "
                f"place is no data; write obs=the field, or {instead}"
            )
        fields[field] = _with_part(fields[field], seen, value.to(seen.dtype))
    return Dream(fields, values_of(latent(sites))), sites


def _field_of(seen: Tensor, fields: Fields) -> str | None:
    """The field that a tensor is, or is a view of."""
    for name, field in fields.items():
        if seen is field or seen.untyped_storage()._cdata == field.untyped_storage()._cdata:
            return name
    return None


def _with_part(field: Tensor, part: Tensor, value: Tensor) -> Tensor:
    """A field with another value where a view of it stands."""
    if part.shape == field.shape and part.stride() == field.stride():
        return value
    return torch.as_strided_scatter(field, value, part.shape, part.stride(), part.storage_offset())


class _Dreaming(UnconditionMessenger):
    """Lets a program draw what it observes.

    Attributes:
        seen: what each site observed.
        drawn: what it drew in its place.
    """

    def __init__(self, instead: str):
        super().__init__()
        self.instead = instead
        self.seen: dict[str, Tensor] = {}
        self.drawn: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: dict) -> None:
        fn = msg["fn"]
        if is_improper(fn) or isinstance(unwrapped(fn), dist.Unit):
            what = "an improper prior" if is_improper(fn) else "a pyro.factor"
            raise ContractError(f"site {msg['name']!r} is {what}, so nothing can be drawn from p(x, z); {self.instead}")
        if msg["is_observed"] and not msg["infer"].get("_deterministic"):
            self.seen[msg["name"]] = torch.as_tensor(msg["value"])
        super()._pyro_sample(msg)

    def _pyro_post_sample(self, msg: dict) -> None:
        if msg["name"] in self.seen:
            self.drawn[msg["name"]] = msg["value"]
