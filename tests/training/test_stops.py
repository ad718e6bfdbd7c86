"""Runs that are stopped, at any moment and in any way: what is finished is saved, and goes on bit for bit."""

import os
import shlex
import shutil
import signal
from contextlib import contextmanager

import pytest
import torch
from pairs import SHAPE, bits, hooked_vae, same_state, small_vae
from test_training import check_same_run, grey_data
from torch.utils.data import DataLoader, TensorDataset

import pyro_vae as pv
from pyro_vae import files
from pyro_vae.command_line import main as cli
from pyro_vae.errors import ProgramError
from pyro_vae.runs.checkpoints import LAST
from pyro_vae.stops import Stopped, Stops
from pyro_vae.training import by_name, loop

QUIET = {"progress": False, "batch_size": 16, "epochs": 3}
STEPS = 4
"""Of an epoch: 50 data in batches of 16."""


def stopping_vae(after: int, number: int, times: int = 1):
    """A VAE whose process gets a signal as its model runs in training for the time `after`, from 0."""
    runs = 0

    def hook(pair):
        nonlocal runs
        for _ in range(times if runs == after else 0):
            os.kill(os.getpid(), number)
        runs += 1

    return hooked_vae(hook)


@contextmanager
def stopped(number: int):
    expected = KeyboardInterrupt if number == signal.SIGINT else Stopped
    with pytest.raises(expected) as caught:
        yield
    assert number == signal.SIGINT or caught.value.code == 128 + number


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    pv.train(small_vae(), grey_data(), out=folder, **QUIET)
    return folder


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("after", [0, 2, 3, 6])
def test_a_signal_within_a_step_saves_that_step_and_all_before(number, after, whole, tmp_path):
    before = signal.getsignal(number)
    with stopped(number):
        pv.train(stopping_vae(after, number), grey_data(), out=tmp_path, **QUIET)
    state = files.load(tmp_path / LAST)
    assert state["epoch"] * STEPS + state["within"]["step"] == after + 1
    assert signal.getsignal(number) is before
    pv.train(small_vae(seed=3), grey_data(), out=tmp_path, resume=True, **QUIET)
    check_same_run(whole, tmp_path)


OPTIONS = {
    "average": {"ema": 0.9},
    "schedule": {"schedule": "cosine", "lr_warmup": 1, "kl_warmup": 2},
    "schedule_of_torchs": {"schedule": "steplr", "schedule_options": {"step_size": 1, "gamma": 0.5}},
    "momentum": {"optimizer": "sgd", "optimizer_options": {"momentum": 0.9}},
    "particles": {"objective": "iwae", "particles": 2},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_save_within_an_epoch_goes_on_bit_for_bit(options, tmp_path, monkeypatch):
    """A save after each step, each copied as a kill would leave it."""
    monkeypatch.setattr(loop, "SAVE_EVERY_SECONDS", -1.0)
    monkeypatch.setattr(loop, "PAUSE_BY_SAVE", -1.0)
    steps = 0

    def copy(pair):
        nonlocal steps
        if steps in (1, 6, 11):
            shutil.copytree(tmp_path / "whole", tmp_path / str(steps))
        steps += 1

    pv.train(hooked_vae(copy), grey_data(), out=tmp_path / "whole", **QUIET, **options)
    for steps_done in (1, 6, 11):
        folder = tmp_path / str(steps_done)
        state = files.load(folder / LAST)
        assert state["epoch"] * STEPS + state["within"]["step"] == steps_done
        pv.train(small_vae(seed=3), grey_data(), out=folder, resume=True, **QUIET, **options)
        check_same_run(tmp_path / "whole", folder)


def test_with_accumulated_gradients_it_is_saved_where_a_step_ends(tmp_path):
    options = {"accumulate": 3}
    pv.train(small_vae(), grey_data(), out=tmp_path / "whole", **QUIET, **options)
    with stopped(signal.SIGTERM):
        pv.train(stopping_vae(0, signal.SIGTERM), grey_data(), out=tmp_path / "cut", **QUIET, **options)
    assert files.load(tmp_path / "cut" / LAST)["within"]["step"] == 3
    pv.train(small_vae(seed=3), grey_data(), out=tmp_path / "cut", resume=True, **QUIET, **options)
    check_same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_loader_goes_on_at_its_batch(tmp_path):
    """One that shuffles by torch's generator is shuffled again as it was."""

    def train(pair, out, **how):
        loader = DataLoader(TensorDataset(bits(48)), batch_size=16, shuffle=True)
        return pv.train(pair, loader, valid=bits(8), epochs=3, out=out, progress=False, **how)

    whole = train(small_vae(), tmp_path / "whole")
    with stopped(signal.SIGTERM):
        train(stopping_vae(4, signal.SIGTERM), tmp_path / "cut")
    assert files.load(tmp_path / "cut" / LAST)["within"]["step"] == 2
    assert same_state(whole.pair, train(small_vae(seed=3), tmp_path / "cut", resume=True).pair)


def test_a_signal_in_validation_keeps_the_epochs_steps(whole, tmp_path):
    validations = 0

    class VAE(pv.VAE):
        def guide(self, x):
            nonlocal validations
            if not self.training and len(x) == 15:
                validations += 1
                if validations == 2:
                    os.kill(os.getpid(), signal.SIGTERM)
            super().guide(x)

    pair = VAE(SHAPE, latent_dim=2, hidden=(8,))
    pair.load_state_dict(small_vae().state_dict())
    with stopped(signal.SIGTERM):
        pv.train(pair, grey_data(), out=tmp_path, **QUIET)
    state = files.load(tmp_path / LAST)
    assert state["epoch"] == 1 and state["within"]["step"] == STEPS
    pv.train(small_vae(seed=3), grey_data(), out=tmp_path, resume=True, **QUIET)
    check_same_run(whole, tmp_path)


@pytest.mark.parametrize("where", ["on_epoch", "_keep_best", "_capture", "_tell"])
def test_a_signal_outside_the_steps_loses_nothing(where, whole, tmp_path, monkeypatch):
    options = {}
    if where == "on_epoch":
        options["on_epoch"] = lambda row: os.kill(os.getpid(), signal.SIGINT) if row["epoch"] == 2 else None
    else:
        original = getattr(loop.Trainer, where)

        def interrupted(self, *given):
            if self.epoch == 2:
                os.kill(os.getpid(), signal.SIGINT)
            return original(self, *given)

        monkeypatch.setattr(loop.Trainer, where, interrupted)
    with stopped(signal.SIGINT):
        pv.train(small_vae(), grey_data(), out=tmp_path, **QUIET, **options)
    monkeypatch.undo()
    assert files.load(tmp_path / LAST)["epoch"] == 2
    pv.train(small_vae(seed=3), grey_data(), out=tmp_path, resume=True, **QUIET)
    check_same_run(whole, tmp_path)


def test_a_second_signal_stops_at_once_and_leaves_what_was_saved(whole, tmp_path):
    with stopped(signal.SIGINT):
        pv.train(stopping_vae(6, signal.SIGINT, times=2), grey_data(), out=tmp_path, **QUIET)
    state = files.load(tmp_path / LAST)
    assert state["epoch"] == 1 and state["within"] is None
    pv.train(small_vae(seed=3), grey_data(), out=tmp_path, resume=True, **QUIET)
    check_same_run(whole, tmp_path)


@pytest.mark.parametrize("problem", [MemoryError, RuntimeError("out of memory")])
def test_an_error_of_any_kind_saves_what_is_finished(problem, whole, tmp_path):
    runs = 0

    def hook(pair):
        nonlocal runs
        runs += 1
        if runs == 10:
            raise problem

    with pytest.raises((MemoryError, ProgramError)):
        pv.train(hooked_vae(hook), grey_data(), out=tmp_path, **QUIET)
    assert files.load(tmp_path / LAST)["epoch"] == 2
    pv.train(small_vae(seed=3), grey_data(), out=tmp_path, resume=True, **QUIET)
    check_same_run(whole, tmp_path)


def test_weights_that_are_not_finite_are_not_saved_within_an_epoch(tmp_path):
    """Neither by time nor by a signal."""

    def breaks(pair):
        breaks.runs += 1
        if breaks.runs == 6:
            with torch.no_grad():
                next(pair.parameters()).fill_(torch.nan)
            os.kill(os.getpid(), signal.SIGTERM)

    breaks.runs = 0
    with stopped(signal.SIGTERM):
        pv.train(hooked_vae(breaks), grey_data(), out=tmp_path, **QUIET)
    state = files.load(tmp_path / LAST)
    assert state["epoch"] == 1 and all(value.isfinite().all() for value in state["pair"].values())


def test_what_a_program_handles_itself_is_left_to_it(tmp_path):
    """As `nohup` ignores SIGHUP."""
    seen = []
    before = (
        signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number)),
        signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            assert len(pv.train(stopping_vae(1, number), bits(), out=tmp_path / str(number), **QUIET).history) == 3
        assert seen == [signal.SIGTERM] and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGHUP, before[1])


def test_a_mark_that_nobody_looked_at_is_raised_in_the_end():
    with pytest.raises(Stopped), Stops(held=True):
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_command_line_names_the_command_that_goes_on(number, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(by_name, "write_report", lambda *_: None)
    line = "train --hidden 8 --epochs 2 --quiet --out".split()
    assert cli.main([*line, "whole"]) == 0

    def interrupted(self, *given, original=loop.Trainer._advance):
        interrupted.steps += 1
        if interrupted.steps == 15:
            os.kill(os.getpid(), number)
        return original(self, *given)

    interrupted.steps = 0
    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "_advance", interrupted)
        capsys.readouterr()
        assert cli.main([*line, "a cut"]) == 128 + number
    told = capsys.readouterr().err
    command = "pyro-vae train --resume --out 'a cut'"
    assert told == f"pyro-vae: interrupted; continue it with: {command}\n"
    assert cli.main([*shlex.split(command)[1:], "--quiet"]) == 0
    check_same_run(tmp_path / "whole", tmp_path / "a cut")


def test_where_nothing_is_saved_no_command_is_named(tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop.Trainer, "_prepare", interrupted)
    for out in ("--out new", ""):
        assert cli.main(f"train --hidden 8 --epochs 2 --quiet {out}".split()) == 143
        assert capsys.readouterr().err == "pyro-vae: interrupted\n" and not list(tmp_path.iterdir())
