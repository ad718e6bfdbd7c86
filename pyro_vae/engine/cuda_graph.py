"""A whole training step as one CUDA graph: forward, backward, Adam and random numbers in one launch."""

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_vae.errors import RunError

Batch = dict[str, Tensor]

WARM_UP = 3
"""Ordinary steps before the capture, in which libraries make their workspaces and Adam its moments."""


class CapturedStep:
    """`work` on batches of the first one's shape, replayed; a batch of another shape takes the ordinary way.

    Args:
        work: batch -> loss; it changes the same tensors at every call and reads no value on the host.
    """

    def __init__(self, work: Callable[[Batch], Tensor]):
        self.work = work
        self.inputs: Batch = {}
        self.calls = 0
        self.replay: Callable[[], Tensor] | None = None

    def __call__(self, batch: Batch) -> Tensor:
        if not self.inputs:
            self.inputs = {name: value.clone() for name, value in batch.items()}
        if any(value.shape != self.inputs[name].shape for name, value in batch.items()):
            return self.work(batch)
        for name, value in batch.items():
            self.inputs[name].copy_(value)
        self.calls += 1
        if self.calls <= WARM_UP:
            return beside(lambda: self.work(self.inputs))
        if self.replay is None:
            self.replay = capture(lambda: self.work(self.inputs))
        return self.replay().clone()


def beside(work: Callable[[], Tensor]) -> Tensor:
    """Run on a stream of its own, as CUDA asks of what precedes a capture."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        result = work()
    torch.cuda.current_stream().wait_stream(stream)
    return result


def reads_a_value(work: Callable[[], object]) -> bool:
    """Whether `work`, which is run, waits for the GPU to read a value on the host: no graph can hold such a step."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        work()
    except RuntimeError:
        return True
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return False


def capture(work: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Record the kernels of `work`, without running them; what is returned runs them, and gives what `work` gave.

    Raises:
        RunError: CUDA cannot record them.
    """
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            result = work()
    except RuntimeError as problem:
        cause = " ".join(str(problem).split())[:200]
        raise RunError(f"this training step cannot be captured in a CUDA graph; use engine=eager: {cause}") from problem

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay
