"""Minus the ELBO as traced objectives: from draws alone, or with the KL in closed form."""

import copy
from typing import Self

from torch import nn

from pyro_vae.errors import RunError, find
from pyro_vae.objectives.free_bits import FreeBits
from pyro_vae.objectives.objective import Batch, Beta, Estimate, MinusBound, require_reparameterised, without_value
from pyro_vae.objectives.score_function import GRADIENTS
from pyro_vae.pair import bounds
from pyro_vae.pair.terms import ElboTerms, elbo_terms, log_terms


class MinusELBO(MinusBound):
    """Minus an ELBO, whose KL may have free bits."""

    free_bits: FreeBits | None = None

    def with_free_bits(self, nats: float, per: str) -> Self:
        chosen = copy.copy(self)
        chosen.free_bits = FreeBits(nats, per)
        return chosen

    def elbo_terms(self, pair: nn.Module, batch: Batch, particles: int) -> ElboTerms:
        """The terms of a training loss, with the KL in closed form wherever one is known, and floored."""
        free = self.free_bits
        by_dimension = free is not None and free.by_dimension
        terms = elbo_terms(pair, batch, particles, as_loss=True, allow_shared=True, by_dimension=by_dimension)
        return terms if free is None else free.floored(terms)


class TraceELBO(MinusELBO):
    """Minus the ELBO at sampled z, equal to Pyro's `Trace_ELBO` per datum: pathwise gradients where sites can be
    reparameterised, score-function gradients elsewhere (Ranganath, Gerrish & Blei 2014). With free bits the KL is in
    closed form wherever one is known, since it is compared with its least value.

    Args:
        gradient: "pathwise"; or "score", the score function at sites that can be reparameterised, too.

    Raises:
        UnknownName: a gradient estimator that is not known.
    """

    def __init__(self, gradient: str = "pathwise"):
        find("gradient estimator", gradient, GRADIENTS)
        self.gradient = gradient

    def with_free_bits(self, nats: float, per: str) -> Self:
        if self.gradient != "pathwise":
            raise RunError("free bits are a least KL in closed form, which gradient='score' has not; leave one out")
        return super().with_free_bits(nats, per)

    def bound(self, pair: nn.Module, batch: Batch, particles: int, beta: Beta) -> Estimate:
        if self.free_bits is None:
            with GRADIENTS[self.gradient]():
                terms = log_terms(pair, batch, particles, as_loss=True, allow_shared=True)
        else:
            terms = self.elbo_terms(pair, batch, particles)
        bound = bounds.elbo(terms, beta)
        if terms.score is None:
            return bound, terms
        cost = terms.log_likelihood - beta * terms.kl
        # the bound holds beta log q of these sites as well, whose gradient has mean zero: `+ beta` takes it out
        return bound + without_value((terms.score * (cost.detach() + beta)).mean(0)), terms


class TraceEnumELBO(TraceELBO):
    """The same, equal to Pyro's `TraceEnum_ELBO` per datum, under the name by which Pyro's users look for it.

    Sites that are marked to be enumerated are summed out, which the other ELBOs do as well.

    Args:
        gradient: as for `trace_elbo`.
    """


class TraceMeanFieldELBO(MinusELBO):
    """Minus the ELBO with the KL in closed form wherever one is known (Kingma & Welling 2014, eq. 7), equal to Pyro's
    `TraceMeanField_ELBO` per datum.

    Pyro's is biased where the prior of a site depends on latents that the guide draws after it. Here the KL of such a
    site is estimated from the draws.

    Raises:
        ContractError: a guide site cannot be reparameterised; names the objectives that take it.
    """

    def bound(self, pair: nn.Module, batch: Batch, particles: int, beta: Beta) -> Estimate:
        terms = self.elbo_terms(pair, batch, particles)
        require_reparameterised(terms, "trace_elbo or trace_graph_elbo")
        return bounds.elbo(terms, beta), terms
