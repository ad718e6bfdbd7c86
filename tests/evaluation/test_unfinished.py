"""An evaluation that is interrupted and called again: the same figures, and nothing is done twice."""

import linecache
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from global_pairs import coins
from missing_pairs import Linear
from missing_pairs import data as with_gaps
from pairs import bits, small_vae
from sequence_pairs import Deep, sequences
from torch import nn

import pyro_vae as pv
from pyro_vae.errors import Doubt, RunError
from pyro_vae.evaluation import chunks, evaluate_each
from pyro_vae.evaluation.blocks import Block
from pyro_vae.evaluation.elbo import ELBO
from pyro_vae.evaluation.importance import Importance
from pyro_vae.evaluation.unfinished import Done

pytestmark = pytest.mark.filterwarnings("error::pyro_vae.errors.Doubt")

LENGTHS = [1 + number % 4 for number in range(230)]

CASES = {
    "elbo": (small_vae, lambda: bits(230), {}),
    "importance": (small_vae, lambda: bits(230), {}),
    "prior": (small_vae, lambda: bits(230), {}),
    "reconstruction": (small_vae, lambda: bits(230), {}),
    "gaps": (small_vae, lambda: bits(230), {"steps": 1, "draws": 1}),
    "ais": (small_vae, lambda: bits(230), {"distributions": 2, "leapfrog": 1, "chains": 5}),
    "conditional": (Linear, lambda: with_gaps(230), {"of": torch.arange(5) < 2}),
    "given globals": (lambda: coins()[0], lambda: coins(130)[1], {"evaluator": "importance", "global_draws": 3}),
    "sequences": (Deep, lambda: sequences(LENGTHS), {"evaluator": "importance"}),
}


class Stopped(BaseException):
    """As Ctrl-C raises it, between two blocks."""


@pytest.fixture
def stopping(monkeypatch):
    """Makes an evaluation stop once so many blocks are kept; gives the names of those that are kept."""

    def after(count: int) -> list[str]:
        kept, keep = [], Done.keep

        def counted(self, name, *arguments):
            keep(self, name, *arguments)
            kept.append(name)
            if len(kept) == count:
                raise Stopped

        monkeypatch.setattr(Done, "keep", counted)
        return kept

    return after


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setitem(chunks.CHUNK_BYTES, "cpu", 2**18)


def evaluate(case: str, **options) -> pv.Result:
    make, data, own = CASES[case]
    own = {"evaluator": case, "particles": 20, "progress": False, **own, **options}
    return pv.evaluate(make(), data(), **own)


def check_same(found: pv.Result, expected: pv.Result) -> None:
    for name, value in expected.estimate.per_datum.items():
        there = found.estimate.per_datum[name]
        assert there.dtype == value.dtype and torch.equal(there.nan_to_num(7), value.nan_to_num(7)), name
    entries = [result.entry() for result in (found, expected)]
    for entry in entries:
        entry.pop("seconds")
    assert entries[0] == entries[1]


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_an_interrupted_evaluation_goes_on_to_the_same_figures(case, blocks, stopping, small_chunks, tmp_path):
    whole = evaluate(case)
    kept = stopping(blocks)
    with pytest.raises(Stopped):
        evaluate(case, resume=tmp_path / "kept")
    files = [path.stem for path in (tmp_path / "kept").rglob("*.pt")]
    assert sorted(files) == sorted(kept) and len(files) == blocks
    check_same(evaluate(case, resume=tmp_path / "kept"), whole)
    again = set(kept[:blocks]) & set(kept[blocks:])
    assert len(again) <= 1, "the first block at most, where an engine is chosen for it"
    assert not (tmp_path / "kept").exists(), "all is done, so nothing is kept"


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evaluate("elbo")
    assert not list(tmp_path.iterdir())


def test_the_compiled_engine_runs_what_it_would_have_run(stopping, graphs, tmp_path):
    """Where the last, smaller block is all that is left, too."""
    whole = evaluate("importance", engine="compiled")
    stopping(2)
    with pytest.raises(Stopped):
        evaluate("importance", engine="compiled", resume=tmp_path / "kept")
    found = evaluate("importance", engine="compiled", resume=tmp_path / "kept")
    assert torch.equal(found.log_likelihood, whole.log_likelihood)
    assert found.entry()["engine"].startswith("compiled") and whole.entry()["engine"].startswith("compiled")


def test_several_evaluators_go_on_where_they_were(stopping, tmp_path):
    evaluators = {"elbo": ELBO(), "importance": Importance()}
    how = {"particles": 20, "progress": False, "resume": tmp_path / "kept"}
    kept = stopping(4)
    with pytest.raises(Stopped):
        list(evaluate_each(small_vae(), bits(230), evaluators, **how))
    assert len(list((tmp_path / "kept" / "elbo").glob("*.pt"))) == 3
    for name, result in zip(evaluators, evaluate_each(small_vae(), bits(230), evaluators, **how), strict=True):
        check_same(result, evaluate(name))
    assert len(kept) == 6 and not (tmp_path / "kept").exists()


def test_what_is_not_ours_stays(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "notes.txt").write_text("mine")
    evaluate("elbo", resume=tmp_path / "kept")
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["notes.txt"]


class Twice(nn.Module):
    """A pair with an attribute that is no parameter."""

    def __init__(self, times: float = 2.0):
        super().__init__()
        self.vae, self.times = small_vae(), times

    def model(self, x):
        self.vae.model(x)

    def guide(self, x):
        self.vae.guide(x)


OTHERS = {
    "particles was 20 and is 21": {"particles": 21},
    "n was 230 and is 229": {"limit": 229},
    "evaluator was .*engine=auto.* and is .*engine=eager": {"engine": "eager"},
    "the data differ": {"data": bits(230, seed=5)},
    "the weights differ": {"pair": small_vae(seed=1)},
    "pair was VAE and is Twice": {"pair": Twice()},
}


@pytest.mark.parametrize("line", OTHERS)
def test_blocks_of_another_evaluation_are_refused(line, stopping, tmp_path):
    stopping(1)
    how = {"pair": small_vae(), "data": bits(230), "evaluator": "importance", "particles": 20, "progress": False}
    with pytest.raises(Stopped):
        pv.evaluate(**how, resume=tmp_path)
    with pytest.raises(RunError, match=f"cannot go on with what .*importance keeps: .*{line}.*; evaluate as before"):
        pv.evaluate(**how | OTHERS[line], resume=tmp_path)


def test_a_setting_of_the_pair_that_is_no_parameter_counts(stopping, tmp_path):
    stopping(1)
    with pytest.raises(Stopped):
        pv.evaluate(Twice(), bits(230), progress=False, resume=tmp_path)
    with pytest.raises(RunError, match="the settings of the pair differ"):
        pv.evaluate(Twice(3.0), bits(230), progress=False, resume=tmp_path)


def test_the_programs_count(stopping, tmp_path):
    """Those of a script, where they were changed before the evaluation goes on."""
    script, x = tmp_path / "script.py", bits(230, (4,))
    source = """
import pyro, pyro.distributions as dist, torch

def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Bernoulli(logits=SLOPE * z.unsqueeze(-1).expand(x.shape)).to_event(1), obs=x)

def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.0, 1.0))
"""

    def evaluated(slope: str, **how) -> pv.Result:
        script.write_text(source.replace("SLOPE", slope))
        namespace = {}
        linecache.checkcache()
        exec(compile(script.read_text(), script, "exec"), namespace)
        return pv.evaluate(pv.as_pair(namespace["model"], namespace["guide"]), x, progress=False, **how)

    stopping(1)
    with pytest.raises(Stopped):
        evaluated("1.0", resume=tmp_path / "kept")
    with pytest.raises(RunError, match="the programs differ"):
        evaluated("10.0", resume=tmp_path / "kept")
    check_same(evaluated("1.0", resume=tmp_path / "kept"), evaluated("1.0"))


def test_another_seed_uses_nothing_that_is_kept(stopping, tmp_path):
    kept = stopping(1)
    with pytest.raises(Stopped):
        evaluate("importance", resume=tmp_path)
    other = evaluate("importance", resume=tmp_path, seed=4)
    check_same(other, evaluate("importance", seed=4))
    assert len(kept) == 4 and len(list(tmp_path.rglob("*.pt"))) == 1, "what the first seed kept is still there"


@pytest.mark.parametrize("harm", [lambda whole: whole[:200], lambda whole: b"", lambda whole: b"words"])
def test_a_damaged_block_is_evaluated_again(harm, stopping, tmp_path):
    stopping(2)
    with pytest.raises(Stopped):
        evaluate("importance", resume=tmp_path)
    path = next(tmp_path.rglob("*.pt"))
    path.write_bytes(harm(path.read_bytes()))
    with pytest.warns(Doubt, match=f"{path.name} is damaged, so what it kept is evaluated again"):
        found = evaluate("importance", resume=tmp_path)
    check_same(found, evaluate("importance"))


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "kept").write_text("")
    with pytest.raises(RunError, match="is a file; resume needs the name of a folder"):
        evaluate("elbo", resume=tmp_path / "kept")


SLOWLY = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
import torch
torch.set_num_threads(1)
from pairs import bits, small_vae
import pyro_vae as pv
from pyro_vae.evaluation import Block
from pyro_vae.evaluation.importance import Importance

weigh = Importance.weigh
Importance.weigh = lambda *arguments: time.sleep(0.2) or weigh(*arguments)
pv.evaluate(small_vae(), bits(1030), "importance", 20, progress=False, resume=sys.argv[1])
"""


@pytest.mark.parametrize("how", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGKILL])
def test_a_process_that_is_stopped_leaves_what_is_done(how, tmp_path):
    folder, environment = tmp_path / "kept", os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", SLOWLY, folder], stderr=subprocess.DEVNULL, env=environment
    ) as process:
        while len(done := list(folder.rglob("*.pt"))) < 2 and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(how)
    assert process.returncode != 0 and 2 <= len(done) < 11
    drawn = []
    narrow = Importance.narrow
    try:
        Importance.narrow = lambda self, block: drawn.append(block.name) or narrow(self, block)
        found = pv.evaluate(small_vae(), bits(1030), "importance", 20, progress=False, resume=folder)
    finally:
        Importance.narrow = narrow
    assert not {path.stem for path in done} & set(drawn)
    assert torch.equal(found.log_likelihood, pv.evaluate(small_vae(), bits(1030), "importance", 20).log_likelihood)


def test_names_of_blocks_are_their_own():
    pair, split = small_vae(), pv.Split({"x": bits(30)})
    names = {Block(pair, split, slice(0, 30), *key).name for key in [(0, 1), (0, 11), (0, 1, 1), (1, 0), (1, 12)]}
    assert len(names) == 5
