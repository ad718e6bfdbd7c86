"""How fast one checkout of this library is beside another, both in one run, turn by turn.

OMP_NUM_THREADS=2 python reports/beside.py OLD NEW [--rounds 7] [--only WORDS]

OLD and NEW are folders of checkouts. Each is measured by its own `reports/throughput`, in a process of its own that
waits while the other one works. Printed is the time of NEW over the time of OLD: below one, NEW is faster.
"""

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

ENGINES = ("eager", "compiled")
Works = Iterator[tuple[str, Callable[[], Callable[[], float]]]]


def works() -> Works:
    """What is measured: the rate of each net's training steps and of the evaluators, in both engines; each is made
    when it is called, and then measures."""
    from contenders import CASES, ours
    from sampling import net_and_images, our_rate

    import pyro_vae as pv

    for name, case in CASES.items():
        for engine in ENGINES:
            yield f"training, {name}, {engine}", partial(ours, case, case.images(), "cpu", engine)
    vae, images = net_and_images(2000)
    for engine in ENGINES:
        yield f"L_1000 of 40, {engine}", lambda engine=engine: partial(our_rate, engine, 1000, images[:40], vae, [])
    from measure import seconds_of

    for particles, count in ((1, 2000), (100, 100)):
        evaluate = {"evaluator": "elbo", "particles": particles, "progress": False}
        yield (
            f"elbo of {count}, K = {particles}",
            lambda count=count, evaluate=evaluate: (
                lambda: 1 / seconds_of(lambda: pv.evaluate(vae, images[:count], **evaluate))
            ),
        )


def serve(checkout: Path, only: str) -> None:
    """Measure each work whose name has these words, once for every line that is read, and print its rate."""
    sys.path[:0] = [str(checkout), str(checkout / "reports"), str(checkout / "reports" / "throughput")]
    for name, make in works():
        if only not in name:
            continue
        rate = make()
        rate()
        print(name, flush=True)
        while sys.stdin.readline().strip() == "again":
            print(rate(), flush=True)


class Worker:
    """A checkout's process."""

    def __init__(self, checkout: Path, only: str):
        path = os.pathsep.join([str(checkout), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = os.environ | {"PYTHONPATH": path, "PYTHONWARNINGS": "ignore"}
        command = [sys.executable, __file__, "--serve", str(checkout), "--only", only]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, cwd=checkout, env=environment, text=True, **pipes)

    def read(self) -> str:
        return self.process.stdout.readline().strip()

    def ask(self, word: str) -> str:
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        return self.read()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs="*", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="leave out what has not these words in its name")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.only)
        return
    old, new = (Worker(checkout.resolve(), options.only) for checkout in options.checkouts)
    name, _ = old.read(), new.read()
    print("| | time of NEW over OLD, median | smallest | largest |\n| --- | --- | --- | --- |")
    while name:
        rates = [(float(old.ask("again")), float(new.ask("again"))) for _ in range(options.rounds)]
        ratios = [before / after for before, after in rates]
        print(f"| {name} | {statistics.median(ratios):.2f} | {min(ratios):.2f} | {max(ratios):.2f} |", flush=True)
        name = old.ask("next")
        new.ask("next")


if __name__ == "__main__":
    main()
