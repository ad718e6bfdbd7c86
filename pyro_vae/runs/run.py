"""A run: a trained pair, and how it came to be."""

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from pyro_vae.data import Dataset, Split, choose_split, load_data
from pyro_vae.engine import processes
from pyro_vae.engine.devices import find_device, launch
from pyro_vae.errors import Changed, DamagedError, DataError, Doubt, RunError
from pyro_vae.pair.generation import field_shapes
from pyro_vae.pair.missing_checks import check_missing
from pyro_vae.pair.topics import check_vocabulary
from pyro_vae.runs.build import changed_since, stored_pair
from pyro_vae.runs.checkpoints import read_best, read_state
from pyro_vae.runs.config import Config, read_config
from pyro_vae.runs.folder import CONFIG

PRESENTATION = ("binarize", "scale")
"""The settings by which a run's data are presented, and other data as well; the seed is that of the training."""


@dataclass
class Run:
    """A finished training: the pair at its best validation epoch, and how it got there.

    Attributes:
        pair: the pair, holding the weights of the smallest validation loss (their moving average, where there is one),
            under `eval()`.
        history: a row an epoch; losses and bounds in nats per datum.
        best_epoch: the epoch of these weights, from 1.
        fields: shape and dtype of one datum of each field that the pair takes.
        config: every setting, as `config.yaml` holds them, in the sections `model`, `data`, `objective` and `training`;
            empty for a run whose pair was given as an object.
        out: the run folder, or None.
        engine: which engine ran the steps; None for a run that was read from its folder.
        notes: what training had to say.
        results: what was evaluated at the end of training, for a run that was started by names.
        remarks: what a reader of its figures must know of how it was read.
        trained_on: the data set, where it is at hand; see `data`.
    """

    pair: nn.Module
    history: list[dict[str, float]]
    best_epoch: int
    fields: dict[str, tuple[list[int], str]]
    config: Config = field(default_factory=dict)
    out: Path | None = None
    engine: str | None = None
    notes: list[str] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    trained_on: Dataset | None = None

    @property
    def model_name(self) -> str:
        """The name of the model, or of the pair's class."""
        return self.config.get("model", {}).get("name", type(self.pair).__name__)

    @property
    def relaxed(self) -> bool:
        """Whether grey values were trained on as if they were binary, so that all numbers are a loss."""
        return bool(self.config.get("training", {}).get("relaxed"))

    @property
    def data(self) -> Dataset:
        """The data set that it was trained on; of a run that was read from its folder, loaded when first asked for.

        Raises:
            RunError: the run has no settings.
            DataError: the data are not there, or no longer of the shape that the run was trained on.
        """
        if self.trained_on is None:
            self.trained_on = self._load(None)
        return self.trained_on

    def data_like(self, data: Any = None) -> Any:
        """The run's own data for None; another data set or file by name, scaled and binarised as these; any other data
        as they are. Raises as `data` does."""
        if not isinstance(data, str | Path | None):
            check_vocabulary(self.pair, data)
            return data
        return self.data if data in (None, self._data_settings.get("name")) else self._load(str(data))

    def split(self, data: Any, name: str) -> Split:
        """A split of `data_like(data)`, by name; data that are no `Dataset` are one split.

        Raises:
            DataError: no such split, or a value is missing where the pair does not allow it.
        """
        split = choose_split(self.data_like(data), name)
        check_missing(self.pair, split)
        return split

    def posterior(
        self, data: Any = None, draws: int = 500, limit: int = 100, seed: int = 0, split: str = "test"
    ) -> Any:
        """Draws of the latents, predictions and importance weights for ArviZ; see `pyro_vae.inference_data`.

        Args:
            data: other data than the run's: a name or a file, or the data themselves.
            draws: draws of the guide for each datum.
            limit: how many data.
            seed: fixes the draws.
            split: train, valid or test, of data that have these.

        Raises:
            RunError: fewer than one draw or datum, or no such split.
            DataError: data that do not fit the run.
        """
        from pyro_vae.runs.inference_data import inference_data  # ArviZ takes seconds to import

        return inference_data(self.pair, self.split(data, split), draws, limit, seed)

    @property
    def _data_settings(self) -> dict[str, Any]:
        return self.config.get("data", {})

    def _load(self, name: str | None) -> Dataset:
        settings = self._data_settings
        if not {"name", *PRESENTATION} <= settings.keys():
            raise RunError(f"{self.out} has no {CONFIG} that names its data; hand the data over in Python")
        presented = {key: settings[key] for key in PRESENTATION} | {"seed": self.config["training"]["seed"]}
        if name is None:
            name = settings["name"]
            presented |= {key: value for key, value in settings.items() if key != "name"}
        data = load_data(name, **presented)
        for field_name, (shape, _) in field_shapes(self.pair, data.test).items():
            trained = list(self.fields[field_name][0])
            if shape != trained:
                what = f"{data.name}: {field_name} has shape {shape} a datum"
                raise DataError(f"{what}, but the run was trained on {trained}")
        check_vocabulary(self.pair, data, data.name)
        return data


def as_run(run: "Run | str | Path", device: str = "auto", pair: nn.Module | str | None = None) -> Run:
    """A run as it is, or the run in a folder, its pair on this device.

    Args:
        pair: of a folder, as for `load_run`.

    Raises:
        RunError: not a run folder, or no such device.
    """
    if not isinstance(run, Run):
        run = load_run(run, pair)
        run.pair.to(launch(device).device if processes.started() > 1 else find_device(device))
    elif device != "auto":
        run.pair.to(find_device(device))
    return run


def load_run(folder: str | Path, pair: nn.Module | str | None = None) -> Run:
    """Read a run folder; the pair holds its best weights.

    Args:
        folder: the run folder.
        pair: where given, the weights are read into it; needed for a pair that no plugin registers. One in a file may
            be named, `my_model.py:MyPair`: the file is run, and where it has changed since, a warning
            (`errors.Changed`) and the results say so.

    Raises:
        RunError: not a run folder, the run of another model, or of a pair that must be given.
        PluginError: the file of the pair is not there, or raises an error.
    """
    folder = Path(folder)
    best = read_best(folder)
    changed = changed_since(best, pair, folder)
    pair = stored_pair(folder, best, pair)
    if changed:
        warnings.warn(changed, Changed, stacklevel=2)
    history = _history(folder)
    remarks = [changed] if changed else []
    return Run(pair, history, best["epoch"], best["fields"], read_config(folder), folder, remarks=remarks)


def _history(folder: Path) -> list[dict[str, float]]:
    """A row an epoch; none where the checkpoint that has them is damaged, which costs the weights nothing."""
    try:
        return read_state(folder)["history"]
    except DamagedError as problem:
        warnings.warn(f"{problem}; the history of the run is lost", Doubt, stacklevel=3)
        return []
