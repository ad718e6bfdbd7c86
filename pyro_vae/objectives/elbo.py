"""What training minimises, by name: a loss in nats per datum, whose gradient is the estimator that the name promises.

An objective is called as `objective(pair, batch, particles=1, beta=1.0, data_size=None)` and gives a scalar. `beta`
scales the KL alike in every one of them. `data_size` is the number of data that the batch stands for: latents outside
the data plate, of which there is one for all data, count 1/data_size in each datum's loss (default: the batch is all
the data). `traceable` says that the loss is free of host reads, so that the compiled engine can take it.
"""

from collections.abc import Mapping
from typing import Any

import pyro
from jaxtyping import Float
from pyro.infer import TraceGraph_ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_vae.errors import ContractError
from pyro_vae.pair import bounds
from pyro_vae.pair.pair import LocalParameters, select_fields
from pyro_vae.pair.particles import OWN_DIM, batch_size, validation_off, ways
from pyro_vae.pair.terms import ElboTerms, LogTerms, elbo_terms, log_terms

AVERAGES = "__baseline_avg_downstream_cost_"  # how Pyro names the averages that TraceGraph_ELBO keeps


class TraceELBO:
    """Minus the ELBO at sampled z, equal to Pyro's `Trace_ELBO` per datum: pathwise gradients where sites can be
    reparameterised, score-function gradients elsewhere (Ranganath, Gerrish & Blei 2014)."""

    traceable = True

    def __call__(
        self,
        pair: nn.Module,
        batch: Mapping[str, Tensor],
        particles: int = 1,
        beta: float | Tensor = 1.0,
        data_size: int | None = None,
    ) -> Float[Tensor, ""]:
        terms = log_terms(pair, batch, particles, as_loss=True, allow_shared=True)
        loss = -bounds.elbo(terms, beta).mean() + further_loss(terms, beta, data_size)
        if terms.score is None:
            return loss
        cost = terms.log_likelihood - beta * terms.kl
        # `loss` holds beta log q of these sites as well, whose gradient has mean zero: the last term takes it out
        return loss + without_value(-(terms.score * (cost.detach() + beta)).mean())


class TraceMeanFieldELBO:
    """Minus the ELBO with the KL in closed form wherever one is known (Kingma & Welling 2014, eq. 7), equal to Pyro's
    `TraceMeanField_ELBO` per datum.

    Where that is biased, this is not: the KL of a site whose prior depends on latents that the guide draws after it
    is estimated from the draws.

    Raises:
        ContractError: a guide site that cannot be reparameterised; names the objectives that take it.
    """

    traceable = True

    def __call__(
        self,
        pair: nn.Module,
        batch: Mapping[str, Tensor],
        particles: int = 1,
        beta: float | Tensor = 1.0,
        data_size: int | None = None,
    ) -> Float[Tensor, ""]:
        terms = elbo_terms(pair, batch, particles, as_loss=True, allow_shared=True)
        require_reparameterised(terms, "trace_elbo or trace_graph_elbo")
        return -bounds.elbo(terms, beta).mean() + further_loss(terms, beta, data_size)


class TraceGraphELBO:
    """Minus the ELBO by Pyro's `TraceGraph_ELBO`: score-function gradients with only the costs downstream of each site
    and a baseline (Mnih & Gregor 2014; Schulman et al. 2015), for sites that cannot be reparameterised.

    A guide site chooses its baseline with Pyro's `infer={"baseline": {...}}`; one that names none gets Pyro's
    decaying average. Averages are kept here, one for each batch shape, not in Pyro's parameter store.
    """

    traceable = False

    def __init__(self) -> None:
        self.averages: dict[int, dict[str, Tensor]] = {}

    def state_dict(self) -> dict[int, dict[str, Tensor]]:
        return self.averages

    def load_state_dict(self, state: dict[int, dict[str, Tensor]]) -> None:
        self.averages = {size: dict(averages) for size, averages in state.items()}

    def __call__(
        self,
        pair: nn.Module,
        batch: Mapping[str, Tensor],
        particles: int = 1,
        beta: float | Tensor = 1.0,
        data_size: int | None = None,
    ) -> Float[Tensor, ""]:
        size = batch_size(pair, batch)
        way = ways(pair, batch, particles)
        at_once = particles > 1 and way.guide == way.model == OWN_DIM
        estimator = TraceGraph_ELBO(particles, max_plate_nesting=1, vectorize_particles=at_once)
        fields = select_fields(pair, batch)
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
    """Scales every latent site by beta, in model and guide alike, and sites outside the data plate by `share`; takes
    the subsampling scale of the data plate out."""

    def __init__(self, beta: float | Tensor, share: float, size: int, data_plate: str | None = None):
        super().__init__()
        self.beta, self.share, self.size, self.data_plate = beta, share, size, data_plate

    def _pyro_sample(self, msg: dict) -> None:
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


def without_value(term: Tensor) -> Tensor:
    """A term that adds its gradient and no value."""
    return term - term.detach()


def shared_loss(terms: ElboTerms | LogTerms, beta: float | Tensor, data_size: int | None) -> Tensor | float:
    """Each datum's share of minus beta (log p - log q) of the latents outside the data plate, nats per datum."""
    if terms.shared is None:
        return 0.0
    return -beta * terms.shared.mean() / (data_size or terms.log_likelihood.shape[1])


def further_loss(terms: ElboTerms | LogTerms, beta: float | Tensor, data_size: int | None) -> Tensor | float:
    """`shared_loss`, and what the guide observes or factors in, which Pyro's ELBOs subtract."""
    extra = 0.0 if terms.extra is None else terms.extra.mean()
    return shared_loss(terms, beta, data_size) + extra


def require_reparameterised(terms: ElboTerms | LogTerms, alternatives: str) -> None:
    """Raise `ContractError` where a guide site has no pathwise gradient."""
    if terms.score is not None:
        raise ContractError(
            f"a guide site cannot be reparameterised, so this objective has no gradient; use {alternatives}"
        )
