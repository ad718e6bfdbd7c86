"""Training data that lack values: what a pair is told of them before it trains."""

from dataclasses import replace

from jaxtyping import Float
from torch import Tensor, nn

from pyro_vae.data import Dataset
from pyro_vae.data.missing import observed_means
from pyro_vae.pair.missing import keep_means
from pyro_vae.pair.missing_checks import check_missing
from pyro_vae.pair.pair import missing_fields

UNNAMED = "data"


def missing_values(pair: nn.Module, data: Dataset) -> tuple[Dataset, dict[str, Float[Tensor, "..."]], list[str]]:
    """Data whose values may be missing where the pair allows it, the means of the training data [*event] by field, and
    notes on data that lack everything. The guide of the pair then sees the means in the gaps.

    Raises:
        DataError: a value is missing where nothing allows it.
        ContractError: the pair does not leave out what is missing.
    """
    names = missing_fields(pair)
    train, valid = data.train.allowing(names), data.valid.allowing(names)
    source = "" if data.name == UNNAMED else data.name
    absent = {name: check_missing(pair, split, source) for name, split in (("training", train), ("validation", valid))}
    means = observed_means(train if data.undrawn is None else data.undrawn, names)
    keep_means(pair, means)
    notes = [f"{name} data: {line}" for name, found in absent.items() for line in found.lines]
    return replace(data, train=train, valid=valid) if names else data, means, notes
