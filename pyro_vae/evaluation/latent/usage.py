"""How the data use the values of discrete latents, such as the codes of a VQ-VAE: their perplexity."""

import torch
from torch import Tensor, nn

from pyro_vae.errors import ContractError
from pyro_vae.evaluation.blocks import Block, Blocks
from pyro_vae.evaluation.draws import draws_of
from pyro_vae.evaluation.evaluator import Evaluator, Progress
from pyro_vae.evaluation.result import Estimate
from pyro_vae.pair.checks import support_of
from pyro_vae.pair.particles import run_model
from pyro_vae.pair.sites import latent, side_by_side, values_of

DRAWS = 1
"""What random numbers are for, as the last part of their seeds."""


class Usage(Evaluator):
    """The perplexity of the discrete latents that the guide draws: how many values the data use, counted evenly.

    Figure [n], `surprisal` in nats: -log of the share that a value has among the values of all data, the mean over a
    datum's elements and draws. Its mean over data is the entropy H of the values. The summary has, for each site, the
    `perplexity` exp(H), which is as large as the number of values where all are used alike, and how many are `used`.

    Raises:
        ContractError: the guide draws no discrete latent, or the pair breaks the contract.
    """

    def __call__(self, pair: nn.Module, blocks: Blocks, particles: int, progress: Progress) -> Estimate:
        blocks, parts = blocks.of_one_shape, []
        for block in blocks:
            block.check()
            with block.seeded(DRAWS):
                parts.append(discrete_draws(block, particles))
            progress(block.size * particles)
        draws = side_by_side(parts, dim=1)
        if not draws:
            raise ContractError("the guide draws no discrete latent, so there are no values to count")
        surprisals, used = {}, {}
        for name, values in draws.items():
            kinds, kind, counts = values.unique(return_inverse=True, return_counts=True)
            surprisal = -(counts.double() / values.numel()).log()[kind]
            surprisals[name], used[name] = surprisal.transpose(0, 1).flatten(1), len(kinds)
        perplexity = {name: surprisal.mean().exp().item() for name, surprisal in surprisals.items()}
        whole = torch.cat(list(surprisals.values()), 1).mean(1)
        return Estimate({"surprisal": whole}, {"perplexity": perplexity, "used": used})


def discrete_draws(block: Block, particles: int) -> dict[str, Tensor]:
    """Draws [particles, batch, ...] of the guide for each site whose prior is discrete."""
    model = latent(run_model(block.pair, block.batch(), values_of(block.guide)))
    drawn = draws_of(block, particles).values
    found = {name: value.cpu() for name, value in drawn.items() if name in model}
    return {name: value for name, value in found.items() if support_of(model[name]).is_discrete}
