"""Where the time of a training step goes."""

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile

KINDS = {
    "matrix products": ("mm", "addmm", "bmm", "mkldnn", "convolution"),
    "Adam": ("_fused_adam",),
    "random numbers": ("bernoulli", "rand", "normal", "uniform"),
}


def milliseconds_by_kind(epoch: Callable[[], float], data: int, steps: int) -> dict[str, float]:
    """Milliseconds a step by kind of work, on the CPU; the profiler's own cost is in what is left to Python.

    Args:
        epoch: trains for one epoch, and says how many data a second it took.
        data, steps: how many of them an epoch has.
    """
    epoch()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        seconds = data / epoch()
    kinds = dict.fromkeys([*KINDS, "other operations"], 0.0)
    for event in seen.key_averages():
        if event.key.startswith(("aten::", "mkldnn::", "pyro_vae::", "graph_", "Torch-Compiled", "CompiledFx")):
            kind = next((k for k, words in KINDS.items() if any(w in event.key for w in words)), "other operations")
            kinds[kind] += event.self_cpu_time_total / 1e3 / steps
    kinds["between operations, and fused loops"] = max(0.0, 1e3 * seconds / steps - sum(kinds.values()))
    return kinds
