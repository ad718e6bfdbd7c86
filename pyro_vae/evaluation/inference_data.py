"""A trained pair as ArviZ InferenceData, so that ArviZ's plots and statistics apply."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyro_vae.data import Dataset, Split, as_split
from pyro_vae.errors import RunError, check_positive
from pyro_vae.evaluation.arviz_adapter import from_groups
from pyro_vae.evaluation.blocks import Block, seeded
from pyro_vae.evaluation.draws import draws_of
from pyro_vae.pair.generation import sample
from pyro_vae.pair.missing_checks import check_missing
from pyro_vae.pair.pair import device_of
from pyro_vae.pair.particles import run_model
from pyro_vae.pair.sites import latent, observed, side_by_side, values_of
from pyro_vae.pair.terms import LogTerms, by_run, model_terms


def inference_data(
    pair: nn.Module,
    data: Dataset | Split | Tensor | Mapping[str, Tensor],
    draws: int = 500,
    limit: int = 100,
    seed: int = 0,
) -> Any:
    """Draws of the guide and of the model for the first `limit` data (of the test split, for a `Dataset`).

    Groups, each with dims [chain = 1, draw, datum, *event]: `posterior` (draws of q(z|x), which are independent, not a
    Markov chain), `posterior_predictive`, `prior`, `prior_predictive`, `log_likelihood` (log p(x|z), nats),
    `sample_stats` with `log_weight` = log p(x, z) - log q(z|x); and `observed_data` [datum, *event].

    Raises:
        RunError: fewer than one draw or datum.
        DataError: a value is missing where the pair does not allow it.
        ContractError: the pair breaks the contract.
    """
    check_positive(RunError, draws=draws, limit=limit)
    split = (data.test if isinstance(data, Dataset) else as_split(data)).head(limit).to(device_of(pair))
    check_missing(pair, split)
    with torch.no_grad(), seeded(seed):
        block = Block(pair, split, slice(0, split.size), seed)
        block.check()
        block.refuse_enumerated("an export holds draws of every latent")
        batch, drawn = block.batch(), draws_of(block, draws)
        terms = LogTerms(*model_terms(pair, batch, drawn.values, draws), drawn.log_guide)
        seen = [
            observed(run_model(pair, batch, values, count))
            for values, count in by_run(drawn.values, block.ways.counts(draws))
        ]
        predicted = [
            {name: site.unfold(site.fn(), len(site.event_shape)) for name, site in sites.items()} for sites in seen
        ]
        likelihoods = [{name: site.log_prob() for name, site in sites.items()} for sites in seen]
        prior = [sample(pair, batch) for _ in range(draws)]
    groups = {
        "posterior": _arrays(drawn.values),
        "posterior_predictive": _arrays(side_by_side(predicted)),
        "prior": _arrays(side_by_side([values_of(latent(sites)) for sites in prior])),
        "prior_predictive": _arrays(side_by_side([values_of(observed(sites)) for sites in prior])),
        "log_likelihood": _arrays(side_by_side(likelihoods)),
        "sample_stats": _arrays({"log_weight": terms.log_weight}),
        "observed_data": {name: site.seen[0].cpu().numpy() for name, site in seen[0].items()},
    }
    return from_groups(groups)


def _arrays(values: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """[draws, datum, ...] -> [chain = 1, draws, datum, ...]."""
    return {name: value.unsqueeze(0).cpu().numpy() for name, value in values.items()}
