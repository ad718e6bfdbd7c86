"""Training: what is asked for is checked, then the loop runs."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae import plugins
from pyro_vae.data import Dataset, Split, as_split
from pyro_vae.data.partition import partition, tenth
from pyro_vae.engine.denormals import flushed
from pyro_vae.engine.devices import cuda_devices, launch, matrix_products
from pyro_vae.errors import DataError, RunError
from pyro_vae.objectives.objective import as_objective
from pyro_vae.pair.data_fit import check_support
from pyro_vae.runs.folder import RunFolder
from pyro_vae.runs.identity import check_same_run, identity
from pyro_vae.runs.run import Run
from pyro_vae.training.loop import Settings, Trainer


def train(
    pair: nn.Module,
    data: Dataset | Split | Tensor | Mapping[str, Tensor],
    epochs: int = 100,
    batch_size: int = 128,
    lr: float = 1e-3,
    objective: Any = "trace_mean_field_elbo",
    particles: int = 1,
    engine: str = "auto",
    device: str = "auto",
    seed: int = 0,
    out: str | Path | None = None,
    progress: bool = True,
    *,
    schedule: str = "constant",
    lr_warmup: int = 0,
    beta: float = 1.0,
    kl_warmup: int = 0,
    clip: float | None = None,
    patience: int | None = None,
    ema: float = 0.0,
    precision: str = "32-true",
    relaxed: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    record: Mapping[str, Any] | None = None,
) -> Run:
    """Train a pair by stochastic variational inference with Adam.

    Args:
        pair: a model and a guide on one module; trained in place.
        data: a `Dataset`, or training data alone (a tensor is the field `x`), of which a tenth is then held out.
        epochs: passes over the training data.
        batch_size: data a step.
        lr: Adam's learning rate, before the schedule.
        objective: a registered objective's name, or an `Objective`, or a function with its signature.
        particles: draws of the guide for each datum and step.
        engine: "eager", "compiled", or "auto".
        device: "cpu", "cuda", or "auto".
        seed: fixes the run, bit for bit on the CPU.
        out: folder to write checkpoints and metrics to; None writes nothing.
        progress: the engine and a progress bar on stderr.
        schedule: of the learning rate: "constant", "cosine", or "burda_steps" (Burda et al. 2016).
        lr_warmup: epochs over which the learning rate rises linearly.
        beta: weight of the KL.
        kl_warmup: epochs over which that weight rises linearly from 0.
        clip: largest norm of the gradient.
        patience: stop after this many epochs without a smaller validation loss.
        ema: decay a step of a moving average of the weights, which is then what is validated and kept.
        precision: "32-true" (weights and data as they are), "bf16-mixed" (Fabric's mixed precision), or "tf32" (matrix
            products of NVIDIA's GPUs).
        relaxed: allow grey values under a Bernoulli; the numbers are then a loss, not a likelihood.
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
        RunError: a setting or the run folder cannot be used, or a run is resumed with other settings.
        DivergenceError: a loss is not finite; names the epoch, step and site. The last checkpoint is kept.
    """
    schedule = plugins.current_name("schedule", schedule, warn=True)
    settings = Settings(
        epochs, batch_size, lr, schedule, lr_warmup, beta, kl_warmup, clip, patience, ema, seed, particles, engine,
        precision, relaxed,
    )  # fmt: skip
    dataset = as_dataset(data, seed)
    if batch_size > dataset.train.size:
        raise DataError(
            f"batch_size is {batch_size} but there are {dataset.train.size} training data; use a smaller batch_size"
        )
    objective = as_objective(plugins.load("objective", objective)() if isinstance(objective, str) else objective)
    if not any(parameter.requires_grad for parameter in pair.parameters()):
        raise RunError(f"{type(pair).__name__} has no parameter to train; evaluate it as it is")
    _refuse_a_lone_datum(pair, dataset.train.size, batch_size)
    fabric = launch(device, precision)
    for split in (dataset.train, dataset.valid):
        check_support(pair.cpu(), split, relaxed)
    folder = RunFolder(out, resume, overwrite)
    same = identity(pair, dataset, objective, {**(record or {}).get("options", {}), **asdict(settings)})
    check_same_run(out, (folder.stored or {}).get("identity", {}), same)
    with torch.random.fork_rng(devices=cuda_devices(fabric.device)), matrix_products(precision), flushed():
        kept = {**(record or {}), "identity": same}
        return Trainer(fabric, pair, dataset, objective, settings, folder=folder, record=kept).fit(progress)


def _refuse_a_lone_datum(pair: nn.Module, size: int, batch_size: int) -> None:
    """Raise `DataError` where the last batch would hold one datum, which BatchNorm cannot train on."""
    norms = [name for name, part in pair.named_modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    if norms and 1 in (batch_size, size % batch_size):
        raise DataError(
            f"the last batch of {size} data in batches of {batch_size} holds one datum, which the BatchNorm "
            f"{norms[0]!r} cannot train on; use another batch_size"
        )


def as_dataset(data: Any, seed: int) -> Dataset:
    """A `Dataset` as it is; anything else is training data, of which a seeded tenth becomes the validation split."""
    if isinstance(data, Dataset):
        return data
    whole = as_split(data)
    parts = partition(whole.size, (tenth(whole.size),), seed)
    train, valid = (Split(whole.fields, whole.transform, rows, whole.resident) for rows in parts)
    return Dataset(name="data", train=train, valid=valid, test=valid)
