"""The ELBO of each datum and its two parts: rate (KL) and distortion (minus the expected log-likelihood)."""

from collections.abc import Callable

import torch
from torch import nn

from pyro_vae import bounds
from pyro_vae.data import Split
from pyro_vae.evaluation.result import Estimate, quantiles
from pyro_vae.evaluation.stream import DATA_BLOCK, rows_that_fit, seeded
from pyro_vae.terms import log_terms, select_fields


class ELBO:
    """E_q[log p(x|z)] - KL(q || p), the KL in closed form wherever one is known (Kingma & Welling 2014, eq. 3).

    Per datum: `log_likelihood` (the bound), `rate`, `distortion`, all in nats; the mean over `particles` draws.
    """

    def __call__(
        self, pair: nn.Module, split: Split, particles: int, seed: int, progress: Callable[[int], None]
    ) -> Estimate:
        parts = []
        for block, start in enumerate(range(0, split.size, DATA_BLOCK)):
            with seeded(seed, block):
                batch = select_fields(pair, split.take(slice(start, start + DATA_BLOCK)))
                size = len(next(iter(batch.values())))
                step = max(1, min(particles, rows_that_fit(batch) // size))
                total = torch.zeros(2, size, dtype=torch.float64)
                for first in range(0, particles, step):
                    count = min(step, particles - first)
                    terms = log_terms(pair, batch, count, analytic_kl=True)
                    total += count * torch.stack([bounds.rate(terms), bounds.distortion(terms)]).double().cpu()
                    progress(count * size)
            parts.append(total / particles)
        rate, distortion = torch.cat(parts, 1)
        per_datum = {"log_likelihood": -rate - distortion, "rate": rate, "distortion": distortion}
        return Estimate(per_datum, {"rate": quantiles(rate), "distortion": quantiles(distortion)})
