"""A part of a model is a name out of a table, or an object of the user's own."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from pyro_vae.errors import ContractError, DataError, find


def build(kind: str, part: Any, table: Mapping[str, Callable[..., Any]], **options: Any) -> Any:
    """Build the part that `part` names, with those of `options` that its constructor takes.

    Args:
        kind: what the part is, for messages ("likelihood", "prior", ...).
        part: a name in `table`, or a finished object, which is returned as it is.
        table: the known names and their constructors.

    Raises:
        UnknownName: the name is not in the table.
    """
    if not isinstance(part, str):
        return part
    constructor = find(kind, part, table)
    accepted = inspect.signature(constructor).parameters
    return constructor(**{name: value for name, value in options.items() if name in accepted})


def check_sizes(**sizes: Sequence[int]) -> None:
    """Raise `ContractError` where one of these sizes, by name, is not positive."""
    for name, values in sizes.items():
        for value in values:
            if value < 1:
                raise ContractError(f"{name} must be at least 1, not {value}")


def check_shapes(shapes: Mapping[str, Sequence[int]], fields: Mapping[str, Tensor | None]) -> None:
    """Raise `DataError` where the data of a field [batch, ...] are of another shape than the model was made for."""
    for name, field in fields.items():
        if field is not None and tuple(field.shape[1:]) != shapes[name]:
            raise DataError(
                f"{name} has shape {list(field.shape[1:])}, but the model was made for {list(shapes[name])}; "
                "give it data of the task that it was trained on"
            )
