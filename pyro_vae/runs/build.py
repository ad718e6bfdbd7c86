"""A registered model from plain values: its name, the facts of its data, and its options."""

import inspect
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyro_vae import files, plugins
from pyro_vae.data.dataset import FIELDS_OF_FACTS
from pyro_vae.errors import DataError, RunError, UnfitPair
from pyro_vae.pair.missing import keep_means
from pyro_vae.pair.pair import Pair
from pyro_vae.runs.folder import BEST
from pyro_vae.runs.options import current_options

RECORD = ("model", "facts", "options")
"""What a checkpoint keeps so that its pair can be built again."""

MEANS = "means"
"""What a checkpoint calls the means of the training data that its pair puts where a value is missing."""


def build_model(name: str, facts: Mapping[str, Any], options: Mapping[str, Any], seed: int = 0) -> nn.Module:
    """Build a registered model: what its signature asks of the data comes from `facts`, the rest from `options`.

    Args:
        options: where the constructor takes another pair (a parameter that is annotated as a `Pair`), the folder of
            that pair's run, or its record (see `record_of`), or the pair itself.
        seed: fixes the initial weights; torch's global generator is left as it was.

    Raises:
        UnknownName: no such model.
        DataError: the data do not offer what the model asks for.
        RunError: the folder of another pair holds no run, or a pair that does not fit.
    """
    constructor = plugins.load("model", name)
    parameters = inspect.signature(constructor).parameters
    given = {key: value for key, value in facts.items() if key in parameters} | current_options(constructor, options)
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD and key not in given:
            field = f", so data with a field {FIELDS_OF_FACTS[key]}" if key in FIELDS_OF_FACTS else ""
            raise DataError(f"model {name!r} needs {key}{field}; these data offer {', '.join(facts)}")
    for key in given.keys() & pair_parameters(constructor):
        given[key] = _pair_of(key, given[key])
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return constructor(**given)
    except UnfitPair as unfit:
        source = options.get(unfit.parameter)
        if not isinstance(source, str | Path):
            raise
        raise RunError(f"{unfit.parameter} {source}: {unfit.reason}") from unfit


def pair_parameters(constructor: Callable[..., Any]) -> set[str]:
    """The parameters of a model's constructor that are annotated as a `Pair`, also as one that may be None."""
    hints = typing.get_type_hints(constructor.__init__ if inspect.isclass(constructor) else constructor)
    kinds = {name: (hint, *typing.get_args(hint)) for name, hint in hints.items() if name != "return"}
    return {name for name, kind in kinds.items() if any(inspect.isclass(k) and issubclass(k, Pair) for k in kind)}


def _pair_of(parameter: str, value: Any) -> Any:
    """The pair that an option stands for: of the run in a folder, or built from its record; None for ""."""
    if isinstance(value, Mapping):
        return build_model(*(value[part] for part in RECORD))
    if not isinstance(value, str | Path):
        return value
    try:
        return stored_pair(Path(value), files.load(Path(value) / BEST)) if value else None
    except RunError as reason:
        raise RunError(f"{parameter} {value}: {reason}") from reason


def record_of(name: str, facts: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """How to build a model again, in plain values, as its checkpoints keep it: in place of the folder of another pair's
    run stands the record of that pair, whose weights are among the model's own."""
    options = dict(options)
    for key in options.keys() & pair_parameters(plugins.load("model", name)):
        if options[key] and not isinstance(options[key], Mapping):
            best = files.load(Path(options[key]) / BEST)
            options[key] = {part: best[part] for part in RECORD}
    plain = {key: list(v) if isinstance(v, tuple) else v for key, v in facts.items() if key != "data_mean"}
    return {"model": name, "facts": plain, "options": options}


def stored_pair(folder: Path, best: Mapping[str, Any], pair: nn.Module | None = None) -> nn.Module:
    """The pair of a run folder's checkpoint, under `eval()`; or `pair`, with the checkpoint's weights read into it.

    Raises:
        RunError: it is the run of another model than `pair`, or of a pair that no plugin built.
    """
    if pair is None:
        if "options" not in best:
            raise RunError(f"{folder} holds a pair that no plugin built; give it: load_run(folder, pair=...)")
        pair = build_model(*(best[part] for part in RECORD))
    load_weights(pair, best, folder)
    keep_means(pair, best.get(MEANS, {}))
    return pair.eval()


def load_weights(pair: nn.Module, checkpoint: Mapping[str, Any], folder: Path) -> None:
    """Read a checkpoint's weights into a pair; raises `RunError` where they are of another model."""
    try:
        pair.load_state_dict(checkpoint["pair"])
    except (RuntimeError, KeyError) as reason:
        detail = str(reason).splitlines()[-1].strip()
        raise RunError(f"{folder} is the run of another model than {type(pair).__name__}: {detail}") from reason
