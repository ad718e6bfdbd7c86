"""config.yaml: the settings of a run, a section for each owner. Old ones are one flat list, and are read as well."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pyro_vae import files, plugins, scripts
from pyro_vae.errors import PluginError, RunError, UnknownName
from pyro_vae.parts.build import part_kinds
from pyro_vae.runs.folder import CONFIG
from pyro_vae.runs.options import current_options, model_options, options_of

Config = dict[str, dict[str, Any]]
"""A section for each of `SECTIONS`; those in `KINDS` say under `name` which plugin it is."""

KINDS = {"model": "model", "data": "dataset", "objective": "objective"}
SECTIONS = (*KINDS, "training")
LARGEST_CONFIG, MOST_VALUES = 2**18, 10_000
"""No config has more bytes, or more values."""

DEFAULTS = {"model": "vae", "data": "digits", "objective": "trace_mean_field_elbo"}


def default_of(kind: str, model: Any) -> str:
    """The data set ("data") or the objective ("objective") of a model where none is asked for.

    It is the model's attribute `default_data` or `default_objective`, or that of its constructor.
    """
    model = plugins.load("model", model) if isinstance(model, str) else model
    return getattr(model, f"default_{kind}", DEFAULTS[kind])


def read_config(folder: Path) -> Config:
    """The settings of a run; empty for a run whose pair and data had no names."""
    path = folder / CONFIG
    return sectioned(read_settings(path)) if path.exists() else {}


def read_settings(path: Path) -> dict[str, Any]:
    """Settings from a YAML file, as they stand there; raises `RunError` where it cannot be read or is no mapping."""
    try:
        settings = read_yaml(files.read_text(path, LARGEST_CONFIG))
    except OSError as problem:
        raise RunError(f"cannot read {path}: {problem.strerror}") from problem
    except (yaml.YAMLError, ValueError, RecursionError) as reason:
        raise RunError(f"{path} is not YAML: {' '.join(str(reason).split())}") from reason
    if not isinstance(settings, dict):
        raise RunError(
            f"{path} must hold settings, a section `model:`, `data:`, `objective:` or `training:` for each owner"
        )
    for mapping in (settings, *(inner for inner in settings.values() if isinstance(inner, dict))):
        for key, value in mapping.items():
            inner = value if isinstance(value, dict) else {}
            for name in (key, *inner):
                if not isinstance(name, str):
                    raise RunError(f"{path} has a key {name!r} that is no name; every setting has one")
    return settings


def read_yaml(text: str) -> Any:
    """What a YAML text holds, in plain values.

    Raises:
        yaml.YAMLError, ValueError, RecursionError: it is no YAML, or holds more values than a config has, which a few
            lines with aliases of aliases can do.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _values_in(node, {}) > MOST_VALUES:
            raise ValueError(f"it holds more than {MOST_VALUES:,} values, which no config does")
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _values_in(node: yaml.Node, known: dict[int, float]) -> float:
    """How many values there are where each alias is written out; infinitely many where one holds itself."""
    if id(node) not in known:
        known[id(node)] = math.inf
        inner = node.value if not isinstance(node, yaml.ScalarNode) else ()
        parts = [part for item in inner for part in (item if isinstance(item, tuple) else (item,))]
        known[id(node)] = 1 + sum(_values_in(part, known) for part in parts)
    return known[id(node)]


def sectioned(settings: Mapping[str, Any], chosen: Mapping[str, str] | None = None) -> Config:
    """Settings in sections, by their present names; of a flat list, each goes to the owner that knows it, and what none
    knows to `training`.

    Args:
        chosen: names of model, data and objective that go before those in the settings.

    Raises:
        UnknownName: a section that there is not.
    """
    config: Config = {section: {} for section in SECTIONS}
    flat = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            if key not in SECTIONS:
                raise UnknownName("section", key, SECTIONS)
            config[key] |= {name: plugins.current_name(name, inner) for name, inner in value.items()}
        elif key in KINDS:
            config[key] |= {"name": value}
        else:
            flat[key] = plugins.current_name(key, value)
    for section, kind in KINDS.items():
        if "name" in config[section]:
            config[section]["name"] = plugins.current_name(kind, config[section]["name"])
    names = {section: config[section].get("name", default) for section, default in DEFAULTS.items()} | dict(
        chosen or {}
    )
    owned = {section: _own(kind, str(names[section]), flat) for section, kind in KINDS.items()} if flat else {}
    for key, value in flat.items():
        owner = next((section for section, known in owned.items() if key in known), "training")
        config[owner].setdefault(key, value)
    if any(old in flat for old in plugins.RENAMED_OPTIONS) and not scripts.in_file(names["model"]):
        config["model"] = current_options(plugins.load("model", str(names["model"])), config["model"])
    return {section: values for section, values in config.items() if values}


def _own(kind: str, name: str, flat: Mapping[str, Any]) -> set[str]:
    """The settings that a plugin knows; of a file, which is not run here, or a plugin that is not installed, those of
    its kind."""
    shared = {"binarize", "scale"} if kind == "dataset" else set()
    if scripts.in_file(name):
        return shared
    try:
        plugin = plugins.load(kind, name)
    except (UnknownName, PluginError):
        return shared
    if kind != "model":
        return shared | {option.name for option in options_of(plugin, ["seed"])}
    parts = tuple(f"{parameter}_" for parameter in part_kinds(plugin))
    old = {old for old, new in plugins.RENAMED_OPTIONS.items() if new.startswith(parts)}
    return old | {option.name for option in model_options(plugin, flat)}
