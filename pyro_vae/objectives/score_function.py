"""The score function at every site: draws that no gradient passes through, whatever their distribution is."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import constraints

from pyro_vae.pair.sites import is_point_mass


class Pathless(dist.TorchDistribution):
    """A distribution whose draws carry no gradient. Its density is that of `base`, found from the value alone: what a
    flow remembers of a draw that it made without gradients would have none."""

    arg_constraints: dict[str, constraints.Constraint] = {}
    has_rsample = False

    def __init__(self, base: dist.Distribution):
        self.base = base
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return self.base.support

    def expand(self, batch_shape: torch.Size, _instance: dist.Distribution | None = None) -> "Pathless":
        return Pathless(self.base.expand(batch_shape))

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        with torch.no_grad():
            return self.base(torch.Size(sample_shape)).clone()

    def log_prob(self, value: Tensor) -> Tensor:
        return self.base.log_prob(value)


class ByScore(Messenger):
    """Makes what a program draws pathless, so that its gradient is that of the score function. Point masses stay."""

    def _pyro_sample(self, msg: dict) -> None:
        fn = msg["fn"]
        if msg["value"] is None and getattr(fn, "has_rsample", False) and not is_point_mass(fn):
            msg["fn"] = Pathless(fn)


GRADIENTS: dict[str, Callable[[], AbstractContextManager]] = {"pathwise": nullcontext, "score": ByScore}
"""How gradients reach a guide site that can be reparameterised: along its draws, or by the score function."""
