"""Made-up documents about topics that are known: the rows and columns of a square of words."""

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_vae.data.dataset import Dataset
from pyro_vae.data.partition import partition
from pyro_vae.data.split import Split
from pyro_vae.errors import DataError, check_positive


def bars(side: int = 5) -> Float[Tensor, "topics vocabulary"]:
    """p(word | topic) of the planted topics: each is even on one row, or one column, of side x side words."""
    square = torch.eye(side).repeat_interleave(side, 1)
    return torch.cat([square, square.reshape(side, side, side).transpose(1, 2).reshape(side, -1)]) / side


def planted_topics(seed: int = 0, side: int = 5, documents: int = 6000, words: int = 100) -> Dataset:
    """Bags of words x [n, side^2] of LDA with 2 side topics, the rows and columns of a square of words; a tenth of the
    documents for validation and for the test each.

    A document has a Dirichlet(1 / topics) of topics, and a Poisson number of words beside one.

    Args:
        seed: draws the documents.
        side: how many words a row and a column have.
        documents: how many.
        words: how many a document has on average.

    Raises:
        DataError: a side below 2, fewer than 3 documents, or no words.

    Source: Griffiths & Steyvers, "Finding scientific topics" (2004), figure 1.
    """
    check_positive(DataError, words=words)
    if side < 2 or documents < 3:
        raise DataError(f"planted_topics needs a side of 2 or more and 3 documents, not {side} and {documents}")
    topics = bars(side)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        shares = torch.distributions.Dirichlet(torch.full((len(topics),), 1 / len(topics))).sample((documents,))
        lengths = 1 + torch.poisson(torch.full((documents, 1), float(words - 1)))
        drawn = torch.multinomial(shares @ topics, int(lengths.max()), replacement=True)
        stands = (torch.arange(drawn.shape[1]) < lengths).int()
    x = torch.zeros(documents, side**2, dtype=torch.int32).scatter_add(1, drawn, stands)
    parts = partition(documents, (-(-documents // 10),) * 2, seed)
    names = tuple(f"row{i}column{j}" for i in range(side) for j in range(side))
    return Dataset("planted_topics", *(Split({"x": x}, rows=rows) for rows in parts), vocabulary=names)


planted_topics.binarize = "none"
