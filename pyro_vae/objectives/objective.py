"""What an objective is, and what is common to those that are minus a bound on log p(x)."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from pyro_vae.errors import ContractError, RunError
from pyro_vae.pair.terms import ElboTerms, LogTerms

Batch = Mapping[str, Tensor]
Beta = float | Tensor
Terms = LogTerms | ElboTerms
Estimate = tuple[Float[Tensor, " batch"], Terms]
"""A bound on log p(x) of each datum in nats, its gradient the estimator, and the terms that it was made of."""


class Objective(ABC):
    """What training minimises: a loss of a pair on a batch, whose gradient is the estimator that its name promises.

    Attributes:
        traceable: the loss reads no tensor's value on the host, so that the compiled engine can take it.
        module: a module whose tensors the loss depends on besides the pair's, or None.
    """

    traceable: bool = False
    module: nn.Module | None = None

    @abstractmethod
    def __call__(
        self, pair: nn.Module, batch: Batch, particles: int = 1, beta: Beta = 1.0, data_size: int | None = None
    ) -> Float[Tensor, ""]:
        """The loss of a batch, in nats per datum.

        Args:
            pair: a model and a guide on one module.
            batch: the fields that the pair takes, [batch, ...] each.
            particles: draws of the guide for each datum.
            beta: weight of the KL.
            data_size: the number of data that the batch stands for. Of latents outside the data plate there is one
                for all data, so each datum's loss counts 1/data_size of their KL. None: the batch is all the data.

        Raises:
            ContractError: the pair breaks the contract, or has a site that the objective cannot take; names it.
            DataError: a field that the pair needs is missing.
        """

    def with_free_bits(self, nats: float, per: str) -> "Objective":
        """The same objective with free bits; see `FreeBits`.

        Raises:
            RunError: it has no KL that could have a least value.
        """
        raise RunError(
            f"{self.identity()['objective']} takes no free bits, which are a least KL of an ELBO; use trace_elbo or "
            "trace_mean_field_elbo, or leave free_bits out"
        )

    def identity(self) -> dict[str, Any]:
        """What tells it from other objectives: its name, and the numbers and words that its constructor takes, as far
        as they are kept as attributes."""
        return identity_of(self)

    def state_dict(self) -> dict:
        """What the objective has learnt, for a checkpoint."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Take up what `state_dict` gave."""
        return None


def identity_of(objective: Callable[..., Any]) -> dict[str, Any]:
    """See `Objective.identity`."""
    values = {name: getattr(objective, name, None) for name in inspect.signature(type(objective).__init__).parameters}
    options = {name: value for name, value in values.items() if isinstance(value, bool | int | float | str)}
    return {"objective": getattr(objective, "__name__", type(objective).__name__), **options}


class OfCallable(Objective):
    """A callable with an objective's signature; what it has of an objective's attributes and methods is taken over."""

    def __init__(self, function: Callable[..., Float[Tensor, ""]]):
        self.function = function
        self.traceable = getattr(function, "traceable", False)
        self.module = function if isinstance(function, nn.Module) else None

    def __call__(self, *args: Any, **kwargs: Any) -> Float[Tensor, ""]:
        return self.function(*args, **kwargs)

    def identity(self) -> dict[str, Any]:
        return identity_of(self.function)

    def state_dict(self) -> dict:
        return getattr(self.function, "state_dict", dict)()

    def load_state_dict(self, state: dict) -> None:
        if state:
            self.function.load_state_dict(state)


def as_objective(loss: Objective | Callable[..., Float[Tensor, ""]]) -> Objective:
    """An objective as it is, and any other callable as an objective."""
    return loss if isinstance(loss, Objective) else OfCallable(loss)


class MinusBound(Objective):
    """Minus a bound on log p(x), which a subclass gives."""

    traceable = True

    @abstractmethod
    def bound(self, pair: nn.Module, batch: Batch, particles: int, beta: Beta) -> Estimate:
        """The bound of each datum, and its terms."""

    def __call__(
        self, pair: nn.Module, batch: Batch, particles: int = 1, beta: Beta = 1.0, data_size: int | None = None
    ) -> Float[Tensor, ""]:
        bound, terms = self.bound(pair, batch, particles, beta)
        extra = 0.0 if terms.extra is None else terms.extra.mean()  # as Pyro's ELBOs subtract it
        return shared_loss(terms, beta, data_size) + extra - bound.mean()


def shared_loss(terms: Terms, beta: Beta, data_size: int | None) -> Tensor | float:
    """Each datum's share of minus beta (log p - log q) of the latents outside the data plate, nats per datum."""
    if terms.shared is None:
        return 0.0
    return -beta * terms.shared.mean() / (data_size or terms.log_likelihood.shape[1])


def without_value(term: Tensor) -> Tensor:
    """The term with value 0 and its own gradient."""
    return term - term.detach()


def require_reparameterised(terms: Terms, alternatives: str) -> None:
    """Raise `ContractError` where a guide site has no pathwise gradient."""
    if terms.score is not None:
        raise ContractError(
            f"a guide site cannot be reparameterised, so this objective has no gradient; use {alternatives}"
        )
