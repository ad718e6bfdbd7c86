"""The one training loop."""

import copy
import csv
import io
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from pyro_vae import files
from pyro_vae.data import Dataset, Split
from pyro_vae.engine.cuda_graph import CapturedStep
from pyro_vae.engine.devices import cuda_devices
from pyro_vae.engine.step import Loss, SharedStep, choose_step
from pyro_vae.errors import DivergenceError, RunError
from pyro_vae.objectives.objective import Objective, shared_loss
from pyro_vae.pair import bounds
from pyro_vae.pair.checks import check_auxiliary, density_faults
from pyro_vae.pair.generation import field_shapes
from pyro_vae.pair.pair import evaluating, select_fields
from pyro_vae.pair.particles import run_guide, run_model
from pyro_vae.pair.sites import values_of
from pyro_vae.pair.terms import elbo_terms
from pyro_vae.runs.folder import BEST, CONFIG, LAST, METRICS, run_files
from pyro_vae.training.averaging import Average
from pyro_vae.training.schedules import find_schedule, ramp

if TYPE_CHECKING:
    from lightning_fabric import Fabric

SAVE_EVERY_SECONDS = 20.0
VALIDATION_SEED = 20


@dataclass
class Run:
    """A finished training: the pair at its best validation epoch, and how it got there.

    Attributes:
        pair: the pair, holding the weights of the smallest validation loss (their moving average, where there is one).
        history: a row an epoch; losses and bounds in nats per datum.
        best_epoch: the epoch of these weights, from 1.
        engine: which engine ran the steps.
        data: the data set that was trained on.
        out: the run folder, or None.
    """

    pair: nn.Module
    history: list[dict[str, float]]
    best_epoch: int
    engine: str
    data: Dataset
    out: Path | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Settings:
    """How to train; see `pyro_vae.train`."""

    epochs: int
    batch_size: int
    lr: float
    schedule: str
    lr_warmup: int
    beta: float
    kl_warmup: int
    clip: float | None
    patience: int | None
    ema: float
    seed: int
    particles: int

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "lr", "particles", "clip", "patience"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise RunError(f"{name} must be positive, not {value}")
        for name in ("beta", "lr_warmup", "kl_warmup"):
            if not getattr(self, name) >= 0:
                raise RunError(f"{name} must not be negative, but is {getattr(self, name)}")
        if not 0 <= self.ema < 1:
            raise RunError(f"ema is a decay in [0, 1), not {self.ema}")
        find_schedule(self.schedule)


class Trainer:
    """The state of a training run, and the loop that advances it."""

    def __init__(
        self,
        fabric: "Fabric",
        pair: nn.Module,
        data: Dataset,
        objective: Objective,
        settings: Settings,
        record: Mapping[str, Any],
        folder: Path | None,
        tolerance: float = 1e-5,
        relaxed: bool = False,
    ):
        self.fabric, self.pair, self.data, self.settings = fabric, pair, data, settings
        self.relaxed = relaxed
        self.folder = folder
        self.record = {
            "model": type(pair).__name__,
            "fields": field_shapes(pair, data.train),
            **{key: value for key, value in record.items() if key != "config"},
        }
        self.config = record.get("config")
        torch.manual_seed(settings.seed + fabric.global_rank)
        self.objective = objective
        pair.to(fabric.device).train()
        self.train_split = data.train.to(fabric.device)
        self.valid_split = data.valid.to(fabric.device)
        self.loss = Loss(pair, objective, settings.particles, data.train.size, fabric.autocast, tolerance)
        on_gpu = fabric.device.type == "cuda"
        self.rate = torch.tensor(settings.lr, device=fabric.device) if on_gpu else settings.lr
        self.optimizer = torch.optim.Adam(pair.parameters(), lr=self.rate, fused=True, capturable=on_gpu)
        self.average = Average(pair, settings.ema) if settings.ema else None
        self.order = torch.Generator(device=fabric.device).manual_seed(settings.seed)
        self.schedule = find_schedule(settings.schedule)
        self.epoch = 0
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Any] = {"epoch": 0, "elbo": -math.inf, "pair": None}
        self.saved_at = time.monotonic()
        self.beta = torch.ones((), device=fabric.device)
        self.advance: Callable[[dict[str, Tensor]], Tensor] = self._advance
        self.faults: list[str] = []
        self.notes: list[str] = []

    def open(self, overwrite: bool) -> None:
        """Make the run folder and write the settings; with `overwrite`, take away what an earlier run left."""
        if self.folder is None or not self.fabric.is_global_zero:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if overwrite and self.epoch == 0:
                for path in run_files(self.folder):
                    path.unlink(missing_ok=True)
        except OSError as problem:
            raise RunError(f"cannot write {self.folder}: {problem.strerror}") from problem
        if self.config is not None:
            files.write_text(self.folder / CONFIG, yaml.safe_dump(self.config, sort_keys=False))

    @property
    def steps_per_epoch(self) -> int:
        return self.train_split.num_batches(self.settings.batch_size)

    def prepare(self, engine: str) -> None:
        """Try the loss, so that what breaks the contract fails before anything is written, and choose the engine."""
        steps = (self.settings.epochs - self.epoch) * self.steps_per_epoch
        with torch.random.fork_rng(devices=cuda_devices(self.fabric.device)):
            example = select_fields(self.pair, self.train_split.take(slice(0, self.settings.batch_size)))
            self._try_loss(example)
            self._look_at(example)
            shared = SharedStep(self.fabric.setup_module(self.loss)) if self.fabric.world_size > 1 else None
            self.engine = choose_step(engine, self.loss, example, steps, shared)
        if self.engine.name == "compiled" and self.fabric.device.type == "cuda":
            self.advance = CapturedStep(self._advance)

    def _look_at(self, example: dict[str, Tensor]) -> None:
        """See what the numbers of the pair are."""
        check_auxiliary(self.pair, example)
        with torch.no_grad(), evaluating(self.pair):
            guide = run_guide(self.pair, example)
            faults = density_faults(run_model(self.pair, example, values_of(guide)), guide)
        self.faults = [fault.line for fault in faults]
        self.notes = [f"a loss, not a bound: {fault}" for fault in self.faults]
        if self.relaxed:
            self.faults.append("grey values under a Bernoulli")

    @torch.no_grad()
    def _try_loss(self, example: dict[str, Tensor]) -> None:
        trial = Loss(self.pair, copy.deepcopy(self.objective), self.settings.particles, self.data.train.size)
        with evaluating(self.pair):
            trial(example, self.beta)

    def fit(self, progress: bool) -> None:
        """Run the remaining epochs, saving as they pass."""
        settings = self.settings
        total = settings.epochs * self.steps_per_epoch
        show = progress and self.fabric.is_global_zero
        with tqdm(total=total, initial=self.epoch * self.steps_per_epoch, disable=not show, unit="step") as bar:
            bar.set_description("training")
            if show:
                for line in (self.engine.line, *self.notes):
                    bar.write(line, file=sys.stderr)
            while self.epoch < settings.epochs and not self._out_of_patience():
                start = self.capture()
                try:
                    row = self._run_epoch(bar, start)
                except KeyboardInterrupt:
                    self._write(start)
                    raise
                self.history.append(row)
                self.epoch += 1
                bar.set_postfix(loss=f"{row['loss']:.2f}", valid=f"{row['valid_loss']:.2f}")
                self._keep_best(row)
                if time.monotonic() - self.saved_at > SAVE_EVERY_SECONDS:
                    self._write(self.capture())
        self._write(self.capture())

    def _run_epoch(self, bar: tqdm, start: dict[str, Any]) -> dict[str, float]:
        began = time.perf_counter()
        losses = []
        for loss in self.steps():
            losses.append(loss)
            bar.update()
        loss = torch.stack(losses)
        if not (loss.isfinite().all() and self._weights_are_finite()):
            self._explain_divergence(start)
        row = {"epoch": self.epoch + 1, "loss": loss.mean().item(), **self._validate()}
        if math.isnan(row["valid_loss"]):
            self._explain_divergence(start)
        row |= {"lr": float(self.rate), "beta": self.beta.item()}
        return row | {"seconds": time.perf_counter() - began}

    def _batches(self) -> Any:
        for batch in self.train_split.batches(self.settings.batch_size, self.order):
            yield select_fields(self.pair, batch)

    def steps(self) -> Iterator[Float[Tensor, ""]]:
        """One pass over the training data, a step each time: losses in nats per datum, still on the device."""
        for step, batch in enumerate(self._batches()):
            self._set_rates(step)
            yield self.advance(batch)

    def _advance(self, batch: dict[str, Tensor]) -> Tensor:
        loss = self.engine.run(batch, self.beta)
        self._update()
        return loss

    def _update(self) -> None:
        if self.settings.clip is not None:
            nn.utils.clip_grad_norm_(self.pair.parameters(), self.settings.clip)
        self.optimizer.step()
        if self.average is not None:
            self.average.update()

    def _weights_are_finite(self) -> bool:
        return bool(torch.stack([parameter.isfinite().all() for parameter in self.pair.parameters()]).all())

    def _set_rates(self, step: int) -> None:
        """Learning rate and beta of a step, written where a captured step reads them."""
        settings, per_epoch = self.settings, self.steps_per_epoch
        done = self.epoch * per_epoch + step
        factor = ramp(done, settings.lr_warmup * per_epoch) * self.schedule(done / (settings.epochs * per_epoch))
        lr = settings.lr * factor
        self.rate = self.rate.fill_(lr) if isinstance(self.rate, Tensor) else lr
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        self.beta.fill_(settings.beta * ramp(done, settings.kl_warmup * per_epoch))

    @property
    def kept(self) -> nn.Module:
        """The weights that count: the moving average where there is one."""
        return self.pair if self.average is None else self.average.module

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """The loss of the validation data and its two parts, in nats per datum, at draws that every epoch shares; the
        ELBO, where the pair has densities."""
        row = elbo_parts(self.kept, self.valid_split, self.train_split.size, cuda_devices(self.fabric.device))
        if self.faults:
            del row["valid_elbo"]
        return row

    def _keep_best(self, row: dict[str, float]) -> None:
        if -row["valid_loss"] > self.best["elbo"] or self.best["pair"] is None:
            state = {name: value.detach().clone() for name, value in self.kept.state_dict().items()}
            self.best = {"epoch": self.epoch, "elbo": -row["valid_loss"], "pair": state}

    def _out_of_patience(self) -> bool:
        patience = self.settings.patience
        return patience is not None and self.epoch - self.best["epoch"] >= patience

    def capture(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on, copied."""
        state = {
            "format": 1,
            "epoch": self.epoch,
            "history": list(self.history),
            "pair": self.pair.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "objective": self.objective.state_dict(),
            "order": self.order.get_state(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state() if cuda_devices(self.fabric.device) else None,
        }
        return copy.deepcopy(state)

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a captured state.

        Raises:
            RunError: it was captured from another model.
        """
        try:
            self.pair.load_state_dict(state["pair"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.average is not None:
                self.average.load_state_dict(state["average"])
        except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as problem:
            raise RunError(
                f"the checkpoint is of another model or other settings than {type(self.pair).__name__}: "
                f"{str(problem).splitlines()[0]}"
            ) from problem
        self.objective.load_state_dict(state["objective"])
        self.order.set_state(state["order"])
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] is not None and cuda_devices(self.fabric.device):
            torch.cuda.set_rng_state(state["cuda_rng"])
        self.epoch, self.history = state["epoch"], list(state["history"])
        self.best = state.get("best", self.best)

    def _write(self, state: dict[str, Any]) -> None:
        self.saved_at = time.monotonic()
        if self.folder is None or not self.fabric.is_global_zero:
            return
        state["history"] = self.history[: state["epoch"]]
        files.save(self.folder / LAST, {**state, "best": self.best, **self.record})
        if self.best["pair"] is not None:
            files.save(self.folder / BEST, {**self.best, **self.record})
        files.write_text(self.folder / METRICS, metrics_csv(state["history"]))

    def _explain_divergence(self, start: dict[str, Any]) -> None:
        """Run the epoch once more from its start, looking at every step, and say where it breaks."""
        self.restore(start)
        self._write(start)
        epoch = f"epoch {self.epoch + 1}"
        for step, batch in enumerate(self._batches()):
            rng = torch.get_rng_state()
            self._set_rates(step)
            loss = self.engine.run(batch, self.beta)
            if not loss.isfinite():
                torch.set_rng_state(rng)
                self._diverged(f"the loss is not finite at {epoch}, step {step + 1}", self.pair, batch)
            self._update()
            if not self._weights_are_finite():
                self._diverged(f"the weights are not finite after {epoch}, step {step + 1}", self.pair, batch)
        with evaluating(self.kept):
            for batch in self.valid_split.batches(1024):
                if not_finite(self.kept, batch):
                    self._diverged(f"the validation loss is not finite after {epoch}", self.kept, batch)
        self._diverged(f"the loss was not finite in {epoch}", self.pair, batch)

    def _diverged(self, what: str, pair: nn.Module, batch: Mapping[str, Tensor]) -> None:
        cause = not_finite(pair, batch) or "a gradient or the objective itself"
        kept = f"; the last good checkpoint is {self.folder / LAST}" if self.folder else ""
        raise DivergenceError(f"{what}: {cause}; try a smaller lr, or clip{kept}")

    def finish(self) -> Run:
        """The run, its pair holding the best weights and on the device that it was trained on."""
        self.pair.load_state_dict(self.best["pair"])
        self.pair.eval()
        return Run(
            pair=self.pair,
            history=self.history,
            best_epoch=self.best["epoch"],
            engine=self.engine.name,
            data=self.data,
            out=self.folder,
            notes=[self.engine.line, *self.notes],
        )


def elbo_parts(pair: nn.Module, split: Split, data_size: int, cuda: list[int]) -> dict[str, float]:
    """ELBO, rate and distortion of a split in nats per datum, one particle each, at a fixed seed."""
    sums = torch.zeros(2, dtype=torch.float64)
    with evaluating(pair), torch.random.fork_rng(devices=cuda):
        torch.manual_seed(VALIDATION_SEED)
        for batch in split.batches(1024):
            terms = elbo_terms(pair, batch, as_loss=True, allow_shared=True)
            rate = bounds.rate(terms) + shared_loss(terms, 1.0, data_size)
            sums += torch.stack([rate.sum(), bounds.distortion(terms).sum()]).double().cpu()
    rate, distortion = (sums / split.size).tolist()
    elbo = -rate - distortion
    return {"valid_loss": -elbo, "valid_elbo": elbo, "valid_rate": rate, "valid_distortion": distortion}


def not_finite(pair: nn.Module, batch: Mapping[str, Tensor]) -> str | None:
    """Which parameter or site of the pair is not finite on this batch, in words; None where all are."""
    for name, parameter in pair.named_parameters():
        if not parameter.isfinite().all():
            return f"parameter {name!r} is not finite"
    with torch.no_grad():
        guide = run_guide(pair, batch)
        model = run_model(pair, batch, values_of(guide))
        for program, sites in (("guide", guide), ("model", model)):
            for site in sites.values():
                if not site.log_prob().isfinite().all():
                    return f"log-probability of site {site.name!r} in the {program}"
    return None


def metrics_csv(history: list[dict[str, float]]) -> str:
    """The history as CSV, a row an epoch."""
    text = io.StringIO()
    if history:
        writer = csv.DictWriter(text, fieldnames=list(history[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
    return text.getvalue()
