"""The aggregate posterior q(z) = 1/n sum_i q(z|x_i) of n data, at draws of the guide."""

from collections.abc import Callable, Iterable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_vae.evaluation.chunks import rows_that_fit
from pyro_vae.pair.pair import batch_size
from pyro_vae.pair.particles import Fields
from pyro_vae.pair.terms import guide_terms

Values = Mapping[str, Tensor]


def log_aggregate(
    pair: nn.Module, batches: Iterable[Fields], values: Values, tick: Callable[[int], None] = lambda points: None
) -> Float[Tensor, " points"]:
    """log 1/n sum_i q(z|x_i) in nats over all data of the batches, at values [points, *event] of every latent site.

    Streamed, in float64: memory grows neither with the number of data nor with that of points. `tick` is told of the
    points that are done for a batch.
    """
    points = len(next(iter(values.values())))
    fit = rows_that_fit({"z": torch.cat([value.reshape(points, -1) for value in values.values()], 1)})
    total, data = torch.full((points,), -torch.inf, dtype=torch.float64), 0
    for batch in batches:
        size = batch_size(batch)
        step = max(1, fit // size)
        for chunk in [slice(first, first + step) for first in range(0, points, step)]:
            here = {name: value[chunk] for name, value in values.items()}
            total[chunk] = torch.logaddexp(total[chunk], log_guide_at(pair, batch, here).double().logsumexp(1).cpu())
            tick(len(total[chunk]))
        data += size
    return total - torch.tensor(float(data), dtype=torch.float64).log()


def log_guide_at(pair: nn.Module, batch: Fields, values: Values) -> Float[Tensor, "points batch"]:
    """log q(z|x) in nats of every value [points, *event] under the posterior of every datum of a batch."""
    points, size = len(next(iter(values.values()))), batch_size(batch)
    crossed = {name: value.unsqueeze(1).expand(points, size, *value.shape[1:]) for name, value in values.items()}
    return guide_terms(pair, batch, crossed, points)
