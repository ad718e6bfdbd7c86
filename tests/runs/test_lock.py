"""One run at a time in a folder: the lock dies with its process, and nothing that was there is touched."""

import errno
import os
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
from pairs import bits, small_vae

import pyro_vae as pv
from pyro_vae.command_line import main as cli
from pyro_vae.errors import Doubt, RunError
from pyro_vae.runs import lock as locks
from pyro_vae.runs.folder import LOCK, keep_result, read_results
from pyro_vae.runs.lock import Lock

QUIET = {"epochs": 1, "batch_size": 16, "progress": False}


@contextmanager
def held_by_another(path: Path):
    """A process of its own holds the lock; gives its number."""
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        Lock(path).take()
        os.write(tell, b"taken")
        signal.pause()
    os.read(told, 5)
    try:
        yield child
    finally:
        kill(child)


def kill(child: int) -> None:
    try:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    except (ProcessLookupError, ChildProcessError):
        pass


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != LOCK}


def test_a_lock_dies_with_its_process_and_its_file_is_taken_over(tmp_path):
    lock = Lock(tmp_path / LOCK)
    with held_by_another(lock.path) as child:
        assert not lock.take()
        kill(child)
        assert lock.path.exists() and lock.take()
    lock.release()
    assert not lock.path.exists()


def test_a_lock_whose_file_is_gone_is_lost_and_no_one_elses_is_removed(tmp_path):
    lock, other = Lock(tmp_path / LOCK), Lock(tmp_path / LOCK)
    assert lock.take() and not lock.is_lost()
    lock.path.unlink()
    assert lock.is_lost() and other.take()
    lock.release()
    assert other.path.exists() and not other.is_lost()
    other.release()


def test_a_second_run_in_a_folder_is_refused_and_touches_nothing(tmp_path):
    new, old = tmp_path / "new", tmp_path / "old"
    pv.train(small_vae(), bits(), out=old, **QUIET)
    new.mkdir()
    for folder, how in ((new, {}), (old, {"resume": True}), (old, {"overwrite": True})):
        with held_by_another(folder / LOCK):
            before = contents(folder)
            with pytest.raises(RunError, match=f"^{folder} is being written by another run; wait for it, or choose"):
                pv.train(small_vae(), bits(), out=folder, **QUIET, **how)
            assert contents(folder) == before
        assert len(pv.train(small_vae(), bits(), out=folder, **QUIET, **how).history) == 1, "once it is killed"
        assert not (folder / LOCK).exists()


def test_the_lock_is_taken_before_anything_is_done(tmp_path, capsys):
    with held_by_another(tmp_path / LOCK):
        assert cli.main(f"train --data {tmp_path}/nothing.npy --out {tmp_path} --quiet".split()) == 2
    assert capsys.readouterr().err.count("is being written by another run") == 1


def test_of_several_processes_the_first_has_the_lock(tmp_path, monkeypatch):
    from pyro_vae.runs.folder import RunFolder

    with RunFolder(tmp_path / "run"):
        monkeypatch.setenv("RANK", "1")
        with held_by_another(tmp_path / "other" if (tmp_path / "other").exists() else tmp_path / "run" / "beside"):
            with RunFolder(tmp_path / "run") as second:
                assert second.path.exists() and second.lock.handle is None
        (tmp_path / "run" / "beside").unlink()
    monkeypatch.delenv("RANK")
    assert not (tmp_path / "run").exists(), "nothing was saved"


def test_a_file_system_without_locks_is_told_of(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(locks.fcntl, "lockf", refuse)
    with pytest.warns(Doubt, match="file system without locks, so nothing keeps a second run out"):
        pv.train(small_vae(), bits(), out=tmp_path / "run", **QUIET)
    assert not (tmp_path / "run" / LOCK).exists()


def test_results_of_two_processes_are_both_kept(tmp_path):
    """Each reads the file and writes it with its own entry; without a lock one of two at once is lost."""
    children = []
    for number in range(4):
        child = os.fork()
        if child == 0:
            try:
                for n in range(10):
                    keep_result(tmp_path, entry(n, str(number)), {})
                os._exit(0)
            except BaseException:
                os._exit(1)
        children.append(child)
    assert all(os.waitpid(child, 0)[1] == 0 for child in children)
    assert len(read_results(tmp_path)) == 40
    assert [path.name for path in tmp_path.iterdir()] == ["evaluation.json"]


def entry(n: int, evaluator: str) -> dict:
    return {"evaluator": evaluator, "data": "bits", "split": "test", "n": n, "particles": 1, "seconds": 0.1}
