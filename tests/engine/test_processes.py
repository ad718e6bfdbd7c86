"""Two processes, as `torchrun` starts them, train one pair and share an evaluation."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch
from pairs import bits, small_vae

import pyro_vae as pv
from pyro_vae.command_line import main as cli

TRAIN = """
import torch
import pyro_vae as pv

torch.set_num_threads(1)
torch.manual_seed(0)
x = torch.bernoulli(torch.rand(60, 6))
vae = pv.VAE((6,), hidden=(8,))
run = pv.train(vae, x, epochs=3, batch_size=16, progress=False, out="run")
print("END", run.history[-1]["valid_elbo"], torch.cat([p.flatten() for p in vae.parameters()]).double().sum().item())
"""

REMAINDERS = f"""
import sys
import torch
import pyro_vae as pv
from pyro_vae.data import Dataset, Split
from pyro_vae.engine.processes import rank

sys.path.insert(0, {os.path.dirname(os.path.dirname(__file__))!r})
from pairs import bits, small_vae

torch.set_num_threads(1)


def reconstruct(vae, batch, particles=1, beta=1.0, data_size=None):
    z = vae.posterior(vae.encoder(batch["x"])).mean
    return -vae.likelihood(vae.decoder(z)).log_prob(batch["x"]).mean()


data = Dataset("bits", *(Split({{"x": bits(n)}}) for n in (50, 10, 10)))
vae = small_vae()
plain = {{"epochs": 1, "lr": 0.01, "optimizer": "sgd", "progress": False, "device": "cpu"}}  # linear in the gradients
run = pv.train(vae, data, batch_size=7, objective=reconstruct, **plain)
torch.save((run.history[0]["loss"], vae.state_dict()), sys.argv[1] + str(rank()))
"""

FREE_BITS = f"""
import pyro_vae as pv
from pyro_vae.engine.processes import rank

sys.path.insert(0, {os.path.dirname(os.path.dirname(__file__))!r})
from pairs import Sharp

vae = Sharp()
run = pv.train(vae, Sharp.data(), batch_size=8, free_bits=2.2, **plain)
torch.save((run.history[0]["loss"], vae.state_dict()), sys.argv[1] + "free_" + str(rank()))
"""

EVALUATORS = {
    "elbo": {},
    "importance": {},
    "reconstruction": {},
    "ais": {"distributions": 3, "leapfrog": 1},
    "gaps": {"steps": 2},
    "latent": {"points": 500},
}

EVALUATE = f"""
import sys
import torch
import pyro_vae as pv
from pyro_vae.engine.devices import launch

sys.path.insert(0, {os.path.dirname(os.path.dirname(__file__))!r})
from pairs import bits, small_vae

torch.set_num_threads(1)
rank = launch("cpu").global_rank
for size in (50, 230):
    for name, options in {EVALUATORS!r}.items():
        result = pv.evaluate(small_vae(), bits(size), name, 30, progress=False, **options)
        torch.save((result.estimate.per_datum, result.entry()), f"{{size}}_{{name}}_{{rank}}.pt")
"""


INTERRUPTED = """
from pyro_vae.evaluation.unfinished import Done

keep, kept = Done.keep, []


def stopped(self, name, *arguments):
    keep(self, name, *arguments)
    kept.append(name)
    if len(kept) == 1:
        raise KeyboardInterrupt


Done.keep = stopped
how = {"evaluator": "importance", "particles": 30, "progress": False, "resume": "kept"}
try:
    pv.evaluate(small_vae(), bits(430), **how)
except KeyboardInterrupt:
    pass
result = pv.evaluate(small_vae(), bits(430), **how)
torch.save((result.log_likelihood, kept), f"interrupted_{rank}.pt")
"""


def two_processes(arguments, folder):
    """What each of two processes printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "test",
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }
    started = [
        subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=600) for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    return outputs


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The folder and the output of two processes that run all programs, for they take seconds to start."""
    folder = tmp_path_factory.mktemp("together")
    return folder, two_processes(["-c", TRAIN + EVALUATE + INTERRUPTED + REMAINDERS + FREE_BITS, "two_"], folder)


def test_two_processes_end_with_the_same_weights(together):
    folder, outputs = together
    ends = {line for out, _ in outputs for line in out.splitlines() if line.startswith("END")}
    assert len(ends) == 1, outputs
    assert (folder / "run" / "best.pt").exists()


def test_every_datum_counts_once_however_the_batch_divides(together, tmp_path, monkeypatch):
    """50 data by 7: each batch has a share of 4 and one of 3, the last one of 1 and one of 0."""
    monkeypatch.setattr(sys, "argv", ["-c", str(tmp_path / "one_")])
    monkeypatch.setattr(sys, "path", list(sys.path))
    exec(REMAINDERS, {})
    check_same_training(tmp_path / "one_0", together[0], "two_")


def test_free_bits_are_those_of_the_whole_batch(together, tmp_path, monkeypatch):
    """The shares of a batch lie on either side of the floor, its mean above it."""
    monkeypatch.setattr(sys, "argv", ["-c", str(tmp_path / "one_")])
    monkeypatch.setattr(sys, "path", list(sys.path))
    exec(REMAINDERS + FREE_BITS, {})
    check_same_training(tmp_path / "one_free_0", together[0], "two_free_")


def check_same_training(alone, folder, shared):
    loss, weights = torch.load(alone)
    for rank in range(2):
        shared_loss, shared_weights = torch.load(folder / f"{shared}{rank}")
        assert shared_loss == pytest.approx(loss, rel=1e-5)
        for name, weight in weights.items():
            assert torch.allclose(shared_weights[name], weight, rtol=1e-4, atol=1e-6), name


def test_two_processes_find_the_figures_of_one(together):
    """Also where there is but one block of data, so that the other process has nothing to do."""
    for size in (50, 230):
        for name, options in EVALUATORS.items():
            alone = pv.evaluate(small_vae(), bits(size), name, 30, progress=False, **options)
            for rank in range(2):
                per_datum, entry = torch.load(together[0] / f"{size}_{name}_{rank}.pt")
                for figure, value in alone.estimate.per_datum.items():
                    assert torch.allclose(per_datum[figure], value, atol=1e-6, equal_nan=True), (size, name, figure)
                assert entry["nats"]["mean"] == pytest.approx(alone.mean, abs=1e-6)
                assert entry["warnings"] == alone.warnings
                assert entry.keys() == alone.entry().keys()


def test_two_processes_go_on_where_they_were_interrupted(together):
    """Each keeps the blocks of its own share; the figures are those of one process that nothing interrupts."""
    alone = pv.evaluate(small_vae(), bits(430), "importance", 30, progress=False)
    for rank, names in enumerate((["0-0", "0-1"], ["0-2", "0-3", "0-4"])):
        found, kept = torch.load(together[0] / f"interrupted_{rank}.pt")
        assert torch.allclose(found, alone.log_likelihood, atol=1e-6) and kept[: len(names)] == names
    assert not (together[0] / "kept").exists()


def test_the_command_line_in_two_processes_writes_once(tmp_path, monkeypatch, capsys):
    train = "train --epochs 2 --hidden 16 --out run --quiet --engine eager".split()
    command = "evaluate run --with importance --particles 30 --json - --quiet".split()
    both = f"from pyro_vae.command_line.main import main; raise SystemExit(main({train}) or main({command}))"
    (figures, told), (nothing, silence) = two_processes(["-c", both], tmp_path)
    assert told.count("report: ") == 1 and "importance" in told
    assert nothing == "" and "report: " not in silence and "importance" not in silence
    monkeypatch.chdir(tmp_path)
    assert cli.main(command) == 0
    (entry,), (of_one,) = json.loads(figures), json.loads(capsys.readouterr().out)
    assert entry["nats"] == pytest.approx(of_one["nats"], abs=1e-6)
