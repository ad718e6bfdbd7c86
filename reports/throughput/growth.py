"""Time and memory of our training against batch, latent size, particles and data: a process for each point."""

import json
import sys
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pyro_vae as pv
from pyro_vae import plugins
from pyro_vae.data import Split
from pyro_vae.devices import launch
from pyro_vae.trainer import Settings, Trainer

sys.path.insert(0, str(Path(__file__).parent.parent))
from contenders import RATE, Case, our_trainer  # noqa: E402
from measure import anonymous_bytes, answer_of, seconds_of  # noqa: E402
from peers import SHAPE  # noqa: E402

STEPS = 10
BASE = {"batch": 128, "latent": 50, "particles": 1, "images": 10_000}
POINTS = {
    "batch": (8, 32, 128, 512, 2048),
    "latent": (2, 10, 50, 250, 1250),
    "particles": (1, 4, 16, 64, 256),
    "images": (1_000, 10_000, 100_000, 1_000_000, 10_000_000, 40_000_000),
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
    count = max(size["images"], size["batch"]) if axis == "images" else size["batch"] * STEPS
    images = torch.randint(0, 256, (count, *SHAPE[1:]), dtype=torch.uint8)
    return _measured(our_trainer(case, images, device, engine), size)


def _mapped_trainer(size: dict[str, int], path: Path, engine: str, device: str) -> Trainer:
    """On bits in a .npy that is mapped, not read; the file is sparse, so it takes no room on the disk."""
    array = np.lib.format.open_memmap(path, "w+", np.uint8, (size["images"], *SHAPE))
    train = Split({"x": torch.from_numpy(array)}, resident=False)
    held_out = Split({"x": torch.zeros(100, *SHAPE)})
    settings = Settings(10**6, size["batch"], RATE, "constant", 0, 1.0, 0, None, None, 0.0, 0, 1)
    data = pv.Dataset("mapped", train, held_out, held_out)
    pair = pv.VAE(SHAPE, size["latent"], hidden=(400,))
    objective = plugins.load("objective", "trace_mean_field_elbo")()
    trainer = Trainer(launch(device), pair, data, objective, settings, {}, None)
    trainer.prepare(engine)
    return trainer


def _measured(trainer: Trainer, size: dict[str, int]) -> dict[str, float]:
    """Ten steps after one; where a file is mapped, as many as its pool in memory holds, the reading included."""
    count = 2**28 // (784 * size["batch"]) if size["images"] >= MAPPED else STEPS
    peak = 0
    steps = trainer.steps()
    if size["images"] < MAPPED:
        next(steps)

    def work() -> None:
        nonlocal peak
        for number, loss in enumerate(islice(steps, count)):
            if number % 20 == 0:
                loss.item()
                peak = max(peak, anonymous_bytes())

    seconds = seconds_of(work)
    if torch.cuda.is_available() and trainer.fabric.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    return {"seconds": seconds / count, "bytes": peak}


def measure(points: dict[str, tuple[int, ...]], engine: str, device: str) -> dict[str, list[dict[str, Any]]]:
    """Every point by a process of its own."""
    found: dict[str, list[dict[str, Any]]] = {}
    for axis, values in points.items():
        for value in values:
            answer = answer_of([__file__, axis, str(value), engine, device])
            found.setdefault(axis, []).append({"value": value, **answer})
    return found


if __name__ == "__main__":
    print(json.dumps(point(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])))
