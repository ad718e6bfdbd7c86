"""log p(x_S | x_T): what a model says of some elements of a datum when it is given others."""

from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from pyro_vae.data import Split
from pyro_vae.data.files.read import read_array
from pyro_vae.errors import DataError
from pyro_vae.evaluation.blocks import Blocks, seed_of
from pyro_vae.evaluation.evaluator import Progress, ticker
from pyro_vae.evaluation.importance import Importance
from pyro_vae.evaluation.missing import settled
from pyro_vae.evaluation.result import Estimate, error_of_mean, quantiles
from pyro_vae.evaluation.weights import MIN_FOR_TAIL, warn_of_k
from pyro_vae.pair.missing import marginalised
from pyro_vae.pair.missing_checks import check_missing
from pyro_vae.pair.sites import side_by_side

Mask = str | Path | Tensor
JOINT, GIVEN = 1, 2
"""What random numbers are for, as the last part of their seeds: the two estimates are independent."""


class Conditional(Importance):
    """log p(x_S | x_T) = log p(x_S, x_T) - log p(x_T) of two sets of elements of a field, an estimate and no bound.

    Each part is an importance-weighted bound at K = particles draws of the guide, in which the elements of neither set
    count. Their difference is neither above nor below the truth; its error comes from both.

    Figures [n]: `log_conditional` (nats), its `monte_carlo_error` (nats, of both parts together), `log_joint` and
    `log_given` (the two bounds, nats), `ess` (particles, the smaller of the two) and `pareto_k` (the larger).

    Args:
        of: the set S: True at its elements, [*event], or [n, *event] with a set for each datum; or a .npy file of it.
        given: the set T likewise; all elements that are not in S where it is None.
        field: the field that the elements are of.
        engine: how the model runs: "eager", "compiled" (traced once for the shape of a chunk), or "auto", which
            compiles where data x particles repay it.

    Raises:
        DataError: a set that cannot be read, or does not fit the field.
        ContractError: the model does not leave out what is missing, or has no log-densities of each datum; names the
            site.
    """

    def __init__(self, of: Mask, given: Mask | None = None, field: str = "x", engine: str = "auto"):
        super().__init__(engine)
        self.of, self.given, self.field, self.hides = of, given, field, (field,)

    def __call__(self, pair: nn.Module, blocks: Blocks, particles: int, progress: Progress) -> Estimate:
        fields = _presented(blocks)
        if self.field not in fields:
            raise DataError(f"the data have no field {self.field!r}; they have {', '.join(sorted(fields))}")
        x = fields[self.field]
        some = _mask("of", self.of, x)
        others = ~some if self.given is None else _mask("given", self.given, x)
        pair = marginalised(pair, (self.field,))
        halves = ticker(progress, blocks.size * particles, 2 * blocks.size * particles)
        joint, given = (
            self._bound(pair, blocks, fields, keep, purpose, particles, halves)
            for keep, purpose in ((some | others, JOINT), (others, GIVEN))
        )
        both = joint.per_datum, given.per_datum
        errors = torch.stack([figures["monte_carlo_error"] for figures in both])
        found = {
            "log_conditional": both[0]["log_likelihood"] - both[1]["log_likelihood"],
            "monte_carlo_error": errors.square().sum(0).sqrt(),
            "log_joint": both[0]["log_likelihood"],
            "log_given": both[1]["log_likelihood"],
            "ess": torch.minimum(both[0]["ess"], both[1]["ess"]),
            "pareto_k": torch.maximum(both[0]["pareto_k"], both[1]["pareto_k"]),
        }
        return Estimate(found, joint.summary)

    def _bound(
        self,
        pair: nn.Module,
        blocks: Blocks,
        fields: dict[str, Tensor],
        keep: Bool[Tensor, "n ..."],
        purpose: int,
        particles: int,
        progress: Progress,
    ) -> Estimate:
        """L_K of the elements that are kept."""
        split = Split({**fields, self.field: fields[self.field].masked_fill(~keep, torch.nan)})
        with torch.inference_mode(False):
            absent = check_missing(pair, split)
        hidden = Blocks(pair, split, seed_of(blocks.seed, purpose))
        hidden.indices, hidden.done = blocks.indices, blocks.done
        blank = [row - hidden.first for row in absent.blank if 0 <= row - hidden.first < hidden.size]
        return settled(super().__call__(pair, hidden, particles, progress), replace(absent, blank=blank))

    def summarise(self, found: Estimate, particles: int) -> Estimate:
        figures = found.per_datum
        summary = {
            "monte_carlo_error": error_of_mean(figures["monte_carlo_error"]),
            "ess": quantiles(figures["ess"]),
            "pareto_k": quantiles(figures["pareto_k"]),
        }
        warnings = warn_of_k(
            figures["pareto_k"],
            "for these the two bounds are no reliable estimates, and the error is understated; use more particles",
        )
        if particles < MIN_FOR_TAIL:
            warnings = [f"{particles} particles are too few to judge the weights; k-hat needs at least {MIN_FOR_TAIL}"]
        return replace(found, summary=found.summary | summary, warnings=warnings)


def _presented(blocks: Blocks) -> dict[str, Tensor]:
    """The fields of all data [n, ...] as an evaluation sees them, presented once."""
    parts = []
    for block in Blocks(blocks.pair, blocks.whole, blocks.seed):
        with block.seeded():
            parts.append(block.split.take(block.rows))
    return side_by_side(parts)


def _mask(name: str, mask: Mask, x: Tensor) -> Bool[Tensor, "n ..."]:
    """A set of elements of each datum; raises `DataError` where it cannot be read or has another shape."""
    if isinstance(mask, str | Path):
        try:
            mask = torch.from_numpy(read_array(Path(mask)))
        except (DataError, TypeError) as reason:
            raise DataError(f"{name}: {mask} {reason}; save a boolean array with numpy.save") from reason
    mask = torch.as_tensor(mask).bool().to(x.device)
    if mask.shape not in (x.shape, x.shape[1:]):
        raise DataError(f"{name} has shape {list(mask.shape)}; a datum has {list(x.shape[1:])}, and there are {len(x)}")
    return mask.expand(x.shape)
