"""Command line and config file of `train`: each owner's options, with the types that the owner gave them."""

import argparse
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pyro_vae import plugins, scripts
from pyro_vae.command_line.options import Option, add_flags, options_of, parse_value
from pyro_vae.errors import PluginError, RunError, UnknownName, UsageError
from pyro_vae.parts.build import needed, part_kinds
from pyro_vae.runs.config import DEFAULTS, KINDS, Config, default_of, read_settings, sectioned
from pyro_vae.runs.folder import CONFIG
from pyro_vae.runs.identity import MAY_DIFFER, check_same_run
from pyro_vae.runs.options import model_options
from pyro_vae.training.by_name import (
    NOT_SETTINGS,
    config_of,
    epochs_of,
    options_of_dataset,
    options_of_optimizer,
    options_of_presentation,
    options_of_schedule,
)
from pyro_vae.training.train import train


@dataclass(frozen=True)
class Owner:
    """Who has options.

    Attributes:
        key: what its options can always be named after: `--optimizer_alpha`.
        title: what the help calls them.
        options: which it has.
        keeps_names: its options are named as they are, whoever else has an option of that name.
    """

    key: str
    title: str
    options: list[Option]
    keeps_names: bool = False


Key = tuple[str, str]
"""The key of an owner, and the name of one of its options."""

SWITCHES = "model data objective config print_config out resume overwrite quiet help".split()


def parse_train(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> tuple[dict[str, Any], Any]:
    """The arguments of `train` in Python, by name, and the switches that are not among its settings.

    Which options exist depends on the model and its parts, the data set, the objective, the optimizer and the schedule,
    so these are read first.

    Raises:
        UnknownName: a model, data set, objective, option, section or setting that is not known.
        UsageError: a value of the wrong type, or an option of a part that was not chosen.
        RunError: --resume without a run, or with other settings than the run's.
    """
    choice = Choice(parser, arguments)
    owners = owners_of(choice)
    flags = name_flags(owners)
    known = typed_settings(choice.config, owners, choice.model)
    _add_switches(parser)
    for owner in owners:
        group = parser.add_argument_group(owner.title)
        for option in owner.options:
            key = (owner.key, option.name)
            shown = replace(option, default=known.get(key, option.default))
            add_flags(group, shown, ".".join(key), flags[key])
    explain_unknown(arguments, owners, flags, choice.model)
    given = parser.parse_args(arguments)
    if plugins.current_name("model", given.model) not in (None, choice.names["model"]):
        raise UsageError(f"the model comes before the options: {parser.prog} {given.model} ...")
    values = _values(parser, given, owners, flags, known)
    asked = {
        "pair": choice.names["model"],
        "data": choice.names["data"],
        "objective": choice.names["objective"],
        **values.pop("training"),
        **{f"{key}_options": options for key, options in values.items()},
    }
    if choice.stored:
        _check_stored(choice.out, choice.stored, config_of(asked))
    return asked, given


class Choice:
    """What decides which options there are: the names of model, data set, objective, parts, optimizer and schedule.

    A part, objective, optimizer or schedule that is named on the command line goes before that of the config, whose
    options then fall away.
    """

    def __init__(self, parser: argparse.ArgumentParser, arguments: Sequence[str]):
        named = _peek(parser, arguments, ["data", "objective", "optimizer", "schedule", "config", "out"])
        if named.resume and named.out is None:
            raise RunError("--resume needs the run folder: say --out DIR")
        self.out = named.out
        asked = {key: getattr(named, key) for key in KINDS}
        asked = {key: plugins.current_name(key, name, warn=True) for key, name in asked.items() if name}
        stored = Path(named.out) / CONFIG if named.resume else None
        self.stored = sectioned(read_settings(stored)) if stored and stored.exists() else {}
        config = sectioned(read_settings(Path(named.config)), asked) if named.config else self.stored
        self.config: Config = {section: dict(values) for section, values in config.items()}
        known = {key: str(self.config.get(key, {}).get("name") or default) for key, default in DEFAULTS.items()}
        self.names = known | asked
        if config is self.stored and "model" not in asked and scripts.in_file(self.names["model"]):
            raise RunError(
                f"{named.out} is the run of a pair in a file, whose code it does not hold; give the file: "
                f"{parser.prog} {self.names['model']} --resume --out {named.out}"
            )
        if "data" not in asked and "name" not in self.config.get("data", {}):
            self.names["data"] = default_of("data", self.names["model"])
        check_same_run(named.out, _names(self.stored), {key: Path(name).name for key, name in self.names.items()})
        if self.names["objective"] != known["objective"]:
            self.config.pop("objective", None)
        self.model = plugins.load("model", self.names["model"])
        if "objective" not in asked and "name" not in self.config.get("objective", {}):
            self.names["objective"] = default_of("objective", self.model)
        parts = vars(_peek(parser, arguments, list(part_kinds(self.model))))
        self.parts = {name: self._chosen("model", name, parts[name], f"{name}_") for name in part_kinds(self.model)}
        self.optimizer = self._chosen("training", "optimizer", named.optimizer, "optimizer_options") or "adam"
        self.schedule = self._chosen("training", "schedule", named.schedule, "schedule_options") or "constant"

    def _chosen(self, section: str, name: str, asked: str | None, options: str) -> str | None:
        """What is asked for, or else what the config says."""
        settings = self.config.get(section, {})
        if asked and settings.get(name, asked) != asked:
            self.config[section] = {key: value for key, value in settings.items() if not key.startswith(options)}
        return asked or settings.get(name)


def _peek(parser: argparse.ArgumentParser, arguments: Sequence[str], names: Sequence[str]) -> argparse.Namespace:
    """The values of some options, and the model, whatever else stands on the command line."""
    peeking = type(parser)(prog=parser.prog, add_help=False, allow_abbrev=False)
    for name in names:
        peeking.add_argument(f"--{name}")
    peeking.add_argument("--resume", action="store_true")
    known, rest = peeking.parse_known_args(arguments)
    known.model = rest[0] if rest and not rest[0].startswith("-") else None
    return known


def _names(stored: Config) -> dict[str, str]:
    """Model, data and objective, of a file its name alone: it may have moved, and its rows are compared in training."""
    return {key: Path(str(stored[key]["name"])).name for key in KINDS if "name" in stored.get(key, {})}


def owners_of(choice: Choice) -> list[Owner]:
    """Everyone who has options."""
    epochs = epochs_of(choice.names["data"])
    training = [
        replace(o, type=int, default=epochs) if o.name == "epochs" else o for o in options_of(train, NOT_SETTINGS)
    ]
    objective = options_of(plugins.load("objective", choice.names["objective"]))
    return [
        Owner("model", "options of the model", model_options(choice.model, choice.parts)),
        Owner("data", "options of the data set", options_of_dataset(choice.names["data"])),
        Owner("objective", "options of the objective", objective),
        Owner("data", "data", options_of_presentation(choice.names["data"]), keeps_names=True),
        Owner("training", "training", training, keeps_names=True),
        Owner("optimizer", "options of the optimizer", options_of_optimizer(choice.optimizer)),
        Owner("schedule", "options of the schedule", options_of_schedule(choice.schedule)),
    ]


def name_flags(owners: Sequence[Owner]) -> dict[Key, list[str]]:
    """The flags of each option, the one that help shows first: its name, if no one else has it, and its name after its
    owner's; and its old name.

    Raises:
        PluginError: two options of one owner have one name.
    """
    kept = {*SWITCHES, *(option.name for owner in owners if owner.keeps_names for option in owner.options)}
    shared = Counter(option.name for owner in owners for option in owner.options)
    flags = {}
    taken: set[str] = set(kept)
    for owner in owners:
        for option in owner.options:
            names = [option.name, f"{owner.key}_{option.name}"] if not owner.keeps_names else [option.name]
            names = names[1:] if not owner.keeps_names and (shared[option.name] > 1 or option.name in kept) else names
            old = [old for old, new in plugins.RENAMED_OPTIONS.items() if new == option.name and not shared[old]]
            free = [name for name in (*names, *old) if owner.keeps_names or name not in taken]
            if not free:
                raise PluginError(f"two {owner.title} are called {option.name!r}; rename one")
            taken.update(free)
            flags[owner.key, option.name] = free
    return flags


def typed_settings(config: Config, owners: Sequence[Owner], model: Callable[..., Any]) -> dict[Key, Any]:
    """The settings of a config file, each with its owner's type.

    Raises:
        UnknownName: a setting that its owner does not have.
        UsageError: a value of another type, a setting in another section than its own, or one of a part that was not
            chosen.
    """
    table = {(owner.key, option.name): option for owner in owners for option in owner.options}
    typed: dict[Key, Any] = {}
    for section, settings in config.items():
        for name, value in settings.items():
            nested = name.removesuffix("_options")
            if section in KINDS and name == "name":
                continue
            if section == "training" and isinstance(value, Mapping) and nested in ("optimizer", "schedule"):
                for inner, own in value.items():
                    option = table.get((nested, inner))
                    typed[nested, inner] = own if option is None else parse_value(option, own)
                continue
            if section == "model" and (section, name) not in table:
                name = plugins.RENAMED_OPTIONS.get(name, name)
            keys = (section, "optimizer", "schedule") if section == "training" else (section,)
            key = next((key for key in keys if (key, name) in table), None)
            if key is None:
                raise _unknown_setting(section, name, table, model)
            typed[key, name] = parse_value(table[key, name], value)
    return typed


def _unknown_setting(section: str, name: str, table: Mapping[Key, Option], model: Callable[..., Any]) -> Exception:
    other = next((key for key, known in table if known == name), None)
    if other is not None:
        place = other if other in (*KINDS, "training") else f"training: {other}_options"
        return UsageError(f"the setting {name!r} belongs under {place}:, not under {section}:")
    line = needed(model, name) if section == "model" else None
    return UsageError(line) if line else UnknownName("setting", name, {known for _, known in table})


def explain_unknown(
    arguments: Sequence[str], owners: Sequence[Owner], flags: Mapping[Key, Sequence[str]], model: Callable[..., Any]
) -> None:
    """Raise `UsageError` for an option of a part that was not chosen, and for a name that several owners share; other
    unknown options are the parser's to refuse."""
    known = {*SWITCHES, *(flag for names in flags.values() for flag in names)}
    for word in arguments:
        name = word[2:].split("=")[0]
        if not word.startswith("--") or name in known:
            continue
        having = [f"--{owner.key}_{name}" for owner in owners if any(option.name == name for option in owner.options)]
        if len(having) > 1:
            raise UsageError(f"--{name} could be {' or '.join(having)}; say which")
        line = needed(model, name, "--")
        if line:
            raise UsageError(line)


def _values(
    parser: argparse.ArgumentParser,
    given: argparse.Namespace,
    owners: Sequence[Owner],
    flags: Mapping[Key, Sequence[str]],
    known: Mapping[Key, Any],
) -> dict[str, dict[str, Any]]:
    """The options of each owner: what is given, else the config's, else the default."""
    values: dict[str, dict[str, Any]] = {owner.key: {} for owner in owners}
    missing = []
    for owner in owners:
        for option in owner.options:
            key = (owner.key, option.name)
            if ".".join(key) in given:
                value = plugins.current_name(option.name, getattr(given, ".".join(key)), warn=True)
            else:
                value = known.get(key, option.default)
                missing += [f"--{flags[key][0]}"] if option.required and key not in known else []
            values[owner.key][option.name] = value
    if missing:
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    for (owner_key, name), value in known.items():
        values[owner_key].setdefault(name, value)
    return values


def _check_stored(folder: str, stored: Config, given: Config) -> None:
    """Raise `RunError` where a setting differs from that of the run which is resumed."""
    for section, settings in stored.items():
        check_same_run(folder, _flat(settings), _flat(given.get(section, {})))


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without the name of their plugin; those of an optimizer or schedule named after it."""
    flat = {name: value for name, value in settings.items() if name != "name" and not isinstance(value, Mapping)}
    nested = {name.removesuffix("_options"): v for name, v in settings.items() if isinstance(v, Mapping)}
    return flat | {f"{owner}_{name}": value for owner, options in nested.items() for name, value in options.items()}


def _add_switches(parser: argparse.ArgumentParser) -> None:
    models = f"{', '.join(plugins.names('model'))}, or a pair in a file, my_model.py:MyPair (default: vae)"
    parser.add_argument("model", nargs="?", metavar="MODEL", help=models)
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
