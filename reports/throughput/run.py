"""What a pair costs, beside whatever a user might pick instead: training, evaluation, memory, growth.

python reports/throughput/run.py [--quick] [--parts FILE ...] [--only WORDS ...]

It takes half an hour or more. With --parts it keeps what has been measured in a file, and goes on from there when it is
called again. With --only it measures the parts whose names contain one of the words, and writes no report. So several
processes can share the work, each on cores of its own (`taskset`) and with its own file; called with all the files and
`--only nothing --write`, it writes the report of what they found:

    taskset -c 0,1 python reports/throughput/run.py --parts one.json --only training
    taskset -c 2,3 python reports/throughput/run.py --parts two.json --only evaluation help
    python reports/throughput/run.py --parts all.json one.json two.json --only nothing --write

pythae, JAX and NumPyro come with `pip install '.[bench]'`; without them their rows are left out. With PYRO_VAE_DATA,
the folder of MNIST, training is measured on it as well, from weights that were trained on it, and the effect of mixed
precision on L_5000. A GPU, where there is one, has its own tables.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae import files

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
import growth  # noqa: E402
import tables  # noqa: E402
from contenders import CASES, Case, contenders  # noqa: E402
from jax_peers import HAS_JAX, jax_rate  # noqa: E402
from measure import answer_of, interleaved, peak_bytes, seconds_of  # noqa: E402
from peers import HAS_PYTHAE, SHAPE  # noqa: E402
from sampling import net_and_images, our_rate, products_rate, pythae_rate  # noqa: E402
from shares import milliseconds_by_kind  # noqa: E402
from tables import COMPILED, EAGER, FIRST, LIMIT, PRODUCTS, Rates  # noqa: E402

FASTEST = (LIMIT, COMPILED, "JAX, by hand", "NumPyro")
SPLIT = (LIMIT, EAGER, COMPILED)


def train_rates(case: Case, rounds: int, device: str, of: Sequence[str] = ()) -> Rates:
    """Images per second of every contender, or of those that are named, interleaved."""
    images = case.images()
    chosen = {name: build for name, build in contenders(device).items() if name in of or not of}
    epochs = {name: build(case, images, device) for name, build in chosen.items()}
    if of:
        return interleaved(epochs, rounds)
    if "conv" not in case.net.values():
        epochs[PRODUCTS] = products_epoch(case, images, device)
    return interleaved(epochs, rounds)


def products_epoch(case: Case, images: Tensor, device: str) -> Callable[[], float]:
    """The matrix products of forward and backward pass, into memory that is there already."""
    rows = {"encoder": case.batch, "posterior": case.batch, "decoder": case.batch * case.particles}
    vae = case.build().to(device)
    products = []
    for part, count in rows.items():
        for layer in getattr(vae, part).modules():
            if isinstance(layer, nn.Linear):
                x, y = (torch.randn(count, size, device=device) for size in (layer.in_features, layer.out_features))
                weight = layer.weight.detach()
                products += [(x, weight.T, torch.empty_like(y)), (y.T, x, torch.empty_like(weight))]
                first = part == "encoder" and layer.in_features == 784
                products += [] if first else [(y, weight, torch.empty_like(x))]

    def work() -> None:
        for _ in range(case.steps):
            for left, right, out in products:
                torch.mm(left, right, out=out)
        if device == "cuda":
            torch.cuda.synchronize()

    return lambda: len(images) / seconds_of(work)


def evaluation_rates(rounds: int, particles: int) -> Rates:
    """Samples per second of L_K with the `burda` net."""
    vae, images = net_and_images(200)
    ways: dict[str, Callable[[], float]] = {
        COMPILED: lambda: our_rate("compiled", particles, images, vae, []),
        EAGER: lambda: our_rate("eager", particles, images, vae, []),
    }
    if HAS_PYTHAE:
        best = max((batch for batch in (100, 500, 1000) if particles % batch == 0), key=lambda b: _pythae(b, particles))
        ways["pythae"] = lambda: pythae_rate(best, particles, images[:10], vae)
    if HAS_JAX:
        ways["JAX, by hand"] = jax_rate(particles, images, vae)
    ways[PRODUCTS] = lambda: products_rate(vae, images, len(images) * particles)
    return interleaved(ways, rounds)


def _pythae(batch: int, particles: int) -> float:
    vae, images = net_and_images(3)
    return pythae_rate(batch, particles, images, vae)


def child(name: str, case: Case, device: str) -> None:
    """Seconds from data in memory to the end of the first step, and peak memory after an epoch, as JSON. The GPU is
    started before."""
    torch.zeros((), device=device)
    build = contenders(device)[name]
    first = seconds_of(lambda: build(case, case.images(1), device)())
    build(case, case.images(), device)()
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else peak_bytes()
    print(json.dumps({"first": first, "bytes": peak}))


class Parts:
    """What has been measured, by name, with the seconds that it took; kept in the first file where files are named.

    Args:
        only: measure those whose names contain one of these words; all where there are none.
    """

    def __init__(self, paths: Sequence[Path], only: Sequence[str]):
        self.paths, self.only = paths, only
        self.kept: dict[str, dict[str, Any]] = {}
        for path in paths:
            self.kept |= json.loads(path.read_text()) if path.exists() else {}

    def __call__(self, name: str, measure: Callable[[], Any]) -> Any:
        """What was found; None where the part is not to be measured here."""
        if name not in self.kept:
            if self.only and not any(word in name for word in self.only):
                return None
            began = time.perf_counter()
            found = measure()
            self.kept[name] = {"found": found, "seconds": time.perf_counter() - began}
            if self.paths:
                files.write_text(self.paths[0], json.dumps(self.kept))
            print(f"{name}: {self.kept[name]['seconds']:.0f} s", file=sys.stderr, flush=True)
        return self.kept[name]["found"]

    @property
    def seconds(self) -> float:
        return sum(part["seconds"] for part in self.kept.values())


def starts(
    parts: Parts, cases: Sequence[str], names: Sequence[str], device: str
) -> dict[str, dict[str, dict[str, float]]]:
    """First step and peak memory of each contender, in processes of their own, with nothing compiled beforehand."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for case in cases:
        for name in names:
            with tempfile.TemporaryDirectory() as cache:
                environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache}
                command = [__file__, "--child", name, case, device]

                def measure() -> dict[str, float]:
                    answer = answer_of(command, environment)  # noqa: B023
                    if name == COMPILED:  # noqa: B023
                        answer["again"] = answer_of(command, environment)["first"]  # noqa: B023
                    return answer

                answer = parts(f"start of {name}, {case}, {device}", measure)
            if answer is not None:
                found.setdefault(case, {})[name] = answer
    return found


def shares(case: Case, name: str) -> dict[str, float]:
    """Milliseconds a step by kind of work, on the CPU."""
    images = case.images()
    return milliseconds_by_kind(contenders("cpu")[name](case, images, "cpu"), len(images), case.steps)


def precisions(epochs: int) -> dict[str, dict[str, Any]] | None:
    """L_5000 of the `burda` preset by precision, and by seed for comparison."""
    if not os.environ.get("PYRO_VAE_DATA"):
        return None
    data = pv.load_data("mnist", binarize="dynamic", root=os.environ["PYRO_VAE_DATA"])
    settings = {"32-true": ("32-true", 0), "32-true, another seed": ("32-true", 1), "bf16-mixed": ("bf16-mixed", 0)}
    settings |= {"tf32": ("tf32", 0)} if torch.cuda.is_available() else {}
    found, first = {}, None
    for name, (precision, seed) in settings.items():
        torch.manual_seed(seed)
        options = {"batch_size": 100, "engine": "compiled", "schedule": "cosine", "seed": seed, "progress": False}
        run = pv.train(pv.models.burda(SHAPE), data, epochs=epochs, precision=precision, **options)
        result = pv.evaluate(run.pair, data.test.head(500), "importance", 5000, progress=False)
        first = result.log_likelihood if first is None else first
        away = result.log_likelihood - first
        found[name] = {
            "l": result.mean,
            "away": away.mean().item(),
            "away_error": away.std().item() / len(away) ** 0.5,
            "seconds": statistics.median(row["seconds"] for row in run.history[1:] or run.history),
            "engine": run.engine,
        }
    return found


def seconds_of_help(repeats: int) -> float:
    command = [sys.executable, "-m", "pyro_vae.command_line.main", "--help"]
    run = lambda: subprocess.run(command, capture_output=True, check=True)  # noqa: E731
    return statistics.median(seconds_of(run) for _ in range(repeats))


def gpu_evaluation(engine: str) -> dict[str, float]:
    """Seconds of L_5000 of 10,000 images with the `burda` net by an engine that ran once before."""
    vae, images = net_and_images(10_000)
    vae, split = vae.cuda(), pv.Split({"x": images}).to("cuda")
    options = {"particles": 5000, "progress": False, "engine": engine}
    pv.evaluate(vae, split.head(200), "importance", **options)
    return {"seconds": seconds_of(lambda: pv.evaluate(vae, split, "importance", **options))}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--epochs", type=int, default=30, help="of the trainings that compare precisions")
    parser.add_argument("--quick", action="store_true", help="two minutes of it, to see that it works; writes nothing")
    parser.add_argument("--parts", type=Path, nargs="+", default=[], help="files that keep what has been measured")
    parser.add_argument("--only", nargs="+", default=[], help="measure the parts whose names contain one of the words")
    parser.add_argument("--write", action="store_true", help="write the report also where --only left parts out")
    parser.add_argument("--out", type=Path, default=HERE, help="the folder of the report")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.child:
        name, case, device = options.child
        return child(name, CASES[case], device)
    quick, part = options.quick, Parts(options.parts, options.only)
    rounds = 1 if quick else options.rounds
    cases = {FIRST: CASES[FIRST]._replace(steps=10)} if quick else CASES
    points = {axis: values[:1] for axis, values in growth.POINTS.items()} if quick else growth.POINTS
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    names = {device: [COMPILED] if quick else list(contenders(device)) for device in devices}

    def train_of(device: str) -> dict[str, Rates]:
        found = {
            name: part(f"training, {name}, {device}", lambda: train_rates(case, rounds, device))  # noqa: B023
            for name, case in cases.items()
        }
        return {name: rates for name, rates in found.items() if rates is not None}

    def trained_of() -> dict[str, Rates]:
        found = {}
        for name, case in cases.items():
            real = case._replace(trained=True)
            found[name] = part(f"training, {name}, trained", lambda: train_rates(real, rounds, "cpu", FASTEST))  # noqa: B023
        return {name: rates for name, rates in found.items() if rates is not None}

    def growth_of(device: str) -> dict[str, list[dict[str, Any]]]:
        engine, found = "eager" if quick else "compiled", {}
        for axis, values in points.items():
            for value in values:
                measure = lambda: growth.measure(axis, value, engine, device)  # noqa: B023, E731
                point = part(f"growth, {axis} {value}, {device}", measure)
                if point is not None:
                    found.setdefault(axis, []).append(point)
        return found

    found: dict[str, Any] = {
        "train": {device: train_of(device) for device in devices},
        "evaluation": part("evaluation", lambda: evaluation_rates(1 if quick else 3, 500 if quick else 5000)),
        "trained": trained_of() if os.environ.get("PYRO_VAE_DATA") and not quick else {},
        "shares": part(
            "shares", lambda: {f"{way}, {name}": shares(case, way) for name, case in cases.items() for way in SPLIT}
        ),
        "help": part("help", lambda: seconds_of_help(3 if quick else 9)),
        "precision": part("precision", lambda: None if quick else precisions(options.epochs)),
        "starts": {device: starts(part, list(cases), names[device], device) for device in devices},
        "growth": growth_of("cpu"),
    }
    if "cuda" in devices:
        found["gpu"] = {e: part(f"L_5000 by {e}, cuda", lambda: gpu_evaluation(e)) for e in ("eager", "compiled")}  # noqa: B023
    if quick:
        print(json.dumps(found, indent=1))
    elif options.write or not options.only:
        together = sum(path.exists() for path in options.parts[1:])
        text = tables.text(found, options.rounds, options.epochs, part.seconds, together)
        (options.out / "README.md").write_text(text)
        if found["growth"]:
            pv.plots.save(tables.growth_figure(found["growth"]), options.out / "growth.png")


if __name__ == "__main__":
    main()
