"""What each command does once its settings are parsed. `main` parses and prints."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyro_vae import files, plots, plugins, runs
from pyro_vae.command_line.settings import TrainSettings
from pyro_vae.data import Dataset, load_data
from pyro_vae.engine import processes
from pyro_vae.engine.devices import find_device, launch
from pyro_vae.errors import ContractError
from pyro_vae.evaluation import Result, evaluate_each
from pyro_vae.pair import generation
from pyro_vae.pair.pair import select_fields
from pyro_vae.reporting.report import write_report
from pyro_vae.runs.folder import RunFolder, keep_result
from pyro_vae.training.train import train

CHECKED = 16


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
        **settings.training,
    )
    processes.wait_for_all()
    results = []
    for name in ("elbo", "reconstruction"):
        try:
            results += evaluate_run(out, [name], data=run.data, device=settings.training["device"], progress=False)
        except ContractError as problem:
            run.notes.append(f"{name} was not evaluated: {problem}")
    if processes.rank() == 0:
        run.pair.cpu()
        write_report(run)
    return results


def check_model(settings: TrainSettings) -> list[str]:
    """What was checked of a registered model on a batch of its training data; raises as `check_pair` does."""
    from pyro_vae.testing import check_pair

    data = load_settings_data(settings)
    pair = runs.build_model(settings.model, data.facts, settings.model_options, settings.data["seed"])
    return check_pair(pair, data.train.head(CHECKED).take(slice(None)))


def load_settings_data(settings: TrainSettings) -> Dataset:
    """The data set that the settings of a training describe."""
    given = dict(settings.data)
    return load_data(given.pop("data"), **given, **settings.data_options)


def evaluate_run(
    folder: Path,
    evaluators: Sequence[str],
    particles: int = 1,
    split: str = "test",
    data: Dataset | str | None = None,
    limit: int | None = None,
    seed: int = 0,
    device: str = "auto",
    options: Mapping[str, Mapping[str, Any]] | None = None,
    progress: bool = True,
) -> list[Result]:
    """Run evaluators on a stored run; `evaluation.json` keeps the latest entry of each with the same settings."""
    made = {name: plugins.build("evaluator", name, (options or {}).get(name, {})) for name in evaluators}
    run = runs.load_run(folder)
    run.pair.to(launch(device).device if processes.started() > 1 else find_device(device))
    if not isinstance(data, Dataset):
        data = run.data_named(data)
    relaxed = bool(run.config.get("relaxed"))
    results = []
    for result in evaluate_each(
        run.pair, data, made, particles, limit, progress, split=split, seed=seed, relaxed=relaxed
    ):
        result.model = run.config.get("model", result.model)
        results.append(result)
        if processes.rank() == 0:
            keep_result(folder, result.entry(), result.estimate.figures)
    return results


def report_run(folder: Path) -> Path:
    """Write `report.md` and its figures from what the run folder holds."""
    return write_report(runs.load_run(folder))


def sample_run(folder: Path, n: int, out: Path, seed: int = 0) -> None:
    """Draw `n` data from the model: means as a picture (.png), or every site's values as arrays (.npz)."""
    run = runs.load_run(folder)
    fields = _fields_to_sample(run, n)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sites = generation.sample(run.pair, fields)
    if out.suffix == ".npz":
        save_arrays(out, {name: site.raw for name, site in sites.items()})
    else:
        plots.save_images(generation.center(generation.picture_site(generation.observed(sites))), out)


def _fields_to_sample(run: runs.Run, n: int) -> dict[str, torch.Tensor]:
    """Fields for `n` draws: what the model conditions on is that of the test data, over and over if need be."""
    if len(run.fields) == 1:
        return generation.blank_fields(run.fields, n)
    test = run.data.test
    return select_fields(run.pair, test.take(torch.arange(n) % test.size))


def reconstruct_run(folder: Path, n: int, out: Path) -> None:
    """A picture of `n` test data, spread over the split, above their reconstructions."""
    run = runs.load_run(folder)
    plots.save(plots.reconstructions(run.pair, run.data.test, n), out)


def encode_run(folder: Path, data: str | None, out: Path, split: str = "test") -> None:
    """Posterior mean and scale of every datum of a split, with its label where there is one, as arrays."""
    run = runs.load_run(folder)
    chosen = getattr(run.data_named(data), split)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        codes = generation.encode(run.pair, chosen)
    if "label" in chosen:
        codes["label"] = chosen["label"]
    save_arrays(out, codes)


def export_run(folder: Path, data: str | None, out: Path, draws: int, limit: int, seed: int = 0) -> None:
    """Write ArviZ InferenceData of the first `limit` test data as netCDF."""
    from pyro_vae.evaluation.arviz_adapter import to_netcdf
    from pyro_vae.evaluation.inference_data import inference_data

    run = runs.load_run(folder)
    exported = inference_data(run.pair, run.data_named(data), draws, limit, seed)
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / "run.nc"
        to_netcdf(exported, str(whole))
        files.write_whole(out, lambda file: file.write(whole.read_bytes()))


def save_arrays(path: Path, arrays: Mapping[str, torch.Tensor]) -> None:
    """Write tensors as a .npz file, whole or not at all."""
    numpy = {name: value.detach().cpu().numpy() for name, value in arrays.items()}
    files.write_whole(path, lambda file: np.savez_compressed(file, **numpy))
