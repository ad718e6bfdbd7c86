"""How fast and in how much memory the importance-weighted bound is had, beside pythae and a loop by hand.

OMP_NUM_THREADS=2 python reports/importance_speed/run.py

pythae comes with `pip install '.[bench]'`; without it its rows are left out. Weights and images are random: speed does
not depend on them.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

import pyro_vae as pv
from pyro_vae.evaluation.blocks import DATA_BLOCK, PARTICLE_BLOCK

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from jax_peers import HAS_JAX, jax_rate  # noqa: E402
from machine import header, table  # noqa: E402
from measure import answer_of, interleaved, log_log, median_ratio, peak_bytes, seconds_of, spread  # noqa: E402
from peers import HAS_PYTHAE, LATENT, SHAPE, pythae_vae  # noqa: E402
from sampling import by_hand_rate, net_and_images, our_rate, products_rate, pythae_rate  # noqa: E402

BY_HAND_CHUNKS = (5, 10, 25)
PYTHAE_BATCHES = (100, 500, 1000, 5000)
JAX = "JAX, by hand"
OURS = {"ours, compiled": "compiled", "ours, eager": "eager"}


def measure_speed(options: argparse.Namespace) -> tuple[dict[str, list[float]], dict[str, list[float]], dict]:
    """Samples per second of every contender, our seconds to the first block, and each peer's best setting."""
    vae, images = net_and_images(options.data_limit)
    particles, few = options.particles, images[: max(1, options.data_limit // 20)]
    settings = {"by hand": {f"{c} particles": by_hand_rate(c, particles, images, vae) for c in BY_HAND_CHUNKS}}
    best = max(zip(settings["by hand"].values(), BY_HAND_CHUNKS, strict=True))[1]
    firsts: dict[str, list[float]] = {name: [] for name in OURS}
    contenders: dict[str, Callable[[], float]] = {
        name: lambda name=name, engine=engine: our_rate(engine, particles, images, vae, firsts[name])
        for name, engine in OURS.items()
    }
    contenders["by hand, eager torch"] = lambda: by_hand_rate(best, particles, images, vae)
    if HAS_PYTHAE:
        batches = [batch for batch in PYTHAE_BATCHES if particles % batch == 0]
        settings["pythae"] = {f"batch_size {b}": pythae_rate(b, particles, few, vae) for b in batches}
        size = max(zip(settings["pythae"].values(), batches, strict=True))[1]
        contenders["pythae"] = lambda: pythae_rate(size, particles, few, vae)
    if HAS_JAX:
        contenders[JAX] = jax_rate(particles, images, vae)
    contenders["matrix products alone"] = lambda: products_rate(vae, images, len(images) * particles)
    return interleaved(contenders, options.rounds), firsts, settings


def child(kind: str, particles: int, count: int) -> None:
    """One evaluation in this process; its seconds without imports, and peak memory, as JSON."""
    import arviz  # noqa: F401

    vae, images = net_and_images(count)
    if kind == "pythae":
        model = pythae_vae(vae, SHAPE, LATENT).eval()
        with torch.inference_mode():
            seconds = seconds_of(lambda: model.get_nll(images, particles, min(1000, particles)))
    else:
        options = {"progress": False, "engine": OURS[kind]}
        seconds = seconds_of(lambda: pv.evaluate(vae, images, "importance", particles, **options))
    print(json.dumps({"seconds": seconds, "bytes": peak_bytes()}))


def measure_growth(options: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Seconds and peak memory against K, each in a process of its own."""
    found: dict[str, list[dict[str, float]]] = {}
    for kind in [*OURS, *(["pythae"] if HAS_PYTHAE else [])]:
        for particles in options.growth:
            command = [__file__, "--child", kind, "--growth", str(particles), "--growth_data", str(options.growth_data)]
            found.setdefault(kind, []).append({"K": particles, **answer_of(command)})
    return found


def speed_section(rates: dict, firsts: dict, settings: dict, options: argparse.Namespace) -> str:
    products = rates["matrix products alone"]
    rows = []
    for name, values in rates.items():
        peer = f"{median_ratio(values, rates['pythae']):.2f}" if HAS_PYTHAE else "no pythae"
        in_jax = f"{median_ratio(values, rates[JAX]):.2f}" if JAX in rates else "no JAX"
        rows.append([name, spread(values), peer, in_jax, f"{median_ratio(values, products):.2f}"])
    tried = "\n".join(
        f"- {name}: " + ", ".join(f"{key} {value:,.0f}" for key, value in found.items())
        for name, found in settings.items()
    )
    first = ", ".join(f"{name} {statistics.median(values):.1f} s" for name, values in firsts.items())
    return f"""## Samples through the decoder per second

K = {options.particles:,} particles for each of {options.data_limit} images (pythae: a twentieth of the images, which
it takes one by one), {options.rounds} interleaved rounds after a warm-up; median (smallest to largest), and medians of
the ratios within a round.

{table(["", "samples per second", "over pythae", "over JAX", "over the matrix products alone"], rows)}
Bars: 5 times pythae, 1.5 times JAX by hand, half of the matrix products alone. Ours is
`pv.evaluate(..., "importance")` with everything that it reports (k-hat, jackknife, Monte Carlo error, L of K/2), from
the first block of samples on; the first {PARTICLE_BLOCK * DATA_BLOCK:,} samples, compilation included, took (median):
{first}. The loop by hand, JAX and pythae give the bound alone. The products are those of the decoder on chunks of the
same shape, into memory that is there already.

Settings tried once each for the peers, samples per second; the best was taken:

{tried}

"""


def growth_section(found: dict[str, list[dict[str, float]]], options: argparse.Namespace) -> str:
    rows = [
        [kind, f"{point['K']:,}", f"{point['seconds']:.1f}", f"{point['bytes'] / 2**20:,.0f}"]
        for kind, points in found.items()
        for point in points
    ]
    rises = []
    for kind, points in found.items():
        low, high = points[-3 if len(points) > 2 else 0], points[-1]
        rises.append(f"{kind} {high['bytes'] / low['bytes'] - 1:+.1%} from K = {low['K']:,} to {high['K']:,}")
    return f"""## Time and memory against K

{options.growth_data} images, each evaluation in a process of its own; seconds include compilation where there is any,
and no imports; memory is the peak of the resident set (Python and torch are most of it).
Peak memory: {"; ".join(rises)}. Bar: within 10%.

![time and memory against K](growth.png)

{table(["", "K", "seconds", "peak memory, MiB"], rows)}"""


def growth_figure(found: dict[str, list[dict[str, float]]]) -> pv.evaluators.Estimate:
    panels = {
        "time": {kind: [(p["K"], p["seconds"]) for p in points] for kind, points in found.items()},
        "memory": {kind: [(p["K"], p["bytes"] / 2**20) for p in points] for kind, points in found.items()},
    }
    return log_log(panels, {"time": ("K", "seconds"), "memory": ("K", "peak resident set, MiB")})


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_limit", type=int, default=200, help="images in the comparison of speed")
    parser.add_argument("--particles", type=int, default=5000, help="K in the comparison of speed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--growth", type=int, nargs="+", default=[50, 500, 5000, 50_000], help="K of the growth")
    parser.add_argument("--growth_data", type=int, default=20, help="images of the growth")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.child:
        return child(options.child, options.growth[0], options.growth_data)
    began = time.perf_counter()
    rates, firsts, settings = measure_speed(options)
    found = measure_growth(options)
    pv.plots.save(growth_figure(found), HERE / "growth.png")
    threads = " ".join(f"{key}={os.environ[key]}" for key in ("OMP_NUM_THREADS", "GOMP_SPINCOUNT") if key in os.environ)
    command = " ".join([threads, "python reports/importance_speed/run.py", *sys.argv[1:]]).strip()
    text = header("The speed of the importance-weighted bound", command, data="with random weights and images")
    missing = "" if HAS_PYTHAE else "pythae is not installed and left out (`pip install '.[bench]'`). "
    text += f"""
784-200-200-50 (`burda` preset), the same weights for all, in one run of {time.perf_counter() - began:.0f} s. {missing}
`OMP_NUM_THREADS` is the number of cores.

"""
    text += speed_section(rates, firsts, settings, options) + growth_section(found, options)
    (HERE / "README.md").write_text(text)


if __name__ == "__main__":
    main()
