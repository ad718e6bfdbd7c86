"""`compare`: several runs on the same data, datum by datum."""

import json as json_format
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from pyro_vae import files, plots
from pyro_vae.engine import processes
from pyro_vae.errors import RunError, check_positive
from pyro_vae.evaluation import Result, evaluate
from pyro_vae.evaluation.result import BOUNDED, GIVEN
from pyro_vae.evaluation.unfinished import Unfinished
from pyro_vae.reporting.alike import Data, check_shapes, presented, unequal
from pyro_vae.reporting.comparison import Comparison
from pyro_vae.runs.run import Run, as_run

AnyRun = nn.Module | Run | str | Path

TRIED = 2
"""So many data show whether a run gives a likelihood, before anything takes long."""


def compare(
    runs: Sequence[AnyRun] | Mapping[str, AnyRun],
    evaluator: Any = "log_likelihood",
    particles: Sequence[int] | int = 1,
    limit: int | None = None,
    progress: bool = True,
    *,
    data: Data = None,
    split: str = "test",
    seed: int = 0,
    global_draws: int = 30,
    missing: str = "refuse",
    device: str = "auto",
    scales: str = "refuse",
    allow_unequal: bool = False,
    out: str | Path | None = None,
    json: str | Path | None = None,
    resume: str | Path | None = None,
    **options: Any,
) -> Comparison:
    """Compare runs on the same data in the same order, by the difference of their figures for each datum.

    The data are presented once, as the first run has them. Two runs are decided where the mean difference exceeds two
    of its standard errors and the errors that the evaluator states of both means, and where an evaluator that certifies
    leaves at most 5% of the data of either uncertified. Each two runs are judged by themselves. Run folders stay as
    they are.

    Args:
        runs: runs, or their folders, or pairs with `data`; as a mapping, by the names that they shall have.
        evaluator: what gives bounds on log p(x): a registered evaluator's name, an `Evaluator`, or a function that is
            called like one.
        particles: draws for each datum; several numbers are for one run each.
        limit: only the first so many data.
        progress: a progress bar on stderr for each run.
        data: other data than the first run's: a name or a file, or the data themselves.
        split: train, valid or test.
        seed: fixes the draws.
        global_draws: draws of latents outside the plate of the data, where there are any.
        missing: "refuse": values may be missing (NaN) where the pair allows it; "marginalise": in every field that the
            model only observes.
        device: auto, cpu or cuda.
        scales: "refuse" a pair that scales a site under eval() (poutine.scale), or "ignore" its scales.
        allow_unequal: compare in spite of unequal particles, or of data that the runs present unequally; the result
            says what is unequal. Each run then sees the data of the first run, presented in its own way.
        out: a .png for the picture: each run's mean difference from the best, and the differences of all data.
        json: a file for the figures, those of every datum too; - is stdout.
        resume: a folder that keeps what is done, so that a comparison goes on after an interruption; see `evaluate`.
        options: the evaluator's own.

    Returns:
        A `Comparison`: a `Result` of each run, the best first, the differences with their errors, and a table.

    Raises:
        RunError: fewer than two runs, a run twice, or a folder that is no run; runs that are unequal; figures that are
            a loss, or no likelihood; a file that cannot be written.
        DataError: the data do not fit a run, or have no such split.
        UnknownName, ContractError: as for `evaluate`.
    """
    if out is not None and Path(out).suffix != ".png":
        raise RunError(f"--out {out}: the name must end in .png")
    named = dict(_named(runs, device))
    counts = dict(zip(named, _of_each(particles, len(named)), strict=True))
    check_positive(RunError, limit=limit)
    check_shapes(named)
    differing = tuple(unequal(named, counts, data, split, limit))
    if differing and not allow_unequal:
        raise RunError(
            f"these runs are not evaluated alike: {'; '.join(differing)}; --allow_unequal compares them still"
        )
    how = {"split": split, "seed": seed, "global_draws": global_draws, "missing": missing, "scales": scales}
    seen = dict(presented(named, data))
    for name, run in named.items():
        tried = evaluate(run, seen[name], "elbo", 1, min(TRIED, limit or TRIED), False, **how)
        _check_likelihood(name, tried, tried)
    unfinished = Unfinished.at(resume)
    results: dict[str, Result] = {}
    for name, run in named.items():
        kept = unfinished and unfinished.inside(name)
        found = evaluate(run, seen[name], evaluator, counts[name], limit, progress, resume=kept, **how, **options)
        _check_likelihood(name, found, next(iter(results.values()), found))
        results[name] = found
    comparison = Comparison(results, differing)
    if processes.rank() == 0:
        _write(comparison, out, json)
    if unfinished is not None:
        unfinished.clear()
    return comparison


def _write(comparison: Comparison, out: str | Path | None, json: str | Path | None) -> None:
    if out is not None:
        plots.save(comparison.figure(), Path(out))
    if json is not None:
        files.print_or_write(json, json_format.dumps(comparison.entry(per_datum=True), indent=2))


def _named(runs: Sequence[AnyRun] | Mapping[str, AnyRun], device: str) -> Iterator[tuple[str, Run]]:
    """The runs by names of their own, none of which writes into its folder; raises `RunError` for fewer than two, and
    for one that is given twice."""
    given = dict(runs) if isinstance(runs, Mapping) else runs if isinstance(runs, list | tuple) else [runs]
    if len(given) < 2:
        raise RunError(f"compare takes two runs or more, not {len(given)}")
    members = list(given.values() if isinstance(given, dict) else given)
    for index, one in enumerate(members):
        if any(_is_same(one, other) for other in members[:index]):
            raise RunError(f"the run {_called(one)} is given twice; compare takes each run once")
    names = list(given) if isinstance(given, dict) else _apart([_called(one) for one in members], members)
    for name, one in zip(names, members, strict=True):
        if isinstance(one, nn.Module):
            yield str(name), Run(one, [], 0, {})
        else:
            yield str(name), replace(as_run(one, device), out=None)


def _called(one: AnyRun) -> str:
    if isinstance(one, str | Path):
        return Path(one).resolve().name
    if isinstance(one, Run):
        return one.model_name if one.out is None else one.out.resolve().name
    return type(one).__name__


def _apart(names: list[str], members: Sequence[AnyRun]) -> list[str]:
    """Names that are each one run's: folders of one name go by their paths, others by their number too."""
    paths = [one.out if isinstance(one, Run) else one for one in members]
    return [
        name if names.count(name) == 1 else str(path) if isinstance(path, str | Path) else f"{name} {number}"
        for number, (name, path) in enumerate(zip(names, paths, strict=True), start=1)
    ]


def _is_same(one: AnyRun, other: AnyRun) -> bool:
    """Whether two are one run: one folder, by whatever path, or one pair."""
    folders = [run.out if isinstance(run, Run) else run for run in (one, other)]
    if all(isinstance(folder, str | Path) for folder in folders):
        return Path(folders[0]).resolve() == Path(folders[1]).resolve()
    pairs = [run.pair if isinstance(run, Run) else run for run in (one, other)]
    return pairs[0] is pairs[1]


def _of_each(particles: Sequence[int] | int, count: int) -> list[int]:
    """The number of particles of each run."""
    given = [particles] if isinstance(particles, int) else list(particles)
    if len(given) not in (1, count):
        raise RunError(f"particles are one number for all runs, or one for each of {count}, not {len(given)}")
    for value in given:
        check_positive(RunError, particles=value)
    return given * count if len(given) == 1 else given


def _check_likelihood(name: str, result: Result, first: Result) -> None:
    """Raise `RunError` where figures bound no log-density, or are of another kind than those of the first run."""
    if result.quantity == "loss":
        why = next(iter(result.warnings), "it has no density")
        raise RunError(f"{name} has no likelihood to compare, only a loss ({why}); leave it out")
    if result.quantity not in (*BOUNDED, *GIVEN):
        raise RunError(f"{result.evaluator} gives {result.quantity}, which is no likelihood; use importance or elbo")
    if result.quantity != first.quantity:
        raise RunError(f"{name} has {result.quantity} and the first run {first.quantity}: two things; leave one out")
