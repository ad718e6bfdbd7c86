"""New parameters for new data, where the guide has some for each datum; the model and what is global stay."""

import copy

import torch
from pyro.infer.autoguide import AutoGuide
from torch import nn

from pyro_vae.data import Split
from pyro_vae.errors import RunError
from pyro_vae.objectives.elbo import TraceELBO
from pyro_vae.pair.adapted import AdaptedPair, as_pair
from pyro_vae.pair.ready import make_ready, with_index

ROWS, RATE = 500, 0.05


def refitted(pair: nn.Module, split: Split, steps: int, seed: int = 0) -> tuple[AdaptedPair, Split]:
    """A pair with the same model, and a guide whose parameters of each datum were fitted to other data; and these data
    with their index.

    Args:
        split: the data, n of them, under the index 0, ..., n - 1.
        steps: of Adam, on the ELBO of up to 500 data at a time.

    Raises:
        RunError: the guide has no parameters of each datum.
    """
    if not (isinstance(pair, AdaptedPair) and pair.local is not None):
        raise RunError("refit is for a guide that has parameters for each datum, such as AutoNormal for local latents")
    guide = _as_new(pair.local.guide)
    fresh = as_pair(pair.programs["model"], guide, pair.inputs, pair.data_plate)
    split = with_index(Split(dict(split.fields), split.transform))
    make_ready(fresh, split, ROWS, seed)
    fresh.to(split.device)
    known, mine = dict(pair.named_parameters()), {}
    for name, parameter in fresh.named_parameters():
        if name.removesuffix("_unconstrained").endswith(tuple(pair.local.sites)):
            mine[name] = parameter
        else:
            parameter.data.copy_(known[name])
    with torch.enable_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        for batch in split.batches(ROWS):
            optimizer = torch.optim.Adam(mine.values(), RATE)
            for _ in range(steps):
                optimizer.zero_grad()
                TraceELBO()(fresh, batch).backward()
                optimizer.step()
    fresh.zero_grad()
    return fresh, split


def _as_new(guide: AutoGuide) -> AutoGuide:
    """A copy of an AutoGuide that has not run yet. What Pyro takes from a guide that is copied is put back."""
    parts = [part for part in guide.modules() if isinstance(part, AutoGuide)]
    taken = ("_model", "master", "prototype_trace")
    kept = [{name: getattr(part, name) for name in taken} for part in parts]
    for part in parts:
        part.prototype_trace = None
    twin = copy.deepcopy(guide)
    for part, attributes in zip(parts, kept, strict=True):
        for name, value in attributes.items():
            setattr(part, name, value)
    for part, attributes in zip((p for p in twin.modules() if isinstance(p, AutoGuide)), kept, strict=True):
        part._model = attributes["_model"]
    return twin
