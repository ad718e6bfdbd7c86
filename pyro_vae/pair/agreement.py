"""Nets that an enumeration would lead astray: a pair gives the same numbers whether a value is enumerated or given."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_vae.errors import ContractError, UserError
from pyro_vae.pair.equality import same
from pyro_vae.pair.pair import batch_size, evaluating, select_fields
from pyro_vae.pair.particles import Fields, run_guide, run_guide_at, run_model
from pyro_vae.pair.sites import Site, Sites, values_of
from pyro_vae.pair.structure import structure_of

TRIED_DATA = 2
MOST_NUMBERS = 2**27
"""How many numbers a tensor of a few data may have."""


class Bounded(TorchDispatchMode):
    """Raises `ContractError` where a tensor becomes too large."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and made.numel() > MOST_NUMBERS:
            raise ContractError(
                f"what is enumerated together makes a tensor of {made.numel():,} numbers for {TRIED_DATA} data; put "
                "what follows one another under pyro.markov, or draw some of it in the guide"
            )
        return made


def check_enumeration(pair: nn.Module, batch: Fields) -> None:
    """Raise `ContractError` where a site has another log-probability when values are enumerated than when they are
    given: its net takes the dims of enumerations for others. Looked at once, on a few data."""
    fields = select_fields(pair, batch)
    structure = structure_of(pair, fields)
    if not structure.sums or structure.agrees:
        return
    structure.agrees.append(True)
    rows = [row % batch_size(fields) for row in range(TRIED_DATA)]
    few = {name: value[rows] for name, value in fields.items()}
    devices = sorted({value.device.index for value in fields.values() if value.is_cuda})
    with torch.random.fork_rng(devices=devices), evaluating(pair), torch.no_grad():
        try:
            with Bounded():
                guide = run_guide(pair, few, summing=True)
                model = run_model(pair, few, values_of(guide), summing=True)
                whole = {"guide": guide, "model": model}
                found = {
                    program: [(site, _at_last(site)) for site in sites.values()] for program, sites in whole.items()
                }
            values = {site.name: _last_value(site) for site in [*model.values(), *guide.values()] if not site.observed}
            given = {"guide": run_guide_at(pair, few, values), "model": run_model(pair, few, values)}
        except ContractError:
            structure.agrees.clear()
            raise
        except UserError:
            return  # a plate of fixed size, or a density that is known at its own draws only
    for program, sites in found.items():
        for site, term in sites:
            if site.in_plate and not same(term, given[program][site.name].unfold(given[program][site.name].density, 0)):
                structure.agrees.clear()
                raise _astray(program, site, guide, model)


def _at_last(site: Site) -> Tensor:
    """The log-probability of a site where each enumeration is at its last value."""
    return site.unfold(_last(site, site.density, 0), 0) if site.in_plate else site.density


def _last_value(site: Site) -> Tensor:
    """The value of a site there, [1, batch, ...]."""
    if not site.in_plate:
        return site.value
    raw = _last(site, site.raw, len(site.event_shape))
    lead = torch.broadcast_shapes(raw.shape[: raw.dim() - len(site.event_shape)], _plates_shape(site))
    return site.unfold(raw.expand(*lead, *site.event_shape), len(site.event_shape))


def _plates_shape(site: Site) -> torch.Size:
    """The shape of a site's batch without enumerations."""
    return torch.Size(site.fn.batch_shape[-site.layout.depth :])


def _last(site: Site, tensor: Tensor, event_dims: int) -> Tensor:
    for dim in site.dims:
        if -dim <= tensor.dim() - event_dims:
            tensor = tensor.narrow(dim - event_dims, tensor.shape[dim - event_dims] - 1, 1)
    return tensor


def _astray(program: str, site: Site, guide: Sites, model: Sites) -> ContractError:
    names = sorted(name for name, other in {**model, **guide}.items() if other.enumerated is not None)
    return ContractError(
        f"site {site.name!r} of the {program} has another log-probability where {names[0]!r} is enumerated than where "
        "it is given: a net takes the dim of the enumeration, to the left of the batch, for one of its own; count dims "
        "from the right (dim=-1), and let it broadcast over leading dims"
    )
