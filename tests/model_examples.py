"""Each registered model on a few data of the kind that it has for its default."""

from functools import cache

import torch
from pairs import bits
from torch import Tensor, nn

from pyro_vae import Dataset, Split, load_data, runs
from pyro_vae.runs.config import default_of

IMAGE, SEQUENCE = (1, 8, 8), (5, 8)
LABELS = 10


def images(n: int) -> dict[str, Tensor]:
    return {"x": bits(n, IMAGE), "context": bits(n, IMAGE, seed=1), "label": torch.arange(n) % LABELS}


def sequences(n: int) -> dict[str, Tensor]:
    """Of 5, 4 and 3 time slices in turn, which is 5 where there is one datum."""
    length = 5 - torch.arange(n) % 3
    beyond = torch.arange(SEQUENCE[0]) >= length[:, None]
    return {"x": bits(n, SEQUENCE).masked_fill(beyond.unsqueeze(2), 0.0), "length": length}


EXAMPLES = {"digits": images, "partly_labelled": images, "planted_chains": sequences}
"""Of these data sets, batches of another shape; of any other the first of its training data."""

own_data = cache(load_data)


def example(name: str, n: int = 12) -> dict[str, Tensor]:
    """A batch with every field that a registered model may ask for."""
    own = default_of("data", name)
    if own in EXAMPLES:
        return EXAMPLES[own](n)
    batch = own_data(own).train.take(torch.arange(n))
    return batch | {"label": batch["truth"]} if "truth" in batch else batch


def build(name: str, seed: int = 0) -> nn.Module:
    own, split = default_of("data", name), Split(example(name, 40))
    data = Dataset("example", split, split, split) if own in EXAMPLES else own_data(own)
    return runs.build_model(name, data.facts, {}, seed)
