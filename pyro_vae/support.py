"""Do the data fit the pair? Observed values are checked against the support of their distribution."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_vae.data import Split
from pyro_vae.errors import DataError
from pyro_vae.pair import evaluating
from pyro_vae.terms import Site, run_guide, run_model, select_fields

CHUNK = 4096

WAYS_OUT = {
    type(constraints.boolean): (
        "a Bernoulli likelihood needs 0 or 1; use binarize='dynamic' or 'static', another likelihood "
        "(continuous_bernoulli, gaussian), or relaxed=True for a loss on grey values that is no likelihood"
    ),
    constraints.integer_interval: ("this likelihood needs whole levels 0..{upper}; load 8-bit data with scale='raw'"),
    type(
        constraints.nonnegative_integer
    ): "a Poisson likelihood needs counts 0, 1, 2, ...; load counts with scale='raw'",
    type(constraints.unit_interval): "this likelihood needs values in [0, 1]; rescale the data",
    type(constraints.real): "values must be finite numbers",
}


def observed_sites(pair: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Site]:
    """The observed sites of the model on a batch, at one draw of the guide."""
    with torch.no_grad(), evaluating(pair):
        latents = {name: site.value for name, site in run_guide(pair, batch).items()}
        return {n: s for n, s in run_model(pair, batch, latents).items() if s.observed}


def is_discrete(pair: nn.Module, batch: Mapping[str, Tensor]) -> bool:
    """Whether every observed site has discrete support, so that bits per dim exist."""
    sites = observed_sites(pair, batch).values()
    return bool(sites) and all(site.fn.support.is_discrete for site in sites)


def check_support(pair: nn.Module, split: Split, relaxed: bool = False) -> None:
    """Raise `DataError` where a value of the split is outside the support of the site that observes it.

    `relaxed` lets values within [0, 1] pass under a Bernoulli.
    """
    with torch.random.fork_rng():
        example = split.head(2).take(slice(None))
        for site in observed_sites(pair, example).values():
            for field, value in select_fields(pair, example).items():
                if site.value is value:
                    _check_field(split, field, site.fn.support, relaxed)


def _check_field(split: Split, field: str, support: constraints.Constraint, relaxed: bool) -> None:
    base = _element_constraint(support)
    if relaxed and isinstance(base, type(constraints.boolean)):
        base = constraints.unit_interval
    for start in range(0, split.size, CHUNK):
        values = split.take(slice(start, start + CHUNK))[field]
        valid = base.check(values)
        if not valid.all():
            row = int((~valid).reshape(len(values), -1).any(1).nonzero()[0])
            value = values[row][~valid[row]].flatten()[0].item()
            advice = WAYS_OUT.get(type(base), f"the likelihood needs values in {base}")
            upper = getattr(base, "upper_bound", "")
            raise DataError(f"{field}[{start + row}] holds {value:.4g}: {advice.format(upper=upper)}")


def _element_constraint(support: constraints.Constraint) -> constraints.Constraint:
    while isinstance(support, type(constraints.independent(constraints.real, 1))):
        support = support.base_constraint
    return support
