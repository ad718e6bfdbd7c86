"""How far the reconstruction at the guide's mean is from each datum."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from pyro_vae.evaluation.blocks import Blocks
from pyro_vae.evaluation.result import Estimate, quantiles
from pyro_vae.pair.generation import center, decode, picture_site


class Reconstruction:
    """Mean squared error per element, and -log p(x|z) in nats, at z = the guide's mean.

    Per datum: `reconstruction_nll` (nats; no bound on the likelihood) and `squared_error` (in the units of x squared).
    """

    def __call__(self, pair: nn.Module, blocks: Blocks, particles: int, progress: Callable[[int], None]) -> Estimate:
        errors, nlls = [], []
        for block in blocks:
            block.check(of=())
            with block.seeded():
                sites = decode(pair, block.batch(), {name: center(site) for name, site in block.guide.items()})
            site = picture_site(sites)
            errors.append((center(site) - site.value.squeeze(0)).square().flatten(1).mean(1).cpu())
            nlls.append(-sum(s.log_prob() for s in sites.values()).squeeze(0).cpu())
            progress(block.size * particles)
        return Estimate({"reconstruction_nll": torch.cat(nlls), "squared_error": torch.cat(errors)})

    def summarise(self, found: Estimate, particles: int) -> Estimate:
        return replace(found, summary={"squared_error": quantiles(found.per_datum["squared_error"])})
