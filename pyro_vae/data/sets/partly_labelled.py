"""A labelled data set, most of whose labels are hidden: what semi-supervised learning learns from."""

from typing import Unpack

from pyro_vae.data.dataset import Dataset
from pyro_vae.data.labels import hide_labels
from pyro_vae.data.load import stored
from pyro_vae.data.sets.tasks import SourceOptions


def partly_labelled(
    seed: int = 0,
    source: str = "digits",
    labels: int = 100,
    copies: int = 1,
    shown: bool = False,
    **options: Unpack[SourceOptions],
) -> Dataset:
    """The data of another set with `label` [n] -1 where it is hidden, and `truth` [n], every label, for scoring.

    The labels of validation and test are hidden as well, so that a bound there is one on log p(x).

    Args:
        seed: draws which labels are shown; also the source's seed.
        source: the data set that data and labels come from, by name or file.
        labels: how many of the training data keep their label, as many of each class.
        copies: how often each of these stands in the training data, so that the few are not lost among the many.
        shown: show the labels of validation and test, where a bound is then one on log p(x, label).

    Raises:
        DataError: a source without labels, or numbers that do not fit it.
    """
    given = {key: value for key, value in options.items() if value is not None}
    return hide_labels(stored(source, seed, given), labels, seed, copies, shown)
