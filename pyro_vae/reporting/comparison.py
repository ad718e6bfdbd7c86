"""What a comparison of runs says: differences of the same data, their errors, and which of them are decided."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from pyro_vae.evaluation.result import GIVEN, Result, error_of_mean, finite_or_none, mean_and_error

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STATED = ("standard_error", "monte_carlo_error")
"""The figures of a datum that state the error of its bound, the first of them that there is."""

CERTIFIED, UNCERTIFIED = "certified", 0.05
"""The figure that says of which data the bound has converged, and the share of others that a decision allows."""

STANDARD_ERRORS = 2
"""A difference within so many of its standard errors, and the stated errors, is not decided."""


@dataclass(frozen=True)
class Difference:
    """How far one run is above another, in nats per datum.

    Attributes:
        better, worse: the names of the runs.
        per_datum: the figure of each datum of the better run, less that of the worse run.
        stated_errors: of the means of the better and of the worse run, as their evaluator states them.
        why: why it is not decided, in plain words; empty where it is.
    """

    better: str
    worse: str
    per_datum: Float[Tensor, " n"]
    stated_errors: tuple[float, float]
    why: tuple[str, ...]

    @property
    def mean(self) -> float:
        """Mean over data."""
        return mean_and_error(self.per_datum)["mean"]

    @property
    def standard_error(self) -> float:
        """Standard error of the mean of the paired differences; NaN for one datum."""
        return mean_and_error(self.per_datum)["standard_error"]

    @property
    def decided(self) -> bool:
        """Whether the mean exceeds two standard errors and both stated errors, and nothing else speaks against it."""
        return not self.why

    def __str__(self) -> str:
        verdict = "decided" if self.decided else f"not decided: {'; '.join(self.why)}"
        return f"{self.better} over {self.worse}: {self.mean:.3f} ± {self.standard_error:.3f} nats, {verdict}"

    def entry(self, per_datum: bool = False) -> dict[str, Any]:
        """The same in plain values, in which None stands for numbers that are not finite."""
        entry = {
            "better": self.better,
            "worse": self.worse,
            "mean": self.mean,
            "standard_error": self.standard_error,
            "stated_errors": list(self.stated_errors),
            "decided": self.decided,
            "why": list(self.why),
        }
        return finite_or_none(entry | ({"per_datum": self.per_datum.tolist()} if per_datum else {}))


@dataclass
class Comparison:
    """Runs on the same data, the best first.

    Attributes:
        results: the `Result` of each run by its name, ordered by the mean, the highest first.
        unequal: what is not equal between the runs, in plain sentences; empty unless that was allowed.
        differences: one for each two runs, in the order of `results`.
    """

    results: Mapping[str, Result]
    unequal: tuple[str, ...] = ()
    differences: tuple[Difference, ...] = field(init=False)

    def __post_init__(self):
        self.results = dict(sorted(self.results.items(), key=lambda item: -_low_if_nan(item[1].mean)))
        self.differences = tuple(_differences(self.results))

    @property
    def best(self) -> str:
        """The name of the run with the highest mean."""
        return next(iter(self.results))

    def between(self, one: str, other: str) -> Difference:
        """The difference of two runs, by their names in any order; raises KeyError where there is no such run."""
        return next(d for d in self.differences if {d.better, d.worse} == {self._known(one), self._known(other)})

    @property
    def behind(self) -> dict[str, Difference]:
        """How far the best run is above each of the others, by their names."""
        return {d.worse: d for d in self.differences if d.better == self.best}

    @property
    def warnings(self) -> list[str]:
        """Plain sentences that a reader of the differences must know."""
        found = [f"unequal: {line}" for line in self.unequal]
        if any(result.kind == "lower bound" and CERTIFIED not in result.estimate.per_datum for result in self._each):
            found.append("the figures are lower bounds on log p(x), so a run may be behind because of its guide alone")
        return found + [f"{name}: {warning}" for name, result in self.results.items() for warning in result.warnings]

    @property
    def lines(self) -> list[str]:
        """The comparison as a table, in nats per datum, then the differences of the other runs, and why what is not
        decided is not."""
        width = max(map(len, ("run", *self.results))) + 2
        quantity = self._each[0].quantity
        head = f"{'run':<{width}}{f'{quantity} ± s.e.':<25}{'stated error':<14}{'behind the best ± s.e.':<24}verdict"
        rows = [f"{name:<{width}}{self._row(name, result)}".rstrip() for name, result in self.results.items()]
        rest = [str(d) for d in self.differences if d.better != self.best or not d.decided]
        return [head, *rows, *rest]

    def __str__(self) -> str:
        return "\n".join(self.lines)

    def figure(self) -> "Figure":
        """Each run's mean difference from the best with its errors, beside the differences of all data."""
        from pyro_vae.plots.comparison import differences  # matplotlib takes long to import

        means = {name: (d.standard_error, sum(d.stated_errors)) for name, d in self.behind.items()}
        apart = {name: -d.per_datum for name, d in self.behind.items()}
        return differences(self.best, apart, means, [name for name, d in self.behind.items() if d.decided])

    def entry(self, per_datum: bool = False) -> dict[str, Any]:
        """The comparison in plain values, with the figures and the differences of every datum if `per_datum`."""
        first = self._each[0]
        return {
            "evaluator": first.evaluator,
            "quantity": first.quantity,
            "data": first.data,
            "split": first.split,
            "n": first.n,
            "best": self.best,
            "unequal": list(self.unequal),
            "warnings": self.warnings,
            "runs": [{"run": name, **result.entry(per_datum)} for name, result in self.results.items()],
            "differences": [difference.entry(per_datum) for difference in self.differences],
        }

    @property
    def _each(self) -> list[Result]:
        return list(self.results.values())

    def _known(self, name: str) -> str:
        if name not in self.results:
            raise KeyError(f"no run {name!r}; there are {', '.join(self.results)}")
        return name

    def _row(self, name: str, result: Result) -> str:
        behind = self.behind.get(name)
        apart = "" if behind is None else f"{behind.mean:.3f} ± {behind.standard_error:.3f}"
        verdict = "the highest" if behind is None else "decided" if behind.decided else "not decided"
        figure = f"{result.mean:.3f} ± {result.standard_error:.3f}"
        return f"{figure:<25}{stated_error(result):<14.3f}{apart:<24}{verdict}"


def stated_error(result: Result) -> float:
    """The standard error of the mean that follows from what the evaluator states of each datum; 0 where it states
    nothing, NaN where that is not known."""
    figures = result.estimate.per_datum
    errors = next((figures[name] for name in STATED if name in figures), None)
    return 0.0 if errors is None else error_of_mean(errors.double())


def _differences(results: Mapping[str, Result]) -> Iterator[Difference]:
    for (better, above), (worse, below) in combinations(results.items(), 2):
        per_datum = above.headline.double() - below.headline.double()
        stated = stated_error(above), stated_error(below)
        yield Difference(better, worse, per_datum, stated, tuple(_doubts({better: above, worse: below}, per_datum)))


def _doubts(runs: Mapping[str, Result], per_datum: Float[Tensor, " n"]) -> Iterator[str]:
    """Why the difference of two runs is not decided."""
    mean, error = mean_and_error(per_datum).values()
    stated = {name: stated_error(result) for name, result in runs.items()}
    infinite = int((~per_datum.isfinite()).sum())
    if infinite:
        yield f"the figures of {infinite} of the data are not finite"
    elif len(per_datum) == 1:
        yield "one datum has no standard error"
    shared = next((result for result in runs.values() if result.quantity in GIVEN), None)
    if shared is not None:
        yield f"the figures are {shared.given}, which all data share, so the standard error over data leaves that out"
    for name, value in stated.items():
        if not math.isfinite(value):
            yield f"the error of the mean of {name} is not known"
    beyond = STANDARD_ERRORS * error + sum(stated.values())
    if mean <= beyond:
        yield (
            f"the difference of {mean:.3f} is within {beyond:.3f}, two standard errors of {error:.3f} and the stated "
            f"errors {' and '.join(f'{value:.3f}' for value in stated.values())}"
        )
    for name, result in runs.items():
        certified = result.estimate.per_datum.get(CERTIFIED)
        others = 0 if certified is None else int((~certified.bool()).sum())
        if others > UNCERTIFIED * result.n:
            share = f"{others / result.n:.1%} of the data of {name} are not certified"
            yield f"{share}, and at most {UNCERTIFIED:.0%} may be"


def _low_if_nan(mean: float) -> float:
    return -math.inf if math.isnan(mean) else mean
