"""Odd and hostile words and configs: exit status 2 and one line each, and no folder is left."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pyro_vae.command_line import main as cli

TRAIN = "train --hidden 4 --epochs 1 --quiet --out new"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A small run of a data set of one's own; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("runs")
    np.save(folder / "bits.npy", np.random.default_rng(0).integers(0, 2, (60, 6)))
    line = f"train --data {folder}/bits.npy --hidden 4 --epochs 1 --batch_size 16 --quiet --out {folder}/run"
    assert cli.main(line.split()) == 0
    return folder / "run"


def refused(capsys, line: str, words: str) -> None:
    capsys.readouterr()
    assert cli.main(line.split()) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("pyro-vae: ") and err.count("\n") == 1, err
    assert words in err and len(err) < 1000, err


LINES = {
    "n_of_20_digits": ("sample {run} -n 99999999999999999999", "--n needs a whole number of at most 63 bits, not"),
    "n_of_18_digits": ("sample {run} -n 100000000000000000", "samples would fill"),
    "n_of_12_digits": ("sample {run} -n 1e12", "samples would fill"),
    "n_to_reconstruct": ("reconstruct {run} -n 1e30", "--n needs a whole number of at most 63 bits"),
    "seed": ("sample {run} --seed 99999999999999999999999", "--seed needs a whole number of at most 63 bits"),
    "seed_of_training": (f"{TRAIN} --seed 1e40", "--seed needs a whole number of at most 63 bits"),
    "draws": ("export {run} --draws 1e15", "would fill"),
    "latent_dim": (f"{TRAIN} --latent_dim 1000000000000", "the parameters of model 'vae' would fill"),
    "latent_dim_that_would_fit_lazily": (f"{TRAIN} --latent_dim 500000000", "the parameters of model 'vae' would fill"),
    "hidden": ("train --hidden 1e12 --epochs 1 --out new", "the parameters of model 'vae' would fill"),
    "device": (f"{TRAIN} --device xpu", "unknown device 'xpu'; use auto, cpu or cuda"),
    "device_to_sample": ("sample {run} --device meta", "unknown device 'meta'"),
    "device_by_number": ("sample {run} --device 0", "unknown device '0'"),
    "nan_lr": (f"{TRAIN} --lr nan", "--lr needs a finite number, not 'nan'"),
    "nan_ema": (f"{TRAIN} --ema NaN", "--ema needs a finite number"),
    "infinite_beta": (f"{TRAIN} --beta inf", "--beta needs a finite number"),
    "nan_of_a_part": (f"{TRAIN} --likelihood gaussian --sigma nan", "needs a finite number"),
    "nan_of_an_objective": (f"{TRAIN} --objective renyi --alpha nan", "--alpha needs a finite number"),
    "nan_of_an_optimizer": (f"{TRAIN} --optimizer sgd --momentum nan", "--momentum needs a finite number"),
    "fraction": (f"{TRAIN} --epochs 1.5", "--epochs needs a whole number, not '1.5'"),
    "restarts": (f"{TRAIN} --restarts 1e12", "restarts must be at most"),
}


@pytest.mark.parametrize("line, words", LINES.values(), ids=LINES)
def test_an_odd_value_is_one_line(line, words, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    refused(capsys, line.format(run=trained), words)
    assert not list(tmp_path.iterdir())


ALIASES = "a0: &a0 [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
MERGES = "a0: &a0 {k: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{','.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12))

CONFIGS = {
    "aliases_of_aliases": (ALIASES, "holds more than 10,000 values"),
    "merges_of_merges": (MERGES, "holds more than 10,000 values"),
    "itself": ("training: &a [*a]", "holds more than 10,000 values"),
    "megabytes": ("a: " + "x" * 2**19, "larger than 262,144 bytes"),
    "deep": ("training: " + "[" * 20_000, "maximum recursion depth"),
    "null_key": ("null: 3", "has a key None that is no name"),
    "whole_key": ("3: 3", "has a key 3 that is no name"),
    "key_in_a_section": ("training: {1.5: 3}", "has a key 1.5 that is no name"),
    "key_of_options": ("training: {optimizer_options: {true: 3}}", "has a key True that is no name"),
    "impossible_date": ("training: {lr: 2024-13-45}", "month must be in 1..12"),
    "date": ("training: {lr: 2024-01-05}", "--lr needs a finite number, not datetime.date"),
    "fraction": ("training: {epochs: 1.5}", "--epochs needs a whole number, not 1.5"),
    "truth_for_a_number": ("training: {epochs: true}", "--epochs needs a whole number, not True"),
    "nan": ("training: {lr: .nan}", "--lr needs a finite number, not nan"),
    "infinity": ("training: {beta: -.inf}", "--beta needs a finite number"),
    "6000_digits": ("training: {epochs: " + "9" * 6000 + "}", "is not YAML: Exceeds the limit"),
    "100_digits": ("training: {epochs: " + "9" * 100 + "}", "--epochs needs a whole number of at most 63 bits"),
    "mapping_for_a_number": ("training: {lr: {a: 1}}", "--lr needs a finite number, not {'a': 1}"),
    "list_for_a_number": ("training: {lr: [1, 2]}", "--lr needs a finite number, not [1, 2]"),
    "null_for_a_number": ("training: {lr: null}", "--lr needs a finite number, not None"),
    "whole_name": ("model: {name: 3}", "unknown model '3'"),
    "list_name": ("data: {name: [1, 2]}", "unknown dataset"),
    "mapping_name": ("objective: {name: {a: 1}}", "unknown objective"),
    "section_of_a_word": ("model: vae\ndata: 3", "unknown dataset '3'"),
    "section_of_a_list": ("training: [1, 2]", "unknown setting 'training'"),
    "section_of_null": ("training: null", "unknown setting 'training'"),
    "two_documents": ("a: 1\n---\nb: 2", "expected a single document"),
    "objects": ("training: !!python/object/apply:os.system [touch hacked]", "could not determine a constructor"),
    "binary": ("training: {lr: !!binary '%%%'}", "--lr needs a finite number"),
    "bytes": (b"\xff\xfe\x00", "is not YAML"),
}


@pytest.mark.parametrize("text, words", CONFIGS.values(), ids=CONFIGS)
def test_an_odd_config_is_one_line(text, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    began = time.monotonic()
    refused(capsys, "train --config config.yaml --quiet --out new", words)
    assert time.monotonic() - began < 60, "a hang, not a speed"
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_a_pipe_for_a_config_does_not_hang(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("config.yaml")
    refused(capsys, f"{TRAIN} --config config.yaml", "cannot read config.yaml: it is a folder, a pipe or a device")
    Path("folder").mkdir()
    refused(capsys, f"{TRAIN} --config folder", "cannot read folder: it is a folder")


def test_a_run_of_pipes_does_not_hang(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    for name in ("last.pt", "best.pt", "config.yaml"):
        os.mkfifo(Path("run", name))
    for line in ("train --resume --out run --quiet", "sample run", "report run", "evaluate run"):
        refused(capsys, line, "run/")


def test_one_datum_has_no_standard_error_and_that_is_said(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert cli.main(f"evaluate {trained} --limit 1 --quiet".split()) == 0
    told = capsys.readouterr().err
    assert "nan" not in told and "(one datum)" in told and "one datum has no standard error\n" in told


def test_a_reader_that_has_gone_ends_a_list_quietly():
    script = f"{sys.executable} -m pyro_vae.command_line.main list | head -n 1"
    done = subprocess.run(script, shell=True, capture_output=True, text=True, timeout=60)
    assert done.stdout == "models:\n" and done.stderr == ""


def test_a_full_disk_behind_stdout_is_one_line():
    line = f"{sys.executable} -m pyro_vae.command_line.main list > /dev/full"
    done = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "No space left" in done.stderr


def test_streams_that_are_closed_are_no_error(tmp_path):
    line = f"{sys.executable} -m pyro_vae.command_line.main"
    for command in (f"{line} list >&-", f"{line} list nothing 2>&-", f"{line} train --epochs x >&- 2>&-"):
        done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=120, cwd=tmp_path)
        assert done.returncode == (2 if "2>" in command else 0) and "Traceback" not in done.stderr
