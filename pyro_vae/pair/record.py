"""Records the sample sites of a program as it runs, giving latents the values that they are told to have."""

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from pyro_vae.pair.layout import Layout
from pyro_vae.pair.missing import GIVEN
from pyro_vae.pair.sites import Site, Sites, is_point_mass

PARTICLES = "_particles"


class Record(Messenger):
    """Records the sample sites of a program, giving the named ones the values they are told to have.

    Args:
        values: values of latents, [particles, batch, ...].
        dims: the dims of enumerations, with their numbers, that these values may have.
        data_plate: the name of the data's plate.
        summed: the names of the sites that the pair enumerates.
        free: point masses draw their own value, whatever they are told.
        settle: log-probabilities are taken where the site is drawn.
    """

    def __init__(
        self,
        layout: Layout,
        values: Mapping[str, Tensor],
        dims: Mapping[str, Mapping[int, int]],
        data_plate: str | None,
        summed: Collection[str],
        free: bool,
        settle: bool,
    ):
        super().__init__()
        self.layout, self.values, self.dims = layout, values, dims
        self.data_plate, self.summed = data_plate, summed
        self.free, self.settle = free, settle
        self.sites: Sites = {}

    def _pyro_sample(self, msg: dict) -> None:
        if isinstance(msg["fn"], _Subsample):
            if msg["value"] is None and msg["fn"].subsample_size == self.layout.rows:  # the batch is the subsample
                msg["value"], msg["done"] = torch.arange(self.layout.rows, device=msg["fn"].device), True
        elif msg["is_observed"]:
            if isinstance(msg["value"], Tensor) and msg["value"].dtype == torch.bool:
                msg["value"] = msg["value"].to(torch.get_default_dtype())
        elif msg["name"] in self.values and not (self.free and is_point_mass(msg["fn"])):
            msg["value"], msg["done"] = self._given(msg), True

    def _given(self, msg: dict) -> Tensor:
        """The value of a site as the program takes it."""
        value, plates = self.values[msg["name"]], plates_of(msg)
        if self.data_plate not in plates:
            return value.squeeze(0)
        event_dims = len(msg["fn"].event_shape)
        rest = [dim for name, dim in plates.items() if name != self.data_plate]
        dims = self.dims.get(msg["name"], {})
        if dims and value.dim() > 2 + len(rest) + event_dims:
            rest += dims
            msg["infer"]["_dim_to_id"] = dict(dims)
        return self.layout.fold(value, event_dims, rest)

    def _pyro_post_sample(self, msg: dict) -> None:
        infer = msg["infer"]
        if isinstance(msg["fn"], _Subsample) or infer.get("_deterministic"):
            return
        own = next((frame for frame in msg["cond_indep_stack"] if frame.name == self.data_plate), None)
        subsampling = own.full_size / own.size if own is not None and own.full_size else 1.0
        dims = infer.setdefault("_dim_to_id", {})
        site = Site(
            name=msg["name"],
            fn=msg["fn"],
            raw=msg["value"],
            observed=msg["is_observed"] or "was_observed" in infer,
            plates=plates_of(msg),
            data_plate=self.data_plate,
            given=infer.get(GIVEN, msg["value"]),
            scale=_without(msg["scale"], subsampling),
            mask=msg["mask"],
            auxiliary=bool(infer.get("is_auxiliary")),
            layout=self.layout,
            summed=msg["name"] in self.summed,
            enumerated=dims.get(infer.get("_enumerate_dim")),
            dims=dims,
        )
        if self.settle:
            _ = site.density
        self.sites[site.name] = site

    @property
    def last(self) -> tuple[str, Tensor] | None:
        """Name and value of the last site that ran."""
        return next(((site.name, site.raw) for site in reversed(self.sites.values())), None)


def plates_of(msg: dict) -> dict[str, int]:
    """The plates with a dim that a sample statement stands in."""
    return {f.name: f.dim for f in msg["cond_indep_stack"] if f.vectorized and f.name != PARTICLES}


def _without(scale: Any, own: float) -> Any:
    """A scale divided by the plate's own; 1.0 exactly where nothing is left."""
    if isinstance(scale, Tensor):
        return scale if own == 1.0 else scale / own
    return 1.0 if math.isclose(scale, own, rel_tol=1e-9) else scale / own
