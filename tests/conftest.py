"""Shared by all tests: one thread a process, so that small tensors do not fight over cores."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def real_data() -> Path:
    """The folder of real data sets, where `PYRO_VAE_DATA` points at one."""
    folder = os.environ.get("PYRO_VAE_DATA")
    if not folder:
        pytest.skip("PYRO_VAE_DATA is not set")
    return Path(folder)
