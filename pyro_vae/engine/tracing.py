"""A computation on a module's tensors as one compiled graph: Python, and with it Pyro's handlers, runs once."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor, nn

from pyro_vae.engine.inductor import FORMS, compile_graph
from pyro_vae.pair.parameters import LocalParameters

Named = Mapping[str, Tensor]
Function = Callable[..., list[Tensor]]


def compile_function(function: Function, *arguments: Named) -> Function:
    """The same function of named tensors, compiled for the shapes of these arguments.

    It is traced on tensors that have these shapes but no values. A later call may pass more names, which are not read.
    What torch raises, where the function reads a value on the host or does what no graph can, is raised.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    names = [list(argument) for argument in arguments]

    def of_a_list(*tensors: Tensor) -> list[Tensor]:
        remaining = iter(tensors)
        return function(*[{name: next(remaining) for name in group} for group in names])

    def as_a_list(given: Sequence[Named]) -> list[Tensor]:
        return [argument[name] for group, argument in zip(names, given, strict=True) for name in group]

    tensors = as_a_list(arguments)
    graph = make_fx(of_a_list, decomposition_table=FORMS, tracing_mode="fake", _allow_non_fake_inputs=True)(*tensors)
    compiled = compile_graph(graph, tensors)
    return lambda *given: compiled(*as_a_list(given))


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a module by name, detached, but the same memory."""
    return {name: tensor.detach() for name, tensor in (*module.named_parameters(), *module.named_buffers())}


def call_with(module: nn.Module, tensors: Named, *arguments: Any) -> Any:
    """`module(*arguments)` with these parameters and buffers, by name, in place of its own.

    Raises:
        ValueError: the module sets an attribute, which a graph would do once and never again.
    """
    given = dict(tensors)
    with LocalParameters(stand_ins=True), _attributes_kept(module):
        result = torch.func.functional_call(module, given, arguments)
    for name, tensor in tensors.items():
        if given[name] is not tensor:
            raise ValueError(f"the pair replaces its buffer {name.removeprefix('pair.')!r}; write into it in place")
    return result


@contextmanager
def _attributes_kept(module: nn.Module) -> Iterator[None]:
    """Put back what the body sets, and raise where there was such."""
    before = {part: dict(vars(part)) for part in module.modules()}
    yield
    changed = []
    for part, attributes in before.items():
        for name, value in list(vars(part).items()):
            if name not in attributes or attributes[name] is not value:
                if not isinstance(part, nn.RNNBase | AutoGuide):  # these note weights and plates anew in each run
                    changed.append(f"{type(part).__name__}.{name}")
                vars(part).pop(name) if name not in attributes else vars(part).update({name: attributes[name]})
    if changed:
        raise ValueError(f"the pair sets {changed[0]} while it runs; make it a buffer and write into it in place")
