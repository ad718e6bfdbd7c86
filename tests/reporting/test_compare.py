"""Runs compared on the same data: differences against closed forms, what is decided, and what is refused."""

import inspect
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from global_pairs import coins
from matplotlib.image import imread
from pairs import Clusters, bits, counts, small_vae
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.command_line import main as cli
from pyro_vae.command_line.options import options_of
from pyro_vae.errors import UserError
from pyro_vae.evaluation import Estimate, Evaluator
from pyro_vae.evaluation.importance import Importance
from pyro_vae.evaluation.unfinished import Done
from pyro_vae.training import by_name


def compare(runs, evaluator: Any = "elbo", *arguments, **options) -> pv.Comparison:
    return pv.compare(runs, evaluator, *arguments, **options)


class Normal(nn.Module):
    """A user's pair without a latent: x ~ N(mean, 1), so that every figure is log p(x) itself."""

    def __init__(self, mean: float):
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(mean, dtype=torch.float64))

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(self.mean, 1.0), obs=x)

    def guide(self, x):
        pass


def normal_data(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Stated(Evaluator):
    """An evaluator that gives each datum x[0], states an error of x[1], and certifies it where x[2] is 1."""

    def of_block(self, block, particles, progress):
        x = block.batch()["x"].flatten(1) + block.pair.shift
        return {"log_likelihood": x[:, 0], "standard_error": x[:, 1], "certified": x[:, 2] > 0.5}


class Shifted(nn.Module):
    """A pair whose figures under `Stated` are the data's, shifted."""

    def __init__(self, *shift: float):
        super().__init__()
        self.register_buffer("shift", torch.tensor(shift, dtype=torch.float64))

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(0.0, 1.0).expand(x.shape[1:]).to_event(1), obs=x)

    def guide(self, x):
        pass


def figures(n: int = 100, uncertified: int = 0, error: float = 0.0) -> Tensor:
    x = torch.zeros(n, 3, dtype=torch.float64)
    x[:, 1], x[uncertified:, 2] = error, 1.0
    return x


# --- differences and their errors ---------------------------------------------------------------------------


def test_the_difference_of_two_densities_is_that_in_closed_form():
    """log N(x; 0, 1) - log N(x; m, 1) = m²/2 - m x: mean m²/2 and standard deviation m over N(0, 1)."""
    x, m = normal_data(2000), 0.2
    found = compare({"true": Normal(0.0), "off": Normal(m)}, data=x, progress=False)
    difference = found.between("off", "true")
    assert torch.allclose(difference.per_datum, m * m / 2 - m * x) and found.best == "true"
    assert difference.standard_error == pytest.approx(m / math.sqrt(2000), rel=0.05)
    assert difference.mean == pytest.approx((m * m / 2 - m * x).mean().item()) and difference.decided
    unpaired = math.hypot(*(result.standard_error for result in found.results.values()))
    assert difference.standard_error < unpaired / 4, "pairing is what decides it"
    assert "lower bounds" not in str(found.warnings), "these figures are exact"


def test_two_equal_models_are_seldom_decided():
    """N(-m, 1) and N(m, 1) are equally far from N(0, 1): two standard errors are exceeded in 4.6% of all data sets."""
    pairs = {"left": Normal(-0.3), "right": Normal(0.3)}
    decided = [compare(pairs, data=normal_data(50, seed), progress=False).differences[0].decided for seed in range(30)]
    assert sum(decided) <= 5, "the chance of more than 5 of 30 is below 0.005"


def test_the_figures_are_those_of_evaluate():
    pairs, x = {"a": small_vae(1), "b": small_vae(2)}, bits(130)
    found = compare(pairs, "importance", 20, data=x, seed=3, progress=False)
    for name, pair in pairs.items():
        alone = pv.evaluate(pair, x, "importance", 20, seed=3, progress=False)
        assert torch.equal(found.results[name].log_likelihood, alone.log_likelihood)
    best, other = found.results.values()
    (difference,) = found.differences
    values = (best.log_likelihood - other.log_likelihood).numpy()
    assert difference.mean == pytest.approx(values.mean()) and difference.mean > 0
    assert difference.standard_error == pytest.approx(values.std(ddof=1) / math.sqrt(130))
    errors = [result.monte_carlo_error.square().sum().sqrt().item() / 130 for result in (best, other)]
    assert difference.stated_errors == pytest.approx(errors)
    assert any("lower bounds" in warning for warning in found.warnings)


def test_a_table_is_ordered_by_the_mean():
    pairs = {f"at {mean}": Normal(mean) for mean in (0.5, 0.0, 1.0, 0.25)}
    found = compare(pairs, data=normal_data(400), progress=False)
    assert (
        list(found.results)
        == ["at 0.0", "at 0.25", "at 0.5", "at 1.0"]
        == [line.split("  ")[0] for line in found.lines[1:5]]
    )
    assert len(found.differences) == 6 and all(difference.mean > 0 for difference in found.differences)
    assert "verdict" in found.lines[0] and "the highest" in found.lines[1] and found.lines[4].endswith("decided")
    assert "at 0.25 over at 0.5: " in str(found) and list(found.behind) == ["at 0.25", "at 0.5", "at 1.0"]
    with pytest.raises(KeyError, match="no run 'at 2'; there are at 0.0"):
        found.between("at 0.0", "at 2")


# --- what is decided ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift, error, decided", [(0.11, 0.0, True), (0.11, 1.0, False), (0.3, 1.0, True)])
def test_a_difference_must_exceed_what_is_stated(shift, error, decided):
    """The differences are all the same, so their standard error is 0; the stated errors of each mean are error/10."""
    pairs = {"low": Shifted(0.0, 0.0, 0.0), "high": Shifted(shift, 0.0, 0.0)}
    found = compare(pairs, Stated(), data=figures(error=error), progress=False)
    (difference,) = found.differences
    assert difference.decided == decided and difference.stated_errors == pytest.approx((error / 10, error / 10))
    assert difference.mean == pytest.approx(shift) and difference.better == "high"
    assert decided or "the difference of 0.110 is within 0.200" in str(difference)


def test_two_standard_errors_are_needed():
    x = figures()
    x[:50, 0] = 1.0
    for low, decided in [(-0.2, True), (-0.05, False)]:
        noisy, rest = small_difference(x, low)
        (difference,) = compare({"noisy": noisy, "rest": rest}, Stated(), data=x, progress=False).differences
        assert difference.decided == decided
        assert difference.standard_error == pytest.approx(0.5 / math.sqrt(99), rel=1e-6)


def small_difference(x: Tensor, low: float) -> tuple[nn.Module, nn.Module]:
    """Two pairs whose figures differ by x[0] - 1/2 - low, with mean -low."""

    class Noisy(Shifted):
        @property
        def shift(self) -> Tensor:
            return torch.tensor([-0.5 - low, 0.0, 0.0], dtype=torch.float64)

    class Flat(Shifted):
        @property
        def shift(self) -> Tensor:
            values = torch.zeros_like(x)
            values[:, 0] = -x[:, 0]
            return values

    bare = [kind.__new__(kind) for kind in (Noisy, Flat)]
    for pair in bare:
        nn.Module.__init__(pair)
    return tuple(bare)


@pytest.mark.parametrize("uncertified, decided", [(0, True), (5, True), (6, False)])
def test_at_most_a_twentieth_may_be_uncertified(uncertified, decided):
    pairs = {"low": Shifted(0.0, 0.0, 0.0), "high": Shifted(1.0, 0.0, 1.0)}
    (difference,) = compare(pairs, Stated(), data=figures(100, uncertified), progress=False).differences
    assert difference.decided == decided
    assert decided or difference.why == ("6.0% of the data of low are not certified, and at most 5% may be",)


def test_what_has_no_error_is_not_decided():
    pairs = {"low": Shifted(0.0, 0.0, 0.0), "high": Shifted(1.0, 0.0, 0.0)}
    (one,) = compare(pairs, Stated(), data=figures(), limit=1, progress=False).differences
    assert one.why == ("one datum has no standard error",) and math.isnan(one.standard_error)
    without = {"low": Shifted(0.0, math.inf, 0.0), "high": Shifted(1.0, math.nan, 0.0)}
    (unknown,) = compare(without, Stated(), data=figures(), progress=False).differences
    assert unknown.why == ("the error of the mean of high is not known", "the error of the mean of low is not known")
    x = figures()
    x[3, 0] = -math.inf
    (infinite,) = [
        pv.Comparison({name: with_headline(result, x[:, 0]) for name, result in found.results.items()}).differences[0]
        for found in [compare(pairs, Stated(), data=figures(), progress=False)]
    ]
    assert infinite.why == ("the figures of 1 of the data are not finite",)
    assert json.loads(json.dumps(infinite.entry(True)))["per_datum"][3] is None


def with_headline(result: pv.Result, values: Tensor) -> pv.Result:
    return replace(
        result, estimate=replace(result.estimate, per_datum=result.estimate.per_datum | {"log_likelihood": values})
    )


def test_latents_that_all_data_share_leave_nothing_decided():
    pair, data = coins()
    other = coins()[0]
    with torch.no_grad():
        next(other.parameters()).mul_(3)
    found = compare({"a": pair, "b": other}, "importance", 5, data=data, global_draws=4, progress=False)
    (difference,) = found.differences
    assert found.results["a"].quantity == "log_predictive" and not difference.decided
    assert "the figures are given 4 draws of " in difference.why[0] and "all data share" in difference.why[0]


# --- runs and their folders ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """Runs `a` and `b`; `seed`, of another seed; `static` and `flat`, of other data; `loss`; and two of data
    that are divided by the seed."""
    folder = tmp_path_factory.mktemp("runs")
    generator = np.random.default_rng(0)
    np.savez(
        folder / "split.npz", **{f"x_{part}": generator.random((130, 6), "f4") for part in ("train", "valid", "test")}
    )
    np.savez(
        folder / "flat.npz", **{f"x_{part}": generator.random((40, 9), "f4") for part in ("train", "valid", "test")}
    )
    np.save(folder / "whole.npy", generator.random((200, 6), "f4"))
    runs = {
        "a": {},
        "b": {"model_options": {"hidden": (4,)}, "lr": 0.1},
        "seed": {"seed": 1},
        "static": {"data_options": {"binarize": "static"}},
        "flat": {"data": folder / "flat.npz"},
        "loss": {"model_options": {"hidden": (4,), "posterior": "delta"}},
        "whole": {"data": folder / "whole.npy"},
        "whole_seed": {"data": folder / "whole.npy", "seed": 1},
    }
    how = {
        "epochs": 1,
        "batch_size": 20,
        "engine": "eager",
        "device": "cpu",
        "progress": False,
        "model_options": {"hidden": (4,)},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(by_name, "write_report", lambda *_: None)
        for name, own in runs.items():
            pv.train("vae", **{"data": folder / "split.npz", **how, **own}, out=folder / name)
    return folder


def refused(runs, **options) -> str:
    with pytest.raises(UserError) as problem:
        compare(runs, progress=False, **options)
    line = str(problem.value)
    assert "\n" not in line
    return line


def test_both_doors_give_the_same(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = {path: path.read_bytes() for path in folders.rglob("*") if path.is_file()}
    found = compare(
        [folders / "a", folders / "b"], "importance", 30, 50, json="python.json", out="p.png", progress=False
    )
    line = f"compare {folders / 'a'} {folders / 'b'} --with importance --particles 30 --limit 50 --quiet"
    assert cli.main(f"{line} --json typed.json".split()) == 0
    told = capsys.readouterr()
    mine, typed = (without_seconds(json.loads(Path(f"{name}.json").read_text())) for name in ("python", "typed"))
    assert mine == typed == without_seconds(json.loads(json.dumps(found.entry(per_datum=True))))
    assert told.out == "" and all(line in told.err for line in found.lines) and "wrote comparison.png" in told.err
    assert Path("p.png").read_bytes() == Path("comparison.png").read_bytes() and imread("p.png").ndim == 3
    assert cli.main(f"{line} --json -".split()) == 0
    assert without_seconds(json.loads(capsys.readouterr().out)) == typed
    assert before == {path: path.read_bytes() for path in folders.rglob("*") if path.is_file()}, "runs stay as they are"
    one, two = (run["per_datum"]["log_likelihood"] for run in typed["runs"])
    assert typed["differences"][0]["per_datum"] == pytest.approx([x - y for x, y in zip(one, two, strict=True)])


def without_seconds(entry: dict) -> dict:
    for run in entry["runs"]:
        run.pop("seconds")
    return entry


def test_the_command_has_the_options_of_the_function(capsys):
    with pytest.raises(SystemExit):
        cli.main("compare --with importance --help".split())
    shown = " ".join(capsys.readouterr().out.split())
    parameters = inspect.signature(pv.compare).parameters
    for option in options_of(pv.compare, ["runs", "evaluator", "progress"]):
        assert f"--{option.name}" in shown
    assert parameters.keys() - {"runs", "evaluator", "progress", "options"} <= {o.name for o in options_of(pv.compare)}
    assert (
        f"--with NAME the evaluator, one that gives bounds on log p(x) (default: {parameters['evaluator'].default})"
        in shown
    )
    assert "options of importance" in shown


def test_seeds_that_hold_out_the_same_data_compare_on_the_draws_of_the_first(folders):
    runs = [folders / name for name in ("a", "seed")]
    assert not torch.equal(*(pv.load_run(run).data.test["x"] for run in runs))
    found = compare(runs, progress=False)
    own = pv.load_run(runs[0]).data
    for folder in runs:
        alone = pv.evaluate(pv.load_run(folder).pair, own, progress=False)
        assert torch.equal(found.results[folder.name].elbo, alone.elbo)


REFUSED = {
    "compare takes two runs or more, not 1": ["a"],
    "the run a is given twice": ["a", "b", "../{folder}/a"],
    "nix/best.pt does not exist; is .*nix a run folder": ["a", "nix"],
    "a was trained on x of shape \\[6\\] and flat on \\[9\\]": ["a", "flat"],
    "binarize is dynamic in a and static in static; --allow_unequal": ["a", "static"],
    "the test data of whole are not those of whole_seed, which may have been trained on some of them \\(seed 0 and 1": [
        "whole",
        "whole_seed",
    ],
    "loss has no likelihood to compare, only a loss \\(these figures are a loss, .*'z'.*\\); leave it out": [
        "a",
        "loss",
    ],
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_cannot_be_compared_is_refused_in_one_line(line, folders):
    runs = [folders / name.format(folder=folders.name) for name in REFUSED[line]]
    assert re.search(line, refused(runs))


def test_a_loss_and_what_no_datum_has_are_refused_always(folders):
    runs = [folders / "a", folders / "loss"]
    assert "only a loss" in refused(runs, allow_unequal=True)
    assert "no datum is the same for both" in refused([folders / "a", folders / "flat"], allow_unequal=True)


def test_what_is_unequal_may_be_allowed_and_is_said(folders):
    runs = [folders / "a", folders / "static"]
    found = compare(runs, particles=[1, 3], allow_unequal=True, progress=False)
    assert found.unequal == (
        "particles are 1 for a and 3 for static",
        "binarize is dynamic in a and static in static",
    )
    assert [f"unequal: {line}" for line in found.unequal] == found.warnings[:2]
    assert {name: result.particles for name, result in found.results.items()} == {"a": 1, "static": 3}
    whole = compare([folders / "whole", folders / "whole_seed"], allow_unequal=True, progress=False)
    assert "may have been trained on some of them" in whole.warnings[0] and whole.entry()["unequal"]


def test_data_that_are_given_are_the_same_for_all(folders):
    """Whatever each run was trained on, and by which seed."""
    x = torch.rand(40, 6).round()
    found = compare([folders / "a", folders / "seed"], data=x, progress=False)
    assert found.results["a"].n == 40
    file = compare([folders / "a", folders / "seed"], data=folders / "split.npz", split="valid", progress=False)
    own = pv.load_run(folders / "a").data.valid
    assert torch.equal(file.results["a"].elbo, pv.evaluate(pv.load_run(folders / "a").pair, own, progress=False).elbo)


def test_bad_options_are_one_line(folders, tmp_path):
    two = [folders / "a", folders / "b"]
    assert "particles are one number for all runs, or one for each of 2, not 3" in refused(two, particles=[1, 2, 3])
    assert "particles must be at least 1, not 0" in refused(two, particles=0)
    assert "limit must be at least 1, not 0" in refused(two, limit=0)
    assert "reconstruction gives reconstruction_nll, which is no likelihood" in refused(two, evaluator="reconstruction")
    assert "the name must end in .png" in refused(two, out="picture.txt")
    assert "unknown evaluator 'elbow'; known: elbo" in refused(two, evaluator="elbow")
    assert "no split 'tset'" in refused(two, split="tset")
    assert "unknown option 'engin'; known: engine" in refused(two, evaluator="importance", engin="eager")
    assert "say which data to compare on" in refused([small_vae(1), small_vae(2)])
    assert "give data=pv.load_data" in refused([small_vae(1), small_vae(2)], data="digits")
    assert "compare takes two runs or more, not 1" in refused("runs/a")


@pytest.mark.parametrize(
    "line", ["compare", "compare {0}/a", "compare {0}/a {0}/a", "compare {0}/a {0}/b --with elbo,prior"]
)
def test_a_users_mistake_is_one_line_on_the_command_line(line, folders, capsys):
    assert cli.main([*line.format(folders).split(), "--quiet"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("pyro-vae: ") and told.count("\n") == 1


def test_runs_in_memory_go_by_names_of_their_own():
    data = pv.Dataset("bits", *(pv.Split({"x": bits(30, seed=seed)}) for seed in range(3)))
    runs = [pv.train(small_vae(seed), data, epochs=1, batch_size=10, progress=False) for seed in (1, 2)]
    assert set(compare(runs, progress=False).results) == {"VAE 1", "VAE 2"}
    other = pv.Dataset("bits", *(pv.Split({"x": bits(30, seed=seed)}) for seed in (3, 4, 5)))
    runs[1] = pv.train(small_vae(3), other, epochs=1, batch_size=10, progress=False)
    assert "the test data of VAE 1 are not those of VAE 2" in refused(runs)
    assert "is given twice" in refused([runs[0], runs[0]]) and "is given twice" in refused([runs[0], runs[0].pair])


def test_an_interrupted_comparison_goes_on(tmp_path, monkeypatch):
    """The second run is stopped after its first block; what the first run has is not evaluated again."""
    pairs, x = {"a": small_vae(1), "b": small_vae(2)}, bits(230)
    whole = compare(pairs, "importance", 20, data=x, progress=False)
    kept, keep = [], Done.keep

    def stopped(self, name, *arguments):
        keep(self, name, *arguments)
        kept.append(name)
        if len(kept) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(Done, "keep", stopped)
    with pytest.raises(KeyboardInterrupt):
        compare(pairs, "importance", 20, data=x, resume=tmp_path / "kept", progress=False)
    assert len(list((tmp_path / "kept" / "a").rglob("*.pt"))) == 3
    found = compare(pairs, "importance", 20, data=x, resume=tmp_path / "kept", progress=False)
    for name, result in whole.results.items():
        assert torch.equal(found.results[name].log_likelihood, result.log_likelihood)
    assert len(kept) == 6 and not (tmp_path / "kept").exists()


def test_a_pair_in_a_file_is_asked_for_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", bits(60, (4,)).numpy())
    own = "import pyro_vae as pv\nclass One(pv.VAE):\n    pass\nclass Two(pv.VAE):\n    pass\n"
    Path("mine.py").write_text(own)
    monkeypatch.setattr(by_name, "write_report", lambda *_: None)
    how = "--data x.npy --binarize none --epochs 1 --batch_size 10 --hidden 4 --quiet --engine eager"
    for name in ("One", "Two"):
        assert cli.main(f"train mine.py:{name} {how} --out {name}".split()) == 0
    assert cli.main(f"train vae {how} --out three".split()) == 0
    capsys.readouterr()
    assert cli.main("compare One Two --quiet".split()) == 2 and "give the file" in capsys.readouterr().err
    assert cli.main("compare One Two three --pair mine.py:One --pair mine.py:Two --json - --quiet".split()) == 0
    assert {run["model"] for run in json.loads(capsys.readouterr().out)["runs"]} == {
        "mine.py:One",
        "mine.py:Two",
        "vae",
    }


def test_an_evaluation_goes_on_by_the_command_line(folders, monkeypatch, capsys):
    monkeypatch.setattr(Importance, "narrow", stop_at_the_second(Importance.narrow))
    line = f"evaluate {folders / 'b'} --with importance --particles 20 --resume --quiet".split()
    assert cli.main(line) == 130 and "interrupted" in capsys.readouterr().err
    assert [path.name for path in (folders / "b" / "unfinished" / "importance").iterdir()] == ["0-0.pt"]
    assert cli.main([*line, "--particles", "30"]) == 2
    assert "particles was 20 and is 30" in capsys.readouterr().err
    assert cli.main(line) == 0 and not (folders / "b" / "unfinished").exists()


def stop_at_the_second(of_block):
    calls = []

    def counted(self, block):
        calls.append(block)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return of_block(self, block)

    return counted


def test_a_plain_function_is_an_evaluator_too():
    """And one that gives no likelihood is refused, when it has run."""

    def figure(name):
        def found(pair, blocks, particles, progress):
            return Estimate({name: torch.cat([block.batch()["x"].flatten(1).sum(1) for block in blocks])})

        return found

    pairs = {"a": small_vae(1), "b": small_vae(2)}
    (difference,) = compare(pairs, figure("log_likelihood"), data=bits(30), progress=False).differences
    assert difference.mean == 0 and difference.why[0].startswith("the difference of 0.000 is within 0.000")
    assert "found gives brightness, which is no likelihood" in refused(
        pairs, evaluator=figure("brightness"), data=bits(30)
    )


def test_exact_figures_compare_with_bounds():
    """Clusters that are summed out beside clusters that the guide draws, of one model."""
    data = {"counts": counts(40)}
    summed, drawn = Clusters(), Clusters()
    summed.guide = lambda counts: None
    summed.model = pyro.infer.config_enumerate(summed.model)
    found = compare({"summed": summed, "drawn": drawn}, "importance", 20, data=data, progress=False)
    assert found.best == "summed" and found.results["summed"].kind == "exact"
    assert found.differences[0].stated_errors[0] == 0.0 and any("lower bounds" in warning for warning in found.warnings)


def test_a_different_quantity_is_refused():
    """A predictive density given draws of what all data share, beside log p(x) at a point estimate of it."""
    data = {"x": torch.tensor([0.0, 1.0, 1.0]).repeat(10)}
    pairs = {"drawn": Rate(drawn=True), "point": Rate(drawn=False)}
    assert "point has log_likelihood and the first run log_predictive" in refused(
        pairs, evaluator="importance", data=data
    )
    two = {"one": Rate(drawn=False), "other": Rate(drawn=False, start=0.9)}
    (difference,) = compare(two, "importance", data=data, progress=False).differences
    expected = [math.log(rate / other) for rate, other in ((0.5, 0.1), (0.5, 0.9))]
    assert difference.better == "one" and sorted(set(difference.per_datum.tolist())) == pytest.approx(sorted(expected))


class Rate(nn.Module):
    """One rate for all data: drawn by the guide, or a point estimate."""

    def __init__(self, drawn: bool, start: float = 0.5):
        super().__init__()
        self.drawn, self.start = drawn, nn.Parameter(torch.tensor(start))

    def model(self, x):
        rate = pyro.sample("rate", dist.Beta(2.0, 2.0))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Bernoulli(rate), obs=x)

    def guide(self, x):
        pyro.sample("rate", dist.Beta(4 * self.start, 2.0) if self.drawn else dist.Delta(self.start))
