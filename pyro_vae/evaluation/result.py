"""What an evaluation gives: numbers of each datum, their summary, and what to think of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

BOUNDED = ("log_likelihood", "elbo")
"""The names of headline figures that bound log p(x) from below in expectation."""

GIVEN = ("log_predictive", "elbo_given_globals")
"""Those of headline figures given draws of latents that all data share: a predictive density, and a mean of ELBOs."""

NATS = "nats per datum"

PerDatum = dict[str, Float[Tensor, "n ..."]]


@dataclass(frozen=True)
class OfDataSet:
    """A figure of all data together, where they share latents, in nats for all of them.

    Attributes:
        quantity: "log_likelihood" or "elbo", which bound log p(all data) from below in expectation, or "loss".
        nats: the figure.
        monte_carlo_error: its standard error over draws of the shared latents; NaN for a single draw.
        draws: how many draws.
        ess: the effective number of them, where they are weighted.
        pareto_k: k-hat of their weights, NaN where they are too few.
    """

    quantity: str
    nats: float
    monte_carlo_error: float
    draws: int
    ess: float | None = None
    pareto_k: float | None = None

    def as_loss(self) -> "OfDataSet":
        """The same, called a loss."""
        return self if self.quantity == "loss" else replace(self, quantity="loss", nats=-self.nats)

    def __str__(self) -> str:
        error = f" ± {self.monte_carlo_error:.3f}" if math.isfinite(self.monte_carlo_error) else ""
        weighed = "" if self.ess is None else f", {self.ess:.1f} effective"
        k_hat = "" if self.pareto_k is None or math.isnan(self.pareto_k) else f", k-hat {self.pareto_k:.2f}"
        kind = ", a lower bound" if self.quantity in BOUNDED else ""
        draws = "1 draw" if self.draws == 1 else f"{self.draws} draws"
        return f"{self.quantity} {self.nats:.3f}{error} nats{kind} ({draws}{weighed}{k_hat})"


@dataclass
class Estimate:
    """What an evaluator returns.

    Attributes:
        per_datum: tensors [n, ...] by name, in nats where they are logarithms: "log_likelihood" for a lower bound on
            log p(x) that converges to it, "elbo" for the ELBO, "loss" where there is no density. Where all data share
            latents, "log_predictive" or "elbo_given_globals": given draws of them, and no bound.
        summary: numbers and dicts of numbers for `evaluation.json`.
        warnings: plain sentences where a figure should not be trusted.
        figures: matplotlib figures by name.
        exact: the headline figure is log p(x) itself.
        given: in words, the draws or the point estimate of shared latents that the figures of a datum are given.
        data_set: the figure of all data together, where they share latents.
        lines: what to say beside the headline figure, in words.
        unit: in words, what the headline figure is counted in.
        codes: of figures that are whole numbers, what each number stands for, by name.
    """

    per_datum: PerDatum
    summary: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    exact: bool = False
    given: str | None = None
    data_set: OfDataSet | None = None
    lines: list[str] = field(default_factory=list)
    unit: str = NATS
    codes: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def quantity(self) -> str:
        """The name of the headline figure: the log-likelihood where there is one, else the first."""
        return "log_likelihood" if "log_likelihood" in self.per_datum else next(iter(self.per_datum))

    def as_loss(self) -> "Estimate":
        """The same, but what bounds log p(x) is negated and called a loss."""
        if self.quantity not in (*BOUNDED, *GIVEN):
            return self
        others = {name: value for name, value in self.per_datum.items() if name != self.quantity}
        whole = self.data_set and self.data_set.as_loss()
        return replace(self, per_datum={"loss": -self.per_datum[self.quantity], **others}, data_set=whole)


@dataclass
class Result:
    """An `Estimate` with what was evaluated: names, the number n of data, the particles, and the wall-clock seconds.

    Attributes:
        estimate: the evaluator's own numbers, in nats per datum.
        time_slices: the sum of the lengths of the sequences, None where the pair takes no `length`.
        bits_per_dim: minus the sum of the log-likelihoods in bits, per observed element of all data, or None.
        bits_per_dim_note: why it is None.
        relaxed: the data are grey values under a Bernoulli, so that no number here is a likelihood.
        remarks: what a reader must know of how it was evaluated, in plain sentences.
    """

    evaluator: str
    model: str
    data: str
    split: str
    n: int
    particles: int
    seconds: float
    estimate: Estimate
    time_slices: int | None = None
    bits_per_dim: float | None = None
    bits_per_dim_note: str | None = None
    relaxed: bool = False
    remarks: list[str] = field(default_factory=list)

    def __getattr__(self, name: str) -> Tensor:
        figures = vars(self)["estimate"].per_datum if "estimate" in vars(self) else {}
        if name in figures:
            return figures[name]
        raise AttributeError(f"this result has no {name!r} per datum; it has {', '.join(figures)}")

    @property
    def headline(self) -> Float[Tensor, " n"]:
        """The figure that the mean is of: the bound on log p(x), or the evaluator's first."""
        return self.estimate.per_datum[self.quantity]

    @property
    def mean(self) -> float:
        """Mean over data."""
        return mean_and_error(self.headline)["mean"]

    @property
    def standard_error(self) -> float:
        """Standard error of the mean over data; NaN for one datum."""
        return mean_and_error(self.headline)["standard_error"]

    @property
    def given(self) -> str | None:
        """In words, the draws or the point estimate of shared latents that the figures of a datum are given."""
        return self.estimate.given

    @property
    def data_set(self) -> OfDataSet | None:
        """The figure of all data together, where they share latents."""
        return self.estimate.data_set

    @property
    def per_time_slice(self) -> float | None:
        """The sum of the headline figure over all sequences by the sum of their lengths; None where there are none."""
        return None if self.time_slices is None else self.headline.double().sum().item() / self.time_slices

    @property
    def warnings(self) -> list[str]:
        """Plain sentences where a figure should not be trusted, or is another than the pair as it is would give."""
        relaxed = ["grey values under a Bernoulli: these figures are a loss, not a log-likelihood"]
        return [*(relaxed if self.relaxed else []), *self.remarks, *self.estimate.warnings]

    def entry(self, per_datum: bool = False) -> dict[str, Any]:
        """This result as an entry of `evaluation.json`, in which null stands for numbers that are not finite; with the
        figures of every datum if `per_datum`."""
        entry = {
            "evaluator": self.evaluator,
            "model": self.model,
            "data": self.data,
            "split": self.split,
            "n": self.n,
            "particles": self.particles,
            "seconds": round(self.seconds, 3),
            "quantity": self.quantity,
            "kind": self.kind,
            "nats": mean_and_error(self.headline),
            "nats_per_time_slice": self.per_time_slice,
            "bits_per_dim": self.bits_per_dim,
            "bits_per_dim_note": self.bits_per_dim_note,
            "warnings": self.warnings,
            **self.estimate.summary,
        }
        if self.given is not None:
            entry |= {"given": self.given, "data_set": self.data_set and asdict(self.data_set)}
        if self.estimate.unit != NATS:
            entry["unit"] = self.estimate.unit
        if per_datum:
            entry["per_datum"] = {name: self._listed(name) for name in self.estimate.per_datum}
        return finite_or_none(entry)

    def _listed(self, name: str) -> list[Any]:
        """A figure of every datum; in words, where its numbers stand for some."""
        values, words = self.estimate.per_datum[name].tolist(), self.estimate.codes.get(name)
        return values if words is None else [words[number] for number in values]

    @property
    def quantity(self) -> str:
        """The name of the headline figure."""
        return self.estimate.quantity

    @property
    def kind(self) -> str | None:
        """ "exact" where the headline figure is log p(x), "lower bound" where its expectation is at most log p(x),
        "density" where it is a predictive density, which is no bound."""
        if self.quantity == "log_predictive":
            return "density"
        if self.quantity not in BOUNDED:
            return None
        return "exact" if self.estimate.exact else "lower bound"


def mean_and_error(values: Float[Tensor, " n"]) -> dict[str, float]:
    """The mean over data and its standard error, which is NaN for one datum, as `evaluation.json` has them."""
    values = values.double()
    error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return {"mean": values.mean().item(), "standard_error": error}


def error_of_mean(errors: Float[Tensor, " n"]) -> float:
    """Standard error of the mean of n numbers that have independent errors of these sizes."""
    return errors.square().sum().sqrt().item() / len(errors)


def quantiles(values: Float[Tensor, " n"]) -> dict[str, float]:
    """Mean, median, smallest and largest of a figure per datum, NaN left out."""
    known = values.double()[~values.isnan()]
    known = known if known.numel() else torch.tensor([math.nan])
    return {
        "mean": known.mean().item(),
        "median": known.quantile(0.5).item(),
        "min": known.min().item(),
        "max": known.max().item(),
    }


def finite_or_none(value: Any) -> Any:
    """Plain values in which None stands for numbers that are not finite, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite_or_none(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
