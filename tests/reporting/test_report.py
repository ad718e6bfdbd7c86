"""report.md: its links, its numbers, and what it calls them."""

import json
import re
from pathlib import Path
from urllib.parse import unquote

import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from pyro_vae import plots
from pyro_vae.data import Dataset, Split
from pyro_vae.errors import RunError
from pyro_vae.models.vae import VAE
from pyro_vae.reporting.report import write_report
from pyro_vae.runs import Run


def dataset(seed: int = 0) -> Dataset:
    generator = torch.Generator().manual_seed(seed)
    splits = []
    for n in (40, 12, 15):
        x = torch.bernoulli(torch.full((n, 1, 4, 4), 0.5), generator=generator)
        splits.append(Split({"x": x, "label": torch.arange(n) % 3}))
    return Dataset("toy", *splits)


def history() -> list[dict[str, float]]:
    rows = [(1, 12.0, 11.5), (2, 11.0, 10.25), (3, 10.8, 10.5)]
    parts = {"valid_rate": 1.0, "valid_distortion": 9.5, "seconds": 30.0}
    return [{"epoch": epoch, "loss": loss, "valid_loss": valid, **parts} for epoch, loss, valid in rows]


def entry(**changes) -> dict:
    return {
        "evaluator": "elbo",
        "model": "VAE",
        "data": "toy",
        "split": "test",
        "n": 15,
        "particles": 7,
        "seconds": 1.25,
        "quantity": "log_likelihood",
        "nats": {"mean": -105.2468, "standard_error": 0.3111},
        "bits_per_dim": 0.25,
        "bits_per_dim_note": None,
        "warnings": [],
        "rate": {"mean": 12.5, "max": None},
        **changes,
    }


def report(folder: Path, pair=None, data=None, rows=None, results=None, config=None, notes=()) -> str:
    torch.manual_seed(0)
    (folder / "evaluation.json").write_text(json.dumps([entry()] if results is None else results))
    run = Run(
        pair or VAE((1, 4, 4), 2, hidden=(8,)),
        history() if rows is None else rows,
        best_epoch=2,
        fields={},
        config={"model": {"name": "vae"}, "training": {"relaxed": False}} if config is None else config,
        out=folder,
        notes=list(notes),
        trained_on=data or dataset(),
    )
    path = write_report(run)
    assert path == folder / "report.md"
    return path.read_text()


def links(text: str) -> list[str]:
    return [unquote(link) for link in re.findall(r"!\[[^]]*\]\(([^)]*)\)", text)]


def test_the_report_names_the_run_and_links_figures_that_exist(tmp_path):
    text = report(tmp_path, notes=["engine: eager\n(asked for)"])
    assert text.startswith("# vae on toy\n")
    assert "40 train, 12 valid, 15 test" in text
    assert "3 epochs in 2 min; the smallest validation loss is 10.25 nats per datum, at epoch 2" in text
    names = ["loss", "reconstructions", "samples", "manifold", "posterior_means"]
    assert links(text) == [f"figures/{name}.png" for name in names]
    for link in links(text):
        assert (tmp_path / link).read_bytes().startswith(b"\x89PNG")
    assert "- engine: eager (asked for)" in text


def test_numbers_have_their_units_and_as_many_digits_as_their_error_warrants(tmp_path):
    text = report(tmp_path)
    assert "Test `elbo`: **−105.2 ± 0.3 nats per datum** (log likelihood)" in text
    assert "| `elbo` | toy, test | 15 | 7 | −105.2 ± 0.3 | 0.250 | 1.2 s |" in text
    assert "- rate: mean 12.5, max none" in text
    assert "loss, not a log-likelihood" not in text


@pytest.mark.parametrize(
    ("nats", "said"),
    [
        ({"mean": -90.0, "standard_error": 25.0}, "−90 ± 25 "),
        ({"mean": 1.23456, "standard_error": 0.012}, "1.23 ± 0.01 "),
        ({"mean": -3.14159, "standard_error": None}, "**−3.14 nats"),
        ({"mean": None, "standard_error": None}, "not a finite number"),
    ],
)
def test_digits(nats, said, tmp_path):
    assert said in report(tmp_path, results=[entry(nats=nats)])


def test_why_there_are_no_bits_and_every_warning(tmp_path):
    results = [
        entry(bits_per_dim=None, bits_per_dim_note="the data are continuous"),
        entry(evaluator="importance", warnings=["3 of 15 data have k > 0.7", "too few particles"]),
    ]
    text = report(tmp_path, results=results)
    assert "none: the data are continuous" in text
    assert "**Warning** (`importance`): 3 of 15 data have k > 0.7" in text
    assert "**Warning** (`importance`): too few particles" in text


@pytest.mark.parametrize(("relaxed", "quantity"), [(True, "log_likelihood"), (False, "loss")])
def test_relaxed_runs_have_a_loss_and_no_log_likelihood(relaxed, quantity, tmp_path):
    text = report(tmp_path, results=[entry(quantity=quantity)], config={"training": {"relaxed": relaxed}})
    assert "nats per datum** (loss, not a log-likelihood)" in text
    assert "log likelihood" not in text
    assert ("minus the ELBO" in text) != relaxed


def test_settings_are_a_table_of_every_setting(tmp_path):
    model = {"name": "vae", "hidden": (3, 4), "likelihood": "a|b"}
    config = {"model": model, "training": {"clip": None, "lr": 1e-3, "optimizer_options": {"eps": 2}}}
    text = report(tmp_path, config=config)
    for line in (
        "| `model.hidden` | [3, 4] |",
        "| `training.clip` | none |",
        "| `training.optimizer_options.eps` | 2 |",
        "| `training.lr` | 0.001 |",
    ):
        assert line in text
    assert r"a\|b" in text
    assert "--config" not in text
    (tmp_path / "config.yaml").write_text("model:\n  name: vae\n")
    assert "pyro-vae train --config config.yaml" in report(tmp_path, config=config)


def test_versions_and_machine(tmp_path):
    text = report(tmp_path)
    assert f"| torch | {torch.__version__} |" in text and f"| Pyro | {pyro.__version__} |" in text
    assert re.search(r"\| CPU cores \| \d+ \|", text) and "| GPU | " in text


def test_only_what_applies(tmp_path):
    text = report(tmp_path, pair=VAE((1, 4, 4), 3, hidden=(8,)), rows=[], results=[], config={})
    assert links(text) == ["figures/reconstructions.png", "figures/samples.png"]
    assert "# VAE on toy" in text and "Nothing has been evaluated." in text
    assert "Settings" not in text and "Trained for" not in text and "Notes" not in text


def test_figures_of_evaluators_are_linked_where_they_exist(tmp_path):
    plots.save(Figure(), tmp_path / "figures" / "elbo_a b.png")
    text = report(tmp_path, results=[entry(figures=["figures/elbo_a b.png", "figures/lost.png"])])
    assert "figures/elbo_a b.png" in links(text) and "figures/lost.png" not in links(text)
    assert "`figures/lost.png` of `elbo` is missing" in text


def test_a_users_own_pair_of_counts(tmp_path):
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads, self.rate = nn.Linear(5, 4), nn.Linear(2, 5)

        def model(self, counts: Tensor) -> None:
            with pyro.plate("data", len(counts), dim=-1):
                code = pyro.sample("code", dist.Normal(counts.new_zeros(2), 1.0).to_event(1))
                pyro.sample("seen", dist.Poisson(self.rate(code).exp()).to_event(1), obs=counts)

        def guide(self, counts: Tensor) -> None:
            with pyro.plate("data", len(counts), dim=-1):
                loc, log_scale = self.heads(counts).chunk(2, -1)
                pyro.sample("code", dist.Normal(loc, log_scale.exp()).to_event(1))

    split = Split({"counts": torch.poisson(torch.full((20, 5), 3.0))})
    text = report(tmp_path, pair=Counts(), data=Dataset("visits", split, split, split), config={})
    assert text.startswith("# Counts on visits\n") and len(links(text)) == 5
    assert all((tmp_path / link).exists() for link in links(text))


def test_a_figure_that_cannot_be_drawn_is_replaced_by_the_reason(tmp_path):
    class Unseen(VAE):
        def model(self, x: Tensor) -> None:
            with self.plate(len(x)):
                pyro.sample("z", self.prior())

    text = report(tmp_path, pair=Unseen((1, 4, 4), 2, hidden=(8,)))
    assert "Samples: not drawn, the model observes no site" in text
    assert links(text) == ["figures/loss.png", "figures/posterior_means.png"]


def test_the_report_is_the_same_each_time_and_leaves_the_generator_alone(tmp_path):
    vae, data = VAE((1, 4, 4), 2, hidden=(8,)), dataset()
    files = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        state = torch.get_rng_state()
        write_report(Run(vae, history(), 2, {}, out=tmp_path / name, trained_on=data))
        assert torch.equal(torch.get_rng_state(), state)
        torch.rand(1)
        files.append({f.relative_to(tmp_path / name): f.read_bytes() for f in (tmp_path / name).rglob("*.*")})
    assert files[0] == files[1] and len(files[0]) == 6


def test_a_run_without_a_folder_has_nowhere_to_write_its_report():
    with pytest.raises(RunError, match="train it with out=DIR"):
        write_report(Run(VAE((1, 4, 4)), history(), 2, {}, trained_on=dataset()))
