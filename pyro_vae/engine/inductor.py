"""Compiles a graph, on a CPU with faster forms of what models are made of.

Matrix products go to oneDNN, which is twice as fast as MKL on processors that are not Intel's. tanh and softplus, whose
own forms are accurate in the last bit and take four times as long, are equal to the last bits of float32.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

LARGE = 2**15
"""Elements of the larger operand from which oneDNN repays its call."""

TERMS = 7


def compile_graph(graph: torch.fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., list[Tensor]]:
    """A flat graph of tensor operations, compiled for inputs of these shapes and called without a gradient; its random
    numbers are those of eager torch.

    It passes torch's cache of graphs, which knows of no forms but torch's own.
    """
    from torch._functorch import config
    from torch._inductor.compile_fx import compile_fx
    from torch._inductor.decomposition import select_decomp_table

    forms = dict(select_decomp_table())
    forms |= {op: _first(form, forms.get(op)) for op, form in FORMS.items()}
    with config.patch(enable_autograd_cache=False), torch.no_grad():
        detached = [tensor.detach() for tensor in inputs]
        return compile_fx(graph, detached, config_patches={"fallback_random": True}, decompositions=forms)


def _first(form: Callable[..., Tensor], otherwise: Callable[..., Tensor] | None) -> Callable[..., Tensor]:
    """Our form, and torch's where ours is for other devices or numbers."""

    def chosen(*args: Any, **kwargs: Any) -> Tensor:
        result = form(*args, **kwargs)
        return otherwise(*args, **kwargs) if result is NotImplemented and otherwise is not None else result

    return chosen


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
