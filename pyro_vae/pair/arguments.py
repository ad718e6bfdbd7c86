"""How the fields of a batch become the arguments of a program that was not written for them."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter
from typing import Any

from torch import Tensor

from pyro_vae.errors import ContractError, DataError
from pyro_vae.pair.pair import undecorated

Arguments = tuple[Sequence[Any], Mapping[str, Any]]
"""Positional and keyword arguments."""

Inputs = Callable[[dict[str, Tensor]], Arguments]

ADVICE = "say what it takes: inputs=lambda batch: ((batch['x'],), {})"


def _by_name(name: str, parameters: Sequence[Parameter], batch: Mapping[str, Tensor]) -> Arguments | None:
    """The fields that a program takes by name; None where it takes anything (`*args`).

    A program that must be given one thing, whatever it calls it, gets the field `x`.

    Raises:
        DataError: a field that it takes is not there.
    """
    kinds = {parameter.kind for parameter in parameters}
    if Parameter.VAR_POSITIONAL in kinds:
        return None
    if Parameter.VAR_KEYWORD in kinds:
        return (), dict(batch)
    found = {parameter.name: batch[parameter.name] for parameter in parameters if parameter.name in batch}
    missing = [p.name for p in parameters if p.default is p.empty and p.name not in batch]
    if len(missing) == 1 and not found and "x" in batch:
        found[missing.pop()] = batch["x"]
    if missing:
        raise DataError(
            f"the {name} takes {missing[0]!r}; the data have {', '.join(batch)}. Name a field so, or {ADVICE}"
        )
    ordered = [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY and p.name in found]
    return [found.pop(name) for name in ordered], found


def parameters_of(name: str, program: Callable[..., Any]) -> list[Parameter]:
    """What a program takes; raises `ContractError` where it does not say."""
    function, bound = undecorated(program)
    try:
        return list(inspect.signature(function).parameters.values())[bound:]
    except (TypeError, ValueError) as problem:
        raise ContractError(f"the {name} does not say what it takes ({problem}); {ADVICE}") from problem


def of_inputs(inputs: Inputs, batch: Mapping[str, Tensor]) -> Arguments:
    """What a user's function makes of a batch; raises `ContractError` where that is no arguments."""
    found = inputs(dict(batch))
    is_pair = isinstance(found, tuple) and len(found) == 2
    if not (is_pair and isinstance(found[0], tuple | list) and isinstance(found[1], Mapping)):
        raise ContractError(
            f"inputs must return the programs' arguments, a tuple and a dict: (args, kwargs), not {_described(found)}"
        )
    return found


def _described(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(type(item).__name__ for item in value)})"
    return f"a {type(value).__name__}"


def arguments(name: str, taken: Mapping[str, Sequence[Parameter]], batch: Mapping[str, Tensor]) -> Arguments:
    """The arguments of a program; one that takes anything gets what the other one gets.

    Args:
        taken: what each of the two programs takes.

    Raises:
        DataError: a field that it takes is not there.
        ContractError: nothing tells what they take.
    """
    for program in (name, *taken.keys() - {name}):
        found = _by_name(program, taken[program], batch)
        if found is not None:
            return found
    if len(batch) != 1:
        raise ContractError(f"neither program names what it takes, and the data have {', '.join(batch)}; {ADVICE}")
    return list(batch.values()), {}
