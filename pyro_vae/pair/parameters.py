"""Pyro's parameters without a write to Pyro's global store: who named one, and what it gets."""

import sys
import weakref
from collections.abc import Iterator
from contextlib import ExitStack
from types import FrameType
from typing import Any, NamedTuple

import pyro
import torch
from pyro.nn.module import PyroModule
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK, effectful
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_vae.errors import ContractError

OF_A_NET = "$$$"
"""What stands between the name of a net and that of its parameter where `pyro.module` names both."""


class LocalParameters(Messenger):
    """Lets a pair that calls `pyro.module`, or is a `PyroModule`, run without a write to Pyro's parameter store.

    Args:
        own_names: parameters whose names start like this are let through to the store.
        stand_ins: the pair runs with plain tensors in place of its parameters, as `torch.func.functional_call` does.

    Raises:
        ContractError: a `pyro.param` that is no `torch.nn.Parameter`, which no optimizer here would train.
    """

    def __init__(self, own_names: str = "", stand_ins: bool = False):
        super().__init__()
        self.own_names, self.stand_ins = own_names, stand_ins
        self.stores = ExitStack()

    def __enter__(self) -> "LocalParameters":
        if not self.own_names:
            self.stores.enter_context(pyro.get_param_store().scope())
        return super().__enter__()

    def __exit__(self, *reason: Any) -> None:
        super().__exit__(*reason)
        self.stores.close()

    def _pyro_param(self, msg: dict) -> None:
        if self.own_names and msg["name"].startswith(self.own_names):
            return
        value = initial(msg)
        if value is None and msg["name"] in pyro.get_param_store():  # a PyroModule's own
            return
        if not (isinstance(value, nn.Parameter) or self.stand_ins):
            raise ContractError(
                f"pyro.param {msg['name']!r} is not a torch.nn.Parameter of the pair; make it one: "
                "self.w = nn.Parameter(...), or let pyro_vae.as_pair(model, guide) do it"
            )
        answer(msg, value)


def initial(msg: dict) -> Any:
    """What a `pyro.param` statement starts from; None where it only reads."""
    return msg["args"][1] if len(msg["args"]) > 1 else msg["kwargs"].get("init_tensor")


def answer(msg: dict, value: Any) -> None:
    """Give a statement its value; no handler further out sees it."""
    msg["value"], msg["done"], msg["stop"] = value, True, True


def under_plain_pyro() -> bool:
    """Whether Pyro runs the programs by itself, as `pyro.infer.SVI` does, and has to be told of their parameters."""
    return bool(_PYRO_STACK) and not any(isinstance(handler, LocalParameters) for handler in _PYRO_STACK)


def announce(module: nn.Module) -> None:
    """Tell Pyro of a module's parameters, as `PyroModule` does with module-local ones."""
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            parameter.unconstrained = weakref.ref(parameter)
            emit = effectful(type="param")(lambda *_, _parameter=parameter, **__: _parameter)
            full_name = f"{type(module).__name__}_{id(module)}.{name}"
            emit(full_name, parameter, constraint=constraints.real, name=full_name)


class Asker(NamedTuple):
    """Who asks for a parameter.

    Attributes:
        net: the module whose parameter it is, where `pyro.module` names it or a `PyroModule` reads its own.
        updates: whether `pyro.module` writes what it gets into the net.
    """

    net: nn.Module | None = None
    updates: bool = False


def asker() -> Asker:
    """Who asks for the parameter that a handler is being told of. Pyro's message says only what it is called, so this
    looks at the calls that led to it."""
    calls = list(_calls(sys._getframe()))
    place = next(i for i, call in enumerate(calls) if call.f_code is pyro.primitives.param.__code__) + 1
    caller = calls[place]
    if caller.f_code is pyro.primitives.module.__code__:
        named = Asker(caller.f_locals["nn_module"], caller.f_locals["update_module_params"])
        caller = calls[place + 1]
        if caller.f_code is not PyroModule.__getattr__.__code__:
            return named
    if caller.f_code not in (PyroModule.__getattr__.__code__, PyroModule.__setattr__.__code__):
        return Asker()
    inside = [call.f_locals["self"] for call in calls if call.f_code is PyroModule.__call__.__code__]
    return Asker(inside[-1] if inside else caller.f_locals["self"])


def _calls(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


class Stored(NamedTuple):
    """A parameter in Pyro's global store: as it lies there, and under its constraint as programs see it."""

    free: Tensor
    value: Tensor


def stored() -> dict[str, Stored]:
    """The parameters in Pyro's global store by name."""
    store = pyro.get_param_store()
    with torch.no_grad():
        return {name: Stored(free, store[name].detach()) for name, free in store.named_parameters()}
