"""Command line and config file of `train`: one flat list of settings, each with the type that its owner gave it."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyro_vae import plugins
from pyro_vae.command_line.options import Option, add_options, options_of, parse_value
from pyro_vae.data import load_data
from pyro_vae.data.dataset import FIELDS_OF_FACTS
from pyro_vae.errors import PluginError, RunError, UnknownName, UsageError
from pyro_vae.runs.folder import read_config, read_settings
from pyro_vae.runs.identity import MAY_DIFFER, check_same_run
from pyro_vae.training.optimizers import OURS, find_optimizer
from pyro_vae.training.schedules import TORCHS
from pyro_vae.training.train import train

NOT_SETTINGS = ("pair", "data", "fields", "objective", "seed", "out", "progress", "resume", "overwrite", "record")
NOT_THE_SCHEDULES = ("optimizer", "last_epoch", "verbose")
DEFAULTS = {"model": "vae", "data": "digits", "objective": "trace_mean_field_elbo"}
DEFAULT_BINARIZE = "dynamic"
DIGITS_EPOCHS = 600
"""About a minute of two cores on the small data set that is trained on where none is named."""


@dataclass(frozen=True)
class TrainSettings:
    """The settings of a training, sorted by who takes them."""

    model: str
    data: dict[str, Any]
    data_options: dict[str, Any]
    model_options: dict[str, Any]
    objective: str
    objective_options: dict[str, Any]
    training: dict[str, Any]
    optimizer_options: dict[str, Any] = field(default_factory=dict)
    schedule_options: dict[str, Any] = field(default_factory=dict)

    def flat(self) -> dict[str, Any]:
        """As `config.yaml` holds them."""
        return {
            "model": self.model,
            **self.model_options,
            **self.data,
            **self.data_options,
            "objective": self.objective,
            **self.objective_options,
            **self.training,
            **self.optimizer_options,
            **self.schedule_options,
        }


def parse_train(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> tuple[TrainSettings, Any]:
    """The settings of a training, and the switches that are no part of them.

    Which options exist depends on the model, the data set, the objective, the optimizer and the schedule, so these are
    read first.

    Raises:
        UnknownName: a model, data set, objective, option or setting that is not known.
        UsageError: a value of the wrong type.
        RunError: --resume without a run, or with other settings than the run's.
    """
    first = _peek(type(parser)(prog=parser.prog, add_help=False, allow_abbrev=False), arguments)
    config = _read_config(first)
    chosen = {key: str(getattr(first, key) or config.get(key) or default) for key, default in DEFAULTS.items()}
    chosen = {key: plugins.current_name(key, name, warn=True) for key, name in chosen.items()}
    stored = read_config(Path(first.out)) if first.resume else {}
    check_same_run(first.out, _names(stored), _names(chosen))
    is_file = chosen["data"] not in plugins.names("dataset")
    owners = {
        "the model": options_of(plugins.load("model", chosen["model"]), FIELDS_OF_FACTS),
        "the data set": [] if is_file else options_of(plugins.load("dataset", chosen["data"]), ["seed"]),
        "the objective": options_of(plugins.load("objective", chosen["objective"])),
        "data": options_of(load_data, ["name_or_file"]),
        "training": options_of(train, NOT_SETTINGS),
        "the optimizer": options_of(find_optimizer(str(first.optimizer or config.get("optimizer", "adam"))), OURS),
        "the schedule": _schedule_options(str(first.schedule or config.get("schedule", "constant"))),
    }
    _check_distinct(owners)
    _add_switches(parser)
    for title, options in owners.items():
        add_options(parser, options, title if title in ("data", "training") else f"options of {title}")
    parser.set_defaults(binarize=DEFAULT_BINARIZE)
    if not first.data and "data" not in config:
        parser.set_defaults(epochs=DIGITS_EPOCHS)
    _set_defaults(parser, _typed(config, owners))
    given = parser.parse_args(arguments)
    if plugins.current_name("model", given.model) not in (None, chosen["model"]):
        raise UsageError(f"the model comes before the options: {parser.prog} {given.model} ...")
    values = {
        title: {o.name: plugins.current_name(o.name, getattr(given, o.name), warn=True) for o in options}
        for title, options in owners.items()
    }
    settings = TrainSettings(
        model=chosen["model"],
        data={"data": chosen["data"], **values["data"]},
        data_options=values["the data set"],
        model_options=values["the model"],
        objective=chosen["objective"],
        objective_options=values["the objective"],
        training=values["training"],
        optimizer_options=values["the optimizer"],
        schedule_options=values["the schedule"],
    )
    check_same_run(first.out, _typed(stored, owners), settings.flat())
    return settings, given


def _schedule_options(name: str) -> list[Option]:
    """The options of a schedule of torch's; ours have none."""
    return options_of(TORCHS[name.lower()], NOT_THE_SCHEDULES) if name.lower() in TORCHS else []


def _names(settings: dict[str, Any]) -> dict[str, str]:
    """Model, data and objective, of a file its name alone: it may have moved, and its rows are compared in training."""
    return {key: Path(str(settings[key])).name for key in DEFAULTS if key in settings}


def _peek(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """Model, data, objective and config file, whatever else stands on the command line."""
    for name in ("data", "objective", "optimizer", "schedule", "config", "out"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--resume", action="store_true")
    known, rest = parser.parse_known_args(arguments)
    known.model = rest[0] if rest and not rest[0].startswith("-") else None
    return known


def _read_config(first: argparse.Namespace) -> dict[str, Any]:
    if first.resume and first.out is None:
        raise RunError("--resume needs the run folder: say --out DIR")
    if first.config:
        return read_settings(Path(first.config))
    return read_config(Path(first.out)) if first.resume else {}


def _add_switches(parser: argparse.ArgumentParser) -> None:
    models = ", ".join(plugins.names("model"))
    parser.add_argument("model", nargs="?", metavar="MODEL", help=f"{models} (default: vae)")
    parser.add_argument("--data", metavar="NAME|FILE", help="a data set's name, a .npy or .npz, or a folder of images")
    objectives = ", ".join(plugins.names("objective"))
    parser.add_argument("--objective", metavar="NAME", help=f"what is minimised: {objectives}")
    parser.add_argument("--config", metavar="FILE", help="read settings from a run's config.yaml")
    parser.add_argument("--print_config", action="store_true", help="print the settings and stop")
    parser.add_argument("--out", metavar="DIR", help="the run folder (default: the next free runs/MODEL-DATA-N)")
    resume = f"continue the run in --out exactly; only {', '.join(MAY_DIFFER)} may be given anew"
    parser.add_argument("--resume", action="store_true", help=resume)
    parser.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _check_distinct(owners: dict[str, list[Option]]) -> None:
    seen: dict[str, str] = {name: "the command" for name in ("model", *DEFAULTS, "out", "config")}
    for owner, options in owners.items():
        for option in options:
            if option.name in seen:
                raise PluginError(f"{owner} and {seen[option.name]} both have an option {option.name!r}; rename one")
            seen[option.name] = owner


def _set_defaults(parser: argparse.ArgumentParser, settings: dict[str, Any]) -> None:
    """Settings of a config file stand in for options, also for those that have no default."""
    parser.set_defaults(**settings)
    for action in parser._actions:
        action.required = action.required and action.dest not in settings


def _typed(config: dict[str, Any], owners: dict[str, list[Option]]) -> dict[str, Any]:
    known = {option.name: option for options in owners.values() for option in options}
    settings = {key: value for key, value in config.items() if key not in DEFAULTS}
    for key in settings:
        if key not in known:
            raise UnknownName("setting", key, known)
    return {key: parse_value(known[key], value) for key, value in settings.items()}
