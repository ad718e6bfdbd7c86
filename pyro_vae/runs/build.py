"""A registered model, or one in a file, from plain values: its name, the facts of its data, and its options."""

import inspect
import math
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae import plugins, scripts
from pyro_vae.data.dataset import FIELDS_OF_FACTS
from pyro_vae.errors import ContractError, DataError, PluginError, RunError, UnfitPair, UserError
from pyro_vae.pair.generation import blank_fields
from pyro_vae.pair.missing import keep_means
from pyro_vae.pair.pair import Pair, field_names
from pyro_vae.pair.topics import check_vocabulary
from pyro_vae.parts.build import hints_of, named_parameters
from pyro_vae.parts.memory import check_fits
from pyro_vae.runs.checkpoints import BEST, read_best, reading
from pyro_vae.runs.options import current_options

RECORD = ("model", "facts", "options")
"""What a checkpoint keeps so that its pair can be built again."""

MEANS = "means"
"""What a checkpoint calls the means of the training data that its pair puts where a value is missing."""


def build_model(name: str, facts: Mapping[str, Any], options: Mapping[str, Any], seed: int = 0) -> nn.Module:
    """Build a model: what its signature asks of the data comes from `facts`, the rest from `options`.

    Args:
        name: of a registered model, or of what is in a file, `my_model.py:MyPair`, which is run.
        options: where the constructor takes another pair (a parameter that is annotated as a `Pair`), the folder of
            that pair's run, or its record (see `record_of`), or the pair itself.
        seed: fixes the initial weights; torch's global generator is left as it was.

    Raises:
        UnknownName: no such model.
        DataError: the data do not offer what the model asks for.
        RunError: the folder of another pair holds no run, or a pair that does not fit.
        PluginError: the model raises an error while it is built.
        ContractError: what is built is no pair.
    """
    constructor = plugins.load("model", name)
    parameters = named_parameters(constructor)
    given = {key: value for key, value in facts.items() if key in parameters} | current_options(constructor, options)
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in given:
            field = f", so data with a field {FIELDS_OF_FACTS[key]}" if key in FIELDS_OF_FACTS else ""
            raise DataError(f"model {name!r} needs {key}{field}; these data offer {', '.join(facts)}")
    for key in given.keys() & pair_parameters(constructor):
        given[key] = _pair_of(key, given[key])
    if not scripts.in_file(name):
        _check_size(name, constructor, given)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            pair = constructor(**given)
    except UnfitPair as unfit:
        source = options.get(unfit.parameter)
        if not isinstance(source, str | Path):
            raise
        raise RunError(f"{unfit.parameter} {source}: {unfit.reason}") from unfit
    except UserError:
        raise
    except Exception as problem:
        raise PluginError(f"model {name!r} raised {type(problem).__name__} as it was built: {problem}") from problem
    try:
        field_names(pair)
    except ContractError as problem:
        raise ContractError(f"model {name!r} is no pair: {problem}") from problem
    return pair


def _check_size(name: str, constructor: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Raise `ContractError` where a model's parameters alone would fill the memory, as far as it can be built without
    any; a mistake that is found on the way is raised when it is built.

    Where all numbers are small the parameters are too, and it is not tried: that takes a second.
    """
    if largest_number(given.values()) < LARGE:
        return
    nowhere = torch.device("meta")
    try:
        with torch.random.fork_rng(), nowhere:
            pair = constructor(**{k: v.to(nowhere) if isinstance(v, Tensor) else v for k, v in given.items()})
            needed = sum(parameter.nbytes for parameter in pair.parameters())
    except Exception:
        return
    check_fits(ContractError, needed, f"the parameters of model {name!r}", "use smaller sizes")


LARGE = 2**14


def largest_number(values: Iterable[Any]) -> int:
    """The largest whole number among values and the elements of lists; that of a shape is its product."""
    numbers = [math.prod(v) if isinstance(v, tuple) and all(type(n) is int for n in v) else v for v in values]
    flat = [n for v in numbers for n in (v if isinstance(v, list | tuple) else [v])]
    return max((n for n in flat if type(n) is int), default=0)


def pair_parameters(constructor: Callable[..., Any]) -> set[str]:
    """The parameters of a model's constructor that are annotated as a `Pair`, also as one that may be None."""
    kinds = {name: (hint, *typing.get_args(hint)) for name, hint in hints_of(constructor).items()}
    return {name for name, kind in kinds.items() if any(inspect.isclass(k) and issubclass(k, Pair) for k in kind)}


def _pair_of(parameter: str, value: Any) -> Any:
    """The pair that an option stands for: of the run in a folder, or built from its record; None for ""."""
    if isinstance(value, Mapping):
        return _built_again(value, parameter)
    if not isinstance(value, str | Path):
        return value
    if not value:
        return None
    try:
        best = read_best(Path(value))
        if scripts.in_file(best.get("model")):
            how = f"{parameter}=load_run({str(value)!r}, pair={best['model']!r}).pair"
            raise RunError(f"this is the run of a pair in a file; make the model in Python, with {how}")
        return stored_pair(Path(value), best)
    except RunError as reason:
        raise RunError(f"{parameter} {value}: {reason}") from reason


def record_of(name: str, facts: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """How to build a model again, in plain values, as its checkpoints keep it: in place of the folder of another pair's
    run stands the record of that pair, whose weights are among the model's own. Of a model in a file, the file's name
    and hash, not its code."""
    constructor, options = plugins.load("model", name), dict(options)
    for key in options.keys() & pair_parameters(constructor):
        if options[key] and not isinstance(options[key], Mapping):
            best = read_best(Path(options[key]))
            options[key] = {part: best[part] for part in RECORD}
    left_out = {"data_mean"} - named_parameters(constructor).keys()
    plain = {key: list(v) if isinstance(v, tuple) else v for key, v in facts.items() if key not in left_out}
    source = {"source": scripts.source_of(name)} if scripts.in_file(name) else {}
    return {"model": name, "facts": plain, "options": options, **source}


def stored_pair(folder: Path, best: Mapping[str, Any], pair: nn.Module | str | None = None) -> nn.Module:
    """The pair of a run folder's checkpoint, under `eval()`; or `pair`, with the checkpoint's weights read into it.

    Args:
        pair: a pair, or the name of a model, such as one in a file: `my_model.py:MyPair`.

    Raises:
        RunError: it is the run of another model than `pair`, or of a pair that no plugin built.
    """
    if pair is None:
        if "options" not in best:
            how = "load_run(folder, pair=...), or --pair my_model.py:MyPair"
            raise RunError(f"{folder} holds a pair that no plugin built; give it: {how}")
        with reading(folder / BEST):
            pair = _built_again(best, str(folder))
    elif isinstance(pair, str):
        pair = build_model(pair, best.get("facts", {}), best.get("options", {}))
    load_weights(pair, best, folder)
    with reading(folder / BEST):
        keep_means(pair, best.get(MEANS, {}))
    return pair.eval()


def _built_again(record: Mapping[str, Any], owner: str) -> nn.Module:
    """The pair of a record; raises `RunError` where its code is in a file, which no run runs by itself."""
    name, facts, options = (record[part] for part in RECORD)
    if scripts.in_file(name):
        raise RunError(
            f"{owner} is the run of a pair in a file, whose code it does not hold; give the file: --pair {name}, or in "
            f"Python load_run(folder, pair={name!r})"
        )
    return build_model(name, facts, options)


def changed_since(record: Mapping[str, Any], name: Any, folder: Any) -> str | None:
    """What to say where a model in a file is not the one that a run was trained with, as far as the file's hash and the
    name in it tell; None where it is."""
    stored = record.get("source")
    if stored is None or not scripts.in_file(name):
        return None
    if scripts.source_of(name)["sha256"] != stored["sha256"]:
        what = f"{stored['file']} has changed since {folder} was trained (its SHA-256 was {stored['sha256'][:12]}...)"
    elif name.rpartition(":")[2] != record["model"].rpartition(":")[2]:
        what = f"{folder} is the run of {record['model']}"
    else:
        return None
    return f"{what}; what follows is of {name} as it is now"


def load_weights(pair: nn.Module, checkpoint: Mapping[str, Any], folder: Path) -> None:
    """Read a checkpoint's weights into a pair; raises `RunError` where they are of another model, and `DataError`
    where they are of other words."""
    with reading(folder / BEST):
        _load_weights(pair, checkpoint, folder)


def _load_weights(pair: nn.Module, checkpoint: Mapping[str, Any], folder: Path) -> None:
    check_vocabulary(pair, checkpoint.get("facts", {}).get("vocabulary"), str(folder))
    if isinstance(pair, Pair):
        pair.prepare(blank_fields(checkpoint["fields"], checkpoint.get("size", 2) if pair.remembers else 2))
    try:
        pair.load_state_dict(checkpoint["pair"])
    except (RuntimeError, KeyError) as reason:
        detail = str(reason).splitlines()[-1].strip()
        named = f" (it is of {checkpoint['model']})" if "model" in checkpoint else ""
        raise RunError(f"{folder} is the run of another model than {type(pair).__name__}: {detail}{named}") from reason
