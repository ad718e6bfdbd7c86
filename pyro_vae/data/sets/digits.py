"""scikit-learn's digits: 1,797 handwritten digits of 8 by 8 pixels, bundled with it."""

import torch

from pyro_vae.data.dataset import Dataset
from pyro_vae.data.partition import partition
from pyro_vae.data.split import Split


def digits(seed: int = 0) -> Dataset:
    """x [n, 1, 8, 8] of grey levels 0..16, `label` [n]; 1,297 for training, 250 and 250, divided by the seed.

    Source: Alpaydin & Kaynak, "Optical recognition of handwritten digits", UCI (1998), the test part.
    """
    from sklearn.datasets import load_digits  # scikit-learn takes seconds to import

    bundled = load_digits()
    fields = {
        "x": torch.from_numpy(bundled.images).to(torch.uint8).unsqueeze(1),
        "label": torch.from_numpy(bundled.target).to(torch.int64),
    }
    parts = partition(len(bundled.target), (250, 250), seed)
    return Dataset("digits", *(Split(fields, rows=rows) for rows in parts), levels=16)
