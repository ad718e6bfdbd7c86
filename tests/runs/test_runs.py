"""Checkpoints and run folders: whole or not there, without code, and read back as they were."""

import errno
import os
import pickle
import stat
import threading
from pathlib import Path

import pytest
import torch
from pairs import SHAPE, bits, same_state, small_vae

import pyro_vae as pv
from pyro_vae import files, runs
from pyro_vae.errors import ContractError, DataError, RunError, UnknownName
from pyro_vae.runs.config import read_config
from pyro_vae.runs.folder import BEST, CONFIG, LAST, new_folder

STATE = {"pair": {"w": torch.arange(3.0)}, "epoch": 2, "history": [{"loss": 1.5}], "none": None, "name": "x"}
FACTS = {"data_shape": SHAPE}


# --- files --------------------------------------------------------------------------------------------------


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    files.save(tmp_path / "deep" / "last.pt", STATE)
    loaded = files.load(tmp_path / "deep" / "last.pt")
    assert torch.equal(loaded["pair"].pop("w"), STATE["pair"]["w"])
    assert loaded == {**STATE, "pair": {}}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["last.pt"]


def test_files_can_be_read_by_others(tmp_path):
    files.write_text(tmp_path / "a.txt", "é\n")
    assert (tmp_path / "a.txt").read_bytes() == "é\n".encode()
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o644


@pytest.mark.parametrize(
    "failure", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), RuntimeError("unexpected pos 64")]
)
def test_a_write_that_fails_half_way_keeps_the_old_file_and_leaves_no_other(failure, tmp_path):
    path = tmp_path / "last.pt"
    files.write_text(path, "old")

    def write(file):
        file.write(b"half")
        raise failure

    with pytest.raises(RunError, match=f"cannot write {path}: .*(No space left|disk may be full)"):
        files.write_whole(path, write)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "last.pt"
    files.write_text(path, "old")

    def interrupt(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_whole(path, interrupt)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_an_error_of_the_user(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        files.write_text(tmp_path / "file" / "a.txt", "")


def test_nothing_is_said_to_be_kept_where_nothing_was(tmp_path):
    def fail(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "a.txt"
    with pytest.raises(RunError, match=f"^cannot write {path}: No space left on device$"):
        files.write_whole(path, fail)
    files.write_text(path, "old")
    with pytest.raises(RunError, match="No space left on device; what was saved before is kept$"):
        files.write_whole(path, fail)


def test_a_pipe_is_written_into(tmp_path):
    pipe, received = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: received.append(pipe.read_text()), daemon=True)
    reader.start()
    files.write_text(pipe, "entries\n")
    reader.join(timeout=10)
    assert received == ["entries\n"] and stat.S_ISFIFO(pipe.stat().st_mode)
    assert list(tmp_path.iterdir()) == [pipe]


def device(path: Path, minor: int) -> Path:
    """A character device of our own: minor number 3 is that of the null device, 7 that of the full one."""
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, minor))
        path.open("ab").close()
    except OSError:
        pytest.skip("devices cannot be made here")
    return path


def test_a_device_is_written_into_and_stays_one(tmp_path):
    null = device(tmp_path / "null", 3)
    files.write_text(null, "entries\n")
    assert stat.S_ISCHR(null.stat().st_mode)


def test_a_full_device_is_one_line_and_stays_one(tmp_path):
    full = device(tmp_path / "full", 7)
    with pytest.raises(RunError, match=f"^cannot write {full}: No space left on device$"):
        files.write_text(full, "entries\n")
    assert stat.S_ISCHR(full.stat().st_mode) and list(tmp_path.iterdir()) == [full]


def test_a_folder_is_not_replaced(tmp_path):
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(RunError, match="Is a directory$"):
        files.write_text(tmp_path / "a.txt", "")


@pytest.mark.parametrize("before", ["old", None])
def test_a_link_is_followed_and_stays_one(before, tmp_path):
    target, link = tmp_path / "far" / "target.txt", tmp_path / "link.txt"
    link.symlink_to(Path("far", "target.txt"))
    if before:
        files.write_text(target, before)
    files.write_text(link, "new")
    assert link.is_symlink() and not target.is_symlink() and target.read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


def test_a_link_to_a_pipe_is_followed_too(tmp_path):
    pipe, link, received = tmp_path / "pipe", tmp_path / "link", []
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    reader = threading.Thread(target=lambda: received.append(pipe.read_text()), daemon=True)
    reader.start()
    files.write_text(link, "entries\n")
    reader.join(timeout=10)
    assert received == ["entries\n"] and link.is_symlink() and stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files have no names here")
def test_what_a_program_holds_open_is_added_to(tmp_path):
    """As where a shell says `--json /dev/stdout >> log`."""
    log = tmp_path / "log"
    with log.open("w") as held:
        held.write("before\n")
        held.flush()
        files.write_text(Path(f"/proc/self/fd/{held.fileno()}"), "entries\n")
        assert os.path.samestat(os.fstat(held.fileno()), log.stat()), "the file is the one that is held"
    assert log.read_text() == "before\nentries\n" and list(tmp_path.iterdir()) == [log]


class Malicious:
    def __reduce__(self):
        return os.mkdir, (os.environ["PYRO_VAE_TEST_TARGET"],)


@pytest.mark.parametrize(
    "save", [lambda state, path: torch.save(state, path), lambda s, p: p.write_bytes(pickle.dumps(s, 2))]
)
def test_code_in_a_checkpoint_is_not_run(save, tmp_path, monkeypatch):
    target = tmp_path / "run"
    monkeypatch.setenv("PYRO_VAE_TEST_TARGET", str(target))
    save({"pair": Malicious()}, tmp_path / BEST)
    with pytest.raises(RunError, match="not a checkpoint"):
        files.load(tmp_path / BEST)
    assert not target.exists()


def test_our_checkpoints_need_no_code(tmp_path):
    """What training writes loads with `weights_only`: tensors and plain values."""
    pv.train(small_vae(), bits(), epochs=1, batch_size=16, out=tmp_path, ema=0.5, progress=False)
    for name in (LAST, BEST):
        assert torch.load(tmp_path / name, weights_only=True)["fields"]


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 half a zip"])
def test_a_damaged_checkpoint_is_named(content, tmp_path):
    (tmp_path / LAST).write_bytes(content)
    with pytest.raises(RunError, match=f"{tmp_path / LAST} is not a checkpoint of pyro_vae, or is damaged"):
        files.load(tmp_path / LAST)


def test_a_missing_checkpoint_asks_whether_this_is_a_run_folder(tmp_path):
    with pytest.raises(RunError, match="does not exist; is .* a run folder"):
        files.load(tmp_path / LAST)


# --- run folders --------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    record = {
        "model": "vae",
        "options": {"hidden": (8,)},
        "facts": FACTS,
        "config": {"model": {"name": "vae"}, "training": {"lr": 0.001}},
    }
    pair = small_vae()
    pv.train(pair, bits(), epochs=2, batch_size=16, out=tmp_path, record=record, progress=False)
    return tmp_path


def test_a_run_is_read_back_with_its_best_weights(folder):
    run = pv.load_run(str(folder))
    assert type(run.pair) is pv.VAE and not run.pair.training
    best = files.load(folder / BEST)["pair"]
    assert all(torch.equal(best[name], value) for name, value in run.pair.state_dict().items())
    assert run.config == {"model": {"name": "vae"}, "training": {"lr": 0.001}} and len(run.history) == 2
    assert {name: (list(shape), dtype) for name, (shape, dtype) in run.fields.items()} == {"x": ([*SHAPE], "float32")}


def test_a_run_is_the_same_thing_trained_and_read(tmp_path):
    record = {"model": "vae", "options": {"hidden": (8,)}, "facts": FACTS, "config": {"model": {"name": "vae"}}}
    trained = pv.train(
        small_vae(), bits(), epochs=3, batch_size=16, lr=0.1, out=tmp_path, record=record, progress=False
    )
    read = pv.load_run(tmp_path)
    assert type(trained) is type(read) is pv.Run
    for name in ("history", "best_epoch", "fields", "config", "out"):
        assert getattr(trained, name) == getattr(read, name), name
    assert same_state(trained.pair, read.pair) and trained.engine == "eager" and read.engine is None


def test_weights_can_be_read_into_a_pair_of_ones_own(folder):
    mine = small_vae(seed=5)
    assert pv.load_run(folder, pair=mine).pair is mine and same_state(mine, pv.load_run(folder).pair)


def test_the_run_of_another_model_is_refused(folder):
    with pytest.raises(RunError, match="is the run of another model than VAE: .*size mismatch"):
        pv.load_run(folder, pair=small_vae(latent_dim=5))
    with pytest.raises(RunError, match="is the run of another model than Linear"):
        pv.load_run(folder, pair=torch.nn.Linear(1, 1))


def test_a_folder_without_settings_says_so(folder):
    (folder / CONFIG).unlink()
    assert pv.load_run(folder).config == {}
    with pytest.raises(RunError, match="has no config.yaml"):
        _ = pv.load_run(folder).data


@pytest.mark.parametrize("text", ["", "lr: [", "- a\n- b\n", "\x00"])
def test_settings_that_are_not_settings_are_named(text, folder):
    (folder / CONFIG).write_text(text)
    with pytest.raises(RunError, match="config.yaml"):
        read_config(folder)


@pytest.mark.parametrize("missing", [LAST, BEST])
def test_a_run_that_lacks_a_checkpoint_is_no_run(missing, folder):
    (folder / missing).unlink()
    with pytest.raises(RunError, match=f"{missing} does not exist"):
        pv.load_run(folder)


def test_a_model_is_built_from_facts_and_options_and_a_seed_alone():
    before = torch.get_rng_state()
    one, two, other = (runs.build_model("vae", FACTS, {"hidden": [4]}, seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert same_state(one, two) and not same_state(one, other)
    assert runs.build_model("vae", FACTS | {"unasked": 3}, {}).encoder.out_features == 512


def test_a_model_that_cannot_be_built_says_why():
    with pytest.raises(UnknownName, match="known: vae"):
        runs.build_model("vea", FACTS, {})
    with pytest.raises(DataError, match="needs data_shape, so data with a field x; these data offer num_labels"):
        runs.build_model("vae", {"num_labels": 10}, {})
    with pytest.raises(ContractError, match="latent_dim must be at least 1"):
        runs.build_model("vae", FACTS, {"latent_dim": 0})


def test_a_new_folder_is_the_first_that_is_free(tmp_path, monkeypatch):
    """It is there at once, for nobody else to take, and gone where nothing came into it."""
    monkeypatch.chdir(tmp_path)
    with new_folder("vae-digits") as first, new_folder("vae-digits") as second:
        assert str(first) == os.path.join("runs", "vae-digits-1") and second.name == "vae-digits-2"
        (second / "last.pt").touch()
    assert not first.exists() and second.exists()
    with new_folder("vae-digits") as first:
        assert first.name == "vae-digits-1"
