"""How far the reconstruction at the guide's mean is from each datum."""

from collections.abc import Callable

import torch
from torch import nn

from pyro_vae.data import Split
from pyro_vae.evaluation.result import Estimate, quantiles
from pyro_vae.evaluation.stream import DATA_BLOCK, seeded
from pyro_vae.generation import center, picture_site, reconstruct
from pyro_vae.terms import select_fields


class Reconstruction:
    """Mean squared error per element, and -log p(x|z) in nats, at z = the guide's mean.

    Per datum: `reconstruction_nll` (nats; no bound on the likelihood) and `squared_error` (in the units of x squared).
    """

    def __call__(
        self, pair: nn.Module, split: Split, particles: int, seed: int, progress: Callable[[int], None]
    ) -> Estimate:
        errors, nlls = [], []
        for block, start in enumerate(range(0, split.size, DATA_BLOCK)):
            with seeded(seed, block):
                batch = select_fields(pair, split.take(slice(start, start + DATA_BLOCK)))
                sites = reconstruct(pair, batch)
                site = picture_site(sites)
                errors.append((center(site) - site.value).square().flatten(1).mean(1).cpu())
                nlls.append(-sum(s.log_prob() for s in sites.values()).cpu())
            progress(len(errors[-1]) * particles)
        per_datum = {"reconstruction_nll": torch.cat(nlls), "squared_error": torch.cat(errors)}
        return Estimate(per_datum, {"squared_error": quantiles(per_datum["squared_error"])})
