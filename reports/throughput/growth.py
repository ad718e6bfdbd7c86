"""Time and memory of our training against batch, latent size, particles and data: a process for each point."""

import itertools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pyro_vae as pv
from pyro_vae.data.split import CHUNK_BYTES
from pyro_vae.engine.devices import launch
from pyro_vae.training.loop import Settings, Trainer

sys.path.insert(0, str(Path(__file__).parent.parent))
from contenders import RATE, Case, our_trainer  # noqa: E402
from measure import anonymous_bytes, answer_of, peak_anonymous_bytes, reset_peak, seconds_of  # noqa: E402
from peers import SHAPE  # noqa: E402

STEPS, SECONDS = 5, 3.0
"""Steps are timed in fives, for some seconds."""

BASE = {"batch": 128, "latent": 50, "particles": 1, "images": 10_000}
POINTS = {
    "batch": (8, 32, 128, 512, 2048),
    "latent": (2, 16, 128, 1024),
    "particles": (1, 4, 16, 64),
    "images": (1_000, 10_000, 100_000, 1_000_000, 40_000_000),
}
"""Images beyond a million are read from a .npy; 40 million take 31 GB."""

MAPPED = 1_000_000


def point(axis: str, value: int, engine: str, device: str) -> dict[str, float]:
    """Seconds a step and peak memory of this process."""
    size = BASE | {axis: value}
    if size["images"] >= MAPPED:
        with tempfile.TemporaryDirectory() as folder:
            return _measured(_mapped_trainer(size, Path(folder) / "images.npy", engine, device), size)
    case = Case({"hidden": (400,)}, size["batch"], size["particles"], STEPS)
    case = case._replace(net={**case.net, "latent_dim": size["latent"]})
    count = max(size["images"], size["batch"]) if axis == "images" else size["batch"] * 2 * STEPS
    images = torch.randint(0, 256, (count, *SHAPE[1:]), dtype=torch.uint8)
    return _measured(our_trainer(case, images, device, engine), size)


def _mapped_trainer(size: dict[str, int], path: Path, engine: str, device: str) -> Trainer:
    """On bits in a .npy that is mapped, not read; the file is sparse, so it takes no room on the disk."""
    array = np.lib.format.open_memmap(path, "w+", np.uint8, (size["images"], *SHAPE))
    train = pv.Split({"x": torch.from_numpy(array)}, resident=False)
    held_out = pv.Split({"x": torch.zeros(100, *SHAPE)})
    settings = Settings(10**6, size["batch"], RATE, engine=engine)
    data = pv.Dataset("mapped", train, held_out, held_out)
    pair = pv.VAE(SHAPE, size["latent"], hidden=(400,))
    objective = pv.objectives.TraceMeanFieldELBO()
    return Trainer(launch(device), pair, data, objective, settings)


def _measured(trainer: Trainer, size: dict[str, int]) -> dict[str, float]:
    """A mapped file is read in chunks: as many steps as one holds, its reading included."""
    if size["images"] >= MAPPED:
        return _timed(trainer, [CHUNK_BYTES // (784 * size["batch"])])
    next(trainer.steps())
    reset_peak()
    return _timed(trainer, [STEPS] * 100)


def _timed(trainer: Trainer, counts: list[int]) -> dict[str, float]:
    """Seconds a step, the median over the counts that fit in the time, and the largest memory of the process itself."""
    times, peak, began = [], 0, time.perf_counter()
    steps = itertools.chain.from_iterable(trainer.steps() for _ in itertools.count())

    def work(count: int) -> None:
        nonlocal peak
        for _ in range(count - 1):
            next(steps)
        next(steps).item()
        peak = max(peak, anonymous_bytes())

    for count in counts:
        times.append(seconds_of(lambda count=count: work(count)) / count)
        if time.perf_counter() - began > SECONDS:
            break
    if trainer.fabric.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    elif len(counts) > 1:
        peak = peak_anonymous_bytes()
    return {"seconds": statistics.median(times), "bytes": peak}


def measure(axis: str, value: int, engine: str, device: str) -> dict[str, Any]:
    """A point by a process of its own."""
    return {"value": value, **answer_of([__file__, axis, str(value), engine, device])}


if __name__ == "__main__":
    print(json.dumps(point(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])))
