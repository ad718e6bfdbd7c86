"""How well a pair tells the labels of data that it is not shown: by their names, or as clusters matched to them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from pyro_vae.data.labels import TRUTH
from pyro_vae.data.sequences import cut
from pyro_vae.errors import DataError
from pyro_vae.evaluation.blocks import Block, Blocks
from pyro_vae.evaluation.evaluator import Evaluator, Progress
from pyro_vae.evaluation.result import Estimate, PerDatum
from pyro_vae.pair.labels import NAMES, knows_labels, label_of, label_probabilities, unlabelled

UNMATCHED = -1


class Classify(Evaluator):
    """Whether the most probable label of a datum, given x alone, is another than the true one.

    Figures [n]: `error`, 1 where it is and 0 where not, whose mean is the share of errors; `label` and `guess`; and
    `probabilities` [n, values] of the pair's enumerated site, averaged over `particles` draws of what the guide draws.
    The pair is shown no label, whatever the data have: fields `label` and `y` are left out, or -1. The true one is the
    field `truth`, else `label`, else `y`.

    Of a pair that takes no such field, the values are clusters without a name: each is matched to one label so that as
    many data as can be are right (the Hungarian method), and what has no match is an error. Picture `confusion`.

    Args:
        site: the enumerated site; by default the one that is called label or y, or the only one.

    Raises:
        ContractError: the pair enumerates no site of which a datum has one value, or several, and none is named.
        DataError: the data have no labels, hidden ones, or some that are not among the site's values.
    """

    shareable = True
    needs_gradients = True  # p(y|x, z) is a gradient

    def __init__(self, site: str | None = None):
        self.site = site

    def __call__(self, pair: nn.Module, blocks: Blocks, particles: int, progress: Progress) -> Estimate:
        found = super().__call__(pair, blocks, particles, progress)
        return replace(found, summary={"clusters": not knows_labels(pair)})

    def of_block(self, block: Block, particles: int, progress: Progress) -> PerDatum:
        with block.seeded():
            whole = block.split.take(block.rows)
        truth, fields = true_labels(whole, block.rows.start), cut(unlabelled(block.pair, whole))
        label = label_of(block.pair, fields, self.site)
        if knows_labels(block.pair) and int(truth.max()) >= len(label.values):
            raise DataError(
                f"a label of these data is {int(truth.max())}, but site {label.site!r} has the values 0 to "
                f"{len(label.values) - 1}; give data of the labels that the pair was trained on"
            )
        total = torch.zeros(block.size, len(label.values), dtype=torch.float64)
        for draw in range(particles):
            with block.seeded(draw):
                total += label_probabilities(block.pair, fields, label.site).double().cpu()
            progress(block.size)
        return {"probabilities": total / particles, "label": truth.cpu()}

    def summarise(self, found: Estimate, particles: int) -> Estimate:
        probabilities, label = found.per_datum["probabilities"].double(), found.per_datum["label"].long()
        guess = probabilities.argmax(1)
        counts = confusion_counts(label, guess, probabilities.shape[1])
        summary: dict[str, Any] = {}
        if found.summary["clusters"]:
            match = matching(counts)
            summary = {"clusters": len(match), "clusters_used": len(guess.unique()), "label_of_cluster": match.tolist()}
            guess = match[guess]
        error = (guess != label).double()
        figures = {"error": error, "label": label, "guess": guess, "probabilities": probabilities}
        summary = {"accuracy": 1 - error.mean().item(), **summary}
        return replace(
            found, per_datum=figures, summary=summary, figures=_pictures(counts, summary), unit="of the data"
        )


def true_labels(batch: Mapping[str, Tensor], first: int) -> Int[Tensor, " batch"]:
    """The labels of a batch whose first datum is number `first`.

    Raises:
        DataError: there are none, or one is hidden.
    """
    name = next((name for name in (TRUTH, *NAMES) if name in batch), None)
    if name is None:
        raise DataError(f"the data have no labels to compare with: no field {', '.join((TRUTH, *NAMES))}")
    label = batch[name]
    label = label.argmax(-1) if label.dim() == 2 else label.long()
    if label.dim() != 1:
        raise DataError(f"{name} must be one label a datum, not of shape {list(label.shape[1:])}")
    if (label < 0).any():
        row = first + int((label < 0).nonzero()[0])
        raise DataError(
            f"{name}[{row}] is {int(label.min())}, a hidden label; evaluate data whose labels are all known"
        )
    return label


def confusion_counts(label: Int[Tensor, " n"], guess: Int[Tensor, " n"], values: int) -> Int[Tensor, "labels values"]:
    """How many data have each label and each most probable value."""
    labels = int(label.max()) + 1
    return torch.bincount(label * values + guess, minlength=labels * values).view(labels, values)


def matching(counts: Int[Tensor, "labels values"]) -> Int[Tensor, " values"]:
    """The label of each value, no label twice, so that as many data as can be are right; -1 where there is none left.

    The Hungarian method (Kuhn 1955), as SciPy has it.
    """
    from scipy.optimize import linear_sum_assignment  # SciPy takes long to import

    labels, values = linear_sum_assignment(counts.numpy(), maximize=True)
    match = torch.full((counts.shape[1],), UNMATCHED)
    match[torch.from_numpy(values)] = torch.from_numpy(labels)
    return match


def _pictures(counts: Int[Tensor, "labels values"], summary: Mapping[str, Any]) -> dict[str, Any]:
    """The confusion matrix; clusters stand in the order of their labels."""
    from pyro_vae.plots.confusion import confusion_matrix  # matplotlib takes long to import

    match = summary.get("label_of_cluster")
    if match is None:
        return {"confusion": confusion_matrix(counts)}
    order = sorted(range(len(match)), key=lambda value: (match[value] == UNMATCHED, match[value]))
    return {"confusion": confusion_matrix(counts[:, order], [str(value) for value in order], "most probable cluster")}
