"""The label of a datum as a pair has it: an enumerated site, whose values may be labels or clusters without a name."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from pyro_vae.data.labels import HIDDEN
from pyro_vae.errors import ContractError, UnknownName
from pyro_vae.pair.obs_mask import UNOBSERVED
from pyro_vae.pair.pair import field_names, select_fields
from pyro_vae.pair.particles import Fields, run_guide, run_model
from pyro_vae.pair.posterior import guide_probabilities, hidden_sites, probabilities
from pyro_vae.pair.sites import values_of
from pyro_vae.pair.structure import structure_of

NAMES = ("label", "y")
"""What a label is called, as a field and as a site, the first before the second."""


class Label(NamedTuple):
    """An enumerated site of a datum, and its values in their order."""

    site: str
    values: Shaped[Tensor, " values *event"]


def knows_labels(pair: nn.Module) -> bool:
    """Whether the pair takes labels as a field, so that the values of its site are labels and no clusters."""
    names = field_names(pair)
    return not {*names.required, *names.optional}.isdisjoint(NAMES)


def unlabelled(pair: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The fields that a pair takes, with no label shown: one that it can do without is left out, another is -1.

    Raises:
        ContractError: a label that it needs is not one whole number a datum.
        DataError: a field that it needs is not there.
    """
    fields = select_fields(pair, batch)
    for name in [name for name in NAMES if name in fields]:
        label = fields.pop(name)
        if name in field_names(pair).required:
            if label.dim() != 1:
                raise ContractError(
                    f"the pair needs the field {name!r} of shape {list(label.shape[1:])}, so it cannot be hidden; let "
                    f"the pair do without it ({name}=None), or take whole numbers, {HIDDEN} where one is hidden"
                )
            fields[name] = torch.full_like(label, HIDDEN)
    return fields


def label_sites(pair: nn.Module, fields: Fields) -> dict[str, Label]:
    """The enumerated sites of which a datum has one value, by name. `fields` are those that it takes."""
    enumerated = structure_of(pair, fields).enumerated["model"]
    if not enumerated:
        return {}
    with torch.no_grad():
        model = run_model(pair, fields, values_of(run_guide(pair, fields)))
    sites = {name: model[name] for name in sorted(enumerated) if name in model}
    return {
        name: Label(name, site.fn.enumerate_support(expand=False).reshape(-1, *site.event_shape))
        for name, site in sites.items()
        if site.in_plate and not site.inner
    }


def label_of(pair: nn.Module, fields: Fields, site: str | None = None) -> Label:
    """The site that stands for the label: the one that is named, or is called label or y, or the only one.

    Raises:
        ContractError: there is none, or several could be.
        UnknownName: none has this name.
    """
    found = label_sites(pair, fields)
    if site is not None:
        if site not in found:
            raise UnknownName("enumerated site of a datum", site, found)
        return found[site]
    for name in NAMES:
        for called in (name, name + UNOBSERVED):
            if called in found:
                return found[called]
    if len(found) == 1:
        return next(iter(found.values()))
    raise ContractError(
        f"the pair enumerates {', '.join(found)}, each of which could be the label; say which: site={min(found)!r}"
        if found
        else "the pair enumerates no site of which a datum has one value, so it has no label and no cluster; mark one "
        "with infer={'enumerate': 'parallel'}"
    )


def label_probabilities(pair: nn.Module, fields: Fields, site: str) -> Float[Tensor, "batch values"]:
    """The probability of each value given x: q(y|x) where the guide enumerates the site, else p(y|x, z); at a draw of
    what the guide draws."""
    with torch.no_grad():
        found = guide_probabilities(pair, fields)
        if site not in found:
            hidden = hidden_sites(pair, fields, values_of(run_guide(pair, fields)))
            found = probabilities(hidden)
    return found[site]
