"""Latents outside the plate of the data, which all data share: what must hold of them, draws of them, and the pair that
is left where they are held."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_vae.errors import ContractError, ProgramError
from pyro_vae.pair.checks import check_auxiliary, check_per_datum, check_sites, check_supports, density_faults
from pyro_vae.pair.equality import same
from pyro_vae.pair.pair import Another, batch_size, drawing_apart, evaluating, select_fields
from pyro_vae.pair.particles import Fields, run_guide, run_guide_at, run_model
from pyro_vae.pair.sites import Site, Sites, is_point_mass, latent, observed, values_of
from pyro_vae.pair.structure import structure_of


class GlobalLatents(NamedTuple):
    """What is seen of a pair's latents outside the plate of the data.

    Attributes:
        drawn: those of the model that the guide draws, in the model's order.
        estimates: those that the guide has as a point mass at one place.
        faults: why log p - log q of them is no difference of log-densities, in words; nothing where it is.
    """

    drawn: list[str]
    estimates: list[str]
    faults: list[str]


@dataclass(frozen=True)
class GlobalDraw:
    """One draw of the guide's sites outside the plate of the data, and log p - log q of them, in nats."""

    sites: Sites
    log_ratio: Float[Tensor, ""]

    @property
    def values(self) -> dict[str, Tensor]:
        """Their values as the programs have them."""
        return {name: site.raw for name, site in self.sites.items()}


class Held(Another):
    """A pair whose global latents are held at given values: for all else they are not there, so that what is left has
    terms of each datum, given these values.

    The values are buffers, so that the graphs of different draws have one code, which is compiled once.
    """

    def __init__(self, pair: nn.Module, values: Mapping[str, Tensor]):
        super().__init__(pair)
        self.places = {name: f"held_{index}" for index, name in enumerate(values)}
        for name, place in self.places.items():
            self.register_buffer(place, values[name].detach())
        self.model, self.guide = _Hold(self)(pair.model), _Hold(self)(pair.guide)

    def hold(self, values: Mapping[str, Tensor]) -> None:
        """Hold other values of the same latents."""
        for name, place in self.places.items():
            setattr(self, place, values[name].detach())


class _Hold(Messenger):
    """Gives a pair's global latents their values, and hides them from what runs the pair."""

    def __init__(self, held: Held):
        super().__init__()
        self.held = held

    def _pyro_sample(self, msg: dict) -> None:
        place = self.held.places.get(msg["name"])
        if place is not None and not msg["is_observed"]:
            msg["value"], msg["done"], msg["stop"] = getattr(self.held, place), True, True


def held_at_a_draw(pair: nn.Module, batch: Fields) -> nn.Module:
    """The pair with its global latents held at one draw of the guide; as it is where it has none. Raises as
    `look_at_globals` does."""
    draw = checked_draw(pair, batch)
    return pair if draw is None else Held(pair, draw.values)


def checked_draw(pair: nn.Module, batch: Fields) -> GlobalDraw | None:
    """One draw of the global latents, None where the pair has none; raises as `look_at_globals` does."""
    with torch.no_grad():
        return None if look_at_globals(pair, batch) is None else draw_globals(pair, batch)


def draw_globals(pair: nn.Module, batch: Fields) -> GlobalDraw:
    """One draw of the guide's sites outside the plate of the data."""
    guide = run_guide(pair, batch)
    model = outside(run_model(pair, batch, values_of(guide)))
    guide = outside(guide)
    terms = [site.log_prob() for site in model.values()] + [-site.log_prob() for site in guide.values()]
    return GlobalDraw(guide, torch.stack([term.reshape(()) for term in terms]).sum())


def outside(sites: Sites) -> Sites:
    """The latents outside the plate of the data."""
    return {name: site for name, site in latent(sites).items() if not site.in_plate}


def look_at_globals(pair: nn.Module, batch: Fields) -> GlobalLatents | None:
    """What is seen of a pair's latents outside the plate of the data, None where there are none. Reads values.

    Raises:
        ContractError: no draw of one can be held for all data, because the guide or the prior makes it depend on the
            batch, or it is enumerated, or stands in the plate in one of the programs; or a log q of them is not what it
            is called. Names the site.
    """
    fields = select_fields(pair, batch)
    if not structure_of(pair, fields).outside:
        return None
    with evaluating(pair), torch.no_grad(), drawing_apart(fields):
        guide = run_guide(pair, fields)
        model = run_model(pair, fields, values_of(guide))
        _check_places(model, guide)
        _check_apart(pair, fields, model, guide)
        model, guide, again = outside(model), outside(guide), outside(run_guide(pair, fields))
        check_supports(model, guide)
        fixed = [name for name, site in guide.items() if _is_fixed(site, again[name], model.get(name))]
        faults = density_faults(model, {name: site for name, site in guide.items() if name not in fixed})
        for fault in faults:
            if not fault.is_loss:
                raise ContractError(f"no log-likelihood can be given: {fault.line}")
        check_auxiliary(pair, fields, of_plate=False, fixed=fixed)
    estimates = [name for name in model if name in fixed]
    lines = [f"the guide has a point estimate of {name!r}, which has no density" for name in estimates]
    drawn = [name for name in model if name not in fixed]
    return GlobalLatents(drawn, estimates, [*lines, *(fault.line for fault in faults)])


def _is_fixed(site: Site, again: Site, prior: Site | None) -> bool:
    """Whether the guide's site is a point mass on a continuous latent, at one place in both draws."""
    discrete = prior is not None and prior.support is not None and prior.support.is_discrete
    return is_point_mass(site.fn) and not discrete and torch.equal(site.raw, again.raw)


def _check_places(model: Sites, guide: Sites) -> None:
    """Raise where a site stands in the plate in one program only, or does outside it what it can only do inside."""
    check_sites(model, guide)
    check_per_datum(observed(model), {})
    for name, site in latent(model).items():
        if site.summed and not site.in_plate:
            raise ContractError(
                f"site {name!r} is outside the data plate, where enumerating it ties all data together; leave "
                "infer={'enumerate': ...} out and draw it in the guide"
            )
        both = [site, guide.get(name, site)]
        if both[0].in_plate != both[1].in_plate:
            check_per_datum({name: next(one for one in both if not one.in_plate)}, {})


def _check_apart(pair: nn.Module, fields: Fields, model: Sites, guide: Sites) -> None:
    """Raise where log p or log q of a global latent is another one on other data, or at other latents of the data."""
    values = values_of(outside(guide))
    for others in _other_data(fields):
        for program, run, expected in (("guide", run_guide_at, guide), ("model", run_model, model)):
            try:
                found = outside(run(pair, others, values))
            except ProgramError:
                continue  # a plate of fixed size, which cannot be cut, or data that the program does not take
            for name, site in outside(expected).items():
                if name not in found or not _same_site(found[name], site):
                    raise ContractError(
                        f"site {name!r} is outside the data's plate, but in the {program} it depends on the batch, or "
                        "on latents of the data, so no draw of it can be held for all data; move it inside the plate, "
                        "or let it depend on parameters and on other latents outside the plate alone"
                    )


def _same_site(found: Site, expected: Site) -> bool:
    """Whether two runs give one log-probability, and a point mass, which gives its own value, one value."""
    return same(found.density, expected.density) and same(found.raw, expected.raw)


def _other_data(fields: Fields) -> Iterator[dict[str, Tensor]]:
    """As many data that are all the first one, half of the data, and as many that are all ones."""
    size = batch_size(fields)
    yield {name: field[[0] * size] for name, field in fields.items()}
    yield {name: field[: -(-size // 2)] for name, field in fields.items()}
    yield {name: torch.ones_like(field) for name, field in fields.items()}
