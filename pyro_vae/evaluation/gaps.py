"""How much of log p(x) the guide gives away: to its family (approximation), and to its encoder (amortisation)."""

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import Normal

from pyro_vae.data import Split
from pyro_vae.errors import ContractError, RunError
from pyro_vae.evaluation.blocks import Block
from pyro_vae.evaluation.chunks import stream_terms
from pyro_vae.evaluation.evaluator import Evaluator, Progress, ticker
from pyro_vae.evaluation.result import Estimate, PerDatum, mean_and_error
from pyro_vae.evaluation.weights import WeightStream, warn_of_k
from pyro_vae.pair import bounds
from pyro_vae.pair.pair import Another, batch_size
from pyro_vae.pair.particles import Fields, run_guide
from pyro_vae.pair.sites import elements
from pyro_vae.pair.terms import log_terms, reduce_guide

REFINING, EVALUATING = 1, 2
"""What random numbers are for, as the last part of their seeds."""


class Gaps(Evaluator):
    """log p(x) - ELBO in two parts: what the guide's family costs, and what its encoder (Cremer, Li & Duvenaud 2018).

    q* is the guide with the mean and the scale of every normal site refined for each datum by itself, by Adam on the
    ELBO. Figures [n] in nats: `inference_gap` = log p - L[q], `approximation_gap` = log p - L[q*], `amortisation_gap` =
    L[q*] - L[q], `elbo` = L[q], `refined_elbo` = L[q*], and `bound`, which stands for log p: the importance-weighted
    bound from q* or from q, whichever is higher in the mean over data. Bounds and ELBOs take `particles` draws.

    Args:
        steps: gradient steps for each datum.
        lr: first step size in units of the guide's scale; it falls to 0 along a cosine.
        draws: draws of each gradient.

    Raises:
        RunError: a number that is not positive.
        ContractError: a guide site that is no normal with independent elements; names it.
    """

    needs_gradients = shareable = True

    def __init__(self, steps: int = 300, lr: float = 0.05, draws: int = 10):
        for name, value in {"steps": steps, "lr": lr, "draws": draws}.items():
            if not value > 0:
                raise RunError(f"{name} must be positive, not {value}")
        self.steps, self.lr, self.draws = steps, lr, draws

    def of_block(self, block: Block, particles: int, progress: Progress) -> PerDatum:
        block.check()
        batch = block.batch()
        tick = ticker(progress, block.size * particles, block.size * (self.steps * self.draws + 2 * particles))
        with block.seeded(REFINING):
            refined = self.refine(block.pair, batch, tick)
        of_guide, of_refined = (
            _figures(Block(program, Split(batch), slice(0, block.size), *block.key, EVALUATING), particles, tick)
            for program in (block.pair, refined)
        )
        return of_guide | {f"refined_{name}": value for name, value in of_refined.items()}

    def summarise(self, found: Estimate, particles: int) -> Estimate:
        figures = found.per_datum
        better = "refined_" if figures["refined_bound"].mean() > figures["bound"].mean() else ""
        bound, elbo, refined_elbo = figures[f"{better}bound"], figures["elbo"], figures["refined_elbo"]
        gaps = {
            "inference_gap": bound - elbo,
            "approximation_gap": bound - refined_elbo,
            "amortisation_gap": refined_elbo - elbo,
        }
        summary: dict[str, Any] = {name: mean_and_error(gap) for name, gap in gaps.items()}
        summary |= {"bound": bound.mean().item(), "proposal": "refined guide" if better else "guide"}
        per_datum = gaps | {"elbo": elbo, "refined_elbo": refined_elbo, "bound": bound}
        return Estimate(per_datum, summary, _warnings(gaps, figures[f"{better}pareto_k"], particles))

    def refine(self, pair: nn.Module, batch: Fields, tick: Callable[[int], None]) -> "Refined":
        """The pair with the guide that is best for each datum of the batch, as far as the steps reach. The gradient is
        taken through z only, so it has no noise where the guide is the posterior (Roeder, Wu & Duvenaud 2017)."""
        refined = Refined(pair, batch)
        moved = [*refined.shifts, *refined.log_stretches]
        optimizer = torch.optim.Adam(moved, self.lr, eps=self.lr)  # small gradients are followed, not blown up
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        for _ in range(self.steps):
            terms = log_terms(refined, batch, self.draws, frozen_guide=True, as_loss=True)
            gradients = torch.autograd.grad(-bounds.elbo(terms).sum(), moved)
            for parameter, gradient in zip(moved, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
            schedule.step()
            tick(terms.log_guide.numel())
        return refined


class Refined(Another):
    """A pair whose guide's normals N(m, s) are N(m + s shift, s exp(log_stretch)) for each datum of one batch.

    Shift and log_stretch [batch, *event] of each site start at zero, where the guide is the pair's own. Raises
    `ContractError` for a guide site that is no normal with independent elements.
    """

    def __init__(self, pair: nn.Module, batch: Fields):
        super().__init__(pair)
        self.model, self.guide = pair.model, _Move(self)(pair.guide)
        with torch.no_grad():
            sites = run_guide(pair, batch)
            reduce_guide(sites, 1, batch_size(batch))
        for site in sites.values():
            if not isinstance(elements(site.fn), Normal):
                raise ContractError(
                    f"the guide's site {site.name!r} is no normal with independent elements, and gaps refine no other; "
                    "compare elbo with importance or ais instead"
                )
        self.place = {name: index for index, name in enumerate(sites)}
        self.shifts = nn.ParameterList([torch.zeros_like(site.raw) for site in sites.values()])
        self.log_stretches = nn.ParameterList([torch.zeros_like(site.raw) for site in sites.values()])


class _Move(Messenger):
    """Moves the distributions of a guide's sites to a refined pair's."""

    def __init__(self, refined: Refined):
        super().__init__()
        self.refined = refined

    def _pyro_sample(self, msg: dict) -> None:
        index = self.refined.place.get(msg["name"])
        if index is not None:
            normal, event_dims = elements(msg["fn"]), len(msg["fn"].event_shape)
            loc = normal.loc + normal.scale * self.refined.shifts[index]
            scale = normal.scale * self.refined.log_stretches[index].exp()
            msg["fn"] = dist.Normal(loc, scale).to_event(event_dims)


@torch.no_grad()
def _figures(block: Block, particles: int, tick: Callable[[int], None]) -> PerDatum:
    """ELBO, importance-weighted bound and k-hat of the data of a block; the same key gives the same noise."""
    stream, total = WeightStream(particles, block.size), torch.zeros(())
    for terms in stream_terms(block, particles, tick):
        stream.add(terms.log_weight, *terms[:3])
        total = total + terms.log_weight.double().sum(0).cpu()
    return {"elbo": total / particles, "bound": stream.bound(), "pareto_k": stream.pareto_k()}


def _warnings(gaps: PerDatum, pareto_k: Float[Tensor, " n"], particles: int) -> list[str]:
    found = []
    if particles < 100:
        found.append(f"the bound that stands for log p has only {particles} particles; use 1000 or more")
    found += warn_of_k(
        pareto_k,
        "their bound stands for log p but is too low, so inference and approximation gap are too small; use more "
        "particles, or ais for log p",
    )
    if gaps["amortisation_gap"].mean() < -0.01:
        found.append("the refined guide is worse than the guide; use a smaller lr or more steps")
    return found
