"""Do the data lack values where the pair allows it only, and does the pair leave out what is missing?"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from pyro_vae.data import Split
from pyro_vae.data.missing import Missing, missing_of
from pyro_vae.data.stream import Stream
from pyro_vae.errors import ContractError, DataError, ProgramError
from pyro_vae.pair.data_fit import FEW, in_order, observed_sites
from pyro_vae.pair.equality import same
from pyro_vae.pair.missing import LeaveOut, independent_part
from pyro_vae.pair.pair import OBSERVED, batch_size, device_of, evaluating, first_rows, missing_fields, select_fields
from pyro_vae.pair.particles import run_guide, run_program
from pyro_vae.pair.sites import Site, Sites, latent, values_of

LOOKED_AT = 100
"""Among so many of the data values are looked for that could stand where one is missing."""

Fields = dict[str, Tensor]


@dataclass(frozen=True)
class Absent:
    """What data lack.

    Attributes:
        elements: how many elements are missing.
        size: how many elements the fields have that lack some.
        blank: the positions of the data of which nothing is observed: their log p is 0.
        numbers: the same, counted in what the split was made of.
    """

    elements: int = 0
    size: int = 0
    blank: list[int] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)

    @property
    def lines(self) -> list[str]:
        """That some data lack all, in words."""
        if not self.blank:
            return []
        first, count = self.numbers[0], len(self.blank)
        if count == 1:
            return [f"datum {first} has all its elements missing, so its log p is 0"]
        return [f"{count} data have all their elements missing, so their log p is 0 (the first is datum {first})"]


def find_missing(pair: nn.Module, split: Split) -> dict[str, Missing]:
    """What is missing of the fields that the pair takes, by name; a `DataLoader` checks its own batches."""
    if isinstance(split, Stream) and not missing_fields(pair):
        return {}
    with torch.random.fork_rng():
        example = select_fields(pair, split.head(1).take(slice(None)))
    return missing_of(split, [name for name, value in example.items() if value.is_floating_point()])


def check_missing(
    pair: nn.Module, split: Split, source: str = "", found: Mapping[str, Missing] | None = None
) -> Absent:
    """Check that values are missing where the pair allows it only, and that what is missing changes nothing else.

    Args:
        source: what the data are called.
        found: what `find_missing` gives, where it is known.

    Raises:
        DataError: a value is missing where nothing allows it; names the field and the row.
        ContractError: the model uses a field that may have gaps in another way than by observing it, or lacks a part of
            what can only be left out whole; names the site.
    """
    with torch.random.fork_rng():
        given = split.head(1).take(slice(None))
    _check_declared(pair, given)
    found = find_missing(pair, split) if found is None else found
    for name, missing in found.items():
        if name not in missing_fields(pair):
            raise DataError(
                f"{source + ': ' if source else ''}{name}{missing.first} is nan, a missing value, which "
                f"{type(pair).__name__} does not allow there; remove or replace it, let the pair leave it out "
                f"(missing = ({name!r},) as an attribute, missing='marginalise' of a VAE), or evaluate with "
                "missing='marginalise'"
            )
    if not found:
        return Absent()
    with torch.random.fork_rng(), torch.no_grad(), evaluating(pair):
        _check_left_out(pair, split, found)
        blank = _blank(pair, split, found)
    elements, size = (sum(getattr(missing, part) for missing in found.values()) for part in ("elements", "size"))
    numbers = blank if split.origin is None else split.origin[blank].tolist()
    return Absent(elements, size, blank, numbers)


def _check_declared(pair: nn.Module, given: Mapping[str, Tensor]) -> None:
    """Raise where what the pair declares is no field, or the data bring a mask that is made from their gaps."""
    taken = select_fields(pair, given)
    for name in missing_fields(pair):
        if name not in taken:
            raise ContractError(f"missing names {name!r}, but {type(pair).__name__} is given {', '.join(taken)}")
        if name + OBSERVED in given and name + OBSERVED in taken:
            raise DataError(
                f"{name + OBSERVED} is made from what {name} lacks; make {name} NaN where it is not observed, "
                f"and leave {name + OBSERVED} out"
            )


def _check_whole(pair: nn.Module, split: Split, sites: Sites) -> None:
    """Raise `ContractError` where a part of an event is missing whose elements depend on each other.

    Args:
        sites: those of the model.
    """
    tied = [name for name, site in sites.items() if site.observed and _width(site)]
    for start, batch in in_order(split, FEW) if tied else ():
        sites = observed_sites(pair, _here(pair, batch))
        for site in [sites[name] for name in tied if name in sites and sites[name].in_plate]:
            partly = _partly(site)
            if partly.any():
                row = start + int(partly.nonzero()[0])
                row = row if split.origin is None else int(split.origin[row])
                raise ContractError(
                    f"site {site.name!r} lacks a part of what it observes at datum {row}, "
                    f"but the elements of a {type(independent_part(site.fn)).__name__} depend on each other, so that "
                    "they can only be left out together; use a likelihood of independent elements (.to_event)"
                )


def _width(site: Site) -> int:
    """Over how many dims the elements of a site depend on each other."""
    return len(independent_part(site.fn).event_shape)


def _check_left_out(pair: nn.Module, split: Split, found: Mapping[str, Missing]) -> None:
    """Raise `ContractError` where the model's log-probabilities change with the values of what is missing.

    Elements that some datum lacks are taken away from a few data, and then other values are put in their place: at the
    same latents, and with the same elements left out, nothing may change.
    """
    gone, others = _trials(pair, split, found)
    drawn = values_of(run_guide(pair, others[0]))
    drawn |= values_of(latent(_model_at(pair, others[0], drawn, LeaveOut())))
    listed = ", ".join(map(repr, found))
    handler = LeaveOut()
    try:
        expected = _model_at(pair, gone, drawn, handler)
    except ProgramError as problem:
        raise ContractError(
            f"the model fails where values of {listed} are missing, so it uses them for more than what its sites "
            f"observe: {problem}"
        ) from problem
    _check_whole(pair, split, expected)
    for other in others:
        sites = _model_at(pair, other, drawn, LeaveOut(handler.masks))
        for name in dict.fromkeys([*expected, *sites]):
            if not (name in expected and name in sites and _alike(expected[name], sites[name])):
                raise ContractError(
                    f"site {name!r} of the model depends on missing values of {listed}: the model uses them for more "
                    "than what its sites observe, and they cannot be left out; give it what is never missing, or fill "
                    "in the data"
                )


def _trials(pair: nn.Module, split: Split, found: Mapping[str, Missing]) -> tuple[Fields, list[Fields]]:
    """A few data from which elements were taken away, and the same data twice with other values in their place."""
    patterns = _patterns(found)
    known = _here(pair, split.head(LOOKED_AT).take(slice(None)))
    few, taken = first_rows(known, batch_size(patterns)), _here(pair, patterns)
    whole = {n: _replaced(few[n], few[n].isnan(), known[n], largest=False) for n in patterns}
    gone = select_fields(pair, few | {n: value.masked_fill(taken[n], torch.nan) for n, value in whole.items()})
    others = [
        gone | {n: _replaced(value, taken[n], known[n], largest) for n, value in whole.items()}
        for largest in (False, True)
    ]
    return gone, others


def _patterns(found: Mapping[str, Missing]) -> dict[str, Bool[Tensor, "patterns ..."]]:
    """What to take away of each field: of any two elements that data may lack, each in turn is left where the other is
    taken away; and all of them."""
    sizes = [missing.ever.numel() for missing in found.values()]
    number = torch.arange(sum(sizes))
    bits = [(number >> bit) % 2 == 1 for bit in range(max(1, int(number[-1]).bit_length()))]
    rows = torch.stack([*bits, *[~bit for bit in bits], torch.ones_like(bits[0])])
    parts = zip(found.items(), rows.split(sizes, 1), strict=True)
    return {name: part.reshape(len(rows), *missing.ever.shape) & missing.ever for (name, missing), part in parts}


def _alike(site: Site, other: Site) -> bool:
    """Whether a site that lacks values has the log-probabilities that it has with others in their place."""
    counts = ~_partly(site) if site.in_plate and site.observed else slice(None)
    return same(site.log_prob()[:, counts], other.log_prob()[:, counts])


def _partly(site: Site) -> Bool[Tensor, " batch"]:
    """Which data lack some but not all of what can only be left out together."""
    seen = site.seen[0]
    missing = seen.isnan().flatten(-_width(site)) if _width(site) else seen.isnan().unsqueeze(-1)
    return (missing.any(-1) & ~missing.all(-1)).reshape(len(seen), -1).any(1)


def _replaced(field: Tensor, where: Tensor, known: Tensor, largest: bool) -> Tensor:
    """A field with other values in some places: the smallest or the largest that each element has in the known data."""
    end = -torch.inf if largest else torch.inf
    values = known.masked_fill(known.isnan(), end)
    of_each = values.amax(0) if largest else values.amin(0)
    of_all = values.max() if largest else values.min()
    of_all = torch.where(of_all.isfinite(), of_all, float(largest))
    return torch.where(where, torch.where(of_each.isfinite(), of_each, of_all), field)


def _model_at(pair: nn.Module, fields: Fields, values: Fields, handler: LeaveOut) -> Sites:
    """The sites of the model at these latents, what is missing left out by the handler."""

    def model(**fields: Tensor) -> None:
        with handler:
            pair.model(**fields)

    return run_program(model, pair, fields, 1, values)


def _blank(pair: nn.Module, split: Split, found: Mapping[str, Missing]) -> list[int]:
    """The positions of the data of which no site observes anything."""
    candidates = sorted(set.intersection(*[set(missing.blank) for missing in found.values()]))
    if isinstance(split, Stream):
        return []
    blank = []
    for first in range(0, len(candidates), FEW):
        some = torch.tensor(candidates[first : first + FEW])
        sites = observed_sites(pair, _here(pair, split.take(some.to(split.device))))
        counted = sum(site.counted().sum(0) for site in sites.values() if site.in_plate)
        blank += some[(torch.as_tensor(counted).cpu() == 0).expand(len(some))].tolist()
    return blank


def _here(pair: nn.Module, batch: Mapping[str, Tensor]) -> Fields:
    """A batch on the pair's device."""
    return {name: value.to(device_of(pair)) for name, value in batch.items()}
