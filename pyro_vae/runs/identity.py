"""What makes a run the run that it is, so that one that is resumed is the stored one."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyro_vae import plugins
from pyro_vae.data import Dataset, Split
from pyro_vae.data.stream import Stream
from pyro_vae.errors import RunError
from pyro_vae.objectives.objective import Objective

MAY_DIFFER = ("epochs", "patience", "device", "engine", "progress", "root", "file", "track", "start")
"""The settings that a resumed run may take anew: how long it trains, where it runs and what it shows, and where the
data lie; the data themselves are compared."""

ROWS_COMPARED = 16


def check_same_run(folder: str | Path, stored: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Compare the settings of a stored run with those that are given to resume it.

    A setting that only one of them has is passed over: the run may be older than the setting.

    Raises:
        RunError: one differs that may not; says which, what it was and what it is.
    """
    now = {old: new for old, new in plugins.RENAMED_OPTIONS.items() if old not in given}
    stored = {now.get(name, name): plugins.current_name(name, value) for name, value in stored.items()}
    for name in given:
        if name in stored and name not in MAY_DIFFER and _listed(stored[name]) != _listed(given[name]):
            raise RunError(
                f"cannot resume {folder}: {name} was {stored[name]!r} there and is {given[name]!r} here; give {name} "
                "as it was (the command line keeps what is left out), or choose another --out"
            )


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def identity(pair: nn.Module, data: Dataset, objective: Objective, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a run is, as plain values by name: pair, objective with its options, `settings`, data.

    A pair among the settings is passed over: its parts are among those of the run's own pair.
    """
    return {
        "pair": type(pair).__name__,
        **objective.identity(),
        **{name: value for name, value in settings.items() if not isinstance(value, Mapping)},
        "drawn anew": data.undrawn is not None,
        **_fingerprint("training", data.train),
        **_fingerprint("validation", data.valid),
        **{
            f"module {name}": f"{type(module).__name__}({' '.join(module.extra_repr().split())})"
            for name, module in pair.named_modules()
            if name
        },
    }


def _fingerprint(name: str, split: Split) -> dict[str, str]:
    """Size, shape and dtype of each stored field, and a hash of a few rows that are spread over the split."""
    if isinstance(split, Stream):
        return {name: f"{split.size} of a DataLoader"}
    step = -(-split.size // ROWS_COMPARED)
    rows = [split.between(start, start + 1) for start in range(0, split.size, step)]
    told = {}
    for field in split:
        values = torch.cat([row[field] for row in rows]).cpu()
        digest = hashlib.sha256(values.view(torch.uint8).numpy().tobytes()).hexdigest()[:8]
        dtype = str(values.dtype).removeprefix("torch.")
        told[f"{name} {field}"] = f"{split.size} of {dtype} {list(values.shape[1:])}, {digest}"
    return told
