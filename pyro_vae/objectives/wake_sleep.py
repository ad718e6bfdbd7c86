"""Wake-sleep: the model learns from the guide's draws for the data, the guide by the score of given draws.

Awake, the guide draws z for each datum. Asleep, the model draws x and z, and the guide learns to tell z from x: the
gradient of E_p(x) KL(p(z|x) || q(z|x)). No gradient passes through a draw, so any site will do that has a density.
"""

from jaxtyping import Float
from torch import Tensor, nn

from pyro_vae.errors import ContractError, ProgramError, check_positive
from pyro_vae.objectives.objective import Batch, Beta, Estimate, MinusBound, without_value
from pyro_vae.objectives.score_function import ByScore
from pyro_vae.pair import bounds
from pyro_vae.pair.dreams import dream
from pyro_vae.pair.pair import batch_size, select_fields
from pyro_vae.pair.particles import has_no_inverse, run_guide, run_guide_at, run_model
from pyro_vae.pair.sites import Sites, point_masses, values_of
from pyro_vae.pair.structure import structure_of
from pyro_vae.pair.terms import LogTerms, counts, joined, reduce_guide, reduce_sites

WITHOUT_DREAMS = "use reweighted_wake_sleep with insomnia=1, which needs no dreams"


class WakeSleep(MinusBound):
    """Minus the ELBO for the model, and -log q(z|x) at dreams for the guide (Hinton, Dayan, Frey & Neal 1995).

    The value is minus the ELBO. A dream is a draw of p(x, z), in which what the model conditions on is that of a datum.
    `beta` weighs the KL, and with it the model's prior; dreams know none.

    Args:
        dreams: how many for each datum.

    Raises:
        ContractError: no dreams are asked for; or the guide has a site that is enumerated, a point mass, or of a flow
            without an inverse; or the model's draws are no data for the guide; names the site.
    """

    def __init__(self, dreams: int = 1):
        check_positive(ContractError, dreams=dreams)
        self.dreams = dreams

    def bound(self, pair: nn.Module, batch: Batch, particles: int, beta: Beta) -> Estimate:
        terms = awake(pair, batch, particles)
        of_model = bounds.elbo(terms._replace(log_guide=terms.log_guide.detach()), beta)
        return of_model - without_value(asleep(pair, batch, self.dreams)), terms


class ReweightedWakeSleep(MinusBound):
    """Minus the importance-weighted bound L_K for the model, K = `particles`, and for the guide -log q(z|x) at the same
    draws by their weights, or at dreams (Bornschein & Bengio 2015; Le et al. 2020).

    Of one datum it is Pyro's `ReweightedWakeSleep`, which weighs all data of a batch together, and lets the gradient of
    log q pass through a draw on which others depend.

    The value is -L_K. The guide's gradient is that of KL(p(z|x) || q(z|x)) but for a bias of order 1/K awake; asleep
    it has none, and is that of dreams, not of the data. `beta` weighs log p(z) - log q(z|x) in the weights.

    Args:
        insomnia: how much the guide learns awake, from 0, at dreams alone, to 1, at the draws for the data alone.
        dreams: how many for each datum.

    Raises:
        ContractError: insomnia outside [0, 1], or one particle where the guide learns awake; else as for `wake_sleep`.
    """

    def __init__(self, insomnia: float = 1.0, dreams: int = 1):
        if not 0 <= insomnia <= 1:
            raise ContractError(f"insomnia must be in [0, 1], not {insomnia}")
        check_positive(ContractError, dreams=dreams)
        self.insomnia, self.dreams = insomnia, dreams

    def bound(self, pair: nn.Module, batch: Batch, particles: int, beta: Beta) -> Estimate:
        if particles < 2 and self.insomnia > 0:
            raise ContractError(
                "one particle has the weight 1, from which the guide learns nothing; use at least 2 particles, or "
                "insomnia=0"
            )
        terms = awake(pair, batch, particles)
        log_weight = terms.log_likelihood + beta * (terms.log_prior - terms.log_guide.detach())
        of_guide = self.guide_loss(pair, batch, terms, log_weight.detach())
        return bounds.importance_weighted(log_weight) - without_value(of_guide), terms

    def guide_loss(
        self, pair: nn.Module, batch: Batch, terms: LogTerms, log_weight: Float[Tensor, "particles batch"]
    ) -> Float[Tensor, " batch"]:
        """What the guide minimises, in nats per datum.

        Args:
            terms: those of the guide's draws.
            log_weight: of these draws, without a gradient.
        """
        loss = 0.0
        if self.insomnia > 0:
            loss = loss - self.insomnia * (bounds.normalised_weights(log_weight) * terms.log_guide).sum(0)
        if self.insomnia < 1:
            loss = loss + (1 - self.insomnia) * asleep(pair, batch, self.dreams)
        return loss


def awake(pair: nn.Module, batch: Batch, particles: int) -> LogTerms:
    """The terms of a training loss at draws of the guide that are held fixed, so that each log-probability has the
    gradient of its own parameters alone; raises as the objectives do."""
    fields = select_fields(pair, batch)
    enumerated = structure_of(pair, fields).enumerated["guide"]
    if enumerated:
        raise ContractError(
            f"the guide enumerates {min(enumerated)!r}, and this objective draws it: leave infer={{'enumerate': ...}} "
            "out of the guide, or use trace_enum_elbo"
        )
    parts = []
    for count in counts(pair, batch, particles):
        with ByScore():
            guide = run_guide(pair, batch, count, summing=True)
        _refuse_points(guide)
        model = run_model(pair, batch, values_of(guide), count, summing=True)
        try:
            parts.append(reduce_sites(model, guide, count, batch_size(fields), as_loss=True))
        except ProgramError as problem:
            if not has_no_inverse(problem):
                raise
            raise ContractError(
                "the guide's density is known at its own draws only, because a flow of it has no inverse, and this "
                "objective needs it at given ones; use trace_elbo"
            ) from problem
    return joined(LogTerms, parts)


def _refuse_points(guide: Sites) -> None:
    for name in point_masses(guide):
        raise ContractError(
            f"the guide's site {name!r} is a point mass, which learns nothing from draws that are given to it; use "
            "trace_elbo"
        )


def asleep(pair: nn.Module, batch: Batch, dreams: int) -> Float[Tensor, " batch"]:
    """-log q(z|x) in nats at draws of p(x, z), the mean of so many for each datum; raises as `dream` does."""
    loss = 0.0
    for _ in range(dreams):
        dreamt = dream(pair, batch, WITHOUT_DREAMS)
        guide = run_guide_at(pair, dreamt.fields, dreamt.latents)
        loss = loss - reduce_guide(guide, 1, batch_size(dreamt.fields)).squeeze(0) / dreams
    return loss
