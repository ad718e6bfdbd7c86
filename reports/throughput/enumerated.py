"""Pairs with enumerated sites beside Pyro's own way to train them: labels that the guide enumerates, and a chain.

OMP_NUM_THREADS=2 python reports/throughput/enumerated.py [--rounds 7]
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, TraceEnum_ELBO
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.engine.devices import launch
from pyro_vae.training.loop import Settings, Trainer

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
from contenders import RATE, Epoch, timed  # noqa: E402
from machine import header, table  # noqa: E402
from measure import interleaved, median_ratio, spread  # noqa: E402
from shares import milliseconds_by_kind  # noqa: E402


class M2(nn.Module):
    """The semi-supervised VAE without labels (Kingma et al. 2014): 784-500-50, 10 labels enumerated in the guide."""

    labels = 10

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Sequential(nn.Linear(784, 500), nn.Softplus(), nn.Linear(500, self.labels))
        self.encoder = nn.Sequential(nn.Linear(784 + self.labels, 500), nn.Softplus(), nn.Linear(500, 100))
        self.decoder = nn.Sequential(nn.Linear(50 + self.labels, 500), nn.Softplus(), nn.Linear(500, 784))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(50), 1.0).to_event(1))
            y = pyro.sample("y", dist.OneHotCategorical(logits=x.new_zeros(self.labels)))
            logits = self.decoder(beside(z, y))
            pyro.sample("x", dist.Bernoulli(logits=logits, validate_args=False).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            logits = self.classifier(x)
            y = pyro.sample("y", dist.OneHotCategorical(logits=logits), infer={"enumerate": "parallel"})
            loc, log_scale = self.encoder(beside(x, y)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


class Chain(nn.Module):
    """A hidden Markov chain of 16 states that the model enumerates, with normal observations."""

    states = 16

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.zeros(self.states))
        self.step = nn.Parameter(torch.randn(self.states, self.states))
        self.loc = nn.Parameter(torch.randn(self.states))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = None
            for t in pyro.markov(range(x.shape[1])):
                logits = self.first if y is None else self.step[y]
                y = pyro.sample(f"y_{t}", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})
                pyro.sample(f"x_{t}", dist.Normal(self.loc[y], 1.0), obs=x[:, t])

    def guide(self, x: Tensor) -> None:
        """Empty: what is hidden is summed out."""


def beside(a: Tensor, b: Tensor) -> Tensor:
    """Two features in one vector, whatever leading dims they have."""
    lead = torch.broadcast_shapes(a.shape[:-1], b.shape[:-1])
    return torch.cat([a.expand(*lead, -1), b.expand(*lead, -1)], -1)


def images() -> Tensor:
    return torch.rand(2000, 784, generator=torch.Generator().manual_seed(0)).round()


def sequences() -> Tensor:
    return torch.randn(640, 50, generator=torch.Generator().manual_seed(0))


ENUMERATED: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], int]] = {
    "M2, 10 labels, 784-500-50, batch 100": (M2, images, 100),
    "chain, 50 steps, 16 states, batch 64": (Chain, sequences, 64),
}


def pyro_svi(pair: nn.Module, x: Tensor, batch: int) -> Epoch:
    """Pyro's `SVI` with `TraceEnum_ELBO` and `pyro.optim.Adam`, data in memory."""
    name = f"enumerated_{id(pair)}"

    def registered(program: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
        def run(rows: Tensor) -> None:
            pyro.module(name, pair)
            program(rows)

        return run

    optimizer = pyro.optim.Adam({"lr": RATE})
    svi = SVI(registered(pair.model), registered(pair.guide), optimizer, TraceEnum_ELBO(max_plate_nesting=1))
    return timed(x, lambda: [svi.step(x[rows]) for rows in torch.randperm(len(x)).split(batch)])


def ours(pair: nn.Module, x: Tensor, batch: int, engine: str) -> Epoch:
    """The loop of `pv.train`, without validation."""
    data = pv.Dataset("made up", *[pv.Split({"x": x})] * 3)
    settings = Settings(10**6, batch, RATE, engine=engine)
    trainer = Trainer(launch("cpu"), pair, data, pv.objectives.TraceEnumELBO(), settings)
    chosen = trainer.ways[None].engine
    assert chosen.name == engine, chosen.reason
    return timed(x, lambda: torch.stack(list(trainer.steps())).mean().item())


def enumerated_contenders(name: str) -> dict[str, Epoch]:
    """Each way to train one of the pairs, built."""
    make, data, batch = ENUMERATED[name]
    torch.manual_seed(0)
    return {
        "Pyro SVI, TraceEnum_ELBO": pyro_svi(make(), data(), batch),
        "ours, eager": ours(make(), data(), batch, "eager"),
        "ours, compiled": ours(make(), data(), batch, "compiled"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    rates, where = {}, []
    for name, (_, data, batch) in ENUMERATED.items():
        contenders = enumerated_contenders(name)
        rates[name] = interleaved(contenders, rounds)
        for way, epoch in contenders.items():
            kinds = milliseconds_by_kind(epoch, len(data()), len(data()) // batch)
            where.append([name, way, *[f"{milliseconds:.1f}" for milliseconds in kinds.values()]])
    rows = []
    for name, found in rates.items():
        pyros = found["Pyro SVI, TraceEnum_ELBO"]
        rows += [[name, way, spread(own), f"{median_ratio(own, pyros):.2f}"] for way, own in found.items()]
    command = f"OMP_NUM_THREADS={torch.get_num_threads()} python reports/throughput/enumerated.py --rounds {rounds}"
    text = header("Enumerated sites", command, data="on made-up data")
    text += f"""
{rounds} interleaved rounds after one that is thrown away. Data per second, median (smallest to largest), and the median
over the rounds of the ratio to Pyro's `SVI` with `TraceEnum_ELBO`. The bar is 2 for ours compiled.

{table(["pair", "", "data per second", "over Pyro"], rows)}
Where a step goes, in milliseconds, under torch's profiler, which slows what runs between operations:

{table(["pair", "", *kinds], where)}
Enumerated in the guide, M2's encoder and decoder run for each of the ten labels: a step's products are those of a
thousand data. All ways have the same ones, and what compiling can save is what stands beside them.
"""
    (Path(__file__).parent / "enumerated.md").write_text(text)


if __name__ == "__main__":
    main()
