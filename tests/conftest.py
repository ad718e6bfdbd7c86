"""Shared by all tests: one thread a process, so that small tensors do not fight over cores."""

import os
from pathlib import Path

import pytest
import torch

from pyro_vae.engine import tracing

torch.set_num_threads(1)


@pytest.fixture
def real_data() -> Path:
    """The folder of real data sets, where `PYRO_VAE_DATA` points at one."""
    folder = os.environ.get("PYRO_VAE_DATA")
    if not folder:
        pytest.skip("PYRO_VAE_DATA is not set")
    return Path(folder)


@pytest.fixture
def graphs(monkeypatch):
    """Traced graphs run as they are, a second where the compiler takes ten; a list of them."""
    return _watch_compiler(monkeypatch, lambda graph, inputs: graph)


@pytest.fixture
def compilations(monkeypatch):
    """A list of the compilations that have been."""
    return _watch_compiler(monkeypatch, tracing.compile_graph)


def _watch_compiler(monkeypatch, compiler):
    made = []

    def watched(graph, inputs):
        made.append(graph)
        return compiler(graph, inputs)

    monkeypatch.setattr(tracing, "compile_graph", watched)
    return made
