"""Minus the ELBO with a penalty on the weights of one part of the pair: what regularises an autoencoder's decoder."""

import math

from jaxtyping import Float
from torch import Tensor, nn

from pyro_vae.errors import ContractError
from pyro_vae.objectives.elbo import TraceMeanFieldELBO
from pyro_vae.objectives.objective import Batch, Beta


class L2ELBO(TraceMeanFieldELBO):
    """Minus the ELBO, plus l2/2 |w|^2 of the weights w of one part of the pair, a module of its own.

    With a point mass in the guide and a prior N(0, I), whose weight is `beta`, this is the regularised autoencoder
    (Ghosh et al. 2020, RAE-L2).

    Args:
        l2: the weight of the penalty.
        part: the name of that module, as `pair.get_submodule` takes it.

    Raises:
        ContractError: a negative weight, or a pair that has no such part.
    """

    def __init__(self, l2: float = 1e-3, part: str = "decoder"):
        if not 0 <= l2 < math.inf:
            raise ContractError(f"l2 must not be negative, but is {l2}")
        self.l2, self.part = l2, part

    def __call__(
        self, pair: nn.Module, batch: Batch, particles: int = 1, beta: Beta = 1.0, data_size: int | None = None
    ) -> Float[Tensor, ""]:
        loss = super().__call__(pair, batch, particles, beta, data_size)
        return loss + self.l2 / 2 * sum(w.square().sum() for w in self._weights(pair).parameters())

    def _weights(self, pair: nn.Module) -> nn.Module:
        try:
            return pair.get_submodule(self.part)
        except AttributeError:
            known = ", ".join(name for name, _ in pair.named_children()) or "none"
            line = f"the pair has no part {self.part!r} to penalise; use the name of one that it has: {known}"
            raise ContractError(line) from None
