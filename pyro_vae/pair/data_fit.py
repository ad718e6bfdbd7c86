"""Do the data fit the pair? Observed values are checked against the support of their distribution."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_vae.data import Split
from pyro_vae.errors import DataError
from pyro_vae.pair.pair import batch_size, evaluating, missing_fields, select_fields
from pyro_vae.pair.particles import run_guide, run_model
from pyro_vae.pair.sites import Site, Sites, observed, values_of
from pyro_vae.parts.words import Documents

CHUNK = 4096
FEW = 512
"""Data at a time where the model has to run to tell what a site observes."""

Support = constraints.Constraint
COUNTS = constraints.nonnegative_integer

WAYS_OUT = {
    type(constraints.boolean): (
        "a Bernoulli likelihood needs 0 or 1; use binarize='dynamic' or 'static', another likelihood "
        "(continuous_bernoulli, gaussian), or relaxed=True for a loss on grey values that is no likelihood"
    ),
    constraints.integer_interval: "this site needs whole levels 0..{upper} (8-bit data: load them with scale='raw')",
    type(COUNTS): (
        "this likelihood needs counts 0, 1, 2, ...: give them as they were counted, not normalised or averaged "
        "(counts of 8 bits: load them with scale='raw')"
    ),
    Documents: (
        "a bag of words needs whole counts 0, 1, 2, ... and at least one word in each document; give counts as they "
        "were counted, and leave out documents of no words"
    ),
    type(constraints.unit_interval): "this likelihood needs values in [0, 1]; rescale the data",
    type(constraints.real): "values must be finite numbers",
}


def observed_sites(pair: nn.Module, batch: Mapping[str, Tensor]) -> Sites:
    """The observed sites of the model on a batch, at one draw of the guide."""
    with torch.no_grad(), evaluating(pair):
        return observed(run_model(pair, batch, values_of(run_guide(pair, batch))))


def is_discrete(pair: nn.Module, batch: Mapping[str, Tensor]) -> bool:
    """Whether every observed site has discrete support, so that bits per dim exist."""
    supports = [site.support for site in observed_sites(pair, batch).values()]
    return bool(supports) and all(support is not None and support.is_discrete for support in supports)


def check_support(pair: nn.Module, split: Split, relaxed: bool = False) -> None:
    """Raise `DataError` where a value that a site observes is outside the support of its distribution.

    Where that value is a field as it is given, the field is read; where it is a function of the fields, the model runs
    on all data.

    Args:
        relaxed: let values within [0, 1] pass under a Bernoulli.
    """
    with torch.random.fork_rng():
        example = select_fields(pair, split.head(2).take(slice(None)))
        computed = []
        for site in observed_sites(pair, example).values():
            field = next((field for field, value in example.items() if value is site.given), None)
            if field is not None and _is_of_all(_element_constraint(site.support)):
                _check_field(split, field, _allowed(site.support, relaxed), field in missing_fields(pair))
            elif site.support is not None:
                computed.append(site.name)
        if computed:
            _check_sites(pair, split, computed, relaxed)


def _check_field(split: Split, field: str, support: Support, may_miss: bool) -> None:
    for start, batch in in_order(split, CHUNK):
        values = batch[field]
        valid = support.check(values)
        valid = valid | values.isnan() if may_miss else valid
        _check_values(f"{field}[{{row}}]", values, valid, support, start)


def _check_sites(pair: nn.Module, split: Split, names: list[str], relaxed: bool) -> None:
    for start, batch in in_order(split, FEW):
        sites = observed_sites(pair, batch)
        for site in (sites[name] for name in names if name in sites):
            if site.in_plate:
                _check_site(site, _allowed(site.support, relaxed), start)


def _check_site(site: Site, support: Support, start: int) -> None:
    values, event_dims = _observation(site), len(site.event_shape)
    valid = support.check(values)
    values_of_data = site.unfold(values, event_dims)[0]
    valid_of_data = site.unfold(valid, event_dims - values.dim() + valid.dim())[0]
    where = f"site {site.name!r} observes at datum {{row}} a value that"
    _check_values(where, values_of_data, valid_of_data, support, start)


def in_order(split: Split, size: int) -> Iterator[tuple[int, Mapping[str, Tensor]]]:
    """Batches of all data, and which datum is the first of each."""
    first = 0
    for batch in split.batches(size):
        yield first, batch
        first += batch_size(batch)


def _observation(site: Site) -> Tensor:
    """What a site observes; where a mask leaves it out, what the site could observe."""
    if not isinstance(site.mask, Tensor):
        return site.raw
    keep = site.mask.bool().expand(site.fn.batch_shape)
    keep = keep.reshape(*keep.shape, *[1] * len(site.event_shape))
    return torch.where(keep, site.raw, site.fn().to(site.raw.dtype))


def _check_values(where: str, values: Tensor, valid: Tensor, support: Support, start: int) -> None:
    if valid.all():
        return
    row = int((~valid).reshape(len(values), -1).any(1).nonzero()[0])
    wrong = values[row][~valid[row]] if valid.shape == values.shape else values[row]
    base = _element_constraint(support)
    advice = WAYS_OUT.get(type(base), f"the likelihood needs values in {base}")
    upper = getattr(base, "upper_bound", "")
    where = where.format(row=start + row)
    raise DataError(f"{where} holds {wrong.flatten()[0].item():.4g}: {advice.format(upper=upper)}")


def _allowed(support: Support, relaxed: bool) -> Support:
    base = _element_constraint(support)
    if relaxed and isinstance(base, type(constraints.boolean)):
        return constraints.unit_interval
    return base if _is_of_all(base) else support


def _is_of_all(base: Support | None) -> bool:
    """Whether a support of single elements does not differ from datum to datum."""
    bounds = [getattr(base, end, 0) for end in ("lower_bound", "upper_bound")]
    intervals = (constraints.interval, constraints.integer_interval)
    half_lines = (constraints.greater_than, constraints.greater_than_eq)
    known = (type(constraints.boolean), type(constraints.real), type(COUNTS), Documents, *intervals, *half_lines)
    return isinstance(base, known) and not any(isinstance(bound, Tensor) for bound in bounds)


def _element_constraint(support: Support | None) -> Support | None:
    if isinstance(support, constraints.multinomial):
        return COUNTS  # log_prob takes each datum's own total
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support
