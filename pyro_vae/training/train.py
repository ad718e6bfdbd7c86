"""Training: what is asked for is checked, then the loop runs."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from dataclasses import fields as dataclass_fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from pyro_vae import plugins
from pyro_vae.data import Dataset, Split, as_split, load_data
from pyro_vae.data.partition import partition, tenth
from pyro_vae.data.stream import Stream
from pyro_vae.engine.denormals import flushed
from pyro_vae.engine.devices import cuda_devices, launch, matrix_products
from pyro_vae.engine.threads import alone
from pyro_vae.errors import DataError, RunError, check_positive
from pyro_vae.kinds import checked
from pyro_vae.pair.data_fit import check_support
from pyro_vae.pair.pair import Pair
from pyro_vae.pair.ready import ready_data
from pyro_vae.pair.sequences import check_sequences
from pyro_vae.runs.build import MEANS, load_weights
from pyro_vae.runs.checkpoints import read_best
from pyro_vae.runs.config import DEFAULTS, default_of
from pyro_vae.runs.folder import RunFolder
from pyro_vae.runs.identity import check_same_run, identity
from pyro_vae.runs.run import Run
from pyro_vae.training.by_name import (
    built,
    config_of,
    data_settings,
    epochs_of,
    finish,
    made,
    options_of_optimizer,
    options_of_schedule,
    with_defaults,
)
from pyro_vae.training.loop import Chosen, Settings, Trainer
from pyro_vae.training.missing import missing_values
from pyro_vae.training.optimizers import MakeOptimizer
from pyro_vae.training.restarts import SHARE, best_of
from pyro_vae.training.trackers import tracking

MOST_RESTARTS = 1000


@checked
@alone
def train(
    pair: nn.Module | str = DEFAULTS["model"],
    data: Dataset | Split | Tensor | Mapping[str, Tensor] | str | Path | None = None,
    epochs: int | None = None,
    batch_size: int = 128,
    lr: float = 1e-3,
    objective: Any = None,
    particles: int = 1,
    engine: str = "auto",
    device: str = "auto",
    seed: int = 0,
    out: str | Path | None = None,
    progress: bool = True,
    *,
    model_options: Mapping[str, Any] | None = None,
    data_options: Mapping[str, Any] | None = None,
    objective_options: Mapping[str, Any] | None = None,
    optimizer: str | MakeOptimizer | Any = "adam",
    optimizer_options: Mapping[str, Any] | None = None,
    schedule: str | Callable[[Optimizer], LRScheduler] = "constant",
    schedule_options: Mapping[str, Any] | None = None,
    lr_warmup: int = 0,
    beta: float = 1.0,
    kl_warmup: int = 0,
    kl_cycles: int = 0,
    free_bits: float = 0.0,
    free_bits_per: str = "dimension",
    accumulate: int = 1,
    clip: float | None = None,
    valid: Any = None,
    fields: Sequence[str] | None = None,
    monitor: str = "valid_loss",
    patience: int | None = None,
    ema: float = 0.0,
    restarts: int = 1,
    precision: str = "32-true",
    relaxed: bool = False,
    on_epoch: Callable[[dict[str, float]], Any] | None = None,
    track: Sequence[str] = (),
    start: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    record: Mapping[str, Any] | None = None,
) -> Run:
    """Train a pair by stochastic variational inference.

    Args:
        pair: a model and a guide on one module, which is trained in place; or the name of a registered model, which is
            built for the data. With `out`, the run of a named model is evaluated at its end and reported on. The name
            may be that of a class, a function that returns a pair, or a pair, in a file: `my_model.py:MyPair`. A run
            keeps the name and hash of the file, not its code: `load_run(out, pair="my_model.py:MyPair")`.
        data: the name of a data set or a file, as `load_data` takes it; a `Dataset`; or training data alone, of which a
            tenth is then held out: a tensor or array, which is the field `x`; a mapping of them; a pandas DataFrame; a
            scipy sparse matrix; an AnnData; a torch `Dataset`; or a `DataLoader`, which is read anew at each pass and
            needs `valid`. None: what the model has as `default_data`, else the data set digits.
        epochs: passes over the training data; where none are asked for 600 over the data set digits, 100 over others.
        batch_size: data a step; a `DataLoader` has its own.
        lr: the learning rate, before the schedule.
        objective: a registered objective's name, or an `Objective`, or a function with its signature; where none is
            asked for, the model's own `default_objective`, or else "trace_mean_field_elbo".
        particles: draws of the guide for each datum and step.
        engine: "eager", "compiled", or "auto".
        device: "cpu", "cuda", or "auto".
        seed: fixes the run, bit for bit on the CPU.
        out: folder to write checkpoints and metrics to; None writes nothing.
        progress: the engine and a progress bar on stderr.
        model_options: of a named model, its own and those of its parts: `{"prior": "mixture", "prior_components": 20}`.
        data_options: of data that are named: `{"binarize": "dynamic"}`, which is the default, and the data set's own.
        objective_options: of a named objective: `{"gradient": "dreg"}`.
        optimizer: a name in `torch.optim` ("adam", "adamw", "sgd", ...); a function from parameters to an optimizer,
            whose learning rates are its own; or an object of `pyro.optim`. Parameters that require no gradient stay as
            they are.
        optimizer_options: further options of a named optimizer, such as `{"weight_decay": 0.01}`.
        schedule: of the learning rate: "constant", "cosine", or "burda_steps" (Burda et al. 2016), which change it
            every step; a name in `torch.optim.lr_scheduler`, or a function from an optimizer to a scheduler of torch's,
            which step every epoch.
        schedule_options: options of a schedule of torch's, such as `{"step_size": 10}`.
        lr_warmup: epochs over which the learning rate rises linearly.
        beta: weight of the KL.
        kl_warmup: epochs over which that weight rises linearly from 0.
        kl_cycles: how often the weight of the KL rises from 0 in the course of training (Fu et al. 2019).
        free_bits: a least KL in nats per datum, for objectives that are an ELBO: where the batch's mean KL is below it,
            it counts as this number (Kingma et al. 2016). The validation ELBO is the true one.
        free_bits_per: "dimension": each latent dimension has this least KL; "site": each latent site.
        accumulate: batches whose gradients make up one step.
        clip: largest norm of the gradient.
        valid: validation data of your own, in any form that `data` may have.
        fields: what the members of an item of the data are called where it is a tuple: ("x", "label").
        monitor: the column of metrics.csv whose best epoch is kept; NAME:max where more is better.
        patience: stop after this many epochs without a better value of it.
        ema: decay a step of a moving average of the weights, which is then what is validated and kept.
        restarts: how many starts of a named model are each trained for a tenth of the epochs; the one of the smallest
            validation loss then goes on.
        precision: "32-true" (weights and data as they are), "bf16-mixed" (Fabric's mixed precision), or "tf32" (matrix
            products of NVIDIA's GPUs).
        relaxed: allow grey values under a Bernoulli; the numbers are then a loss, not a likelihood.
        on_epoch: is given each epoch's row of the history; training stops where it returns True.
        track: trackers that are told of each epoch, and shown the figures of the finished run: "csv", "tensorboard",
            "wandb", "mlflow". They need `out`.
        start: a run folder whose weights are where training starts from.
        resume: continue the run in `out` exactly where it was saved. It is the stored run: `epochs`, `patience`,
            `device`, `engine` and `progress` may differ, and what defines the pair, the data, the objective and the
            optimisation may not.
        overwrite: replace the run in `out`.
        record: what the checkpoints keep beside the weights, plain values only: how to build the pair again, and
            under "config" the settings to write as config.yaml.

    Returns:
        The `Run`. Its pair holds the weights of the smallest validation loss, which is minus the ELBO where
        the pair has densities.

    Raises:
        DataError: the data do not fit the pair; nothing is written.
        ContractError: the pair breaks the contract; names the site.
        RunError: a setting or the run folder cannot be used, or a run is resumed with other settings.
        DivergenceError: a loss is not finite; names the epoch, step and site. The last checkpoint is kept.
    """
    asked = dict(locals())
    pair = asked["pair"] = plugins.current_name("model", pair, warn=True)
    data = asked["data"] = default_of("data", pair) if data is None else data
    schedule = asked["schedule"] = plugins.current_name("schedule", schedule, warn=True)
    objective = asked["objective"] = default_of("objective", pair) if objective is None else objective
    epochs = asked["epochs"] = epochs_of(data) if epochs is None else epochs
    optimizer_options = asked["optimizer_options"] = with_defaults(options_of_optimizer(optimizer), optimizer_options)
    schedule_options = asked["schedule_options"] = with_defaults(options_of_schedule(schedule), schedule_options)
    check_positive(RunError, restarts=restarts)
    if restarts > MOST_RESTARTS:
        raise RunError(f"restarts must be at most {MOST_RESTARTS}, not {restarts}")
    if restarts > 1 and start is not None:
        raise RunError(
            "start says where training starts from, so there is nothing to choose by restarts; give one of them"
        )
    with RunFolder(out, resume, overwrite) as folder:
        named, told = isinstance(pair, str), []
        config = config_of(asked) if named else {}
        if isinstance(data, str | Path):
            data = load_data(data, seed=seed, **data_settings(data, data_options))
        elif data_options:
            raise RunError(
                f"data_options go with the name of a data set; {', '.join(data_options)} changes no other data"
            )
        dataset = as_dataset(data, seed, valid, fields)
        if isinstance(pair, str):
            name = pair
            pair, record = built(name, dataset, config, seed, folder.stored)
            if restarts > 1 and folder.stored is None:
                others = [built(name, dataset, config, seed + more, None)[0] for more in range(1, restarts)]
                pair, line = best_of([pair, *others], partial(_tried, asked, dataset))
                told.append(line)
        elif restarts > 1:
            raise RunError(
                "restarts go with the name of a model, which can be built anew; train a pair from each start"
            )
        elif model_options:
            raise RunError(
                f"model_options go with the name of a model; give {', '.join(model_options)} to the pair itself"
            )
        if isinstance(dataset.train, Stream):
            batch_size = dataset.train.batch_size
        if isinstance(pair, Pair):
            if isinstance(dataset.train, Split):
                pair.check_training(dataset.train)
            held_out = not isinstance(data, Dataset) and pair.remembers
            whole = _training_split(data, fields) if held_out else dataset.train
            dataset = ready_data(pair, dataset, whole, batch_size, seed)
        as_used = {"batch_size": batch_size, "optimizer": _name_of(optimizer), "schedule": _name_of(schedule)}
        settings = Settings(**{setting.name: asked[setting.name] for setting in dataclass_fields(Settings)} | as_used)
        dataset, means, absent = missing_values(pair.cpu(), dataset)
        if batch_size > dataset.train.size:
            raise DataError(
                f"batch_size is {batch_size} but there are {dataset.train.size} training data; use a smaller batch_size"
            )
        objective = made(objective, objective_options)
        objective = objective.with_free_bits(free_bits, free_bits_per) if free_bits else objective
        if on_epoch is not None and not callable(on_epoch):
            raise RunError(
                f"on_epoch must be a function of an epoch's row of the history, not {type(on_epoch).__name__}"
            )
        if not any(parameter.requires_grad for parameter in pair.parameters()):
            raise RunError(f"{type(pair).__name__} has no parameter to train; evaluate it as it is")
        _refuse_a_lone_datum(pair, dataset.train.size, batch_size)
        fabric = launch(device, precision)
        for split in (dataset.train, dataset.valid):
            check_sequences(pair.cpu(), split)
            check_support(pair, split, relaxed)
        others = {*asdict(settings), *objective.identity()}
        model = {f"model_{n}" if n in others else n: v for n, v in (record or {}).get("options", {}).items()}
        own = {
            **model,
            **asdict(settings),
            **{f"optimizer_{name}": value for name, value in optimizer_options.items()},
            **{f"schedule_{name}": value for name, value in schedule_options.items()},
        }
        same = identity(pair, dataset, objective, own)
        check_same_run(out, (folder.stored or {}).get("identity", {}), same)
        with torch.random.fork_rng(devices=cuda_devices(fabric.device)), matrix_products(precision), flushed():
            if start is not None and not resume:
                load_weights(pair, read_best(Path(start)), Path(start))
            kept = {**(record or {}), "identity": same, **({MEANS: means} if means else {})}
            callbacks = [on_epoch]
            chosen = Chosen(optimizer, optimizer_options, schedule, schedule_options, callbacks)
            trainer = Trainer(fabric, pair, dataset, objective, settings, chosen=chosen, folder=folder, record=kept)
            trainer.notes += [*told, *absent]
            with tracking(track, out, asdict(settings)) as trackers:
                callbacks.append(trackers.epoch)
                run = trainer.fit(progress)
                trackers.finished(run)
        if named and out is not None:
            finish(run)
    return run


APART = dict.fromkeys("out model_options data_options valid fields patience on_epoch record".split()) | {
    "restarts": 1,
    "progress": False,
    "track": (),
    "resume": False,
    "overwrite": False,
}
"""The settings of a start that is tried, where they are not those of the training."""


def _tried(asked: Mapping[str, Any], data: Dataset, pair: nn.Module) -> Run:
    """A start of a named model, trained in place for a share of the epochs; nothing is written."""
    objective, epochs = copy.deepcopy(asked["objective"]), max(1, asked["epochs"] // SHARE)
    return train(**{**asked, **APART, "pair": pair, "data": data, "objective": objective, "epochs": epochs})


def _refuse_a_lone_datum(pair: nn.Module, size: int, batch_size: int) -> None:
    """Raise `DataError` where the last batch would hold one datum, which BatchNorm cannot train on."""
    norms = [name for name, part in pair.named_modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    if norms and 1 in (batch_size, size % batch_size):
        raise DataError(
            f"the last batch of {size} data in batches of {batch_size} holds one datum, which the BatchNorm "
            f"{norms[0]!r} cannot train on; use another batch_size"
        )


def _name_of(choice: Any) -> str:
    """What a run's record calls an optimizer or a schedule that may be an object."""
    return choice if isinstance(choice, str) else getattr(choice, "__name__", type(choice).__name__)


def as_dataset(data: Any, seed: int, valid: Any = None, fields: Sequence[str] | None = None) -> Dataset:
    """A `Dataset` as it is; anything else is training data, of which a seeded tenth is held out unless validation data
    are given.

    Raises:
        DataError: a `DataLoader` without validation data, since its rows cannot be told apart.
    """
    held_out = None if valid is None else _training_split(valid, fields)
    if isinstance(data, Dataset):
        return data if held_out is None else replace(data, valid=held_out)
    whole = _training_split(data, fields)
    if held_out is not None:
        return Dataset(name="data", train=whole, valid=held_out, test=held_out)
    if isinstance(whole, Stream):
        raise DataError("a DataLoader has no rows that could be held out; give validation data: valid=")
    parts = partition(whole.size, (tenth(whole.size),), seed)
    train, rest = (Split(whole.fields, whole.transform, rows, whole.resident, whole.origin) for rows in parts)
    return Dataset(name="data", train=train, valid=rest, test=rest)


def _training_split(data: Any, fields: Sequence[str] | None) -> Split:
    return Stream(data, fields) if isinstance(data, DataLoader) else as_split(data, fields)
