"""Bags of words: how often each word of a vocabulary stands in a document."""

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributions import constraints


class Documents(constraints.Constraint):
    """Whole counts of words, at least one in a document; `check` tells of each count whether it may stand there."""

    is_discrete = True
    event_dim = 1

    def check(self, value: Float[Tensor, "... vocabulary"]) -> Bool[Tensor, "... vocabulary"]:
        return (value >= 0) & (value == value.floor()) & (value.sum(-1, keepdim=True) > 0)


class BagOfWords(dist.TorchDistribution):
    """A multinomial whose number of words may differ from document to document, and is taken as given.

    Args:
        probs: the probability of each word [..., vocabulary]; they sum to 1.
        total: how many words a document has, broadcastable to [...].
    """

    arg_constraints: dict[str, Any] = {}
    support = Documents()
    has_rsample = False

    def __init__(self, probs: Float[Tensor, "... vocabulary"], total: Float[Tensor, "..."]):
        shape = torch.broadcast_shapes(probs.shape[:-1], total.shape)
        self.probs, self.total = probs.expand(*shape, -1), total.expand(shape)
        super().__init__(shape, probs.shape[-1:], validate_args=False)

    def expand(self, batch_shape: torch.Size, _instance: dist.Distribution | None = None) -> "BagOfWords":
        return BagOfWords(self.probs.expand(*batch_shape, -1), self.total.expand(batch_shape))

    @property
    def mean(self) -> Float[Tensor, "... vocabulary"]:
        return self.total.unsqueeze(-1) * self.probs

    @property
    def variance(self) -> Float[Tensor, "... vocabulary"]:
        return self.mean * (1 - self.probs)

    def sample(self, sample_shape: Sequence[int] = ()) -> Float[Tensor, "... vocabulary"]:
        shape = self._extended_shape(torch.Size(sample_shape))
        with torch.no_grad():
            total = self.total.expand(shape[:-1]).reshape(-1, 1)
            most = int(total.max())
            words = torch.multinomial(self.probs.expand(shape).reshape(-1, shape[-1]), most, replacement=True)
            stands = torch.arange(most, device=words.device) < total
            return self.probs.new_zeros(len(words), shape[-1]).scatter_add(1, words, stands.to(self.probs)).view(shape)

    def log_prob(self, value: Float[Tensor, "... vocabulary"]) -> Float[Tensor, "..."]:
        there = torch.where(value > 0, self.probs, 1.0)
        return log_orders(value) + (value * there.log()).sum(-1)


def log_orders(counts: Float[Tensor, "... vocabulary"]) -> Float[Tensor, "..."]:
    """The log of the number of orders in which the words of a bag can be written."""
    return torch.lgamma(counts.sum(-1) + 1) - torch.lgamma(counts + 1).sum(-1)
