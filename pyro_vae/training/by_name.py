"""A training that is said in names: its pair and data are built, and its settings are written whole."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from pyro_vae import plugins
from pyro_vae.data import Dataset, load_data
from pyro_vae.engine import processes
from pyro_vae.errors import Changed, ContractError, DataError, RunError, UnknownName
from pyro_vae.evaluation import evaluate
from pyro_vae.objectives.objective import Objective, as_objective
from pyro_vae.parts.build import needed
from pyro_vae.reporting.report import write_report
from pyro_vae.runs.build import build_model, changed_since, record_of
from pyro_vae.runs.config import DEFAULTS, Config
from pyro_vae.runs.options import Option, model_options, options_of
from pyro_vae.runs.run import Run
from pyro_vae.training.optimizers import OURS, find_optimizer
from pyro_vae.training.schedules import TORCHS

NOT_SETTINGS = (
    "pair data model_options data_options objective objective_options optimizer_options schedule_options "
    "valid fields on_epoch out progress resume overwrite record"
).split()
"""Parameters of `train` that the section `training` of config.yaml does not hold as they are."""

NOT_THE_SCHEDULES = ("optimizer", "last_epoch", "verbose")
DEFAULT_BINARIZE = "dynamic"

EPOCHS, EPOCHS_OF = 100, {DEFAULTS["data"]: 600}
"""Passes over the data where none are asked for; six hundred over so small a set take two cores about a minute."""


def epochs_of(data: Any) -> int:
    """How many passes over these data are made where none are asked for."""
    return EPOCHS_OF.get(data, EPOCHS) if isinstance(data, str) else EPOCHS


def options_of_presentation(data: str) -> list[Option]:
    """How a data set is presented: scaled, and binarised as it says itself (`binarize`) where nothing is asked for."""
    options, own = options_of(load_data, ["name_or_file", "seed"]), DEFAULT_BINARIZE
    if data in plugins.names("dataset"):
        own = getattr(plugins.load("dataset", data), "binarize", own)
    return [replace(o, default=own) if o.name == "binarize" else o for o in options]


def options_of_dataset(name: str) -> list[Option]:
    """The options of a data set's own; a file has none."""
    taken = ["seed", *(option.name for option in options_of_presentation(name))]
    return options_of(plugins.load("dataset", name), taken) if name in plugins.names("dataset") else []


def options_of_optimizer(name: Any) -> list[Option]:
    """The options of a named optimizer of torch's."""
    return options_of(find_optimizer(name), OURS) if isinstance(name, str) else []


def options_of_schedule(name: Any) -> list[Option]:
    """The options of a schedule of torch's; ours have none."""
    is_torchs = isinstance(name, str) and name.lower() in TORCHS
    return options_of(TORCHS[name.lower()], NOT_THE_SCHEDULES) if is_torchs else []


def config_of(asked: Mapping[str, Any]) -> Config:
    """The settings of a call of `train` with the name of a model, by its parameters, as config.yaml holds them.

    Raises:
        UnknownName: an option that its owner does not have.
        RunError: an option that is an object, or a required one that is missing.
    """
    model, data, given = asked["pair"], asked["data"], asked["model_options"] or {}
    constructor = plugins.load("model", model)
    own = model_options(constructor, given)
    for name in given.keys() - {option.name for option in own}:
        line = needed(constructor, name)
        if line:
            raise RunError(line)
    config = {"model": {"name": plugins.current_name("model", model), **complete(f"model {model!r}", own, given)}}
    if isinstance(data, str | Path):
        config["data"] = {"name": str(data), **data_settings(data, asked["data_options"])}
    config["objective"] = _objective_settings(asked["objective"], asked["objective_options"])
    training = {name: plain_or_name(value) for name, value in asked.items() if name not in NOT_SETTINGS}
    for name in ("optimizer_options", "schedule_options"):
        training |= {name: {n: plain_or_name(value) for n, value in asked[name].items()}} if asked[name] else {}
    return config | {"training": training}


def with_defaults(options: Sequence[Option], given: Mapping[str, Any] | None) -> dict[str, Any]:
    """The defaults of an optimizer's or a schedule's options, and what is given, which they check themselves."""
    return {option.name: option.default for option in options if not option.required} | dict(given or {})


def built(
    name: str, data: Dataset, config: Config, seed: int, stored: Mapping[str, Any] | None
) -> tuple[nn.Module, dict[str, Any]]:
    """The pair of a named model for these data, and what its checkpoints keep. Of a run that is resumed, another pair
    that the model was given (a baseline) is the one that was stored with it."""
    pairs = {key: value for key, value in (stored or {}).get("options", {}).items() if isinstance(value, Mapping)}
    options = {key: value for key, value in config["model"].items() if key != "name"} | pairs
    pair = build_model(name, data.facts, options, seed)
    changed = changed_since(stored or {}, name, "the run")
    if changed:
        warnings.warn(changed, Changed, stacklevel=3)
    return pair, {"config": config, **record_of(plugins.current_name("model", name), data.facts, options)}


def made(objective: Any, options: Mapping[str, Any] | None) -> Objective:
    """The objective of a name and its options, or the one that is given."""
    if isinstance(objective, str):
        return as_objective(plugins.build("objective", objective, options or {}))
    if options:
        raise RunError(f"objective_options go with the name of an objective; give {', '.join(options)} to it itself")
    return as_objective(objective)


def data_settings(name: str | Path, options: Mapping[str, Any] | None) -> dict[str, Any]:
    """All options with which a data set is loaded; raises as `config_of` does."""
    known = [*options_of_presentation(str(name)), *options_of_dataset(str(name))]
    return complete(f"data {str(name)!r}", known, options or {})


def complete(owner: str, options: Sequence[Option], given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of all options: what is given, and else the defaults; raises as `config_of` does."""
    known = {option.name: option for option in options}
    given = {plugins.RENAMED_OPTIONS.get(name, name) if name not in known else name: v for name, v in given.items()}
    for name, value in given.items():
        if name not in known:
            raise UnknownName(f"option of {owner}", name, known)
        if not is_plain(value):
            raise RunError(f"{name} is an object, which no config.yaml can hold; build the pair and train that")
    missing = [option.name for option in options if option.required and option.name not in given]
    if missing:
        raise RunError(f"{owner} needs {', '.join(missing)}")
    return {name: plain(given.get(name, option.default)) for name, option in known.items()}


def is_plain(value: Any) -> bool:
    """Whether a value is a number, a word, a path, or a list of them."""
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return value is None or isinstance(value, bool | int | float | str | Path)


def plain(value: Any) -> Any:
    """A plain value as YAML holds it."""
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def plain_or_name(value: Any) -> Any:
    """A plain value; of an object, such as an optimizer, its name."""
    return plain(value) if is_plain(value) else getattr(value, "__name__", type(value).__name__)


def _objective_settings(objective: Any, options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Name and options of an objective; of an object, those that it keeps as attributes."""
    if isinstance(objective, str):
        name = plugins.current_name("objective", objective)
        known = options_of(plugins.load("objective", name))
        return {"name": name, **complete(f"objective {name!r}", known, options or {})}
    kept = dict(as_objective(objective).identity())
    name = kept.pop("objective")
    return {"name": plugins.name_of("objective", type(objective)) or name, **kept}


def finish(run: Run) -> None:
    """Evaluate a run on its test data, also by the evaluators that its pair names, and write its report."""
    processes.wait_for_all()
    for name in ("elbo", "reconstruction", *getattr(run.pair, "evaluators", ())):
        try:
            run.results.append(evaluate(run, run.data, name, progress=False))
        except (ContractError, DataError) as problem:
            run.notes.append(f"{name} was not evaluated: {problem}")
    if processes.rank() == 0:
        run.pair.cpu()
        write_report(run)
