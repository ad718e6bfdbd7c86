"""Draws of the latents from a density that is fitted to the codes after training (Ghosh et al. 2020), for pairs whose
prior says little of where the codes are, or nothing."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Transform, biject_to

from pyro_vae.data import Split
from pyro_vae.errors import ContractError, RunError, find
from pyro_vae.pair.checks import check_sites, support_of
from pyro_vae.pair.generation import CHUNK
from pyro_vae.pair.pair import device_of
from pyro_vae.pair.particles import run_guide, run_model
from pyro_vae.pair.sites import Site, Sites, latent, side_by_side, values_of
from pyro_vae.parts.priors import FlowPrior
from pyro_vae.runs.run import Run

Codes = Float[Tensor, "n dim"]
Draw = Callable[[int], Codes]
"""Draws so many codes."""

COMPONENTS, SHRINK = 10, 1e-4
STEPS, ROWS, LR = 1000, 512, 2e-3


def draw_codes(run: Run, how: str, n: int) -> dict[str, Tensor]:
    """Values [n, *event] of every latent site, drawn from a density of all of them together.

    It is fitted to one draw of the guide for each of the run's training data: where the guide is a point mass, to the
    codes themselves. torch's global generator fixes all draws.

    Args:
        how: "gmm", a mixture of 10 normals (scikit-learn's), or "flow", a masked autoregressive flow.

    Raises:
        UnknownName: no such density.
        RunError: the model is given more than the data that it generates, on which the codes depend.
        ContractError: there is no latent, or one that is discrete or outside the plate of the data.
    """
    fit = find("density of codes", how, DENSITIES)
    if len(run.fields) > 1:
        raise RunError(
            f"ex_post fits one density to all codes, and those of this model depend on {', '.join(run.fields)}; "
            "leave ex_post out"
        )
    split = run.split(None, "train").to(device_of(run.pair))
    sites = _sites(run.pair, split)
    maps = {name: _to_support(site) for name, site in sites.items()}
    values = _values(run.pair, split, list(sites))
    free = {name: maps[name].inv(value) for name, value in values.items()}
    codes = torch.cat([value.reshape(len(value), -1) for value in free.values()], 1)
    center, scale = codes.mean(0), codes.std(0, correction=0).clamp(min=1e-12)
    drawn = fit((codes - center) / scale)(n) * scale + center
    parts = drawn.split([value[0].numel() for value in free.values()], 1)
    return {
        name: maps[name](part.reshape(n, *value.shape[1:])).to(value)
        for (name, value), part in zip(free.items(), parts, strict=True)
    }


def _sites(pair: nn.Module, split: Split) -> Sites:
    """The model's latent sites that the guide draws."""
    with torch.no_grad():
        batch = split.head(2).take(slice(None))
        guide = run_guide(pair, batch)
        model = run_model(pair, batch, values_of(guide))
    check_sites(model, guide)
    sites = {name: site for name, site in latent(model).items() if name in guide}
    if not sites:
        raise ContractError("the pair has no latent whose codes ex_post could fit a density to; leave ex_post out")
    for name, site in sites.items():
        if not site.in_plate or not site.value.is_floating_point() or getattr(site.support, "is_discrete", False):
            where = "discrete" if site.in_plate else "outside the plate of the data"
            raise ContractError(f"ex_post fits a density to continuous latents of each datum, and {name!r} is {where}")
    return sites


def _to_support(site: Site) -> Transform:
    """The map from all real numbers to the support of a site."""
    try:
        return biject_to(support_of(site))
    except NotImplementedError as problem:
        raise ContractError(
            f"ex_post fits a density to real numbers, and there is no map from them to the support of {site.name!r}, "
            f"{site.support}; leave ex_post out"
        ) from problem


def _values(pair: nn.Module, split: Split, names: list[str]) -> dict[str, Tensor]:
    """A draw of the guide [n, *event] for each datum."""
    parts = []
    with torch.no_grad():
        for batch in split.batches(CHUNK):
            guide = run_guide(pair, batch)
            parts.append({name: guide[name].value[0] for name in names})
    return side_by_side(parts)


def fit_mixture(codes: Codes) -> Draw:
    """scikit-learn's mixture of normals with full covariances."""
    from sklearn.mixture import GaussianMixture  # scikit-learn takes seconds to import

    seed = int(torch.randint(2**31, ()))
    mixture = GaussianMixture(min(COMPONENTS, len(codes)), reg_covar=SHRINK, random_state=seed)
    mixture.fit(codes.double().cpu().numpy())
    return lambda n: torch.from_numpy(mixture.sample(n)[0][torch.randperm(n).numpy()]).to(codes)


def fit_flow(codes: Codes) -> Draw:
    """A masked autoregressive flow, by Adam on minibatches; needs codes of two dimensions or more."""
    if codes.shape[1] < 2:
        raise ContractError("a flow needs codes of at least 2 dimensions; use ex_post='gmm'")
    flow = FlowPrior(codes.shape[1]).to(codes)
    optimizer = torch.optim.Adam(flow.parameters(), lr=LR)
    with torch.enable_grad():
        for _ in range(STEPS):
            rows = torch.randint(len(codes), (min(ROWS, len(codes)),), device=codes.device)
            optimizer.zero_grad()
            (-flow().log_prob(codes[rows]).mean()).backward()
            optimizer.step()

    def draw(n: int) -> Codes:
        with torch.no_grad():
            return flow().sample((n,))

    return draw


DENSITIES: dict[str, Callable[[Codes], Draw]] = {"gmm": fit_mixture, "flow": fit_flow}
