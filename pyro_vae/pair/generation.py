"""What a pair makes: samples, reconstructions, codes. No second code path: the model unconditioned, and the guide."""

from collections.abc import Mapping

import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_vae.data import Split
from pyro_vae.errors import ContractError
from pyro_vae.pair.pair import select_fields
from pyro_vae.pair.particles import run_guide, run_model, run_program
from pyro_vae.pair.sites import Site, Sites, observed

CHUNK = 512


def sample(pair: nn.Module, fields: Mapping[str, Tensor]) -> Sites:
    """Every site of the model at fresh draws from p(z) p(x|z), one datum for each row of `fields`.

    Args:
        fields: what the model's signature names, [n, ...]; observed fields give only their shape, fields that the
            model conditions on give their values.
    """

    def model(**fields: Tensor) -> None:
        with poutine.uncondition():
            pair.model(**fields)

    with torch.no_grad():
        return run_program(model, pair, fields)


def decode(pair: nn.Module, fields: Mapping[str, Tensor], latents: Mapping[str, Tensor]) -> Sites:
    """The observed sites of the model where latent sites have the given values [n, *event]."""
    with torch.no_grad():
        return observed(model_at(pair, fields, latents))


def model_at(pair: nn.Module, fields: Mapping[str, Tensor], latents: Mapping[str, Tensor]) -> Sites:
    """The sites of the model where latent sites have the given values [n, *event]."""
    return run_model(pair, fields, {name: value.unsqueeze(0) for name, value in latents.items()})


def reconstruct(pair: nn.Module, fields: Mapping[str, Tensor]) -> Sites:
    """The observed sites of the model at the guide's means (draws, where a site has no mean)."""
    with torch.no_grad():
        means = {name: site.mean() for name, site in run_guide(pair, fields).items()}
        return observed(run_model(pair, fields, means))


def encode(pair: nn.Module, split: Split) -> dict[str, Tensor]:
    """Mean and scale of every latent site of the guide for every datum: `<site>_mean` and `<site>_scale` [n, *event].

    A latent outside the plate of the data is the same for all of them, so it has [*event], as at the first batch. A
    site that depends on earlier sites of the guide is given at one draw of them; a scale that has no formula is NaN.
    """
    parts: dict[str, list[Tensor]] = {}
    shared = set()
    with torch.no_grad():
        for batch in split.batches(CHUNK):
            for name, site in run_guide(pair, batch).items():
                shared |= set() if site.in_plate else {f"{name}_mean", f"{name}_scale"}
                parts.setdefault(f"{name}_mean", []).append(center(site).cpu())
                parts.setdefault(f"{name}_scale", []).append(site.deviation()[0].cpu())
    return {name: chunks[0] if name in shared else torch.cat(chunks) for name, chunks in parts.items()}


def center(site: Site) -> Tensor:
    """The mean of a site's distribution at the first particle, [n, *event]; its value where the mean is no number."""
    return site.mean()[0]


def picture_site(sites: Mapping[str, Site]) -> Site:
    """The site to show as a picture: "x" where there is one, else the observed site with the most elements."""
    if not sites:
        raise ContractError("the model observes no site, so there is nothing to show; give a site obs=")
    return sites.get("x") or max(sites.values(), key=lambda site: site.fn.event_shape.numel())


def blank_fields(shapes: Mapping[str, tuple[list[int], str]], n: int) -> dict[str, Tensor]:
    """Zeros [n, ...] for each field that a run recorded, as `sample` needs them."""
    return {name: torch.zeros(n, *shape, dtype=getattr(torch, dtype)) for name, (shape, dtype) in shapes.items()}


def field_shapes(pair: nn.Module, split: Split) -> dict[str, tuple[list[int], str]]:
    """Shape and dtype of one datum of each field that the pair takes."""
    fields = select_fields(pair, split.head(1).take(slice(None)))
    return {name: (list(value.shape[1:]), str(value.dtype).split(".")[-1]) for name, value in fields.items()}
