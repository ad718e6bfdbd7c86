"""What objectives have in common that look at the aggregate posterior: the mean of q(z|x) over the data."""

from abc import abstractmethod

from jaxtyping import Float
from torch import Tensor, nn

from pyro_vae.errors import ContractError
from pyro_vae.objectives.objective import Batch, Beta, Objective, require_reparameterised
from pyro_vae.pair import bounds
from pyro_vae.pair.pair import batch_size, select_fields
from pyro_vae.pair.particles import OWN_DIM, ways
from pyro_vae.pair.sites import Site, Sites, has_mask, latent
from pyro_vae.pair.structure import structure_of
from pyro_vae.pair.terms import reduce_to_elbo, run_both


class OfAggregate(Objective):
    """-E_q[log p(x|z)] plus a weighted KL, in closed form wherever one is known, plus a penalty on the aggregate of the
    one latent vector that each datum has."""

    traceable = True

    @abstractmethod
    def kl_weight(self, beta: Beta) -> Beta:
        """The weight of KL(q(z|x) || p(z))."""

    @abstractmethod
    def penalty(self, guide: Site, model: Site, beta: Beta, data_size: int) -> Float[Tensor, ""]:
        """What the loss has besides, in nats, from the latent's site in both programs."""

    def __call__(
        self, pair: nn.Module, batch: Batch, particles: int = 1, beta: Beta = 1.0, data_size: int | None = None
    ) -> Float[Tensor, ""]:
        fields = select_fields(pair, batch)
        if structure_of(pair, fields).sums:
            raise ContractError("this objective takes no site that is enumerated; use trace_enum_elbo")
        way = ways(pair, batch, particles)
        at_once = way.guide == way.model == OWN_DIM
        runs = [particles] if at_once else [1] * particles
        total = data_size or batch_size(fields)
        return sum(self._loss(pair, batch, count, beta, total) * count for count in runs) / particles

    def _loss(self, pair: nn.Module, batch: Batch, particles: int, beta: Beta, data_size: int) -> Float[Tensor, ""]:
        guide, model = run_both(pair, batch, particles)
        terms = reduce_to_elbo(model, guide, particles, batch_size(select_fields(pair, batch)), as_loss=True)
        require_reparameterised(terms, "trace_elbo")
        extra = 0.0 if terms.extra is None else terms.extra.mean()
        penalty = self.penalty(*the_latent(guide, model), beta, data_size)
        return extra - bounds.elbo(terms, self.kl_weight(beta)).mean() + penalty


def the_latent(guide: Sites, model: Sites) -> tuple[Site, Site]:
    """The one latent site of each datum, in the guide and in the model.

    Raises:
        ContractError: there are others, or none, or its log-probability is scaled, masked, or of plates of its own.
    """
    names = latent(guide).keys() | latent(model).keys()
    if len(names) != 1:
        listed = " and ".join(map(repr, sorted(names))) or "none"
        raise ContractError(f"this objective takes pairs of one latent site, not {listed}; use trace_mean_field_elbo")
    (name,) = names
    sites = guide[name], model[name]
    if any(site.inner or has_mask(site) or isinstance(site.scale, Tensor) or site.scale != 1.0 for site in sites):
        raise ContractError(
            f"this objective takes {name!r} unmasked, unscaled and in no plate but the data's; use trace_elbo"
        )
    return sites
