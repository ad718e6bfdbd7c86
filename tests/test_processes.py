"""Two processes, as `torchrun` starts them, train one pair."""

import os
import socket
import subprocess
import sys

PROGRAM = """
import torch
import pyro_vae as pv

torch.set_num_threads(1)
torch.manual_seed(0)
x = torch.bernoulli(torch.rand(60, 6))
vae = pv.VAE((6,), hidden=(8,))
run = pv.train(vae, x, epochs=3, batch_size=16, progress=False, out="run")
print("END", run.history[-1]["valid_elbo"], torch.cat([p.flatten() for p in vae.parameters()]).double().sum().item())
"""


def test_two_processes_end_with_the_same_weights(tmp_path):
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
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            cwd=tmp_path,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    ends = {line for out, _ in outputs for line in out.splitlines() if line.startswith("END")}
    assert len(ends) == 1, outputs
    assert (tmp_path / "run" / "best.pt").exists()
