"""What the data say of enumerated sites: exact probabilities given what is drawn, and their values together."""

from collections import OrderedDict

import torch
from jaxtyping import Float
from opt_einsum import shared_intermediates
from pyro.ops.contract import contract_tensor_tree
from pyro.ops.einsum.adjoint import require_backward
from pyro.ops.rings import MapRing, SampleRing
from torch import Tensor, nn

from pyro_vae.pair.enumeration import DATA, PARTICLES, Enumeration, Factor, symbol_of
from pyro_vae.pair.pair import batch_size, select_fields
from pyro_vae.pair.particles import Fields, Values, run_guide, run_model
from pyro_vae.pair.sites import Site
from pyro_vae.pair.structure import structure_of


def guide_probabilities(pair: nn.Module, batch: Fields) -> dict[str, Float[Tensor, "batch ..."]]:
    """q(y|x) of each site that the guide enumerates, [batch, *its plates, values]."""
    if not structure_of(pair, select_fields(pair, batch)).enumerated["guide"]:
        return {}
    with torch.no_grad():
        guide = Enumeration({}, run_guide(pair, batch, summing=True), 1, batch_size(batch))
        sites = guide.of_guide.items()
        return {site.name: _of_site(guide.probability([number], []), guide, site) for number, site in sites}


def hidden_sites(pair: nn.Module, batch: Fields, values: Values) -> Enumeration | None:
    """The sums over what the model alone enumerates, at the values [1, batch, ...] of what is drawn; None where that is
    nothing."""
    enumerated = structure_of(pair, select_fields(pair, batch)).enumerated
    if enumerated["model"] == enumerated["guide"]:
        return None
    with torch.no_grad():
        return Enumeration(run_model(pair, batch, values, summing=True), {}, 1, batch_size(batch))


def probabilities(hidden: Enumeration) -> dict[str, Float[Tensor, "batch ..."]]:
    """p(y|x, z) of each hidden site, [batch, *its plates, values].

    The gradient of log p(x, z) with respect to a site's log-probability is the posterior of its value and of what it
    depends on.
    """
    found = {}
    with torch.enable_grad():
        sites = [site for site in hidden.model.values() if site.enumerated is not None]
        leaves = [hidden.unscaled(site) for site in sites]
        leaves = [Factor(leaf.tensor.detach().requires_grad_(), leaf.dims, leaf.plates) for leaf in leaves]
        others = [hidden.unscaled(site) for site in hidden.model.values() if site.enumerated is None]
        total = hidden.total(hidden.contracted([*leaves, *others], hidden.of_model)).sum()
    slopes = torch.autograd.grad(total, [leaf.tensor for leaf in leaves])
    for site, leaf, slope in zip(sites, leaves, slopes, strict=True):
        found[site.name] = _of_site(Factor(slope, leaf.dims, leaf.plates), hidden, site)
    return found


def together(hidden: Enumeration, best: bool) -> dict[str, Tensor]:
    """Values [1, batch, *its plates, *event] of the hidden sites, given x and what is drawn.

    Args:
        best: the values that are most probable together, where what is masked has no say; else one joint draw.
    """
    tree: OrderedDict[frozenset, list[Tensor]] = OrderedDict()
    asked: dict[str, Tensor] = {}
    for name, site in hidden.model.items():
        factor = hidden.factor(site, site.counting(scaled=False)) if best else hidden.unscaled(site)
        tensor = factor.tensor.detach().clone()
        tensor._pyro_dims = factor.dims
        if site.enumerated is not None:
            require_backward(tensor)
            asked[name] = tensor
        if factor.over(hidden.of_model):
            tree.setdefault(factor.plates, []).append(tensor)
    with torch.no_grad(), shared_intermediates() as cache:
        ring = (MapRing if best else SampleRing)(cache=cache)
        for terms in contract_tensor_tree(tree, set(hidden.of_model), ring=ring).values():
            for term in terms:
                term._pyro_backward()
    return {name: _value(hidden, hidden.model[name], tensor) for name, tensor in asked.items()}


def _of_site(joint: Factor, enumeration: Enumeration, site: Site) -> Float[Tensor, "batch ..."]:
    """The probabilities of a site's values, what else they are joint with summed out."""
    kept = [PARTICLES, DATA, *[enumeration.plates[name] for name in site.inner], symbol_of(site.enumerated)]
    others = [place for place, dim in enumerate(joint.dims) if dim not in kept]
    tensor = joint.tensor.sum(others) if others else joint.tensor
    dims = "".join(dim for dim in joint.dims if dim in kept)
    found = Factor(tensor, dims).aligned("".join(kept))
    return found[0].expand(enumeration.size, *found.shape[2:])


def _value(enumeration: Enumeration, site: Site, asked: Tensor) -> Tensor:
    """The value of a site at the place that was found along its enumeration."""
    number, plates = symbol_of(site.enumerated), [enumeration.plates[name] for name in site.inner]
    values = site.raw.reshape(site.raw.shape[0], *site.event_shape)
    found = asked._pyro_backward_result
    if found is None:
        return values[:1].expand(1, enumeration.size, *values.shape[1:])
    place = Factor(found[found._pyro_sample_dims.index(number)], found._pyro_dims[1:])
    index = place.aligned("".join([PARTICLES, DATA, *plates]))
    return values[index.expand(1, enumeration.size, *index.shape[2:])]
