"""Importance sampling from the guide alone, where there is no search for modes."""

import torch

from pyro_vae.evaluation.blocks import Block
from pyro_vae.evaluation.chunks import stream_terms
from pyro_vae.evaluation.log_likelihood.certificate import Figures
from pyro_vae.evaluation.log_likelihood.costs import Costs
from pyro_vae.evaluation.log_likelihood.ways import GUIDE, Found
from pyro_vae.evaluation.weights import WeightStream, check_weights

MOST = 5000
"""So many draws at most."""


def by_guide_alone(block: Block, budget: int, why: int) -> Found:
    """The figures of a block from draws of the guide, none of them certified: nothing else could vouch for it.

    Args:
        why: the reason, as its number.
    """
    draws = min(budget, MOST)
    stream = WeightStream(draws, block.size)
    for terms in stream_terms(block, draws):
        stream.add(terms.log_weight, *terms[:3])
    check_weights(stream.bound(), block.rows.start, "guide draws")
    reason = torch.full((block.size,), why)
    figures = (stream.bound(), stream.bound_of_half(), stream.monte_carlo_error(), stream.ess(), stream.pareto_k())
    costs = Costs(block.size, budget)
    costs.add(torch.arange(block.size), draws)
    return Found(Figures(*figures, reason), torch.full((block.size,), GUIDE), costs)
