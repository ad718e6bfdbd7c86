"""KL(q || p) of the latents of each datum, in nats: of each site, or of each dimension of a site."""

from typing import Any

from jaxtyping import Float
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_vae.errors import ContractError
from pyro_vae.pair.checks import prior_before_guide
from pyro_vae.pair.sites import Site, Sites, elements, is_point_mass, latent

TOGETHER = "what follows the auxiliary sites"


def kl_parts(model: Sites, guide: Sites, by_dimension: bool = False) -> dict[str, Float[Tensor, "particles batch ..."]]:
    """The KL of each latent in the data plate by its name, in closed form wherever one is known, else log q - log p at
    the draws. Its elements are [particles, batch], by dimension [particles, batch, *event].

    Auxiliary sites and the point masses that follow them share their KL, so they are one part.

    Raises:
        ContractError: by dimension, and a site's dimensions depend on each other.
    """
    closed_form = closed_forms(model, guide)
    shared = {name for name, site in guide.items() if site.auxiliary or is_point_mass(site.fn)}
    shared = shared if any(guide[name].auxiliary for name in shared) else set()
    parts: dict[str, Tensor] = {}
    for name, prior in latent(model).items():
        if prior.in_plate and name in guide:
            part = (_by_dimension if by_dimension else kl_of)(guide[name], prior, name in closed_form)
            _add(parts, TOGETHER if name in shared else name, part)
    for name, site in latent(guide).items():
        if name not in model and site.in_plate:
            if by_dimension:
                raise _of_no_dimension(name)
            site.check_shape()
            _add(parts, TOGETHER, site.log_prob())
    return parts


def closed_forms(model: Sites, guide: Sites) -> set[str]:
    """The latents whose KL is that of the two distributions; a point mass's leaves its log_density out."""
    return {n for n, first in prior_before_guide(model, guide).items() if first and not is_point_mass(guide[n].fn)}


def summed(part: Float[Tensor, "particles batch ..."]) -> Float[Tensor, "particles batch"]:
    """The sum over what a datum has several of."""
    return part.flatten(2).sum(2) if part.dim() > 2 else part


def _add(parts: dict[str, Tensor], name: str, part: Tensor) -> None:
    parts[name] = parts[name] + part if name in parts else part


def kl_of(guide: Site, prior: Site, closed_form: bool) -> Float[Tensor, "particles batch"]:
    """The KL of one latent, in closed form where that is wanted and known, else log q - log p at the draws."""
    guide.check_shape()
    if closed_form:
        try:
            return guide.kl_to(prior)
        except NotImplementedError:
            pass
    return guide.log_prob() - prior.log_prob()


def _by_dimension(guide: Site, prior: Site, closed_form: bool) -> Float[Tensor, "particles batch ..."]:
    guide.check_shape()
    q, p = elements(guide.fn), elements(prior.fn)
    if q.event_shape or p.event_shape:
        raise _of_no_dimension(guide.name)
    dims = len(guide.event_shape)
    if closed_form and guide.scaled_like(prior):
        try:
            term = kl_divergence(q if q.batch_shape == p.batch_shape else q.expand(p.batch_shape), p)
            return guide.unfold(_weighted(guide, term, dims), dims)
        except NotImplementedError:
            pass
    drawn = [_weighted(site, fn.log_prob(site.raw), dims) for site, fn in ((guide, q), (prior, p))]
    return guide.unfold(drawn[0], dims) - prior.unfold(drawn[1], dims)


def _weighted(site: Site, term: Tensor, dims: int) -> Tensor:
    """A term [..., *event] scaled and masked as its site is."""
    return scale_and_mask(term, _beside(site.scale, dims), _beside(site.mask, dims))


def _beside(weight: Any, dims: int) -> Any:
    return weight.reshape(*weight.shape, *[1] * dims) if isinstance(weight, Tensor) else weight


def _of_no_dimension(name: str) -> ContractError:
    return ContractError(
        f"the dimensions of site {name!r} depend on each other in the model or the guide, so none has a KL of its own; "
        "take free_bits_per='site'"
    )
