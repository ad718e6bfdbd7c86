"""The one training loop."""

import copy
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from pyro_vae.data import Dataset, Split
from pyro_vae.data.sequences import shares
from pyro_vae.engine.cuda_graph import CapturedStep, reads_a_value
from pyro_vae.engine.devices import TOLERANCES, cuda_devices
from pyro_vae.engine.policy import Engine
from pyro_vae.engine.step import EagerStep, Loss, SharedStep, choose_step
from pyro_vae.errors import DivergenceError, RunError, UnknownName, UserError, find
from pyro_vae.objectives.free_bits import PER
from pyro_vae.objectives.objective import Objective, shared_loss
from pyro_vae.pair import bounds
from pyro_vae.pair.checks import check_auxiliary, density_faults
from pyro_vae.pair.generation import field_shapes
from pyro_vae.pair.pair import Pair, batch_size, evaluating
from pyro_vae.pair.particles import run_guide, run_model
from pyro_vae.pair.scales import Scales
from pyro_vae.pair.sequences import cut_fields, sequence_lengths
from pyro_vae.pair.sites import values_of
from pyro_vae.pair.terms import elbo_terms
from pyro_vae.runs.checkpoints import LAST
from pyro_vae.runs.folder import RunFolder
from pyro_vae.runs.run import Run
from pyro_vae.stops import Stops
from pyro_vae.training.averaging import Average
from pyro_vae.training.divergence import divergence, not_finite, weights_are_finite
from pyro_vae.training.gradients import Gradients
from pyro_vae.training.optimizers import make_optimizer, restore
from pyro_vae.training.schedules import SCHEDULES, TORCHS, Scheduler, constant, cyclical, is_torchs, ramp

if TYPE_CHECKING:
    from lightning_fabric import Fabric

SAVE_EVERY_SECONDS, PAUSE_BY_SAVE = 20.0, 20.0
"""A run is saved that often, also within an epoch, and less often where a twentieth of the time would go into saves."""

VALIDATION_SEED = 20
VALIDATION_BATCH = 1024

COLUMNS = ("loss", "valid_loss", "valid_elbo", "valid_rate", "valid_distortion")
"""The columns of metrics.csv that say how well a run does; of `valid_elbo` more is better, of the others less."""

SIGNS = {"min": -1.0, "max": 1.0}


@dataclass(frozen=True)
class Settings:
    """How to train; see `pyro_vae.train`."""

    epochs: int
    batch_size: int
    lr: float
    optimizer: str = "adam"
    schedule: str = "constant"
    lr_warmup: int = 0
    beta: float = 1.0
    kl_warmup: int = 0
    kl_cycles: int = 0
    free_bits: float = 0.0
    free_bits_per: str = "dimension"
    accumulate: int = 1
    clip: float | None = None
    monitor: str = "valid_loss"
    patience: int | None = None
    ema: float = 0.0
    seed: int = 0
    particles: int = 1
    engine: str = "auto"
    precision: str = "32-true"
    relaxed: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "lr", "accumulate", "particles", "clip", "patience"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise RunError(f"{name} must be positive, not {value}")
        for name in ("beta", "lr_warmup", "kl_warmup", "kl_cycles", "free_bits"):
            if not getattr(self, name) >= 0:
                raise RunError(f"{name} must not be negative, but is {getattr(self, name)}")
        find("unit of free bits", self.free_bits_per, PER)
        if not 0 <= self.ema < 1:
            raise RunError(f"ema is a decay in [0, 1), not {self.ema}")


@dataclass(frozen=True)
class Chosen:
    """What of a training a user may give as an object of their own.

    Attributes:
        optimizer: see `make_optimizer`; `optimizer_options` are those of a named one.
        schedule: a name, or a function from an optimizer to a scheduler of torch's; `schedule_options` likewise.
        on_epoch: are given each row of the history; training stops where one returns True.
    """

    optimizer: Any = "adam"
    optimizer_options: Mapping[str, Any] = field(default_factory=dict)
    schedule: Any = "constant"
    schedule_options: Mapping[str, Any] = field(default_factory=dict)
    on_epoch: Sequence[Callable[[dict[str, float]], Any] | None] = ()


class Way(NamedTuple):
    """The engine of batches of one length, and what takes a whole step by it."""

    engine: Engine
    advance: Callable[[dict[str, Tensor]], Tensor]


class Trainer:
    """The state of a training run, and the loop that advances it: `fit` runs what is left of it, `steps` one epoch.

    When it is made, the state is restored where there is one, the engine is chosen, and the loss is tried, so that what
    breaks the contract fails before anything is written.

    Args:
        fabric: the device, and the processes that share the work.
        pair: trained in place.
        chosen: optimizer, schedule and callbacks.
        folder: where the run is written to; None writes nothing.
        record: what the checkpoints keep beside the weights; see `pyro_vae.train`.

    Raises:
        RunError: the stored state is of another model.
        UnknownName: no such engine.
        ContractError: the pair or the objective breaks the contract.
    """

    def __init__(
        self,
        fabric: "Fabric",
        pair: nn.Module,
        data: Dataset,
        objective: Objective,
        settings: Settings,
        *,
        chosen: Chosen = Chosen(),
        folder: RunFolder | None = None,
        record: Mapping[str, Any] | None = None,
    ):
        self.chosen = chosen
        self.fabric, self.pair, self.data, self.objective, self.settings = fabric, pair, data, objective, settings
        self.folder, record = folder or RunFolder(), dict(record or {})
        self.config = record.pop("config", None)
        facts = {"fields": field_shapes(pair, data.train), "size": data.train.size}
        self.record = {"model": type(pair).__name__, **facts, **record}
        torch.manual_seed(settings.seed + fabric.global_rank)
        pair.to(fabric.device).train()
        self.train_split = data.train.to(fabric.device)
        self.valid_split = data.valid.to(fabric.device)
        tolerance = TOLERANCES[settings.precision]
        self.loss = Loss(pair, objective, settings.particles, data.train.size, fabric.autocast, tolerance)
        on_gpu = fabric.device.type == "cuda"
        lr = torch.tensor(settings.lr, device=fabric.device) if on_gpu else settings.lr
        parameters = list(pair.parameters())  # those that require no gradient get none, so no optimizer moves them
        self.optimizer, self.shortcomings = make_optimizer(chosen.optimizer, parameters, lr, chosen.optimizer_options)
        self.first_rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.scheduler: Scheduler | None = None
        self.schedule: Callable[[float], float] = constant
        if is_torchs(chosen.schedule):
            if settings.lr_warmup:
                raise RunError(
                    "lr_warmup goes with the schedules that change the rate every step; use torch's LinearLR"
                )
            self.scheduler = Scheduler(chosen.schedule, self.optimizer, chosen.schedule_options)
        elif chosen.schedule_options:
            named = ", ".join(chosen.schedule_options)
            raise RunError(f"the schedule {chosen.schedule!r} takes no {named}; options go with a schedule of torch's")
        else:
            self.schedule = find("schedule", chosen.schedule, {**SCHEDULES, **TORCHS})
        self.gradients = Gradients(parameters)
        self.average = Average(pair, settings.ema) if settings.ema else None
        self.order = torch.Generator().manual_seed(settings.seed)  # the same order on every device
        self.epoch = 0
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Any] = {"epoch": 0, "elbo": -math.inf, "pair": None}
        self.step, self.losses = 0, []
        self.generators: dict[str, Any] = {}
        self.between, self.spent = True, 0.0
        self.stops = Stops()
        self.saved_at, self.pause = time.monotonic(), SAVE_EVERY_SECONDS
        self.written: tuple[int, int] | None = None
        self.beta = torch.ones((), device=fabric.device)
        self.steps_per_epoch = self.train_split.num_batches(settings.batch_size)
        self.scales, self.unscaled, self.watching = Scales(), Scales(), True
        self.told = 0
        if self.folder.stored is not None:
            self._restore(self.folder.stored)
        self._prepare()

    def _prepare(self) -> None:
        """Try the loss, see what the numbers of the pair are and how it holds several particles, choose the engine."""
        with torch.random.fork_rng(devices=cuda_devices(self.fabric.device)):
            first = self.train_split.take(slice(0, self.settings.batch_size))
            example = cut_fields(self.pair, first)
            with torch.no_grad(), evaluating(self.pair):
                trial = copy.deepcopy(self.objective)
                trial(self.pair, example, self.settings.particles, self.beta, self.train_split.size)
                check_auxiliary(self.pair, example)
                with self.unscaled:
                    guide = run_guide(self.pair, example)
                    faults = density_faults(run_model(self.pair, example, values_of(guide)), guide)
        self.shared = SharedStep(self.fabric.setup_module(self.loss)) if self.fabric.world_size > 1 else None
        lengths = sequence_lengths(self.pair, self.train_split)
        self.shares = {} if lengths is None else shares(lengths, first["x"].shape[1], self.settings.batch_size)
        self.ways: dict[int | None, Way] = {}
        self.notes: list[str] = []
        self._way(example)
        self.is_loss = bool(faults) or self.settings.relaxed
        self.monitored = monitored(self.settings.monitor, self.is_loss)
        self.notes += [*(f"a loss, not a bound: {fault.line}" for fault in faults), *self.shortcomings]
        if isinstance(self.pair, Pair) and self.pair.indexed:
            self.notes.append("validated on the training data, since the guide has parameters of each of them")
        cost = self.data.train.cost(self.settings.batch_size)
        if cost:
            self.notes.append(cost)
        fixed = [name for name, parameter in self.pair.named_parameters() if not parameter.requires_grad]
        if fixed:
            listed = ", ".join(fixed[:3]) + (", ..." if len(fixed) > 3 else "")
            self.notes.append(f"parameters that stay as they are, since they require no gradient: {listed}")

    def _way(self, batch: dict[str, Tensor]) -> Way:
        """How a step on a batch is taken: chosen once, or for sequences at the first whole batch of each length."""
        length = batch["x"].shape[1] if self.shares else None
        if length not in self.ways:
            if self.shares and (batch_size(batch) < self.settings.batch_size or length not in self.shares):
                return self._by(Engine("eager", "a batch of another shape", self.shared or EagerStep(self.loss)), batch)
            steps = self.settings.epochs * self.steps_per_epoch  # of the whole run: one that goes on is no other
            steps = round(steps * self.shares[length]) if self.shares else steps
            with torch.random.fork_rng(devices=cuda_devices(self.fabric.device)):
                with self.scales:
                    engine = choose_step(self.settings.engine, self.loss, batch, steps, self.shared)
                self.ways[length] = self._by(engine, batch)
            self.notes.append(f"batches of {length} time slices: {engine.line}" if self.shares else engine.line)
        return self.ways[length]

    def _by(self, engine: Engine, batch: dict[str, Tensor]) -> Way:
        step = partial(self._advance, engine)
        return Way(engine, CapturedStep(step) if self._can_be_captured(engine, batch) else step)

    def _can_be_captured(self, engine: Engine, batch: dict[str, Tensor]) -> bool:
        """Whether a whole step fits in one CUDA graph."""
        whole = self.settings.accumulate == 1 and self.optimizer.defaults.get("capturable", False)
        if not (whole and engine.name == "compiled" and self.fabric.device.type == "cuda"):
            return False
        reads = reads_a_value(lambda: engine.run(batch, self.beta))
        self.optimizer.zero_grad()
        if reads:
            self.notes.append("the loss reads a value on the host, so no step is captured in a CUDA graph")
        return not reads

    def fit(self, progress: bool) -> Run:
        """Run the remaining epochs, saving as they pass; raises as `pyro_vae.train` does.

        A signal to stop is put off to the end of a step. Whatever stops the run, what is finished is saved first.
        """
        self.folder.begin(self.config)
        total = self.settings.epochs * self.steps_per_epoch
        done = self.epoch * self.steps_per_epoch + self.step
        show = progress and self.fabric.is_global_zero
        with tqdm(total=total, initial=done, disable=not show, unit="step") as bar, Stops(held=True) as self.stops:
            bar.set_description("training")
            self._tell(bar)
            start = self._capture()
            try:
                while self.epoch < self.settings.epochs and not self._out_of_patience():
                    start = self._capture()
                    row = self._run_epoch(bar, start)
                    if self._told_to_stop(row):
                        break
                    if self._is_time_to_save():
                        self._write(self._capture())
                    self.stops.check()
                if self.written != (self.epoch, self.step):
                    self._write(self._capture())
            except DivergenceError:
                raise
            except BaseException:
                self._save_what_is_finished(start)
                raise
        return self._finished()

    def _save_what_is_finished(self, start: dict[str, Any]) -> None:
        """Save the state between two steps; within a step that of the epoch's start, if nothing later is saved."""
        if self.between and self._is_finite():
            self._write(self._capture())
        elif self.written is None or self.written < _place(start):
            self._write(start)

    def _tell(self, bar: tqdm) -> None:
        """Show the notes that have not been shown."""
        for line in self.notes[self.told :] if not bar.disable else ():
            bar.write(line, file=sys.stderr)
        self.told = len(self.notes)

    def _told_to_stop(self, row: dict[str, float]) -> bool:
        """What the user's callback says of an epoch."""
        with self.stops.at_once():
            answers = [call(dict(row)) for call in self.chosen.on_epoch if call is not None]
        return any(isinstance(answer, bool | np.bool_) and bool(answer) for answer in answers)

    def _run_epoch(self, bar: tqdm, start: dict[str, Any]) -> dict[str, float]:
        """What is left of an epoch, its validation, and what it is remembered by."""
        began = time.perf_counter() - self.spent
        for _ in self._steps_to_come():
            self.spent = time.perf_counter() - began
            bar.update()
            if self.between:
                self.stops.check()
                if self._is_time_to_save() and self._is_finite():
                    self._write(self._capture())
        if not self._is_finite():
            self._explain_divergence(start)
        row = {"epoch": self.epoch + 1, "loss": torch.stack(self.losses).mean().item()}
        with self.stops.at_once(), self._weights_that_count():
            row |= elbo_parts(self.pair, self.valid_split, self.train_split.size)
        if self.is_loss:
            del row["valid_elbo"]
        if math.isnan(row["valid_loss"]):
            self._explain_divergence(start)
        row |= {"lr": float(self.optimizer.param_groups[0]["lr"]), "beta": self.beta.item()}
        self.between = False
        if self.scheduler is not None:
            self.scheduler.step(row["valid_loss"])
        row |= {"seconds": time.perf_counter() - began}
        self.history.append(row)
        self.epoch, self.step, self.losses, self.spent = self.epoch + 1, 0, [], 0.0
        self._keep_best(row)
        self.between = True
        self._tell(bar)
        bar.set_postfix(loss=f"{row['loss']:.2f}", valid=f"{row['valid_loss']:.2f}")
        return row

    def _is_finite(self) -> bool:
        """Whether the losses of this epoch and the weights are."""
        losses_are = not self.losses or bool(torch.stack(self.losses).isfinite().all())
        return losses_are and weights_are_finite(self.pair)

    def _is_time_to_save(self) -> bool:
        return time.monotonic() - self.saved_at > self.pause

    def _batches(self) -> Iterator[dict[str, Tensor]]:
        """The batches of this epoch that are still to come. Those that were, are drawn again as they were and passed
        over, whereupon the generators go on from where they are now."""
        now = self._random_state()
        if self.step:
            self._set_random_state(self.generators)
            self.order.set_state(self.generators["order"])
        else:
            self.generators = {**now, "order": self.order.get_state()}
        batches = self.train_split.batches(self.settings.batch_size, self.order)
        if self.step:
            for _ in range(self.step):
                next(batches)
            self._set_random_state(now)
        for batch in batches:
            yield cut_fields(self.pair, batch)

    def steps(self) -> Iterator[Float[Tensor, ""]]:
        """One pass over the training data, a step each time: losses in nats per datum, still on the device."""
        self.step, self.losses = 0, []
        yield from self._steps_to_come()

    def _steps_to_come(self) -> Iterator[Float[Tensor, ""]]:
        """What is left of a pass; `between` says whether the state is whole, and not that of half a step."""
        batches = self._batches()
        while True:
            self.between = False
            batch = next(batches, None)
            if batch is None:
                break
            self._set_rates(self.step)
            way = self._way(batch)
            loss = self._watched(way, batch) if self.watching else way.advance(batch)
            self.losses.append(loss)
            self.step += 1
            self.between = not self.gradients.batches
            yield loss
        self._take_what_is_left()
        self.between = True

    def _watched(self, way: Way, batch: dict[str, Tensor]) -> Tensor:
        """The first step, with a note where the pair scales a site under train() that it does not under eval()."""
        self.watching = False
        with self.scales:
            loss = way.advance(batch)
        still = self.unscaled.found()
        for name, scale in self.scales.found().items():
            if name not in still:
                self.notes.append(
                    f"the training loss is scaled: the pair multiplies site {name!r} by {scale:.4g} under train(); "
                    "the validation figures are not"
                )
        for name in sorted(self.scales.seen.keys() - self.unscaled.seen.keys()):
            self.notes.append(f"the training loss has a term of site {name!r}, which the pair has under train() only")
        return loss

    def _advance(self, engine: Engine, batch: dict[str, Tensor]) -> Tensor:
        loss = engine.run(batch, self.beta)
        self._learn(batch)
        return loss

    def _learn(self, batch: dict[str, Tensor]) -> None:
        """Use the gradients of a batch: at once, or with those of others."""
        if self.settings.accumulate == 1:
            return self._update()
        self.gradients.add(batch_size(batch))
        if self.gradients.batches == self.settings.accumulate:
            self._take_what_is_left()

    def _take_what_is_left(self) -> None:
        if self.gradients.batches:
            self.gradients.hand_over()
            self._update()

    def _update(self) -> None:
        if self.settings.clip is not None:
            nn.utils.clip_grad_norm_(self.pair.parameters(), self.settings.clip)
        self.optimizer.step()
        if self.average is not None:
            self.average.update()

    def _weights_that_count(self) -> AbstractContextManager[None]:
        """The pair holds the weights that are validated and kept: their moving average, where there is one."""
        return nullcontext() if self.average is None else self.average.in_place()

    def _set_rates(self, step: int) -> None:
        """Learning rate and beta of a step, written where a captured step reads them."""
        settings, per_epoch = self.settings, self.steps_per_epoch
        done = self.epoch * per_epoch + step
        factor = ramp(done, settings.lr_warmup * per_epoch) * self.schedule(done / (settings.epochs * per_epoch))
        if self.schedule is not constant or settings.lr_warmup:  # else the optimizer may have a decay of its own
            for group, first in zip(self.optimizer.param_groups, self.first_rates, strict=True):
                group["lr"] = group["lr"].fill_(first * factor) if isinstance(group["lr"], Tensor) else first * factor
        progress = done / (settings.epochs * per_epoch)
        weight = ramp(done, settings.kl_warmup * per_epoch) * cyclical(progress, settings.kl_cycles)
        self.beta.fill_(settings.beta * weight)

    def _keep_best(self, row: dict[str, float]) -> None:
        column, sign = self.monitored
        score = sign * row[column]
        if score > self.best["elbo"] or self.best["pair"] is None:
            with self._weights_that_count():
                state = {name: value.detach().clone() for name, value in self.pair.state_dict().items()}
            self.best = {"epoch": self.epoch, "elbo": score, "pair": state}

    def _out_of_patience(self) -> bool:
        return self.settings.patience is not None and self.epoch - self.best["epoch"] >= self.settings.patience

    def _capture(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on, copied."""
        state = {
            "format": 1,
            "epoch": self.epoch,
            "history": self.history,
            "pair": self.pair.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.scheduler.state_dict(),
            "objective": self.objective.state_dict(),
            "order": self.order.get_state(),
            **self._random_state(),
            "within": self._within() if self.step else None,
        }
        return copy.deepcopy(state) | {"best": self.best}

    def _within(self) -> dict[str, Any]:
        """How far an epoch has come, and the generators of its start, by which its batches are drawn again."""
        losses = torch.stack(self.losses)
        return {"step": self.step, "losses": losses, "seconds": self.spent, "generators": self.generators}

    def _random_state(self) -> dict[str, Tensor | None]:
        """Of torch's generators, the CPU's and that of the GPU that is used."""
        on_gpu = bool(cuda_devices(self.fabric.device))
        return {"rng": torch.get_rng_state(), "cuda_rng": torch.cuda.get_rng_state() if on_gpu else None}

    def _set_random_state(self, state: Mapping[str, Any]) -> None:
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] is not None and cuda_devices(self.fabric.device):
            torch.cuda.set_rng_state(state["cuda_rng"])

    def _restore(self, state: dict[str, Any]) -> None:
        """Continue from a captured state; raises `RunError` where it is of another model."""
        try:
            self.pair.load_state_dict(state["pair"])
            restore(self.optimizer, state["optimizer"])
            if self.scheduler is not None:
                self.scheduler.scheduler.load_state_dict(state["scheduler"])
            if self.average is not None:
                self.average.load_state_dict(state["average"])
            self.objective.load_state_dict(state["objective"])
            self.order.set_state(state["order"])
            self._set_random_state(state)
            self._restore_within(state.get("within") or {})
        except UserError:
            raise
        except Exception as problem:
            raise RunError(
                f"the checkpoint is of another model or other settings than {type(self.pair).__name__}: "
                f"{(str(problem).splitlines() or [type(problem).__name__])[0]}"
            ) from problem
        self.epoch, self.history = state["epoch"], list(state["history"])
        self.best = state.get("best", self.best)

    def _restore_within(self, within: Mapping[str, Any]) -> None:
        self.step, self.spent = within.get("step", 0), within.get("seconds", 0.0)
        self.losses = list(within["losses"].to(self.fabric.device)) if within else []
        self.generators = within.get("generators", {})
        if not 0 <= self.step == len(self.losses) <= self.steps_per_epoch:
            raise ValueError(f"{len(self.losses)} losses of {self.step} steps in an epoch of {self.steps_per_epoch}")

    def _write(self, state: dict[str, Any]) -> None:
        """Save a state, and see when the next save is due."""
        began = time.monotonic()
        best = {**state["best"], **self.record} if state["best"]["pair"] is not None else None
        self.folder.save({**state, **self.record}, best)
        self.written, self.saved_at = _place(state), time.monotonic()
        self.pause = max(SAVE_EVERY_SECONDS, PAUSE_BY_SAVE * (self.saved_at - began))

    def _explain_divergence(self, start: dict[str, Any]) -> NoReturn:
        """Go back to the start of the epoch, save it, run it once more, and look at every step."""
        self._restore(start)
        self._write(start)
        checkpoint = self.folder.path / LAST if self.folder.path else None
        epoch = self.epoch + 1
        for step, batch in enumerate(self._batches(), start=self.step):
            self._set_rates(step)
            before = self._random_state()
            where = f"epoch {epoch}, step {step + 1}"
            if not self._way(batch).engine.run(batch, self.beta).isfinite():
                self._set_random_state(before)
                raise divergence(f"the loss is not finite at {where}", self.pair, batch, checkpoint)
            self._learn(batch)
            if not weights_are_finite(self.pair):
                raise divergence(f"the weights are not finite after {where}", self.pair, batch, checkpoint)
        with self._weights_that_count(), evaluating(self.pair):
            for batch in self.valid_split.batches(VALIDATION_BATCH):
                if not_finite(self.pair, batch):
                    what = f"the validation loss is not finite after epoch {epoch}"
                    raise divergence(what, self.pair, batch, checkpoint)
        raise divergence(f"the loss was not finite in epoch {epoch}", self.pair, batch, checkpoint)

    def _finished(self) -> Run:
        """The run, its pair holding the best weights and on the device that it was trained on."""
        self.pair.load_state_dict(self.best["pair"])
        return Run(
            pair=self.pair.eval(),
            history=self.history,
            best_epoch=self.best["epoch"],
            fields=self.record["fields"],
            config=dict(self.config or {}),
            out=self.folder.path,
            engine=" and ".join(sorted({way.engine.name for way in self.ways.values()})),
            notes=self.notes,
            trained_on=self.data,
        )


def _place(state: Mapping[str, Any]) -> tuple[int, int]:
    """How far a state is: epochs, and steps of the next one."""
    return state["epoch"], (state["within"] or {"step": 0})["step"]


def monitored(monitor: str, is_loss: bool) -> tuple[str, float]:
    """The column that is watched, and the sign by which larger is better, of NAME, NAME:min or NAME:max.

    Raises:
        UnknownName: no such column, or no such direction.
    """
    name, _, direction = monitor.partition(":")
    known = [column for column in COLUMNS if column != "valid_elbo" or not is_loss]
    if name not in known:
        raise UnknownName("column to monitor", name, known)
    return name, find("direction", direction or ("max" if name == "valid_elbo" else "min"), SIGNS)


@torch.no_grad()
def elbo_parts(pair: nn.Module, split: Split, data_size: int) -> dict[str, float]:
    """ELBO, rate and distortion of a split in nats per datum, one particle each, at draws that every epoch shares."""
    sums = torch.zeros(2, dtype=torch.float64)
    with evaluating(pair), torch.random.fork_rng(devices=cuda_devices(split.device)):
        torch.manual_seed(VALIDATION_SEED)
        for batch in split.batches(VALIDATION_BATCH):
            terms = elbo_terms(pair, cut_fields(pair, batch), as_loss=True, allow_shared=True)
            rate = bounds.rate(terms) + shared_loss(terms, 1.0, data_size)
            sums += torch.stack([rate.sum(), bounds.distortion(terms).sum()]).double().cpu()
    rate, distortion = (sums / split.size).tolist()
    elbo = -rate - distortion
    return {"valid_loss": -elbo, "valid_elbo": elbo, "valid_rate": rate, "valid_distortion": distortion}
