"""A limit to what tensors may grow to while a program is tried."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_vae.errors import ContractError

MOST_NUMBERS = 2**27
"""How many numbers a tensor of a few data may have."""


class Bounded(TorchDispatchMode):
    """Raises `ContractError` where what is enumerated together makes a tensor too large."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and made.numel() > MOST_NUMBERS:
            raise ContractError(
                f"what is enumerated together makes a tensor of {made.numel():,} numbers for a few data; put what "
                "follows one another under pyro.markov, or draw some of it in the guide"
            )
        return made
