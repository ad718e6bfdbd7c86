"""Compiles a graph, on a CPU with faster forms of what models are made of.

Matrix products go to oneDNN, which is twice as fast as MKL on processors that are not Intel's. tanh and softplus, whose
own forms are accurate in the last bit and take four times as long, are equal to the last bits of float32. All loops of
a graph are compiled as one C++ source, because reading torch's headers takes longer than compiling the loops.
"""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

LARGE = 2**15
"""Elements of the larger operand from which oneDNN repays its call."""

TERMS = 7


def compile_graph(graph: torch.fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., list[Tensor]]:
    """A flat graph of tensor operations, traced with `FORMS`, compiled for inputs of these shapes and called without
    a gradient; its random numbers are those of eager torch.

    What was compiled is kept on disk by inductor, so that another process finds it.
    """
    from torch._inductor.compile_fx import compile_fx

    settings = {"fallback_random": True, "pattern_matcher": False}  # its patterns are of attention, and slow to load
    with one_source(), torch.no_grad():
        return compile_fx(graph, _shapes(inputs), config_patches=settings)


def _shapes(inputs: Sequence[Tensor]) -> list[Tensor]:
    """Tensors without values, in a mode with symbols of shapes: without one, inductor keeps nothing on disk."""
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    mode = FakeTensorMode(shape_env=ShapeEnv(), static_shapes=True)
    return [mode.from_tensor(tensor.detach(), static_shapes=True) for tensor in inputs]


@contextmanager
def one_source() -> Iterator[None]:
    """Inductor compiles the C++ loops of a graph together, and believes the system about the processor's instructions.

    By itself it compiles a program for each loop, and one more to see whether the compiler knows the instructions.
    """
    from torch._inductor import async_compile, config

    class Together(async_compile.AsyncCompile):
        def __init__(self) -> None:
            super().__init__()
            self.loops: list[tuple[list[str], str]] = []

        def cpp_pybinding(self, argtypes: list[str], source_code: str) -> int:
            self.loops.append((argtypes, source_code))
            return len(self.loops) - 1

        def wait(self, scope: dict[str, Any]) -> None:
            try:
                functions = load_loops(self.loops)
            except Exception:  # another release of torch may bind loops otherwise: each by itself, as it does
                functions = [super(Together, self).cpp_pybinding(*loop) for loop in self.loops]
            waiting = [name for name, value in scope.items() if name.startswith("cpp_") and isinstance(value, int)]
            scope.update({name: functions[scope[name]] for name in waiting})
            super().wait(scope)

    with mock.patch.object(async_compile, "AsyncCompile", Together), config.patch({"cpp.vec_isa_ok": True}):
        yield


def load_loops(loops: Sequence[tuple[list[str], str]]) -> list[Callable[..., None]]:
    """Compile loops, each given by its arguments' C types and its source, as one library: a function for each."""
    from torch._inductor.codecache import CppPythonBindingsCodeCache

    class Library(CppPythonBindingsCodeCache):
        cache = {}
        entry_function = "loop_0"

    if not loops:
        return []
    source = "#include <torch/csrc/inductor/cpp_prefix.h>\n#include <Python.h>\n#include <sstream>\n#include <cerrno>\n"
    for number, (types, loop) in enumerate(loops):
        arguments = [f"parse_arg<{kind.replace('const ', '')}>(args, {place})" for place, kind in enumerate(types)]
        binding = Library.suffix_template.format(
            arg_len=len(types),
            call_entry_func=f"loop_{number}({', '.join(arguments)}); Py_RETURN_NONE;",
            entry_func=f"loop_{number}",
            extra_parse_arg="",
        )
        source += f"#define kernel loop_{number}\n{loop}\n#undef kernel\nnamespace binding_{number} {{\n{binding}\n}}\n"
    first = Library.load_async(source)()
    modules = [first, *(_module_in(first.__file__, f"loop_{number}") for number in range(1, len(loops)))]
    return [getattr(module, f"loop_{number}") for number, module in enumerate(modules)]


def _module_in(library: str, name: str) -> Any:
    """A further Python module of a library that holds several."""
    spec = importlib.util.spec_from_file_location(name, library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def mm(a: Tensor, b: Tensor) -> Tensor:
    """a [m, k] @ b [k, n]."""
    known = sorted(size for size in (*a.shape, b.shape[1]) if isinstance(size, int))
    if not _on_cpu(a) or len(known) < 2 or known[-1] * known[-2] < LARGE or not torch.backends.mkldnn.is_available():
        return NotImplemented
    return torch.ops.pyro_vae.mm(a, b)


def addmm(bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """beta bias + alpha a @ b."""
    product = mm(a, b)
    if product is NotImplemented:
        return NotImplemented
    return (product if alpha == 1 else alpha * product) + (bias if beta == 1 else beta * bias)


def tanh(x: Tensor) -> Tensor:
    """2 sigmoid(2x) - 1."""
    return 2 * torch.sigmoid(2 * x) - 1 if _on_cpu(x) else NotImplemented


def softplus(x: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """max(x, 0) + log(1 + u), u = e^-|x|, where log(1 + u) = 2 artanh(s), s = u / (2 + u) <= 1/3, by its series.

    The threshold only spares other forms an overflow.
    """
    if not _on_cpu(x):
        return NotImplemented
    u = (-beta * x.abs()).exp()
    s = u / (2 + u)
    square, series = s * s, torch.zeros_like(s)
    for power in reversed(range(TERMS)):
        series = series * square + 1 / (2 * power + 1)
    return x.clamp(min=0) + 2 * s * series / beta


def binary_cross_entropy_with_logits(
    x: Tensor, target: Tensor, weight: Tensor | None = None, pos_weight: Tensor | None = None, reduction: int = 1
) -> Tensor:
    """(1 - t) x + softplus(-x), with torch's weights and reductions (0 none, 1 mean, 2 sum)."""
    if not _on_cpu(x):
        return NotImplemented
    of_ones = 1 if pos_weight is None else 1 + (pos_weight - 1) * target
    loss = (1 - target) * x + of_ones * softplus(-x)
    loss = loss if weight is None else loss * weight
    return loss if reduction == 0 else loss.mean() if reduction == 1 else loss.sum()


def _on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32


FORMS: dict[torch._ops.OpOverload, Callable[..., Tensor]] = {
    torch.ops.aten.mm.default: mm,
    torch.ops.aten.addmm.default: addmm,
    torch.ops.aten.tanh.default: tanh,
    torch.ops.aten.softplus.default: softplus,
    torch.ops.aten.binary_cross_entropy_with_logits.default: binary_cross_entropy_with_logits,
}

LIBRARY = torch.library.Library("pyro_vae", "DEF")
LIBRARY.define("mm(Tensor a, Tensor b) -> Tensor")


@torch.library.impl(LIBRARY, "mm", "CPU")
def _mm_by_onednn(a: Tensor, b: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise.default(a, b.t(), None, "none", [], "")


@torch.library.register_fake("pyro_vae::mm", lib=LIBRARY)
def _shape_of_mm(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[1])
