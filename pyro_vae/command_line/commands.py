"""What each command does once its settings are parsed. `main` parses and prints."""

from collections.abc import Mapping
from typing import Any

from pyro_vae import runs
from pyro_vae.data import load_data


def check_model(asked: Mapping[str, Any]) -> list[str]:
    """What was checked of a registered model on 16 of its training data; raises as `check_pair` does."""
    from pyro_vae.testing import check_pair

    data = load_data(asked["data"], seed=asked["seed"], **asked["data_options"])
    pair = runs.build_model(asked["pair"], data.facts, asked["model_options"], asked["seed"])
    return check_pair(pair, data.train.head(16).take(slice(None)))
