"""The ELBO of each datum and its two parts: rate (KL) and distortion (minus the expected log-likelihood)."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from pyro_vae import bounds
from pyro_vae.evaluation.blocks import Blocks
from pyro_vae.evaluation.result import Estimate, quantiles
from pyro_vae.evaluation.stream import rows_that_fit
from pyro_vae.terms import reduce_to_elbo, run_model


class ELBO:
    """E_q[log p(x|z)] - KL(q || p), the KL in closed form wherever one is known (Kingma & Welling 2014, eq. 3).

    Per datum: `log_likelihood` (the bound), `rate`, `distortion`, all in nats; the mean over `particles` draws.
    """

    def __call__(self, pair: nn.Module, blocks: Blocks, particles: int, progress: Callable[[int], None]) -> Estimate:
        parts = []
        for block in blocks:
            batch = block.batch()
            step = max(1, min(particles, rows_that_fit(batch) // block.size))
            total = torch.zeros(2, block.size, dtype=torch.float64)
            with block.seeded():
                for first in range(0, particles, step):
                    count = min(step, particles - first)
                    guide = block.draw(count)
                    model = run_model(pair, batch, {name: site.value for name, site in guide.items()}, count)
                    terms = reduce_to_elbo(model, guide, count, block.size)
                    total += count * torch.stack([bounds.rate(terms), bounds.distortion(terms)]).double().cpu()
                    progress(count * block.size)
            parts.append(total / particles)
        rate, distortion = torch.cat(parts, 1)
        return Estimate({"log_likelihood": -rate - distortion, "rate": rate, "distortion": distortion})

    def summarise(self, found: Estimate, particles: int) -> Estimate:
        return replace(found, summary={name: quantiles(found.per_datum[name]) for name in ("rate", "distortion")})
