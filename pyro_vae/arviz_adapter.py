"""The one place that speaks to ArviZ, whose interface differs between 0.x (Python 3.11) and 1.x (3.12 and later)."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

with warnings.catch_warnings(action="ignore"):
    import arviz

IS_ONE = int(arviz.__version__.split(".")[0]) >= 1


def pareto_k(log_weights: np.ndarray) -> float:
    """ArviZ's Pareto k-hat of the log weights [n] of one datum."""
    with warnings.catch_warnings(action="ignore"):
        if IS_ONE:
            from arviz_stats.base import array_stats

            return float(array_stats.psislw(-log_weights)[1])
        return float(arviz.psislw(log_weights.copy())[1])


def from_groups(
    groups: dict[str, dict[str, np.ndarray]], dims: Mapping[str, Sequence[str]], notes: Mapping[str, str]
) -> Any:
    """InferenceData (0.x) or a DataTree (1.x) of groups of arrays [chain, draw, ...]; `observed_data` has neither.

    Args:
        dims: names of the first of the other dims of an array, by its name.
        notes: attributes of `sample_stats`.
    """
    with warnings.catch_warnings(action="ignore"):
        made = arviz.from_dict(groups, dims=dims) if IS_ONE else arviz.from_dict(**groups, dims=dims)
    made["sample_stats"].attrs.update(notes)
    return made
