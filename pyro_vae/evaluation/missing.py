"""Data that lack values, evaluated: which pair takes them, and the figures of data that lack everything."""

from collections.abc import Collection
from dataclasses import replace

import torch
from torch import nn

from pyro_vae.data import Split
from pyro_vae.data.missing import observed_means
from pyro_vae.errors import UserError, find
from pyro_vae.evaluation.result import Estimate
from pyro_vae.pair.missing import FILL, keep_means, marginalised
from pyro_vae.pair.missing_checks import Absent, check_missing, find_missing
from pyro_vae.pair.pair import missing_fields
from pyro_vae.runs.run import Run

TREATMENTS = {"refuse": False, "marginalise": True}
"""What `missing` may be: are values left out that are missing where the pair does not allow it itself?"""

CERTAIN = {"log_likelihood": 0.0, "half": 0.0, "jackknife": 0.0, "monte_carlo_error": 0.0, "pareto_k": -torch.inf}
"""The figures of a datum of which nothing is observed, whose log p is 0."""


def tolerant(
    pair: nn.Module, split: Split, missing: str, run: Run | None = None, also: Collection[str] = (), source: str = ""
) -> tuple[nn.Module, Absent, list[str]]:
    """The pair that evaluates data which may lack values, what they lack, and what is to be said of it.

    Args:
        missing: "refuse": values may be missing where the pair allows it; "marginalise": in every field.
        run: where the pair was trained, whose data have the means that the guide sees in the gaps.
        also: fields of which an evaluator leaves elements out.
        source: what the data are called.

    Raises:
        UnknownName: no such treatment.
        DataError: a value is missing where nothing allows it; names the field and the row.
        ContractError: the model does not leave out what is missing; names the site.
    """
    anywhere = find("treatment of missing values", missing, TREATMENTS)
    found = find_missing(pair, split)
    allowing = marginalised(pair, tuple(dict.fromkeys([*(found if anywhere else ()), *also])))
    unknown = [n for n in missing_fields(allowing) if not hasattr(allowing, FILL + n) and n in {*found, *also}]
    if unknown and run is not None:
        keep_means(allowing, _training_means(run, unknown))
        unknown = [name for name in unknown if not hasattr(allowing, FILL + name)]
    absent = check_missing(allowing, split, source, found)
    notes = [f"the guide sees zeros where {name} is missing, since no training mean is known" for name in unknown]
    return allowing, absent, [*notes, *absent.lines]


def _training_means(run: Run, names: Collection[str]) -> dict[str, torch.Tensor]:
    """The means of a run's training data, where it still has them."""
    try:
        data = run.data
    except UserError:
        return {}
    return observed_means(data.train if data.undrawn is None else data.undrawn, names)


def settled(estimate: Estimate, absent: Absent) -> Estimate:
    """What was found, with the figures of data of which nothing is observed as they are known to be."""
    if not absent.blank or estimate.quantity != "log_likelihood":
        return estimate
    figures = {name: value.clone() for name, value in estimate.per_datum.items()}
    for name, value in CERTAIN.items():
        if name in figures:
            figures[name][absent.blank] = value
    return replace(estimate, per_datum=figures)


def described(estimate: Estimate, absent: Absent, notes: list[str]) -> Estimate:
    """An estimate that says what the data lack."""
    share = (
        {"missing": {"elements": absent.elements, "share": absent.elements / absent.size}} if absent.elements else {}
    )
    return replace(estimate, summary=estimate.summary | share, warnings=[*estimate.warnings, *notes])
