"""What a pair makes: samples, reconstructions, codes. No second code path: the model unconditioned, and the guide."""

from collections.abc import Collection, Mapping

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_vae.data import Split
from pyro_vae.errors import ContractError
from pyro_vae.pair.global_latents import Held, checked_draw
from pyro_vae.pair.pair import select_fields
from pyro_vae.pair.particles import Values, run_guide, run_guide_at, run_model, run_program
from pyro_vae.pair.posterior import guide_probabilities, hidden_sites, probabilities, together
from pyro_vae.pair.sites import Site, Sites, is_improper, observed, side_by_side, values_of
from pyro_vae.pair.slices import Slices, numbered, over_time

CHUNK = 512


def sample(pair: nn.Module, fields: Mapping[str, Tensor], latents: Mapping[str, Tensor] | None = None) -> Sites:
    """Every site of the model at fresh draws from p(z) p(x|z), one datum for each row of `fields`.

    Latents that all data share are one draw of the guide, which holds what was learnt of them.

    Args:
        fields: what the model's signature names, [n, ...]; observed fields give only their shape, fields that the
            model conditions on give their values.
        latents: values [n, *event] that latent sites have in place of draws.

    Raises:
        ContractError: the prior of a site that must be drawn is improper.
    """
    given = {name: value.unsqueeze(0) for name, value in (latents or {}).items()}
    shared = checked_draw(pair, fields)
    return sample_prior(pair, fields, given | ({} if shared is None else values_of(shared.sites)))


def sample_prior(pair: nn.Module, fields: Mapping[str, Tensor], values: Values | None = None) -> Sites:
    """The same, but every latent without a value here is drawn from its prior."""
    values = values or {}

    def model(**fields: Tensor) -> None:
        with _Proper(values), poutine.uncondition():
            pair.model(**fields)

    with torch.no_grad():
        return run_program(model, pair, fields, values=values)


class _Proper(Messenger):
    """Refuses to draw from an improper prior, in one line."""

    def __init__(self, given: Collection[str]):
        super().__init__()
        self.given = given

    def _pyro_sample(self, msg: dict) -> None:
        drawn = msg["value"] is None and msg["name"] not in self.given
        if drawn and is_improper(msg["fn"]):
            raise ContractError(
                f"the prior of site {msg['name']!r} is improper, so nothing can be drawn from it; draw from a density "
                "that is fitted to the codes: ex_post='gmm' (sample --ex_post gmm)"
            )


def decode(pair: nn.Module, fields: Mapping[str, Tensor], latents: Mapping[str, Tensor]) -> Sites:
    """The observed sites of the model where latent sites have the given values [n, *event]."""
    with torch.no_grad():
        return observed(model_at(pair, fields, latents))


def model_at(pair: nn.Module, fields: Mapping[str, Tensor], latents: Mapping[str, Tensor]) -> Sites:
    """The sites of the model where latent sites have the given values [n, *event]."""
    return run_model(pair, fields, {name: value.unsqueeze(0) for name, value in latents.items()})


def reconstruct(pair: nn.Module, fields: Mapping[str, Tensor]) -> Sites:
    """The observed sites of the model at the guide's means (draws, where a site has no mean), and at the most probable
    values of what is enumerated."""
    with torch.no_grad():
        return reconstruct_from(pair, fields, run_guide(pair, fields))


def reconstruct_from(pair: nn.Module, fields: Mapping[str, Tensor], guide: Sites) -> Sites:
    """The same from the guide's sites at one draw, which were drawn and not enumerated."""
    chosen = {name: site.mode() for name, site in guide.items() if site.summed}
    if chosen:
        guide = run_guide_at(pair, fields, chosen)
    means = {name: site.mean() for name, site in guide.items()} | chosen
    hidden = hidden_sites(pair, fields, means)
    return observed(run_model(pair, fields, means | (together(hidden, best=True) if hidden else {})))


def encode(pair: nn.Module, split: Split) -> dict[str, Tensor]:
    """What the guide and the data say of every latent site, for every datum.

    For a site that the guide draws, the mean and the scale of its distribution, `<site>_mean` and `<site>_scale`
    [n, *event]; where it depends on earlier sites of the guide, at one draw of them. A scale without a formula is NaN.
    A latent outside the plate of the data is the same for all of them, so it has [*event]; the others are at one draw
    of it.
    For a site that is enumerated, `<site>_probabilities` [n, values]: q(y|x) where the guide enumerates it, else
    p(y|x, z), exact at the draw z. Sites that the model alone enumerates also have the values that are most probable
    together, `<site>_most_probable`, and one joint draw, `<site>_draw` [n, *event].
    Sites NAME_0, NAME_1, ... of the time slices of x are one, NAME [n, time, ...], which beyond the length of a
    sequence is NaN, or -1 where it is a whole number.
    """
    parts: list[dict[str, Tensor]] = []
    shared = None
    with torch.no_grad():
        for batch in split.batches(CHUNK):
            if not parts and (shared := checked_draw(pair, batch)):
                pair = Held(pair, shared.values)
            guide = run_guide(pair, batch)
            found = {"probabilities": guide_probabilities(pair, batch), **_moments(guide)}
            hidden = hidden_sites(pair, batch, values_of(guide))
            if hidden:
                found["probabilities"] |= probabilities(hidden)
                for word, best in (("most_probable", True), ("draw", False)):
                    found[word] = {name: value[0] for name, value in together(hidden, best).items()}
            parts.append(_named({word: over_time(values, batch) for word, values in found.items()}))
    return side_by_side(parts) | ({} if shared is None else _named(_moments(shared.sites)))


def _moments(guide: Sites) -> dict[str, dict[str, Tensor]]:
    """Mean and scale of the guide's sites that were drawn and not enumerated."""
    drawn = {name: site for name, site in guide.items() if not site.summed}
    scales = {name: site.deviation()[0] for name, site in drawn.items()}
    return {"mean": {name: center(site) for name, site in drawn.items()}, "scale": scales}


def _named(found: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Values of sites by what they are, each by both names, on the CPU."""
    return {f"{name}_{word}": value.cpu() for word, values in found.items() for name, value in values.items()}


def center(site: Site | Slices) -> Tensor:
    """The mean of a site's distribution at the first particle, [n, *event]; its value where the mean is no number."""
    return site.mean()[0]


def picture_site(sites: Mapping[str, Site]) -> Site | Slices:
    """The site to show as a picture: "x" where there is one, else the observed site with the most elements. The time
    slices x_0, x_1, ... of a sequence are one."""
    if not sites:
        raise ContractError("the model observes no site, so there is nothing to show; give a site obs=")
    shown: dict[str, Site | Slices] = dict(sites)
    for name, slices in numbered(sites).items():
        if len({sites[each].datum_shape for each in slices}) == 1:
            shown.setdefault(name, Slices(tuple(sites[each] for each in slices)))
    return shown.get("x") or max(shown.values(), key=lambda site: site.seen[0, 0].numel())


def blank_fields(shapes: Mapping[str, tuple[list[int], str]], n: int) -> dict[str, Tensor]:
    """Zeros [n, ...] for each field that a run recorded, as `sample` needs them."""
    return {name: torch.zeros(n, *shape, dtype=getattr(torch, dtype)) for name, (shape, dtype) in shapes.items()}


def field_shapes(pair: nn.Module, split: Split) -> dict[str, tuple[list[int], str]]:
    """Shape and dtype of one datum of each field that the pair takes."""
    fields = select_fields(pair, split.head(1).take(slice(None)))
    return {name: (list(value.shape[1:]), str(value.dtype).split(".")[-1]) for name, value in fields.items()}
