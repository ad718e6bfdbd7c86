"""What a pair with topics says of words: its method `topic_words()` [topics, vocabulary], p(word | topic), and where it
knows the words its `vocabulary`, in that order."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_vae.errors import DataError


def topics_of(pair: nn.Module) -> Float[Tensor, "topics vocabulary"] | None:
    """p(word | topic) of each topic; None for a pair that has no topics."""
    if not callable(getattr(pair, "topic_words", None)):
        return None
    with torch.no_grad():
        return pair.topic_words().double().cpu()


def top_words(pair: nn.Module, topics: Float[Tensor, "topics vocabulary"], count: int) -> list[list[str]]:
    """The most probable words of each topic, the most probable first; by their numbers where they are not known."""
    vocabulary = getattr(pair, "vocabulary", None)
    best = topics.topk(min(count, topics.shape[1])).indices.tolist()
    return [[str(word) if vocabulary is None else vocabulary[word] for word in topic] for topic in best]


def check_vocabulary(pair: nn.Module, data: Any, source: str = "the data") -> None:
    """Raise `DataError` where the vocabulary of data, or the one given, is another than the pair's; names a word."""
    ours = getattr(pair, "vocabulary", None)
    theirs = data if isinstance(data, list | tuple) else getattr(data, "vocabulary", None)
    if ours is None or theirs is None or list(ours) == list(theirs):
        return
    raise DataError(
        f"{source} counts other words than the {type(pair).__name__} was made for: {_difference(ours, theirs)}; count "
        "the words of the vocabulary that it was trained on, in its order"
    )


def _difference(ours: Sequence[str], theirs: Sequence[str]) -> str:
    if len(ours) != len(theirs):
        return f"{len(theirs)} words in place of {len(ours)}"
    place = next(i for i, (one, other) in enumerate(zip(ours, theirs, strict=True)) if one != other)
    return f"word {place} is {theirs[place]!r} in place of {ours[place]!r}"
