"""Bits per dim: minus the log-likelihood of all data in bits, per element that the model observes."""

import math

from torch import nn

from pyro_vae.data import Split
from pyro_vae.evaluation.blocks import DATA_BLOCK
from pyro_vae.evaluation.result import BOUNDED, Result
from pyro_vae.pair.data_fit import is_discrete, observed_sites
from pyro_vae.pair.sites import has_mask


def bits_per_dim(result: Result, pair: nn.Module, split: Split) -> tuple[float | None, str | None]:
    """Bits per dim of a result of a pair on these data, or None and why there are none."""
    if result.quantity not in (*BOUNDED, "log_predictive"):
        return None, "not a log-likelihood"
    if not is_discrete(pair, split.head(1).take(slice(None))):
        return None, "the data are continuous, so their density has no bits"
    elements = observed_elements(pair, split)
    if not elements:
        return None, "every element is masked"
    return -result.headline.double().sum().item() / (elements * math.log(2)), None


def observed_elements(pair: nn.Module, split: Split) -> float:
    """How many elements the model observes in all data; those that a mask leaves out do not count."""
    first = observed_sites(pair, split.head(2).take(slice(None))).values()
    if not any(has_mask(site) for site in first):
        return split.size * sum(site.datum_shape.numel() for site in first)
    total = 0.0
    for batch in split.batches(DATA_BLOCK):
        total += sum(site.counted().sum().item() for site in observed_sites(pair, batch).values())
    return total
