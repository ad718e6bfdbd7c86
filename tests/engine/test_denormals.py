"""Denormal numbers are flushed in every thread while we compute, and left as they were."""

import multiprocessing
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from pairs import bits, small_vae
from torch.utils._python_dispatch import TorchDispatchMode

import pyro_vae as pv
from pyro_vae.engine import denormals
from pyro_vae.engine.denormals import flushed, flushes
from pyro_vae.engine.step import CompiledStep, EagerStep, Loss
from pyro_vae.objectives.importance_weighted import IWAE

TINY = torch.finfo(torch.float32).tiny


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.fixture
def flushing_before():
    torch.set_flush_denormal(True)
    yield
    torch.set_flush_denormal(False)


def quarters() -> list[bool]:
    """Whether each quarter of a product that two threads share holds denormal numbers."""
    product = torch.full((4, 250_000), 1e-30) * 1e-10
    return (product != 0).any(1).tolist()


def test_all_threads_flush_inside_and_none_afterwards(two_threads):
    assert quarters() == [True] * 4
    with flushed():
        assert quarters() == [False] * 4
    assert quarters() == [True] * 4


def quarters_inside_and_after_more_threads() -> tuple[list[bool], list[bool]]:
    torch.set_num_threads(1)
    with flushed():
        torch.set_num_threads(3)
        inside = quarters()
    return inside, quarters()


def test_threads_that_are_started_inside_flush_and_stop_afterwards():
    with ThreadPoolExecutor(1) as fresh:  # OpenMP's workers belong to the thread that calls them: this one has none
        inside, after = fresh.submit(quarters_inside_and_after_more_threads).result()
    assert inside == [False] * 4 and after == [True] * 4


def test_the_backward_pass_flushes(two_threads):
    with flushed():
        x = torch.full((4, 250_000), 1e-30, requires_grad=True)
        (gradient,) = torch.autograd.grad((x * 1e-10).sum(), x, torch.tensor(1e-30))
    assert not gradient.any()


def test_an_error_inside_leaves_no_thread_flushing(two_threads):
    with pytest.raises(KeyError), flushed():
        raise KeyError
    assert quarters() == [True] * 4 and not flushes()


def test_what_flushed_before_flushes_afterwards(two_threads, flushing_before):
    with flushed():
        assert quarters() == [False] * 4
    assert flushes() and quarters() == [False, False, True, True]  # the caller did, its worker did not


def test_without_libgomp_the_calling_thread_flushes(monkeypatch, two_threads):
    monkeypatch.setattr(denormals, "libgomps", list)
    with flushed():
        assert flushes() and not (torch.full((10,), 1e-30) * 1e-10).any()
    assert not flushes()


def test_torch_still_computes_with_a_libgomp_that_is_found():
    """Where this fails, torch has another OpenMP: its workers keep their denormal numbers, which is slow, not wrong."""
    if not torch.backends.openmp.is_available() or not denormals.Path("/proc/self/maps").exists():
        pytest.skip("torch is built without OpenMP, or this is no Linux")
    assert any(hasattr(library, "GOMP_parallel") for library in denormals.libgomps())


def flush_in_a_fork(answer) -> None:
    with flushed():
        answer.put(flushes())


def test_a_forked_process_does_not_wait_for_its_parents_threads(two_threads):
    with flushed():
        quarters()
    context = multiprocessing.get_context("fork")
    answer = context.SimpleQueue()
    child = context.Process(target=flush_in_a_fork, args=(answer,))
    child.start()
    child.join(60)
    ended = child.exitcode
    child.kill()
    assert ended == 0 and answer.get()


def test_training_flushes():
    seen = []

    def objective(pair, batch, particles=1, beta=1.0, data_size=None):
        seen.append(flushes())
        return IWAE()(pair, batch, particles)

    pv.train(small_vae(), bits(30), epochs=1, batch_size=10, objective=objective, progress=False)
    assert all(seen) and not flushes()


# --- none arise in the gradient of the importance-weighted bound --------------------------------------------


class Watch(TorchDispatchMode):
    """Counts the denormal numbers in what every operation gives, but for memory that is not filled yet."""

    found = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if "empty" in str(func):
            return out
        for value in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(value, torch.Tensor) and value.dtype == torch.float32:
                self.found += int(((value != 0) & (value.abs() < TINY)).sum())
        return out


@pytest.mark.parametrize("engine", ["eager", "compiled"])
@pytest.mark.parametrize("gradient", ["pathwise", "stl"])
def test_no_operation_of_a_step_with_wildly_spread_weights_gives_denormals(engine, gradient, graphs):
    vae, batch = small_vae(likelihood="gaussian", sigma=0.03), {"x": bits(20)}
    assert pv.log_terms(vae, batch, 50).log_weight.std(0).mean() > 100
    loss = Loss(vae, IWAE(gradient), 50, 20)
    step = EagerStep(loss) if engine == "eager" else CompiledStep(loss, batch)
    with Watch() as watch:
        step(batch, torch.ones(()))
    assert watch.found == 0
