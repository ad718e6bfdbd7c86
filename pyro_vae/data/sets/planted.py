"""Made-up data of known classes: clusters of pictures, and counts of cells."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_vae.data.dataset import Dataset
from pyro_vae.data.labels import hide_labels
from pyro_vae.data.split import Split
from pyro_vae.errors import DataError, check_positive

SIDE, STYLES = 8, 2
DEPTH, DISPERSION = 1000.0, 5.0
"""The typical library size of a cell, and the total count of its negative binomials."""


def planted_clusters(seed: int = 0, clusters: int = 5, size: int = 2000) -> Dataset:
    """Binary pictures x [n, 1, 8, 8] of some clusters, `label` [n] the cluster of each.

    Each cluster has a picture of its own, and two directions in which its data differ, as handwriting does.

    Args:
        seed: draws clusters and data.
        clusters: how many there are.
        size: how many data for training; a fifth as many for validation, and for the test.

    Raises:
        DataError: fewer than one cluster, or than five data.
    """
    check_positive(DataError, clusters=clusters, size=size // 5)
    generator = torch.Generator().manual_seed(seed)
    centre = 2.5 * torch.randn(clusters, SIDE**2, generator=generator)
    style = torch.randn(clusters, STYLES, SIDE**2, generator=generator)

    def split(n: int) -> Split:
        label = torch.randint(clusters, (n,), generator=generator)
        place = torch.randn(n, 1, STYLES, generator=generator)
        logits = centre[label] + (place @ style[label]).squeeze(1)
        x = torch.bernoulli(logits.sigmoid(), generator=generator).view(n, 1, SIDE, SIDE)
        return Split({"x": x, "label": label})

    return Dataset("planted_clusters", split(size), split(size // 5), split(size // 5))


def planted_cells(
    seed: int = 0, types: int = 5, genes: int = 50, batches: int = 2, labels: int = 50, size: int = 2000
) -> Dataset:
    """Counts x [n, genes] of cells of several types, some of which are labelled: `label` [n], -1 where it is hidden.

    A cell's counts are negative binomial, with means that are its library size times the shares of its type, changed by
    its batch: `context` [n, batches] is 1 at the batch that it was measured in. `truth` [n] is the type of every cell.

    Args:
        seed: draws types and cells.
        types: how many types there are.
        genes: how many genes are counted.
        batches: how many batches they are measured in.
        labels: how many of the training data keep their label, as many of each type.
        size: how many cells for training; a fifth as many for validation, and for the test.

    Raises:
        DataError: a number that is too small, or labels that are no multiple of the types.
    """
    check_positive(DataError, types=types, genes=genes, batches=batches, size=size // 5)
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    common, of_type, of_batch = normal(genes), normal(types, genes), 0.5 * normal(batches, genes)

    def split(n: int) -> Split:
        label = torch.randint(types, (n,), generator=generator)
        batch = torch.randint(batches, (n,), generator=generator)
        shares = (common + of_type[label] + of_batch[batch]).softmax(-1)
        mean = (math.log(DEPTH) + 0.4 * normal(n, 1)).exp() * shares
        spread = torch._standard_gamma(torch.full((n, genes), DISPERSION), generator=generator) / DISPERSION
        counts = torch.poisson(mean * spread, generator=generator).to(torch.int64)
        return Split({"x": counts, "label": label, "context": F.one_hot(batch, batches).float()})

    return hide_labels(Dataset("planted_cells", split(size), split(size // 5), split(size // 5)), labels, seed)


planted_cells.binarize = "none"
