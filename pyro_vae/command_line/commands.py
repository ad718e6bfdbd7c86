"""What each command does once its settings are parsed. `main` parses and prints."""

from collections.abc import Mapping
from pathlib import Path

from pyro_vae import plugins, runs
from pyro_vae.command_line.settings import TrainSettings
from pyro_vae.data import Dataset, load_data
from pyro_vae.engine import processes
from pyro_vae.errors import ContractError
from pyro_vae.evaluation import Result, evaluate
from pyro_vae.reporting.report import write_report
from pyro_vae.runs.folder import RunFolder
from pyro_vae.training.train import train


def train_run(settings: TrainSettings, out: Path, resume: bool, overwrite: bool, progress: bool) -> list[Result]:
    """Train a registered model, evaluate it on the test split and write the run folder with its report."""
    stored = RunFolder(out, resume, overwrite).stored or {}
    data = load_settings_data(settings)
    pairs = {key: value for key, value in stored.get("options", {}).items() if isinstance(value, Mapping)}
    options = {**settings.model_options, **pairs}
    pair = runs.build_model(settings.model, data.facts, options, settings.data["seed"])
    run = train(
        pair,
        data,
        objective=plugins.build("objective", settings.objective, settings.objective_options),
        out=out,
        progress=progress,
        resume=resume,
        overwrite=overwrite,
        seed=settings.data["seed"],
        record={"config": settings.flat(), **runs.record_of(settings.model, data.facts, options)},
        optimizer_options=settings.optimizer_options,
        schedule_options=settings.schedule_options,
        **settings.training,
    )
    processes.wait_for_all()
    results = []
    for name in ("elbo", "reconstruction"):
        try:
            results.append(evaluate(run, run.data, name, progress=False))
        except ContractError as problem:
            run.notes.append(f"{name} was not evaluated: {problem}")
    if processes.rank() == 0:
        run.pair.cpu()
        write_report(run)
    return results


def load_settings_data(settings: TrainSettings) -> Dataset:
    """The data set that the settings of a training describe."""
    given = dict(settings.data)
    return load_data(given.pop("data"), **given, **settings.data_options)
