"""Exact log p(x) of small pairs, by means that never touch the library: quadrature, enumeration, the Kalman filter."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

import pyro_vae as pv

FLOOR = {torch.float64: 1e-4, torch.float32: 1e-3}
"""Nats that an estimate may be off beside its Monte Carlo error."""

NOT_JUDGED = "no datum's weights are well behaved enough to judge L_K"


def normal_nodes(dims: int, points: int = 48) -> tuple[Float[Tensor, "nodes dims"], Float[Tensor, " nodes"]]:
    """Places and log masses that stand for N(0, I): Gauss and Hermite's rule in each dim."""
    places, masses = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(points))
    log_masses = (masses / math.sqrt(2 * math.pi)).log()
    grids = list(itertools.product(range(points), repeat=dims))
    index = torch.tensor(grids, dtype=torch.long).reshape(len(grids), dims)
    return places[index], log_masses[index].sum(-1)


def integrate(
    log_likelihood: Callable[[Float[Tensor, "rows dims"], Tensor], Float[Tensor, " rows"]],
    n: int,
    dims: int,
    points: int = 48,
) -> Float[Tensor, " n"]:
    """log E[p(x|z)] over z ~ N(0, I) for each of n data.

    `log_likelihood(z, rows)` gets every node for every datum, with the number of the datum of each row.
    """
    nodes, log_masses = normal_nodes(dims, points)
    rows = torch.arange(n).repeat_interleave(len(nodes))
    with torch.no_grad():
        values = log_likelihood(nodes.repeat(n, 1), rows)
    return torch.logsumexp(values.view(n, len(nodes)) + log_masses, 1)


def normal_log_prob(value: Tensor, loc: Tensor | float, scale: Tensor | float) -> Tensor:
    """log N(value; loc, scale^2)."""
    scale = torch.as_tensor(scale, dtype=value.dtype)
    return -0.5 * ((value - loc) / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)


def gaussian_log_prob(x: Float[Tensor, " d"], mean: Float[Tensor, " d"], covariance: Float[Tensor, "d d"]) -> Tensor:
    """log N(x; mean, covariance) of one datum; 0 where d is 0."""
    if not len(x):
        return torch.zeros((), dtype=torch.float64)
    centred = x - mean
    quadratic = centred @ torch.linalg.solve(covariance, centred)
    return -0.5 * (quadratic + torch.logdet(covariance) + len(x) * math.log(2 * math.pi))


@dataclass
class Chain:
    """z_1 ~ N(0, S), z_t ~ N(A z_{t-1}, S), x_t ~ N(C z_t + b, R), S and R diagonal variances."""

    transition: Float[Tensor, "q q"]
    noise: Float[Tensor, " q"]
    emission: Float[Tensor, "d q"]
    bias: Float[Tensor, " d"]
    emission_noise: Float[Tensor, " d"]

    def log_marginal(self, x: Float[Tensor, "steps d"], length: int) -> Tensor:
        """log p(x_1 .. x_length) by the Kalman filter; steps from `length` on are not observed."""
        q = len(self.noise)
        mean, covariance, total = x.new_zeros(q), self.noise.diag(), x.new_zeros(())
        for t in range(length):
            if t:
                mean = self.transition @ mean
                covariance = self.transition @ covariance @ self.transition.T + self.noise.diag()
            predicted = self.emission @ mean + self.bias
            spread = self.emission @ covariance @ self.emission.T + self.emission_noise.diag()
            total = total + gaussian_log_prob(x[t], predicted, spread)
            gain = covariance @ self.emission.T @ torch.linalg.inv(spread)
            mean = mean + gain @ (x[t] - predicted)
            covariance = covariance - gain @ self.emission @ covariance
        return total


def subsets(sizes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Every joint value of discrete latents with so many values each."""
    return itertools.product(*[range(size) for size in sizes])


def reasons_to_doubt(
    pair: nn.Module,
    fields: dict[str, Tensor],
    exact: Float[Tensor, " n"],
    particles: int = 2000,
    floor: float | None = None,
) -> list[str]:
    """What is wrong with the library's bounds of log p(x), in words; empty where they are right.

    L_K is held within 5 of its standard errors of log p(x) wherever the weights are well behaved, the mean of the log
    weights and the ELBO below log p(x) within 4 and 5.
    """
    floor = FLOOR[torch.float32] if floor is None else floor
    found = []
    with torch.random.fork_rng():
        torch.manual_seed(1)
        with torch.no_grad():
            few = pv.log_terms(pair, fields, 1).log_weight
            terms = pv.log_terms(pair, fields, 300)
        log_weight = terms.log_weight.double()
        if tuple(few.shape) != (1, len(exact)) or tuple(log_weight.shape) != (300, len(exact)):
            return [f"log weights of shapes {list(few.shape)} and {list(log_weight.shape)}"]
        error = log_weight.std(0) / math.sqrt(300)
        above = ((log_weight.mean(0) - exact - floor) / (error + 1e-12)).max()
        if not above < 4:
            found.append(f"the mean log weight is {above:.1f} standard errors above log p(x)")
        result = pv.evaluate(pair, fields, evaluator="importance", particles=particles, progress=False)
        judged = (result.ess > particles / 20) | (result.kind == "exact")
        if not judged.any():
            found.append(NOT_JUDGED)
        off = ((result.log_likelihood.double() - exact).abs() - floor) / (result.monte_carlo_error.double() + 1e-12)
        if judged.any() and not off[judged].max() < 5:
            found.append(f"L_K is {off[judged].max():.1f} standard errors from log p(x)")
        elbo = pv.evaluate(pair, fields, evaluator="elbo", particles=300, progress=False).headline.double()
        error = error + terms.log_likelihood.double().std(0) / math.sqrt(300)
        above = ((elbo - exact - floor) / (error + 1e-12)).max()
        if not above < 5:
            found.append(f"the ELBO is {above:.1f} standard errors above log p(x)")
    return found
