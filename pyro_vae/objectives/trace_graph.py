"""Minus the ELBO with score-function gradients and baselines: Pyro's own estimator, kept out of its global store."""

from collections.abc import Collection

import pyro
from jaxtyping import Float
from pyro import poutine
from pyro.infer import TraceGraph_ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_vae.errors import ContractError, find
from pyro_vae.objectives.objective import Batch, Beta, Objective, without_value
from pyro_vae.objectives.score_function import GRADIENTS
from pyro_vae.pair.missing import with_gaps
from pyro_vae.pair.pair import batch_size, select_fields, validation_off
from pyro_vae.pair.parameters import LocalParameters
from pyro_vae.pair.particles import OWN_DIM, ways
from pyro_vae.pair.structure import structure_of

AVERAGES = "__baseline_avg_downstream_cost_"  # how Pyro names the averages that TraceGraph_ELBO keeps


class TraceGraphELBO(Objective):
    """Minus the ELBO by Pyro's `TraceGraph_ELBO`: score-function gradients with only the costs downstream of each site
    and a baseline (Mnih & Gregor 2014; Schulman et al. 2015), for sites that cannot be reparameterised.

    A guide site chooses its baseline with Pyro's `infer={"baseline": {...}}`; one that names none gets Pyro's
    decaying average. Averages are kept here, one for each batch shape, not in Pyro's parameter store.

    Args:
        gradient: "pathwise"; or "score", the score function and a baseline at sites that can be reparameterised, too.

    Raises:
        UnknownName: a gradient estimator that is not known.
    """

    def __init__(self, gradient: str = "pathwise") -> None:
        find("gradient estimator", gradient, GRADIENTS)
        self.gradient = gradient
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
        structure, way = structure_of(pair, fields), ways(pair, batch, particles)
        hidden = structure.enumerated["model"] - structure.enumerated["guide"]
        if hidden:
            raise ContractError(
                f"the model enumerates {min(hidden)!r}, which this objective cannot; use trace_enum_elbo"
            )
        model, guide = (with_gaps(pair, name, getattr(pair, name)) for name in ("model", "guide"))
        if structure.left_out:
            model = poutine.block(model, hide=list(structure.left_out))
        at_once = particles > 1 and way.guide == way.model == OWN_DIM
        estimator = TraceGraph_ELBO(particles, max_plate_nesting=structure.depth, vectorize_particles=at_once)
        known = self.averages.get(size, {})
        state = {"params": dict(known), "constraints": {name: constraints.real for name in known}}
        with validation_off(), pyro.get_param_store().scope(state) as after:
            with (
                LocalParameters(own_names=AVERAGES),
                ScaleKL(beta, size / (data_size or size), (structure.guide.name, structure.model.name)),
                DefaultBaseline(),
                GRADIENTS[self.gradient](),
            ):
                # fields as one argument: Pyro's handlers have a `context` of their own
                programs = (lambda given: model(**given), lambda given: guide(**given))
                elbo, surrogate = estimator._loss_and_surrogate_loss(*programs, (fields,), {})
        self.averages[size] = {name: average.detach() for name, average in after["params"].items()}
        return (-elbo.detach() + without_value(surrogate)) / size


class ScaleKL(Messenger):
    """Scales every latent site by beta, in model and guide alike, and sites outside the data plate by `share`. The
    subsampling scale of the data plate is divided out. Handlers further out see the scale that the pair gave."""

    def __init__(self, beta: Beta, share: float, data_plates: Collection[str | None]):
        super().__init__()
        self.beta, self.share, self.data_plates = beta, share, data_plates

    def _pyro_post_sample(self, msg: dict) -> None:
        if not msg["is_observed"]:
            msg["scale"] = msg["scale"] * self.beta
        plate = next((frame for frame in msg["cond_indep_stack"] if frame.name in self.data_plates), None)
        if plate is None:
            msg["scale"] = msg["scale"] * self.share
        elif plate.full_size:
            msg["scale"] = msg["scale"] * plate.size / plate.full_size


class DefaultBaseline(Messenger):
    """Pyro's decaying-average baseline for sites that cannot be reparameterised and name none."""

    def _pyro_sample(self, msg: dict) -> None:
        if not msg["is_observed"] and not getattr(msg["fn"], "has_rsample", False):
            msg["infer"] = {"baseline": {"use_decaying_avg_baseline": True}, **(msg["infer"] or {})}
