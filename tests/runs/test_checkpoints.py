"""What a damaged or half-written file of a run costs: nothing that another file still holds."""

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from pairs import bits, same_state, small_vae

import pyro_vae as pv
from pyro_vae import files
from pyro_vae.command_line import main as cli
from pyro_vae.errors import DamagedError, Doubt, RunError, UserError
from pyro_vae.runs.checkpoints import BEFORE, BEST, LAST, read_best, read_state
from pyro_vae.runs.folder import CONFIG, EVALUATION, FIGURES, LOCK, METRICS, RunFolder, read_results
from pyro_vae.training import loop

RECORD = {
    "model": "vae",
    "options": {"hidden": (8,)},
    "facts": {"data_shape": (1, 4, 4)},
    "config": {"model": {"name": "vae"}},
}
QUIET = {"batch_size": 16, "progress": False}


def always_saving(patch: pytest.MonkeyPatch) -> None:
    for pause in ("SAVE_EVERY_SECONDS", "PAUSE_BY_SAVE"):
        patch.setattr(loop, pause, -1.0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run of three epochs with a save at each step."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        always_saving(patch)
        pv.train(small_vae(), bits(), epochs=3, out=folder, record=RECORD, **QUIET)
    return folder


@pytest.fixture
def run(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def flip(path: Path, place: int, bit: int = 3) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def place_of(path: Path, member: str = "/data/") -> int:
    """Where the largest tensor of a checkpoint begins, well behind the head of its member."""
    with zipfile.ZipFile(path) as archive:
        largest = max((m for m in archive.infolist() if member in m.filename), key=lambda m: m.file_size)
    return path.read_bytes().index(largest.filename.encode()) + len(largest.filename) + 128


def same(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.mark.parametrize("name", [LAST, BEST])
def test_no_flipped_bit_is_read_as_something_else(name, run):
    """Anywhere in the file: it is found, or it lies in the padding and changes nothing."""
    path, good = run / name, (run / name).read_bytes()
    state = files.load(path)
    found = 0
    for place in np.random.default_rng(0).integers(0, len(good), 60):
        path.write_bytes(good)
        flip(path, place)
        try:
            assert same(files.load(path), state), place
        except DamagedError:
            found += 1
    assert found > 30


def test_where_the_last_save_is_damaged_the_one_before_goes_on(run):
    before = files.load(run / BEFORE)
    whole = pv.train(small_vae(), bits(), epochs=4, **QUIET)
    flip(run / LAST, place_of(run / LAST))
    with pytest.warns(
        Doubt, match="last.pt is not a checkpoint.* or is damaged; .*previous.pt, the save before it, is"
    ):
        state = read_state(run)
    assert state["epoch"] == before["epoch"] == 2 and state["within"]["step"] == 3
    with pytest.warns(Doubt, match="previous.pt"):
        resumed = pv.train(small_vae(seed=4), bits(), epochs=4, out=run, resume=True, **QUIET)
    assert same_state(whole.pair, resumed.pair)


def test_a_save_that_is_missing_is_replaced_as_well(run):
    (run / LAST).unlink()
    with pytest.warns(Doubt, match="last.pt does not exist"):
        assert len(pv.train(small_vae(), bits(), epochs=3, out=run, resume=True, **QUIET).history) == 3


def test_damaged_best_weights_are_taken_from_the_last_save(run):
    expected = pv.load_run(run)
    flip(run / BEST, place_of(run / BEST))
    with pytest.warns(Doubt, match="best.pt is not .*; its weights are taken from last.pt"):
        found = pv.load_run(run)
    assert same_state(found.pair, expected.pair) and found.best_epoch == expected.best_epoch


def test_a_damaged_history_costs_the_weights_nothing(run):
    expected = pv.load_run(run)
    (run / BEFORE).unlink()
    (run / LAST).write_bytes(b"")
    with pytest.warns(Doubt, match="the history of the run is lost"):
        found = pv.load_run(run)
    assert same_state(found.pair, expected.pair) and found.history == []


def test_where_all_is_damaged_it_is_said_in_one_line(run):
    for name in (LAST, BEFORE, BEST):
        (run / name).write_bytes(b"PK")
    for what in (read_state, read_best):
        with pytest.raises(DamagedError, match="is damaged$"):
            what(run)


def test_a_run_without_a_finished_epoch_says_so(run):
    (run / BEST).unlink()
    with pytest.raises(RunError, match="best.pt does not exist, since no epoch was finished; continue .* --resume"):
        pv.load_run(run)


def test_at_no_moment_of_a_save_is_there_no_last(run, monkeypatch):
    seen = []

    def replace(source, target, *_, original=files.os.replace):
        seen.append((run / LAST).exists() and files.load(run / LAST)["epoch"] >= 2)
        original(source, target)

    monkeypatch.setattr(files.os, "replace", replace)
    pv.train(small_vae(), bits(), epochs=4, out=run, resume=True, **QUIET)
    assert seen and all(seen)


def test_a_file_system_without_links_keeps_the_save_before_as_a_copy(run, monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr("os.link", refuse)
    before = (run / LAST).read_bytes()
    pv.train(small_vae(), bits(), epochs=4, out=run, resume=True, **QUIET)
    assert (run / BEFORE).read_bytes() == before and (run / LAST).read_bytes() != before


ODD = {
    "no_epoch": ("epoch", None),
    "no_pair": ("pair", None),
    "no_fields": ("fields", None),
    "no_history": ("history", None),
    "no_optimizer": ("optimizer", None),
    "no_generator": ("rng", None),
    "epoch_of_words": ("epoch", "three"),
    "epoch_below_zero": ("epoch", -1),
    "epoch_beyond_its_history": ("epoch", 10**9),
    "epoch_of_a_fraction": ("epoch", 1.5),
    "pair_of_numbers": ("pair", {"weights": 3}),
    "pair_of_a_list": ("pair", [1, 2]),
    "pair_of_nothing": ("pair", {}),
    "fields_of_words": ("fields", {"x": "wide"}),
    "fields_of_numbers": ("fields", {3: ([1], "float32")}),
    "fields_of_another_kind": ("fields", {"x": ([1, 4, 4], "float33")}),
    "history_of_words": ("history", ["one", "two", "three"]),
    "history_without_columns": ("history", [{"epoch": 1.0}] * 3),
    "optimizer_of_numbers": ("optimizer", 3),
    "optimizer_of_nothing": ("optimizer", {}),
    "optimizer_of_others": ("optimizer", {"state": {}, "param_groups": [{"lr": "fast", "params": [0]}]}),
    "generator_of_another_size": ("rng", torch.zeros(3, dtype=torch.uint8)),
    "generator_of_floats": ("order", torch.zeros(5056)),
    "facts_of_a_list": ("facts", [1]),
    "facts_of_nothing": ("facts", {}),
    "facts_of_words": ("facts", {"data_shape": "wide"}),
    "options_of_words": ("options", {"hidden": "wide"}),
    "options_unknown": ("options", {"widths": 3}),
    "model_of_a_number": ("model", 3),
    "model_unknown": ("model", "vea"),
    "identity_of_a_list": ("identity", [1]),
    "best_of_a_list": ("best", [1]),
    "best_of_nothing": ("best", {}),
    "best_of_words": ("best", {"epoch": "one", "elbo": 0.0, "pair": {}}),
    "within_of_words": ("within", {"step": "two"}),
    "within_beyond": ("within", {"step": 99, "losses": torch.zeros(99), "seconds": 0.0, "generators": {}}),
    "within_without": ("within", {"step": 1}),
    "means_of_words": ("means", {"x": "wide"}),
}


@pytest.mark.filterwarnings("ignore:.*the history of the run is lost")
@pytest.mark.parametrize("name, value", ODD.values(), ids=ODD)
def test_a_checkpoint_of_another_content_is_one_line(name, value, run, capsys):
    """Its checksum is right; a key is missing (None), or of another kind than a run writes."""
    for path in (run / LAST, run / BEST):
        state = files.load(path)
        if value is None:
            state.pop(name, None)
        else:
            state[name] = value
        torch.save(state, path)
    (run / BEFORE).unlink()
    refused = 0
    for what in (lambda: pv.train(small_vae(), bits(), epochs=4, out=run, resume=True, **QUIET), lambda: load(run)):
        try:
            what()
        except UserError as problem:
            assert "\n" not in str(problem)
            refused += 1
    assert refused


def load(run: Path) -> None:
    pv.sample(run, n=2)


# --- the other files of a run -------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "{", "[3]", '{"a": 1}', '[{"evaluator": "elbo"}]', "\x00" * 30, "[" * 100_000])
def test_damaged_results_are_set_aside(text, run):
    (run / EVALUATION).write_text(text)
    with pytest.warns(Doubt, match="evaluation.json is damaged .* is kept as evaluation.damaged.json"):
        pv.evaluate(run, bits(), progress=False)
    assert (run / "evaluation.damaged.json").read_text() == text
    assert [entry["evaluator"] for entry in read_results(run)] == ["elbo"]


def test_a_damaged_table_is_written_anew(run):
    good = (run / METRICS).read_text()
    (run / METRICS).write_bytes(b"\xff\x00 no table")
    assert len(pv.load_run(run).history) == 3
    pv.train(small_vae(), bits(), epochs=3, out=run, resume=True, **QUIET)
    assert (run / METRICS).read_text() == good


def test_what_a_killed_run_left_is_cleaned_up_by_the_next(run):
    (run / FIGURES).mkdir()
    leftovers = [".last.pt.abcd1234", ".metrics.csv.ab_d1234", f"{FIGURES}/.loss.png.abcd1234", ".lock"]
    others = [".notes.txt.abcd1234", ".last.pt.backup", "last.pt.abcd1234"]
    for name in (*leftovers, *others):
        (run / name).touch()
    pv.train(small_vae(), bits(), epochs=3, out=run, resume=True, **QUIET)
    assert not any((run / name).exists() for name in leftovers) and all((run / name).exists() for name in others)


def test_after_a_kill_before_the_first_save_a_new_run_just_starts(tmp_path):
    """And --resume does not send to a new run that sends to --resume."""
    for name in (LOCK, ".last.pt.abcd1234", CONFIG):
        (tmp_path / name).touch()
    with pytest.raises(RunError, match="nothing to resume: .* start the run without --resume"):
        RunFolder(tmp_path, resume=True)
    assert len(pv.train(small_vae(), bits(), epochs=1, out=tmp_path, **QUIET).history) == 1


def test_neither_way_sends_to_the_other(tmp_path):
    (tmp_path / CONFIG).write_text("model: {name: vae}\n")
    with pytest.raises(RunError) as new, RunFolder(tmp_path):
        pass
    with pytest.raises(RunError) as more:
        RunFolder(tmp_path, resume=True)
    assert "--resume" not in str(new.value) and "--overwrite" in str(new.value)
    assert "without --resume, and with --overwrite" in str(more.value)


def test_overwriting_deletes_only_what_a_run_wrote_and_through_no_link(run, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in ("loss.png", "holiday.png", "notes.txt"):
        (mine / name).write_text("mine")
    (run / EVALUATION).unlink(missing_ok=True)
    (run / EVALUATION).symlink_to(mine / "notes.txt")
    (run / FIGURES).symlink_to(mine)
    (run / "report.md").write_text("![loss](figures/loss.png) ![up](figures/..%2Fbest.png)")
    pv.train(small_vae(), bits(), epochs=1, out=run, overwrite=True, **QUIET)
    assert {path.name: path.read_text() for path in mine.iterdir()} == dict.fromkeys(
        ("loss.png", "holiday.png", "notes.txt"), "mine"
    )
    assert not (run / EVALUATION).is_symlink()


def test_overwriting_takes_nothing_away_before_there_is_something_else(run):
    before = {path.name: path.read_bytes() for path in run.iterdir()}

    def breaks(*_):
        raise KeyError

    with pytest.raises(KeyError):
        pv.train(small_vae(), bits(), epochs=2, out=run, overwrite=True, objective=breaks, **QUIET)
    assert before == {path.name: path.read_bytes() for path in run.iterdir()}


def test_a_folder_that_is_deleted_while_it_trains_is_made_again_whole(tmp_path, monkeypatch):
    always_saving(monkeypatch)
    folder = tmp_path / "run"

    def delete(row):
        if row["epoch"] == 2:
            shutil.rmtree(folder)

    trained = pv.train(small_vae(), bits(), epochs=3, out=folder, record=RECORD, on_epoch=delete, **QUIET)
    assert {path.name for path in folder.iterdir()} == {CONFIG, LAST, BEFORE, BEST, METRICS}
    assert same_state(pv.load_run(folder).pair, trained.pair)


def test_a_result_makes_no_folder(run, capsys):
    """Of a run whose folder is deleted while it is evaluated, nothing is left that looks like one."""

    class Deletes(pv.evaluators.ELBO):
        def __call__(self, *given, **named):
            shutil.rmtree(run)
            return super().__call__(*given, **named)

    with pytest.raises(RunError, match="cannot write .*: No such file"):
        pv.evaluate(run, bits(), Deletes(), progress=False)
    assert not run.exists()


def test_a_report_makes_no_folder(run, monkeypatch):
    found = pv.load_run(run)
    found.trained_on = pv.Dataset("bits", *(pv.Split({"x": bits()}),) * 3)
    shutil.rmtree(run)
    with pytest.raises(RunError, match="is not there any more"):
        pv.report(found)
    assert not run.exists()


def test_a_run_that_cannot_be_saved_leaves_no_folder(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RunError, match="No space left"):
        pv.train(small_vae(), bits(), epochs=1, out=tmp_path / "deep" / "run", record=RECORD, **QUIET)
    assert not list(tmp_path.iterdir())


def test_a_damaged_run_is_a_line_on_the_command_line(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flip(run / BEST, place_of(run / BEST))
    assert cli.main(f"sample {run} -n 2 --out samples.npz".split()) == 0
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("warning: ") and "taken from last.pt" in told[0] and told[1:] == ["wrote samples.npz"]
    assert json.loads(json.dumps(np.load("samples.npz")["z"].shape)) == [2, 2]


def test_a_full_disk_costs_a_run_that_is_to_be_replaced_nothing(run, monkeypatch):
    before = {path.name: path.read_bytes() for path in run.iterdir()}

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RunError, match="No space left .*what was saved before is kept"):
        pv.train(small_vae(), bits(), epochs=1, out=run, overwrite=True, **QUIET)
    assert before == {path.name: path.read_bytes() for path in run.iterdir()}


def test_the_state_of_a_run_that_is_replaced_is_not_kept_as_the_save_before(run):
    pv.train(small_vae(), bits(), epochs=1, out=run, overwrite=True, **QUIET)
    assert not (run / BEFORE).exists() and files.load(run / LAST)["epoch"] == 1


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_computed(run, monkeypatch):
    def refuse(self, wait=False):
        raise PermissionError(13, "Permission denied")

    def computed(*_, **__):
        raise AssertionError("it was computed")

    monkeypatch.setattr("pyro_vae.runs.lock.Lock.take", refuse)
    monkeypatch.setattr(pv.evaluators.ELBO, "__call__", computed)
    with pytest.raises(RunError, match="cannot write .*: Permission denied"):
        pv.evaluate(run, bits(), progress=False)
