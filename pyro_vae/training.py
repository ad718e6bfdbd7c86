"""Training: what is asked for is checked, then the loop runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae import checkpoints, plugins
from pyro_vae.data import Dataset, Split, as_split
from pyro_vae.data.partition import partition, tenth
from pyro_vae.denormals import flushed
from pyro_vae.devices import PRECISIONS, cuda_devices, launch, matrix_products
from pyro_vae.errors import DataError, RunError
from pyro_vae.runs import LAST
from pyro_vae.support import check_support
from pyro_vae.trainer import Run, Settings, Trainer


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
        objective: a registered objective's name, or an objective (see `pyro_vae.objectives`).
        particles: draws of the guide for each datum and step.
        engine: "eager", "compiled", or "auto".
        device: "cpu", "cuda", or "auto".
        seed: fixes the run, bit for bit on the CPU.
        out: folder to write checkpoints and metrics to; None writes nothing.
        progress: the engine and a progress bar on stderr.
        schedule: of the learning rate: "constant", "cosine", or "iwae" (the paper's steps).
        lr_warmup: epochs over which the learning rate rises linearly.
        beta: weight of the KL.
        kl_warmup: epochs over which that weight rises linearly from 0.
        clip: largest norm of the gradient.
        patience: stop after this many epochs without a better validation ELBO.
        ema: decay a step of a moving average of the weights, which is then what is validated and kept.
        precision: "32-true" (weights and data as they are), "bf16-mixed" (Fabric's mixed precision), or "tf32" (matrix
            products of NVIDIA's GPUs).
        relaxed: allow grey values under a Bernoulli; the numbers are then a loss, not a likelihood.
        resume: continue the run in `out` exactly where it was saved.
        overwrite: replace the run in `out`.
        record: what the checkpoints keep beside the weights, plain values only: how to build the pair again, and
            under "config" the settings to write as config.yaml.

    Returns:
        The `Run`. Its pair holds the best weights by validation ELBO.

    Raises:
        DataError: the data do not fit the pair; nothing is written.
        RunError: a setting or the run folder cannot be used.
        DivergenceError: a loss is not finite; names the epoch, step and site. The last checkpoint is kept.
    """
    settings = Settings(
        epochs, batch_size, lr, schedule, lr_warmup, beta, kl_warmup, clip, patience, ema, seed, particles
    )
    dataset = as_dataset(data, seed)
    if batch_size > dataset.train.size:
        raise DataError(
            f"batch_size is {batch_size} but there are {dataset.train.size} training data; use a smaller batch_size"
        )
    if particles < 1:
        raise RunError(f"particles must be at least 1, not {particles}")
    objective = plugins.load("objective", objective)() if isinstance(objective, str) else objective
    fabric = launch(device, precision)
    for split in (dataset.train, dataset.valid):
        check_support(pair.cpu(), split, relaxed)
    folder = open_folder(out, resume, overwrite)
    with torch.random.fork_rng(devices=cuda_devices(fabric.device)), matrix_products(precision), flushed():
        trainer = Trainer(
            fabric, pair, dataset, objective, settings, record or {}, folder, PRECISIONS[precision].tolerance
        )
        if resume:
            trainer.restore(checkpoints.load(folder / LAST))
        trainer.prepare(engine)
        trainer.open(overwrite)
        trainer.fit(progress)
    return trainer.finish()


def as_dataset(data: Any, seed: int) -> Dataset:
    """A `Dataset` as it is; anything else is training data, of which a seeded tenth becomes the validation split."""
    if isinstance(data, Dataset):
        return data
    whole = as_split(data)
    parts = partition(whole.size, (tenth(whole.size),), seed)
    train, valid = (Split(whole.fields, whole.transform, rows, whole.resident) for rows in parts)
    return Dataset(name="data", train=train, valid=valid, test=valid)


def open_folder(out: str | Path | None, resume: bool, overwrite: bool) -> Path | None:
    """Check that a run may be written to `out`.

    Raises:
        RunError: it holds a run already and neither `resume` nor `overwrite` is set, or there is nothing to resume.
    """
    if out is None:
        if resume:
            raise RunError("resume needs the run folder: say out=DIR")
        return None
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file; choose another --out")
    if resume and not (folder / LAST).exists():
        raise RunError(f"nothing to resume: {folder / LAST} does not exist")
    if folder.exists() and any(folder.iterdir()) and not (resume or overwrite):
        raise RunError(
            f"{folder} exists; continue it with --resume, replace it with --overwrite, or choose another --out"
        )
    return folder
