"""Optimizers, schedules, accumulated gradients, callbacks and trackers: what users of SVI scripts bring along."""

import csv
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from pairs import SHAPE, bits, small_vae

import pyro_vae as pv
from pyro_vae.errors import DataError, RunError, UnknownName
from pyro_vae.training.gradients import Gradients
from pyro_vae.training.schedules import cyclical

QUIET = {"batch_size": 16, "progress": False, "engine": "eager", "device": "cpu"}


def trained(epochs=2, pair=None, data=None, **options):
    return pv.train(pair or small_vae(), bits(60) if data is None else data, epochs=epochs, **{**QUIET, **options})


def same_weights(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.pair.parameters(), other.pair.parameters(), strict=True))


@pytest.mark.parametrize("name", ["AdamW", "sgd", "rmsprop", "nadam", "adagrad"])
def test_an_optimizer_is_torchs_by_any_door(name):
    kind = {kind.lower(): getattr(torch.optim, kind) for kind in dir(torch.optim)}[name.lower()]
    by_name = trained(optimizer=name, optimizer_options={"weight_decay": 0.1})
    by_function = trained(optimizer=lambda parameters: kind(parameters, lr=1e-3, weight_decay=0.1))
    assert by_name.history[-1]["loss"] != trained().history[-1]["loss"]
    for a, b in zip(by_name.pair.parameters(), by_function.pair.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_an_optimizer_of_pyros_is_taken_apart():
    of_pyro = trained(optimizer=pyro.optim.Adam({"lr": 0.01, "betas": (0.8, 0.99)}))
    assert same_weights(of_pyro, trained(lr=0.01, optimizer_options={"betas": (0.8, 0.99)}))
    clipped = pyro.optim.clipped_adam.ClippedAdam
    of_pyro = trained(optimizer=pyro.optim.ClippedAdam({"lr": 0.01, "lrd": 0.9}))
    assert same_weights(of_pyro, trained(optimizer=lambda parameters: clipped(parameters, lr=0.01, lrd=0.9)))
    assert of_pyro.history[-1]["lr"] == pytest.approx(0.01 * 0.9**8)  # its own decay, four steps an epoch
    assert not pyro.get_param_store().keys()
    assert any("no fused step" in note for note in of_pyro.notes)


WRONG = {
    "name": ({"optimizer": "adamm"}, UnknownName, "unknown optimizer 'adamm'; known: adam"),
    "option": (
        {"optimizer_options": {"weight_deca": 1}},
        UnknownName,
        "optimizer 'adam' 'weight_deca'; known: weight_dec",
    ),
    "value": ({"optimizer_options": {"eps": -1.0}}, RunError, "Adam refuses its options"),
    "function": ({"optimizer": lambda parameters: 3}, RunError, "returned int"),
    "finished": (
        {"optimizer": torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])},
        RunError,
        "optimizer is Adam, neither a name nor a function",
    ),
    "callback": ({"on_epoch": 3}, RunError, "on_epoch must be a function .* not int"),
    "scheduled": (
        {
            "optimizer": pyro.optim.ExponentialLR(
                {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "gamma": 0.9}
            )
        },
        RunError,
        "schedule=",
    ),
    "schedule": ({"schedule": "cosin"}, UnknownName, "unknown schedule 'cosin'; known: cosine"),
    "schedule_options": ({"schedule": "steplr"}, RunError, "StepLR refuses its options"),
    "monitor": ({"monitor": "valid_los"}, UnknownName, "unknown column to monitor 'valid_los'; known: valid_loss"),
    "monitor_direction": ({"monitor": "valid_loss:maximum"}, UnknownName, "unknown direction 'maximum'; known: max"),
    "options_of_our_schedule": ({"schedule_options": {"gamma": 0.5}}, RunError, "'constant' takes no gamma"),
    "options_of_pyros": (
        {"optimizer": pyro.optim.Adam({"lr": 0.1}), "optimizer_options": {"eps": 1.0}},
        RunError,
        "give eps to the optimizer itself",
    ),
    "accumulate": ({"accumulate": 0}, RunError, "accumulate must be positive"),
    "tracker": ({"track": ["tensorbord"], "out": "run"}, UnknownName, "unknown tracker 'tensorbord'"),
    "tracker_without_a_folder": ({"track": ["csv"]}, RunError, "out=DIR"),
}


@pytest.mark.parametrize("options, error, words", WRONG.values(), ids=WRONG)
def test_a_mistake_is_one_line(options, error, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=words) as caught:
        trained(**options)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_accumulated_gradients_are_those_of_the_larger_batch():
    """The loss is the mean over data, so a batch of 16 in four parts of unequal size has the same gradient."""
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    x = torch.randn(16, 2, generator=torch.Generator().manual_seed(0))
    whole = torch.autograd.grad((x @ weight).square().mean(), weight)[0]
    gradients = Gradients([weight])
    for part in x.split([5, 5, 5, 1]):
        weight.grad = torch.autograd.grad((part @ weight).square().mean(), weight)[0]
        gradients.add(len(part))
    gradients.hand_over()
    assert torch.allclose(weight.grad, whole)


def test_steps_are_taken_once_for_so_many_batches():
    steps = []

    class Counting(torch.optim.SGD):
        def step(self, *args):
            steps.append(1)
            return super().step(*args)

    trained(epochs=1, optimizer=lambda parameters: Counting(parameters, lr=0.1), accumulate=3, batch_size=10)
    assert len(steps) == 2  # 54 training data, six batches


def lrs(run) -> list[float]:
    return [row["lr"] for row in run.history]


def test_a_schedule_of_ours_resumes_where_it_was(tmp_path):
    given = {"schedule": "cosine", "lr_warmup": 1}
    whole = trained(epochs=4, **given)
    with pytest.raises(ZeroDivisionError):
        trained(epochs=4, out=tmp_path, on_epoch=lambda row: 1 / (2 - row["epoch"]), **given)
    resumed = trained(epochs=4, out=tmp_path, pair=small_vae(seed=3), resume=True, **given)
    assert same_weights(whole, resumed) and lrs(whole) == lrs(resumed) and len(set(lrs(whole))) == 4


@pytest.mark.parametrize("schedule, options", [("StepLR", {"step_size": 1, "gamma": 0.5}), ("ReduceLROnPlateau", {})])
def test_a_schedule_of_torchs_steps_every_epoch_and_resumes(schedule, options, tmp_path):
    given = {"schedule": schedule, "schedule_options": options}
    whole = trained(epochs=4, **given)
    if schedule == "StepLR":
        assert [row["lr"] for row in whole.history] == pytest.approx([1e-3, 5e-4, 2.5e-4, 1.25e-4])
    trained(epochs=2, out=tmp_path, **given)
    resumed = trained(epochs=4, out=tmp_path, pair=small_vae(seed=3), resume=True, **given)
    assert same_weights(whole, resumed) and lrs(whole) == lrs(resumed)
    by_function = trained(epochs=4, schedule=lambda o: getattr(torch.optim.lr_scheduler, schedule)(o, **options))
    assert same_weights(whole, by_function)


def test_the_weight_of_the_kl_rises_in_cycles():
    assert [cyclical(progress, 2) for progress in (0.0, 0.125, 0.25, 0.4, 0.5, 0.625, 0.99)] == [
        0,
        0.5,
        1,
        1,
        0,
        0.5,
        1,
    ]
    betas = [row["beta"] for row in trained(epochs=8, kl_cycles=2, batch_size=54).history]
    assert betas == [0, 0.5, 1, 1, 0, 0.5, 1, 1]


def test_a_callback_sees_each_row_and_stops_the_run(tmp_path):
    rows = []
    run = trained(epochs=9, on_epoch=lambda row: rows.append(row) or row["epoch"] == 3)
    assert rows == run.history and len(rows) == 3
    assert len(trained(epochs=9, on_epoch=lambda row: np.float64(row["epoch"]) >= 2).history) == 2

    def broken(row):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        trained(epochs=9, out=tmp_path, on_epoch=broken)
    assert len(pv.load_run(tmp_path, small_vae()).history) == 1
    assert len(trained(epochs=3, out=tmp_path, resume=True).history) == 3


def test_validation_data_and_the_column_that_is_watched_are_the_users():
    valid = bits(20, seed=5)
    run = trained(epochs=4, valid=valid, monitor="valid_rate:max", lr=0.05)
    assert run.data.train.size == 60 and torch.equal(run.data.valid["x"], valid)
    rates = [row["valid_rate"] for row in run.history]
    assert run.best_epoch == 1 + rates.index(max(rates))
    run = trained(epochs=4, monitor="valid_elbo", lr=0.05)
    elbos = [row["valid_elbo"] for row in run.history]
    assert run.best_epoch == 1 + elbos.index(max(elbos))


def test_what_requires_no_gradient_stays_and_is_said():
    vae = small_vae()
    vae.encoder.requires_grad_(False)
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    run = trained(pair=vae, optimizer="adamw", optimizer_options={"weight_decay": 0.5})
    changed = {name for name, value in vae.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and not any(name.startswith("encoder") for name in changed)
    assert any("stay as they are" in note and "encoder" in note for note in run.notes)


def test_training_starts_from_the_weights_of_a_run(tmp_path):
    first = trained(out=tmp_path / "first")
    start = trained(epochs=1, pair=small_vae(seed=7), lr=1e-12, start=tmp_path / "first")
    for a, b in zip(first.pair.parameters(), start.pair.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-7)
    with pytest.raises(RunError, match="another model"):
        trained(pair=pv.VAE(SHAPE, latent_dim=3, hidden=(8,)), start=tmp_path / "first")


def test_the_csv_tracker_writes_a_row_an_epoch(tmp_path):
    run = trained(epochs=3, out=tmp_path / "run", track=["csv"])
    (file,) = (tmp_path / "run" / "tracking").rglob("metrics.csv")
    rows = list(csv.DictReader(file.open()))
    assert [float(row["valid_loss"]) for row in rows] == pytest.approx([row["valid_loss"] for row in run.history])


def test_tensorboard_reads_its_files_back(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = trained(epochs=3, out=tmp_path / "run", track=["tensorboard"])
    events = EventAccumulator(str(tmp_path / "run" / "tracking" / "tensorboard"))
    events.Reload()
    read = events.Scalars("valid_loss")
    assert [event.step for event in read] == [1, 2, 3]
    assert [event.value for event in read] == pytest.approx([row["valid_loss"] for row in run.history])
    pv.report(run)
    drawn = {path.stem for path in (tmp_path / "run" / "figures").glob("*.png")}
    assert set(events.Tags()["images"]) == {f"figures/{name}" for name in drawn} and "reconstructions" in drawn
    for name in drawn:
        (image,) = events.Images(f"figures/{name}")
        assert image.step == 3 and image.encoded_image_string.startswith(b"\x89PNG") and image.width > 200


def test_mlflow_keeps_the_run_in_a_local_folder(tmp_path):
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    run = trained(epochs=2, out=tmp_path / "run", track=["mlflow"])
    client = MlflowClient(f"sqlite:///{tmp_path / 'run' / 'tracking' / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "pyro_vae"]
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.data.metrics["valid_loss"] == pytest.approx(run.history[-1]["valid_loss"])
    assert found.data.params["batch_size"] == "16"
    kept = [file.path for file in client.list_artifacts(found.info.run_id, "figures")]
    assert {"figures/loss.png", "figures/reconstructions.png", "figures/samples.png"} <= set(kept)


def test_wandb_works_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    trained(epochs=2, out=tmp_path / "run", track=["wandb"])
    assert list((tmp_path / "run" / "tracking").rglob("run-*.wandb"))
    assert list((tmp_path / "run" / "tracking").rglob("media/images/figures/reconstructions_*.png"))


def test_the_figures_of_a_run_on_data_loaders_are_of_the_first_batch(tmp_path):
    pytest.importorskip("tensorboard")
    loaders = [torch.utils.data.DataLoader(bits(n, seed=n), batch_size=8) for n in (60, 30)]
    run = trained(epochs=1, data=loaders[0], valid=loaders[1], out=tmp_path / "run", track=["tensorboard"])
    text = pv.report(run).read_text()
    assert "![Reconstructions]" in text and "![Posterior means]" in text and "not drawn" not in text


def test_a_figure_that_cannot_be_drawn_is_left_out(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise RunError("no")

    shown = []
    monkeypatch.setattr("pyro_vae.plots.figures.samples", fails)
    monkeypatch.setattr("pyro_vae.training.trackers.Csv.figure", lambda self, name, *_: shown.append(name))
    trained(epochs=1, out=tmp_path / "run", track=["csv"])
    assert "loss" in shown and "reconstructions" in shown and "samples" not in shown


def test_a_tracker_that_is_not_installed_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "mlflow", None)
    with pytest.raises(RunError, match=r"pip install 'pyro-vae\[mlflow\]'"):
        trained(out=tmp_path / "run", track=["mlflow"])


def test_a_data_loader_is_read_anew_each_epoch():
    data = torch.utils.data.TensorDataset(bits(60), torch.arange(60))
    seen = []

    class Watched(torch.utils.data.DataLoader):
        def __iter__(self):
            seen.append(1)
            return super().__iter__()

    loader = Watched(data, batch_size=20, shuffle=True)
    run = trained(
        epochs=3,
        data=loader,
        valid=torch.utils.data.TensorDataset(bits(20, seed=1), torch.arange(20)),
        fields=("x", "label"),
    )
    assert len(seen) == 1 + 1 + 3  # the example, the check of the values, three epochs
    assert len(run.history) == 3 and any("resumes inexactly" in note for note in run.notes)
    with pytest.raises(DataError, match="valid="):
        trained(data=loader, fields=("x", "label"))
    with pytest.raises(DataError, match="fields="):
        trained(data=loader, valid=bits(20))


def with_one(value: float) -> torch.Tensor:
    x = torch.zeros(40, *SHAPE)
    x.view(40, -1)[30, 2] = value
    return x


class Words(torch.utils.data.Dataset):
    """Numbers, and words at the end."""

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return torch.zeros(SHAPE) if index < 24 else "word"


UNFIT = {
    "nan": (with_one(float("nan")), r"batch 4 of the DataLoader: x\[6, 0, .*\] is nan; remove or replace"),
    "infinite": (with_one(float("-inf")), r"batch 4 of the DataLoader: x\[6, 0, .*\] is -inf; remove or replace"),
    "words": (Words(), "x of an item of the data is list, not numbers; turn it into a tensor"),
}


@pytest.mark.parametrize("data, words", UNFIT.values(), ids=UNFIT)
def test_batches_that_cannot_be_trained_on_are_told_before_training(data, words, tmp_path):
    loader = torch.utils.data.DataLoader(data, batch_size=8)
    for given in ({"data": loader, "valid": bits(20)}, {"data": bits(20), "valid": loader}):
        with pytest.raises(DataError, match=words):
            trained(**given, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_loader_that_does_not_know_its_length_is_counted():
    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(bits(50))

    state = torch.get_rng_state()
    loader = torch.utils.data.DataLoader(Endless(), batch_size=20)
    run = trained(data=loader, valid=bits(20, seed=1), batch_size=1000)  # the loader has its own
    assert run.data.train.size == 50 and run.data.train.num_batches(16) == 3 and len(run.history) == 2
    trained(data=torch.utils.data.DataLoader(bits(50), batch_size=20, shuffle=True), valid=bits(20, seed=1))
    assert torch.equal(torch.get_rng_state(), state)


def test_out_is_a_path_too(tmp_path):
    assert Path(trained(epochs=1, out=str(tmp_path / "run")).out).is_dir()
