"""Trackers: where the figures of a run are sent while it trains, beside its own folder.

Each stands on the library of its name, which an extra installs: `pip install 'pyro-vae[tensorboard]'`.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_vae import plots, plugins
from pyro_vae.engine import processes
from pyro_vae.errors import RunError, UserError
from pyro_vae.runs.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Mapping[str, float]


class Tracker(ABC):
    """Base class: is told the settings and every epoch's row of one run.

    Args:
        folder: where files go.
        name: what the run is called.
    """

    def __init__(self, folder: Path, name: str):
        self.folder, self.name = folder, name

    @abstractmethod
    def epoch(self, row: Row) -> None:
        """A row of the history: numbers by name, losses and bounds in nats per datum."""

    @abstractmethod
    def finish(self) -> None:
        """The run is over: write out what is held back."""

    def settings(self, settings: Mapping[str, Any]) -> None:
        """The settings of the run, plain values by name; a tracker that keeps none passes them over."""
        return None

    def figure(self, name: str, figure: "Figure", epoch: int) -> None:
        """A figure of the finished run; a tracker that keeps none passes it over."""
        return None


class Csv(Tracker):
    """Fabric's CSV logger: `FOLDER/csv/metrics.csv`."""

    def __init__(self, folder: Path, name: str):
        super().__init__(folder, name)
        from lightning_fabric.loggers import CSVLogger

        self.logger = CSVLogger(str(folder), name="csv", version="", flush_logs_every_n_steps=1)

    def epoch(self, row: Row) -> None:
        self.logger.log_metrics(dict(row), step=int(row["epoch"]))

    def finish(self) -> None:
        self.logger.finalize("success")


class TensorBoard(Tracker):
    """TensorBoard, through Fabric's logger: event files in `FOLDER/tensorboard`."""

    def __init__(self, folder: Path, name: str):
        super().__init__(folder, name)
        required("torch.utils.tensorboard", "tensorboard")
        from lightning_fabric.loggers import TensorBoardLogger

        self.logger = TensorBoardLogger(str(folder), name="tensorboard", version="")

    def settings(self, settings: Mapping[str, Any]) -> None:
        self.logger.experiment.add_text("settings", "\n".join(f"    {key}: {value}" for key, value in settings.items()))

    def epoch(self, row: Row) -> None:
        figures = {key: value for key, value in row.items() if key != "epoch"}
        self.logger.log_metrics(figures, step=int(row["epoch"]))

    def figure(self, name: str, figure: "Figure", epoch: int) -> None:
        self.logger.experiment.add_figure(f"figures/{name}", figure, epoch)

    def finish(self) -> None:
        self.logger.finalize("success")


class WandB(Tracker):
    """Weights & Biases; offline where `WANDB_MODE=offline` says so, its files in `FOLDER/wandb`."""

    def __init__(self, folder: Path, name: str):
        super().__init__(folder, name)
        folder.mkdir(parents=True, exist_ok=True)
        self.library = required("wandb", "wandb")
        self.run = self.library.init(project="pyro_vae", name=name, dir=str(folder))

    def settings(self, settings: Mapping[str, Any]) -> None:
        self.run.config.update(dict(settings))

    def epoch(self, row: Row) -> None:
        self.run.log(dict(row), step=int(row["epoch"]))

    def figure(self, name: str, figure: "Figure", epoch: int) -> None:
        self.run.log({f"figures/{name}": self.library.Image(figure)}, step=epoch)

    def finish(self) -> None:
        self.run.finish()


class MLflow(Tracker):
    """MLflow: in `FOLDER/mlflow.db`, or where `MLFLOW_TRACKING_URI` says."""

    def __init__(self, folder: Path, name: str):
        super().__init__(folder, name)
        client = required("mlflow", "mlflow").tracking.MlflowClient
        folder.mkdir(parents=True, exist_ok=True)
        self.client = client(os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{folder.absolute() / 'mlflow.db'}"))
        known = self.client.get_experiment_by_name("pyro_vae")
        pictures = (folder / "mlflow").absolute().as_uri()
        experiment = known.experiment_id if known else self.client.create_experiment("pyro_vae", pictures)
        self.run = self.client.create_run(experiment, run_name=name).info.run_id

    def settings(self, settings: Mapping[str, Any]) -> None:
        for key, value in settings.items():
            self.client.log_param(self.run, key, value)

    def epoch(self, row: Row) -> None:
        for key, value in row.items():
            self.client.log_metric(self.run, key, value, step=int(row["epoch"]))

    def figure(self, name: str, figure: "Figure", epoch: int) -> None:
        self.client.log_figure(self.run, figure, f"figures/{name}.png")

    def finish(self) -> None:
        self.client.set_terminated(self.run)


def required(module: str, extra: str) -> Any:
    """A module of a library that an extra installs.

    Raises:
        RunError: it is not installed; says how to install it.
    """
    try:
        return import_module(module)
    except ImportError as reason:
        raise RunError(f"tracking needs {extra}: pip install 'pyro-vae[{extra}]' ({reason})") from reason


class Trackers:
    """The trackers of one run."""

    def __init__(self, trackers: Sequence[Tracker]):
        self.trackers = trackers

    def epoch(self, row: Row) -> None:
        """Tell all of them of an epoch."""
        for tracker in self.trackers:
            tracker.epoch(row)

    def finished(self, run: Run) -> None:
        """Show all of them the figures of a run that is finished; those that its report has as well."""
        drawings = plots.drawings(run.pair, run.data, run.history) if self.trackers else {}
        for name, draw in drawings.items():
            try:
                figure = draw()
            except (UserError, NotImplementedError):  # the report says why
                continue
            for tracker in self.trackers if figure is not None else ():
                tracker.figure(name, figure, len(run.history))


@contextmanager
def tracking(names: Sequence[str], folder: str | Path | None, settings: Mapping[str, Any]) -> Iterator[Trackers]:
    """Trackers by name for the length of a run. Of several processes, the first has them.

    Raises:
        UnknownName: no such tracker.
        RunError: there is no folder, or the library of a tracker is not installed.
    """
    if names and folder is None:
        raise RunError(f"tracking by {', '.join(names)} writes files: say out=DIR")
    kinds = [plugins.load("tracker", name) for name in names] if processes.rank() == 0 else []
    trackers = [kind(Path(folder) / "tracking", Path(folder).name) for kind in kinds]
    for tracker in trackers:
        tracker.settings(settings)
    try:
        yield Trackers(trackers)
    finally:
        for tracker in trackers:
            tracker.finish()
