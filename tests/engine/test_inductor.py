"""The compiler's own forms: the functions they stand for, in value and in gradient."""

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.engine import inductor
from pyro_vae.engine.tracing import call_with, compile_function, named_tensors

ATEN = torch.ops.aten
ENTROPY = ATEN.binary_cross_entropy_with_logits.default


@pytest.mark.parametrize("function", [ATEN.tanh.default, ATEN.softplus.default, ENTROPY], ids=str)
def test_a_form_is_the_function_to_float32(function):
    x = torch.cat([torch.linspace(-60, 60, 100_001), torch.tensor([0.0, 1e-6, -1e-6, 500.0, -500.0, 3e4, -3e4])])
    others = (torch.linspace(0, 1, len(x)),) if function is ENTROPY else ()
    exact = function(x.double(), *[other.double() for other in others])
    assert torch.allclose(inductor.FORMS[function](x, *others).double(), exact, rtol=4e-7, atol=2e-7)


def test_the_forms_take_all_arguments_of_the_functions():
    x, target, weight = torch.randn(3, 5), torch.rand(3, 5), torch.rand(5)
    for arguments in ((weight, None, 0), (None, 3 * weight, 1), (weight, weight, 2)):
        assert torch.allclose(inductor.FORMS[ENTROPY](x, target, *arguments), ENTROPY(x, target, *arguments))
    plus = ATEN.softplus.default
    assert torch.allclose(inductor.softplus(x, 3.0, 20.0), plus(x, 3.0, 20.0))
    bias, a, b = torch.randn(300), torch.randn(200, 200), torch.randn(200, 300)
    scaled = inductor.addmm(bias, a, b, beta=0.5, alpha=2.0)
    assert torch.allclose(scaled, torch.addmm(bias, a, b, beta=0.5, alpha=2.0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True), (True, True)])
def test_large_products_are_those_of_torch_however_their_operands_lie_in_memory(transposed):
    torch.manual_seed(0)
    a, b = torch.randn(190, 210), torch.randn(210, 170)
    a, b = (x.t().contiguous().t() if turn else x for x, turn in zip((a, b), transposed, strict=True))
    assert torch.allclose(inductor.mm(a, b), a.double().mm(b.double()).float(), rtol=1e-4, atol=1e-4)
    assert torch.allclose(inductor.mm(a[::2], b[:, 3:]), a[::2] @ b[:, 3:], rtol=1e-4, atol=1e-4)


def test_small_products_and_other_numbers_keep_torchs_own_form():
    assert inductor.mm(torch.ones(4, 5), torch.ones(5, 6)) is NotImplemented
    large = torch.ones(300, 300)
    assert inductor.mm(large.double(), large.double()) is NotImplemented
    assert inductor.addmm(large[0].double(), large.double(), large.double()) is NotImplemented
    for form in (inductor.tanh, inductor.softplus):
        assert form(large.double()) is NotImplemented


@pytest.mark.parametrize("dtype, error", [(torch.float32, 1e-4), (torch.float64, 1e-9), (torch.bfloat16, 5e-2)])
def test_values_and_gradients_of_a_compiled_net_are_those_of_the_net(dtype, error):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(300, 200), nn.Tanh(), nn.Linear(200, 250), nn.Softplus()).to(dtype)
    x = torch.randn(64, 300, dtype=dtype)

    def value_and_gradients(tensors, batch):
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
        value = call_with(net, leaves, batch["x"]).square().mean()
        return [value.detach(), *torch.autograd.grad(value, list(leaves.values()))]

    arguments = (named_tensors(net), {"x": x})
    compiled = compile_function(value_and_gradients, *arguments)
    for ours, reference in zip(compiled(*arguments), value_and_gradients(*arguments), strict=True):
        assert (ours - reference).abs().max() <= error * reference.abs().max()


def two_loops(x):
    """Two reductions with a product between them, so that inductor cannot fuse them."""
    return [(x.sin() @ x.cos().t()).square().sum(1), x.exp().sum()]


@pytest.fixture
def empty_cache():
    from torch._inductor.utils import fresh_cache

    with fresh_cache():
        yield


def compiled_loops():
    x = torch.randn(40, 40)
    graph = make_fx(two_loops, decomposition_table=inductor.FORMS, tracing_mode="fake")(x)
    for ours, exact in zip(inductor.compile_graph(graph, [x])(x), two_loops(x), strict=True):
        assert torch.allclose(ours, exact, rtol=1e-4, atol=1e-4)


def test_the_loops_of_a_graph_are_one_library_and_are_found_again_on_disk(empty_cache, monkeypatch):
    from torch._dynamo.utils import counters
    from torch._inductor.codecache import CppCodeCache

    loaded, load = [], CppCodeCache.load_async.__func__
    monkeypatch.setattr(
        CppCodeCache,
        "load_async",
        classmethod(lambda cls, *args, **named: loaded.append(cls) or load(cls, *args, **named)),
    )
    compiled_loops()
    assert len(loaded) == 1
    torch._dynamo.reset()
    before = counters["aot_autograd"]["autograd_cache_hit"]
    compiled_loops()
    assert counters["aot_autograd"]["autograd_cache_hit"] == before + 1


def test_loops_that_cannot_be_bound_together_are_compiled_one_by_one(empty_cache, monkeypatch):
    def fails(loops):
        raise RuntimeError("another torch")

    monkeypatch.setattr(inductor, "load_loops", fails)
    compiled_loops()
