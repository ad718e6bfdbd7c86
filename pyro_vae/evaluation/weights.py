"""What can be said of K importance weights of each datum from a stream of them, in memory that does not grow with K.

Kept for each datum, in float64: log sums of w, w^2 and w^3, the log sum of the first half, and candidates for the
largest weights. Whenever twice as many have come together as are kept, the largest are picked out of them.
"""

import math

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pyro_vae.errors import ContractError

KEPT = 1000
MIN_FOR_TAIL = 25
"""Fewer weights leave less than five in the tail, too few for ArviZ's fit."""

UNRELIABLE_K = 0.7
"""Above it importance sampling is not reliable (Yao et al. 2018; Vehtari et al. 2024)."""

EQUAL = 1e-9
"""Log weights that differ by less than this are equal but for rounding, whatever their precision."""

ROUNDINGS = 32
"""How many roundings of its largest term a log weight may hold."""


class WeightStream:
    """Accumulates `particles` log weights for each datum of a block of `size` data."""

    def __init__(self, particles: int, size: int):
        self.particles, self.half, self.seen = particles, particles // 2, 0
        self.tail = math.ceil(min(particles / 5, 3 * math.sqrt(particles)))
        self.log_sums = torch.full((3, size), -math.inf, dtype=torch.float64)
        self.log_half = torch.full((size,), -math.inf, dtype=torch.float64)
        self.kept = max(KEPT, self.tail + 1)
        self.candidates = [torch.empty(0, size, dtype=torch.float64)]
        self.smallest = torch.full((size,), math.inf, dtype=torch.float64)
        self.rounding = torch.full((size,), EQUAL, dtype=torch.float64)

    def add(self, log_weight: Float[Tensor, "particles batch"], *terms: Float[Tensor, "particles batch"]) -> None:
        """Take the log weights, in nats, of the next particles of every datum of the block. The size of the terms that
        they are sums of tells how far they are rounded."""
        eps = torch.finfo(log_weight.dtype).eps
        for term in terms or (log_weight,):
            self.rounding = torch.maximum(self.rounding, ROUNDINGS * eps * term.detach().abs().amax(0).double().cpu())
        log_weight = log_weight.double().cpu()
        in_half = log_weight[: max(0, self.half - self.seen)]
        if len(in_half):
            self.log_half = torch.logaddexp(self.log_half, in_half.logsumexp(0))
        self.smallest = torch.minimum(self.smallest, log_weight.amin(0))
        powers = torch.stack([(power * log_weight).logsumexp(0) for power in (1, 2, 3)])
        self.log_sums = torch.logaddexp(self.log_sums, powers)
        self.candidates.append(log_weight)
        if sum(map(len, self.candidates)) >= 2 * self.kept:
            self.candidates = [_largest(torch.cat(self.candidates), self.kept)]
        self.seen += len(log_weight)

    @property
    def largest(self) -> Float[Tensor, "kept batch"]:
        """The largest log weights, in falling order."""
        return _largest(torch.cat(self.candidates), self.kept).sort(0, descending=True).values

    def bound(self) -> Float[Tensor, " batch"]:
        """L_K = log 1/K sum w (Burda, Grosse & Salakhutdinov 2016, eq. 8)."""
        return self.log_sums[0] - math.log(self.particles)

    def bound_of_half(self) -> Float[Tensor, " batch"]:
        """The same bound from the first floor(K/2) particles; NaN for K = 1."""
        return self.log_half - math.log(self.half) if self.half else torch.full_like(self.log_half, math.nan)

    def ess(self) -> Float[Tensor, " batch"]:
        """Effective sample size (sum w)^2 / sum w^2 (Kong 1992)."""
        return (2 * self.log_sums[0] - self.log_sums[1]).exp()

    def monte_carlo_error(self) -> Float[Tensor, " batch"]:
        """Standard error of L_K over repeated draws, by the delta method; NaN for K = 1."""
        if self.particles == 1:
            return torch.full_like(self.log_half, math.nan)
        relative_variance = (1 / self.ess() - 1 / self.particles).clamp(min=0)
        return (relative_variance * self.particles / (self.particles - 1)).sqrt()

    def jackknife(self) -> Float[Tensor, " batch"]:
        """K L_K - (K-1) mean_j L without j: removes the bias's 1/K term (Nowozin 2018, eq. 9). NaN for K = 1.

        The leave-one-out terms log(1 - w_j/S) are exact for the largest weights; the others, each below 1/1000 of S,
        enter through the first three terms of the logarithm's series, to 1e-9.
        """
        if self.particles == 1:
            return torch.full_like(self.log_half, math.nan)
        total = self.log_sums[0]
        shares = (self.largest - total).exp()
        leave_out = torch.log1p(-shares.clamp(max=1 - 1e-15)).sum(0)
        for power, log_sum in enumerate(self.log_sums, start=1):
            rest = (log_sum - power * total).exp() - shares.pow(power).sum(0)
            leave_out -= rest.clamp(min=0) / power
        without_one = total + leave_out / self.particles - math.log(self.particles - 1)
        return self.particles * self.bound() - (self.particles - 1) * without_one

    def pareto_k(self) -> Float[Tensor, " batch"]:
        """ArviZ's k-hat of each datum (Vehtari et al. 2024), NaN for fewer than 25 particles.

        It is -inf where the weights of the tail are all equal, and so bounded. Only the tail and the next weight, its
        cutoff, enter the fit; the weights below are put at zero.
        """
        from pyro_vae.arviz_adapter import pareto_k  # ArviZ takes seconds to import

        if self.particles < MIN_FOR_TAIL:
            return torch.full_like(self.log_half, math.nan)
        body = np.full(max(0, self.particles - self.tail - 1), -np.inf)
        ks = []
        for tail, rounding in zip(self.largest[: self.tail + 1].T.numpy(), self.rounding.tolist(), strict=True):
            equal = tail[0] - tail[-2] < rounding
            ks.append(-math.inf if equal else pareto_k(np.concatenate([tail, body])))
        return torch.tensor(ks, dtype=torch.float64)

    def exact(self) -> Bool[Tensor, " batch"]:
        """Whether all weights of a datum are equal up to rounding: the guide is the posterior as far as it reaches."""
        return self.largest[0] - self.smallest <= self.rounding


def check_weights(bound: Float[Tensor, " n"], first: int, origin: str) -> None:
    """Raise `ContractError`, which names the datum (the first is number `first`), where no weight is a finite number
    above zero; `origin` says in words where the latents come from."""
    if not bound.isfinite().all():
        place = int((~bound.isfinite()).nonzero()[0])
        what = "all zero" if bound[place] == -math.inf else "not finite"
        raise ContractError(
            f"the importance weights of datum {first + place} are {what}: the {origin} where the model has no density, "
            "or the datum is outside the likelihood's support"
        )


def unreliable_share(pareto_k: Float[Tensor, " n"]) -> float:
    """The share of the data whose k-hat is above `UNRELIABLE_K`."""
    return (pareto_k > UNRELIABLE_K).double().mean().item()


def warn_of_k(pareto_k: Float[Tensor, " n"], consequence: str) -> list[str]:
    """How many data have too large a k-hat, and in words what follows for them; nothing where none has."""
    share = unreliable_share(pareto_k)
    return [f"k-hat is above {UNRELIABLE_K} for {share:.1%} of the data: {consequence}"] if share > 0 else []


def _largest(log_weight: Float[Tensor, "particles batch"], count: int) -> Float[Tensor, "kept batch"]:
    """The `count` largest of each datum, in no order. NumPy's selection takes a fiftieth of the time of torch's."""
    if len(log_weight) <= count:
        return log_weight
    columns = np.ascontiguousarray(log_weight.T.numpy())
    return torch.from_numpy(np.partition(columns, -count, axis=1)[:, -count:].copy()).T
