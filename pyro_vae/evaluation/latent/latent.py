"""What the latents carry: active units, the KL of each dimension, their information about x, and what they do to it."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_vae.errors import RunError, check_positive
from pyro_vae.evaluation.blocks import Blocks
from pyro_vae.evaluation.evaluator import Evaluator, Progress, ticker
from pyro_vae.evaluation.latent.aggregate import log_aggregate
from pyro_vae.evaluation.latent.codes import Codes, codes_of
from pyro_vae.evaluation.result import Estimate, PerDatum, mean_and_error
from pyro_vae.pair.particles import Fields, Values

ACTIVE = 0.01
"""A unit is active where the variance over data of its posterior mean is above this (Burda et al. 2016)."""

TRAVERSED, COLUMNS = 10, 9
DRAWS = 1
"""What random numbers are for, as the last part of their seeds."""

Variances = dict[str, Float[Tensor, " units"]]


class Latent(Evaluator):
    """Active units, KL of each dimension, and the rate's two parts (Burda et al. 2016; Hoffman & Johnson 2016).

    rate = E_x KL(q(z|x) || p(z)) = I_q(x; z) + KL(q(z) || p(z)), where q(z) = 1/n sum_i q(z|x_i) over the n data
    evaluated. Figures [n] in nats, by Monte Carlo: `rate`, and the two parts of it that a datum adds,
    `mutual_information` and `marginal_kl`. A dimension's KL is in closed form where one is known, else by draws; a site
    whose guide or prior does not factorise has one KL for all its dimensions. Picture `traversals`: the mean of p(x|z)
    along the most active units.

    Args:
        points: draws at which q(z) is evaluated, in all; at least one for each datum, at most as many as particles.

    Raises:
        RunError: fewer points than one.
        ContractError: latents outside the data plate, or no density q(z|x) of them.
    """

    def __init__(self, points: int = 10_000):
        check_positive(RunError, points=points)
        self.points = points

    def __call__(self, pair: nn.Module, blocks: Blocks, particles: int, progress: Progress) -> Estimate:
        blocks, size = blocks.of_one_shape, blocks.size
        kept = max(1, min(particles, self.points // size))
        tick = ticker(progress, size * particles, size * (particles + kept * len(blocks)))
        parts = []
        for block in blocks:
            block.check()
            block.refuse_hidden("latent looks at draws of every latent")
            with block.seeded(DRAWS):
                parts.append(codes_of(pair, block.batch(), particles, kept, tick))
        codes = Codes.side_by_side(parts)
        points = {name: value.flatten(0, 1) for name, value in codes.values.items()}
        log_marginal = log_aggregate(pair, (block.batch() for block in blocks), points, tick).reshape(kept, size)
        per_datum = {
            "rate": torch.stack([kl.sum(1) for kl in codes.kl.values()]).sum(0),
            "mutual_information": (codes.log_guide - log_marginal).mean(0),
            "marginal_kl": (log_marginal - codes.log_prior).mean(0),
        }
        variances = codes.variances()
        first = {name: value[:1] for name, value in next(iter(blocks)).batch().items()}
        figures = _figures(pair, first, variances, codes.values)
        ceiling, warnings = math.log(size), []
        if ceiling > 0 and per_datum["mutual_information"].mean().item() > ceiling - 0.5:
            warnings = [
                f"the mutual information is at its ceiling, log n = {ceiling:.2f} nats: with more data it would be "
                "larger, and the marginal KL smaller"
            ]
        return Estimate(per_datum, _summary(per_datum, codes, variances), warnings, figures)


def _figures(pair: nn.Module, datum: Fields, variances: Variances, draws: Values) -> dict[str, Any]:
    """Traversals from a datum, most active units first, each over the middle 98% of its draws."""
    from pyro_vae.plots.traversals import Unit, traversals  # matplotlib takes long to import

    ranked = [(variance, name, index) for name in variances for index, variance in enumerate(variances[name].tolist())]
    ranked.sort(key=lambda unit: -unit[0])
    units = []
    for _, name, index in ranked[:TRAVERSED]:
        kept, size = draws[name].shape[:2]
        values = draws[name].reshape(kept * size, -1)[:, index].sort().values
        low, high = (values[round(share * (len(values) - 1))].item() for share in (0.01, 0.99))
        units.append(Unit(name, index, torch.linspace(low, high, COLUMNS)))
    figure = traversals(pair, datum, units)
    return {} if figure is None else {"traversals": figure}


def _summary(per_datum: PerDatum, codes: Codes, variances: Variances) -> dict[str, Any]:
    active = {name: int((variance > ACTIVE).sum()) for name, variance in variances.items()}
    summary: dict[str, Any] = {
        "active_units": sum(active.values()),
        "units": sum(len(variance) for variance in variances.values()),
        "active_units_per_site": active,
        "kl_per_dimension": _by_unit({name: kl.mean(0) for name, kl in codes.kl.items()}, variances),
        "variance_of_mean": _by_unit(variances, variances),
    }
    for name, values in per_datum.items():
        summary[name], summary[f"{name}_standard_error"] = mean_and_error(values).values()
    return summary


def _by_unit(figures: Variances, variances: Variances) -> dict[str, float]:
    """Figures by the names of units; a figure for all units of a site by the site's name."""
    named = {}
    for site, values in figures.items():
        whole = len(values) != len(variances[site])
        named |= {site if whole else f"{site}[{index}]": value for index, value in enumerate(values.tolist())}
    return named
