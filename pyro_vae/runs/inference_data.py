"""A trained pair as ArviZ InferenceData, so that ArviZ's plots and statistics apply."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.arviz_adapter import from_groups
from pyro_vae.data import Dataset, Split, as_split
from pyro_vae.data.sparse import row_bytes
from pyro_vae.engine.devices import cuda_devices
from pyro_vae.engine.threads import alone
from pyro_vae.errors import RunError, check_positive
from pyro_vae.kinds import checked
from pyro_vae.pair.checks import check_supports
from pyro_vae.pair.data_fit import observed_sites
from pyro_vae.pair.enumeration import Enumeration
from pyro_vae.pair.generation import sample_prior
from pyro_vae.pair.global_latents import GlobalLatents, held_at_a_draw, look_at_globals
from pyro_vae.pair.missing_checks import check_missing
from pyro_vae.pair.pair import batch_size, device_of, evaluating, select_fields
from pyro_vae.pair.particles import Fields, run_guide, run_model
from pyro_vae.pair.posterior import together
from pyro_vae.pair.sequences import cut_fields
from pyro_vae.pair.sites import latent, observed, side_by_side, values_of
from pyro_vae.pair.structure import structure_of
from pyro_vae.pair.terms import counts, log_terms, reduce_sites
from pyro_vae.parts.memory import check_fits

Groups = dict[str, dict[str, Tensor]]
DATUM = "datum"


@checked
@alone
def inference_data(
    pair: nn.Module,
    data: Dataset | Split | Tensor | Mapping[str, Tensor],
    draws: int = 500,
    limit: int = 100,
    seed: int = 0,
) -> Any:
    """Draws of the guide and of the model for the first `limit` data (of the test split, for a `Dataset`).

    Groups, each with dims [chain = 1, draw, datum, *event], and [chain = 1, draw, *event] for latents that all data
    share: `posterior` (draws of q, which are independent, not a Markov chain), `posterior_predictive`, `prior`,
    `prior_predictive`, `log_likelihood` (log p(x|z), nats), `sample_stats` with `log_weight` = log p(x, z) - log q(z|x)
    of each datum given the shared latents, and `log_weight_shared` = log p - log q of these, where they have densities;
    and `observed_data` [datum, *event].

    A site that the model alone enumerates is summed out of `log_likelihood` and `log_weight`, where then all that is
    observed has one entry; in `posterior` it is an exact draw given x and the other latents. The attributes of
    `sample_stats` say which sites these are, and what is a point estimate.

    Raises:
        RunError: fewer than one draw or datum.
        DataError: a value is missing where the pair does not allow it.
        ContractError: the pair breaks the contract.
    """
    check_positive(RunError, draws=draws, limit=limit)
    split = (data.test if isinstance(data, Dataset) else as_split(data)).head(limit).to(device_of(pair))
    needed = draws * split.size * sum(map(row_bytes, split.fields.values()))
    check_fits(RunError, needed, f"{draws} draws for each of {split.size} data", "take fewer draws, or a smaller limit")
    check_missing(pair, split)
    with torch.no_grad(), evaluating(pair), torch.random.fork_rng(devices=cuda_devices(split.device)):
        torch.manual_seed(seed)
        fields = cut_fields(pair, split.take(slice(None)))
        shared = look_at_globals(pair, fields)
        _check_given(held_at_a_draw(pair, fields), fields)
        hidden = _hidden(pair, fields)
        runs = [1] * draws if hidden else counts(pair, fields, draws)
        parts = [_draws(pair, fields, count, bool(hidden)) for count in runs]
        prior = [sample_prior(pair, fields) for _ in range(draws)]
    groups = {name: side_by_side([part[name] for part in parts]) for name in parts[0]}
    groups["prior"] = side_by_side([values_of(latent(sites)) for sites in prior])
    groups["prior_predictive"] = side_by_side([values_of(observed(sites)) for sites in prior])
    if shared is None or shared.faults:
        groups["sample_stats"].pop("log_weight_shared", None)
    arrays = {
        group: {n: v.detach().unsqueeze(0).cpu().numpy() for n, v in values.items()} for group, values in groups.items()
    }
    arrays["observed_data"] = {
        n: site.seen[0].detach().cpu().numpy() for n, site in observed_sites(pair, fields).items()
    }
    of_all = {"log_weight_shared", *((*shared.drawn, *shared.estimates) if shared else ())}
    dims = {name: [DATUM] for values in groups.values() for name in values if name not in of_all}
    return from_groups(arrays, dims, _notes(shared, hidden))


def _check_given(pair: nn.Module, fields: Fields) -> None:
    """Raise `ContractError` where the latents of a datum have no densities."""
    log_terms(pair, fields)
    guide = run_guide(pair, fields)
    check_supports(run_model(pair, fields, values_of(guide)), guide)


def _hidden(pair: nn.Module, fields: Fields) -> list[str]:
    """What the model alone enumerates."""
    enumerated = structure_of(pair, select_fields(pair, fields)).enumerated
    return sorted(enumerated["model"] - enumerated["guide"])


def _draws(pair: nn.Module, fields: Fields, count: int, hidden: bool) -> Groups:
    """What so many draws of the guide make of the data, [count, datum, ...]; with hidden sites, one draw."""
    guide, size = run_guide(pair, fields, count), batch_size(fields)
    values = values_of(guide)
    model = run_model(pair, fields, values, count, summing=True)
    terms = reduce_sites(model, guide, count, size, as_loss=True, allow_shared=True)
    seen = observed(model)
    likelihoods = {name: site.log_prob() for name, site in seen.items() if not hidden}
    if hidden:
        likelihoods = {"+".join(seen): terms.log_likelihood}
        values |= together(Enumeration(model, {}, 1, size), best=False)
        seen = observed(run_model(pair, fields, values))
    stats = {"log_weight": terms.log_weight}
    return {
        "posterior": {name: values[name] for name in latent(model)},
        "posterior_predictive": {n: site.unfold(site.fn(), len(site.event_shape)) for n, site in seen.items()},
        "log_likelihood": likelihoods,
        "sample_stats": stats if terms.shared is None else stats | {"log_weight_shared": terms.shared},
    }


def _notes(shared: GlobalLatents | None, hidden: Sequence[str]) -> dict[str, str]:
    """What is to be said of the draws."""
    notes = {"draws": "independent draws of the guide, not a Markov chain"}
    if shared is not None and shared.estimates:
        notes["point_estimates"] = ", ".join(shared.estimates)
    if hidden:
        notes["summed_out_of_log_likelihood"] = ", ".join(hidden)
    return notes
