"""Minus the ELBO with score-function gradients and baselines: Pyro's own estimator, kept out of its global store."""

from typing import Any

import pyro
from jaxtyping import Float
from pyro.infer import TraceGraph_ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_vae.objectives.objective import Batch, Beta, Objective, without_value
from pyro_vae.pair.pair import LocalParameters, batch_size, select_fields
from pyro_vae.pair.particles import OWN_DIM, validation_off, ways

AVERAGES = "__baseline_avg_downstream_cost_"  # how Pyro names the averages that TraceGraph_ELBO keeps


class TraceGraphELBO(Objective):
    """Minus the ELBO by Pyro's `TraceGraph_ELBO`: score-function gradients with only the costs downstream of each site
    and a baseline (Mnih & Gregor 2014; Schulman et al. 2015), for sites that cannot be reparameterised.

    A guide site chooses its baseline with Pyro's `infer={"baseline": {...}}`; one that names none gets Pyro's
    decaying average. Averages are kept here, one for each batch shape, not in Pyro's parameter store.
    """

    def __init__(self) -> None:
        self.averages: dict[int, dict[str, Tensor]] = {}

    def state_dict(self) -> dict[int, dict[str, Tensor]]:
        return self.averages

    def load_state_dict(self, state: dict[int, dict[str, Tensor]]) -> None:
        self.averages = {size: dict(averages) for size, averages in state.items()}

    def __call__(
        self, pair: nn.Module, batch: Batch, particles: int = 1, beta: Beta = 1.0, data_size: int | None = None
    ) -> Float[Tensor, ""]:
        fields = select_fields(pair, batch)
        size = batch_size(fields)
        way = ways(pair, batch, particles)
        at_once = particles > 1 and way.guide == way.model == OWN_DIM
        estimator = TraceGraph_ELBO(particles, max_plate_nesting=1, vectorize_particles=at_once)
        known = self.averages.get(size, {})
        state = {"params": dict(known), "constraints": {name: constraints.real for name in known}}
        with validation_off(), pyro.get_param_store().scope(state) as after:
            with (
                LocalParameters(own_names=AVERAGES),
                ScaleKL(beta, size / (data_size or size), size, getattr(pair, "data_plate", None)),
                DefaultBaseline(),
            ):
                # fields as one argument: Pyro's handlers have a `context` of their own
                programs = (lambda given: pair.model(**given), lambda given: pair.guide(**given))
                elbo, surrogate = estimator._loss_and_surrogate_loss(*programs, (fields,), {})
        self.averages[size] = {name: average.detach() for name, average in after["params"].items()}
        return (-elbo.detach() + without_value(surrogate)) / size


class ScaleKL(Messenger):
    """Scales every latent site by beta, in model and guide alike, and sites outside the data plate by `share`. The
    subsampling scale of the data plate is divided out. Handlers further out see the scale that the pair gave."""

    def __init__(self, beta: Beta, share: float, size: int, data_plate: str | None = None):
        super().__init__()
        self.beta, self.share, self.size, self.data_plate = beta, share, size, data_plate

    def _pyro_post_sample(self, msg: dict) -> None:
        if not msg["is_observed"]:
            msg["scale"] = msg["scale"] * self.beta
        plate = next((frame for frame in msg["cond_indep_stack"] if self._is_of_data(frame)), None)
        if plate is None:
            msg["scale"] = msg["scale"] * self.share
        elif plate.full_size:
            msg["scale"] = msg["scale"] * plate.size / plate.full_size

    def _is_of_data(self, frame: Any) -> bool:
        named = frame.name == self.data_plate if self.data_plate else frame.size in (self.size, -1)
        return frame.dim == -1 and named


class DefaultBaseline(Messenger):
    """Pyro's decaying-average baseline for sites that cannot be reparameterised and name none."""

    def _pyro_sample(self, msg: dict) -> None:
        if not msg["is_observed"] and not getattr(msg["fn"], "has_rsample", False):
            msg["infer"] = {"baseline": {"use_decaying_avg_baseline": True}, **(msg["infer"] or {})}
