"""The local proposal of `log_likelihood` for a fixed number of draws, or of chains."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_vae.evaluation.blocks import Block
from pyro_vae.evaluation.log_likelihood.annealed import weigh_chains
from pyro_vae.evaluation.log_likelihood.target import Target
from pyro_vae.evaluation.log_likelihood.ways import FINAL, LOCAL, Ways
from pyro_vae.evaluation.weights import WeightStream


def laplace_weights(block: Block, particles: int) -> WeightStream:
    """Weights of so many draws of the local proposal for each datum of a block.

    Raises:
        ContractError: the pair has no log-densities of each datum, or its latents have no unconstrained coordinates.
    """
    ways = _ways(block)
    counts = torch.full_like(ways.everything, particles)
    ((_, stream),) = ways.sampler.draw(ways.laplace(), ways.everything, counts, FINAL, LOCAL).streams()
    return stream


def laplace_chains(
    block: Block, distributions: int, chains: int, leapfrog: int
) -> tuple[Float[Tensor, "chains batch"], Float[Tensor, " batch"]]:
    """Log weights of chains that are annealed from the local normals of a block, and their acceptance; raises as
    `laplace_weights` does."""
    ways = _ways(block)
    return weigh_chains(ways.sampler, ways.laplace(), ways.everything, distributions, chains, leapfrog)


def _ways(block: Block) -> Ways:
    block.check(of=["model"])
    return Ways(block, Target.of_block(block), math.inf, 10**9)
