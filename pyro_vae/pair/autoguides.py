"""AutoGuides with parameters for each datum, which are found by the datum's index."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoGuide, AutoGuideList, AutoNormal
from torch import Tensor

from pyro_vae.errors import ContractError, DataError
from pyro_vae.pair.arguments import Arguments
from pyro_vae.pair.pair import batch_size, first_rows

INDEX = "index"
"""The field [n] that says which of the training data a datum is."""


class IndexedGuide:
    """An AutoGuide with latents of a datum. Where a batch has an index, its plate of the data is cut to these.

    Args:
        guide: AutoNormal, AutoDelta, or a list of them.
        plate, dim: the plate of the data.
        size: how many data the guide has parameters for.
    """

    def __init__(self, guide: AutoGuide, plate: str, dim: int, size: int):
        self.guide, self.plate, self.dim, self.size = guide, plate, dim, size

    @property
    def sites(self) -> list[str]:
        """The latents of a datum."""
        parts = [part for part in self.guide.modules() if isinstance(part, AutoGuide) and part.prototype_trace]
        found = {name: node for part in parts for name, node in part.prototype_trace.iter_stochastic_nodes()}
        return [n for n, node in found.items() if any(f.name == self.plate for f in node["cond_indep_stack"])]

    @contextmanager
    def at(self, batch: Mapping[str, Any]) -> Iterator[None]:
        """Run on the data of a batch; raises `DataError` where they have no index."""
        if INDEX not in batch:
            raise DataError(
                f"{type(self.guide).__name__} has parameters of its own for each of the {self.size} data that it was "
                f"made for, found by the field {INDEX!r}, which these data lack; give {INDEX}=torch.arange(n) with "
                "those data, or for others refit these parameters: evaluate(..., refit=500), --refit 500"
            )
        self.guide.create_plates = lambda *_, **__: pyro.plate(
            self.plate, self.size, subsample=batch[INDEX], dim=self.dim
        )
        try:
            yield
        finally:
            self.guide.create_plates = None


def indexed(
    guide: AutoGuide, batch: Mapping[str, Tensor], arguments: Callable[[Mapping[str, Tensor]], Arguments]
) -> IndexedGuide | None:
    """What finds the parameters of each datum in a guide; None where it has no latent of a datum.

    Args:
        arguments: makes the guide's arguments of a batch.

    Raises:
        ContractError: an AutoGuide that ties all latents together, and has latents of a datum.
    """
    if guide.create_plates is not None:
        return None
    rows = batch_size(batch)
    for part in guide if isinstance(guide, AutoGuideList) else [guide]:
        found = _as_long_as(part, rows, arguments(batch))
        if rows > 1 and len(found) > 1:
            fewer = _as_long_as(part, rows - 1, arguments(first_rows(batch, rows - 1)))
            found = {name: dim for name, dim in found.items() if name in fewer}
        if found and not isinstance(part, AutoNormal | AutoDelta):
            raise ContractError(
                f"{type(part).__name__} ties the latents of all data together (plate {min(found)!r}), so no datum has "
                "a posterior of its own; use AutoNormal or AutoDelta for them, and this guide for global latents only"
            )
        if found:
            plate, dim = next(iter(found.items()))
            known = guide._prototype_frames.get(plate) if guide.prototype_trace is not None else None
            return IndexedGuide(guide, plate, dim, rows if known is None else known.full_size or known.size)
    return None


def _as_long_as(guide: AutoGuide, rows: int, given: Arguments) -> dict[str, int]:
    """The plates of this length that the latents of a guide's model stand in, each with its dim."""
    args, kwargs = given
    hidden = poutine.block(guide.model, guide._prototype_hide_fn)
    with torch.no_grad():
        trace = poutine.trace(hidden).get_trace(*args, **kwargs)
    frames = [frame for _, node in trace.iter_stochastic_nodes() for frame in node["cond_indep_stack"]]
    return {frame.name: frame.dim for frame in frames if frame.vectorized and frame.size == rows}
