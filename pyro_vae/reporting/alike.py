"""Whether runs can be compared: the same data, held out from all of them, and presented alike."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_vae.data import Dataset, Split, choose_split
from pyro_vae.errors import RunError
from pyro_vae.runs.run import PRESENTATION, Run

Data = str | Path | Dataset | Split | Tensor | Mapping[str, Tensor] | None


def check_shapes(runs: Mapping[str, Run]) -> None:
    """Raise `RunError` where two runs take data of different shapes, of which no datum can be the same."""
    (first, reference), *others = runs.items()
    for name, run in others:
        for field in reference.fields.keys() & run.fields.keys():
            shapes = [list(each.fields[field][0]) for each in (reference, run)]
            if shapes[0] != shapes[1]:
                raise RunError(
                    f"{first} was trained on {field} of shape {shapes[0]} and {name} on {shapes[1]}, so no datum is "
                    "the same for both; compare runs on the same data"
                )


def unequal(
    runs: Mapping[str, Run], particles: Mapping[str, int], data: Data, split: str, limit: int | None
) -> Iterator[str]:
    """What differs in how the runs are evaluated, in plain words: each compared with the first."""
    (first, reference), *others = runs.items()
    for name, run in others:
        if particles[name] != particles[first]:
            yield f"particles are {particles[first]} for {first} and {particles[name]} for {name}"
        settings = [_settings(each) for each in (reference, run)]
        for key in PRESENTATION:
            if all(key in each for each in settings) and settings[0][key] != settings[1][key]:
                yield f"{key} is {settings[0][key]} in {first} and {settings[1][key]} in {name}"
        if data is None and not _hold_out_the_same(reference, run, split, limit):
            yield (
                f"the {split} data of {first} are not those of {name}, which may have been trained on some of them "
                f"({_why(*settings)})"
            )


def _settings(run: Run) -> dict[str, Any]:
    """What decides the data of a run and how they are presented; empty for a run whose data had no name."""
    settings = run.config.get("data", {})
    return {**settings, "seed": run.config["training"]["seed"]} if "name" in settings else {}


def _why(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """In which settings two runs' data differ."""
    keys = [key for key in {**one, **other} if key not in PRESENTATION and one.get(key) != other.get(key)]
    return ", ".join(f"{key} {one.get(key)} and {other.get(key)}" for key in keys) or "they were given in memory"


def _hold_out_the_same(one: Run, other: Run, split: str, limit: int | None) -> bool:
    """Whether the data of a split are the same for two runs, each by its own seed, before anything is drawn."""
    if not all(run.trained_on is not None or _settings(run) for run in (one, other)):
        return True  # a pair has no data of its own
    if one.trained_on is not None and one.trained_on is other.trained_on:
        return True
    mine, others = ({**_settings(run), "binarize": None, "scale": None} for run in (one, other))
    if "name" in mine and mine == others:
        return True
    if "name" in mine and "name" in others:
        ways = {"binarize": "none", "scale": _settings(one)["scale"]}
        one, other = (_with_presentation(run, **ways) for run in (one, other))
    return _same(*[choose_split(run.data, split).head(limit) for run in (one, other)])


def _same(one: Split, other: Split) -> bool:
    """Whether two splits hold the same data in the same order."""
    if one.size != other.size:
        return False
    with torch.random.fork_rng():
        batches = zip(one.batches(1000), other.batches(1000), strict=True)
        return all(
            mine.keys() == others.keys() and all(map(_equal, mine.values(), others.values()))
            for mine, others in batches
        )


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal, in what they lack (NaN) too."""
    known = [value.cpu().nan_to_num(torch.inf) if value.is_floating_point() else value.cpu() for value in (one, other)]
    return torch.equal(*known)


def presented(runs: Mapping[str, Run], data: Data) -> Iterator[tuple[str, Any]]:
    """The data of each run: those of the first, presented once for all runs that present them alike."""
    reference = next(iter(runs.values()))
    if data is None and reference.trained_on is None and not _settings(reference):
        raise RunError("a pair has no data of its own; say which data to compare on, with data=...")
    if isinstance(data, str | Path) and not _settings(reference):
        raise RunError(f"how {data} is to be presented is not known of a run in memory; give data=pv.load_data(...)")
    own, made = _settings(reference), {}
    for name, run in runs.items():
        ways = {key: _settings(run).get(key, own[key]) for key in PRESENTATION} if own else {}
        key = tuple(ways.values())
        if key not in made:
            alike = all(own[option] == way for option, way in ways.items()) or not isinstance(data, str | Path | None)
            source = reference if alike else _with_presentation(reference, **ways)
            made[key] = source.data_like(data)
        yield name, made[key]


def _with_presentation(run: Run, **ways: str) -> Run:
    """A run whose data are presented in other ways."""
    settings = run.config["data"] | ways
    return replace(run, config={**run.config, "data": settings}, trained_on=None)
