"""Training on data that lack values, and the runs that come of it: stored, read, evaluated, reported and imputed."""

import json

import numpy as np
import pytest
import torch
from missing_pairs import Linear, data
from pairs import SHAPE, bits, same_state

import pyro_vae as pv
from pyro_vae.command_line import main as cli
from pyro_vae.errors import ContractError, UnknownName
from pyro_vae.pair.missing import FILL
from pyro_vae.parts.nets import MLP, MaskedEncoder

HOW = {"epochs": 2, "batch_size": 16, "engine": "eager", "device": "cpu", "progress": False}


def gaps(n=60, shape=SHAPE, seed=1):
    """Bits, half of which are missing."""
    x = bits(n, shape)
    return x.masked_fill(torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < 0.5, torch.nan)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("missing")
    np.save(folder / "x.npy", gaps().numpy())
    line = f"train --data {folder / 'x.npy'} --missing marginalise --encoder_mask true --hidden 4 --batch_size 16"
    line += f" --epochs 2 --engine eager --device cpu --quiet --out {folder / 'run'}"
    assert cli.main(line.split()) == 0
    return folder


@pytest.mark.parametrize("options", [{}, {"encoder_mask": True}, {"encoder_mask": True, "net": "conv"}], ids=str)
def test_a_vae_learns_from_what_is_observed(options):
    torch.manual_seed(0)
    x = gaps(200, (1, 4, 4))
    vae = pv.VAE(SHAPE, hidden=(16,), missing="marginalise", **options)
    run = pv.train(vae, x, **(HOW | {"epochs": 15, "lr": 0.01}))
    losses = [row["valid_loss"] for row in run.history]
    assert min(losses) < losses[0] - 0.1 and all(np.isfinite(losses))
    assert min(losses) < 0.5 * 16 * np.log(2) + 0.5, "no worse than a coin for each observed element"
    assert all(parameter.isfinite().all() for parameter in vae.parameters())


def test_a_complete_x_is_trained_on_as_by_a_vae_that_allows_nothing():
    torch.manual_seed(0)
    plain = pv.VAE(SHAPE, hidden=(4,))
    torch.manual_seed(0)
    allowing = pv.VAE(SHAPE, hidden=(4,), missing="marginalise")
    histories = [pv.train(vae, bits(60), **HOW).history for vae in (plain, allowing)]
    assert histories[0][-1]["valid_loss"] == histories[1][-1]["valid_loss"] and same_state(plain, allowing)


def test_compiled_and_eager_steps_agree(graphs):
    """The compiled loss and its gradients were compared with the eager ones, else the engine would be eager."""
    torch.manual_seed(0)
    vae = pv.VAE(SHAPE, hidden=(4,), missing="marginalise", encoder_mask=True)
    run = pv.train(vae, gaps(), **(HOW | {"engine": "compiled"}))
    assert run.engine == "compiled" and graphs and np.isfinite(run.history[-1]["loss"])


@pytest.mark.parametrize("objective", ["trace_elbo", "trace_graph_elbo", "iwae"])
def test_every_objective_trains(objective):
    run = pv.train(Linear(), data(60), objective=objective, particles=2, **HOW)
    assert np.isfinite(run.history[-1]["loss"])


def test_the_guide_sees_the_training_means_in_a_stored_run_too(tmp_path):
    x = data(60)
    run = pv.train(Linear(), x, out=tmp_path / "run", **HOW)
    expected = run.data.train["x"].nanmean(0).float()
    torch.testing.assert_close(getattr(run.pair, FILL + "x"), expected)
    again = pv.load_run(tmp_path / "run", pair=Linear())
    assert torch.equal(getattr(again.pair, FILL + "x"), getattr(run.pair, FILL + "x"))
    figures = [pv.evaluate(each.pair, x, "importance", 30, progress=False).log_likelihood for each in (run, again)]
    assert torch.equal(*figures)


def test_a_run_goes_on_where_it_was_saved(tmp_path):
    x = data(60)
    straight = pv.train(Linear(), x, out=tmp_path / "one", **(HOW | {"epochs": 3}))
    pv.train(Linear(), x, out=tmp_path / "two", **HOW)
    resumed = pv.train(Linear(), x, out=tmp_path / "two", resume=True, **(HOW | {"epochs": 3}))
    assert same_state(straight.pair, resumed.pair)


def test_the_means_of_a_run_serve_a_pair_that_declares_nothing(tmp_path):
    """Trained on whole data, it is evaluated on data with gaps: its guide sees the means of the training data."""
    run = pv.train(pv.VAE(SHAPE, hidden=(4,)), bits(60), **HOW)
    x = gaps(20)
    result = pv.evaluate(run, x, "importance", 30, missing="marginalise", progress=False)
    assert not any("zeros" in line for line in result.warnings) and run.pair.missing == ()
    bare = pv.evaluate(run.pair, x, "importance", 30, missing="marginalise", progress=False)
    assert any("zeros" in line for line in bare.warnings)
    assert not torch.equal(bare.log_likelihood, result.log_likelihood)
    assert pv.impute(run, x, draws=2, particles=20)["x"].shape == (2, 20, *SHAPE)


def test_data_that_lack_everything_are_told_of():
    x = data(60)
    x[4] = x[5] = torch.nan
    run = pv.train(Linear(), x, **HOW)
    assert any("all" in note and "log p is 0" in note for note in run.notes)


def test_a_loader_may_yield_what_is_missing_where_the_pair_allows_it():
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(data(60)), batch_size=20)
    run = pv.train(Linear(), loader, valid=data(20, seed=1), **HOW)
    assert np.isfinite(run.history[-1]["valid_loss"])
    torch.testing.assert_close(getattr(run.pair, FILL + "x"), data(60).nanmean(0).float())


def test_a_prior_that_encodes_works_beside_a_mask():
    vae = pv.VAE(SHAPE, hidden=(4,), missing="marginalise", encoder_mask=True, prior="vamp", prior_components=3)
    run = pv.train(vae, gaps(), **HOW)
    assert np.isfinite(run.history[-1]["loss"])


def test_the_encoder_sees_zeros_beside_the_mask():
    encoder = MaskedEncoder(MLP((), "relu"), (2, 3))
    x, observed = torch.randn(4, 2, 3), torch.rand(4, 2, 3) < 0.5
    assert torch.equal(encoder(x, observed), torch.cat([torch.where(observed, x, 0.0), observed.float()], 1).flatten(1))
    assert torch.equal(encoder(x), encoder(x, torch.ones_like(x).bool())) and encoder.out_features == 12


def test_options_that_fit_nothing_are_one_line():
    with pytest.raises(ContractError, match="encoder_mask shows what is missing, so it needs missing='marginalise'"):
        pv.VAE(SHAPE, encoder_mask=True)
    with pytest.raises(UnknownName, match="unknown treatment of missing values 'yes'; known: "):
        pv.VAE(SHAPE, missing="yes")
    pair = pv.VAE((4,), hidden=(3,), likelihood="poisson", likelihood_library="observed", log_library=(1.0, 0.3))
    pair.missing = ("x",)
    x = torch.poisson(torch.full((30, 4), 2.0))
    x[3, 1] = torch.nan
    with pytest.raises(ContractError, match="site 'x' of the model depends on missing values"):
        pv.train(pair, x, **HOW)


# --- by command ---------------------------------------------------------------------------------------------


def test_a_run_is_reported_and_evaluated_by_command(folder, capsys):
    run = folder / "run"
    assert {"config.yaml", "report.md", "evaluation.json", "best.pt"} <= {path.name for path in run.iterdir()}
    assert "missing: marginalise" in (run / "config.yaml").read_text()
    entries = json.loads((run / "evaluation.json").read_text())
    assert [entry["evaluator"] for entry in entries] == ["elbo", "reconstruction"]
    assert all(entry["missing"]["share"] == pytest.approx(0.5, abs=0.2) for entry in entries)
    assert entries[0]["bits_per_dim"] > 0
    assert cli.main(f"evaluate {run} --with importance --particles 5 --quiet --json -".split()) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    again = pv.evaluate(run, evaluator="importance", particles=5, progress=False)
    assert entry["nats"]["mean"] == pytest.approx(again.mean)
    mask = np.zeros(SHAPE, bool)
    mask[0, :2] = True
    np.save(folder / "s.npy", mask)
    assert cli.main(f"evaluate {run} --with conditional --of {folder / 's.npy'} --particles 30 --quiet".split()) == 0
    assert "log_conditional" in capsys.readouterr().err


def test_verbs_work_on_a_run_whose_data_lack_values(folder, tmp_path):
    run = folder / "run"
    for line in ("encode {} --out c.npz", "reconstruct {} --out r.png", "sample {} -n 4 --out s.npz", "report {}"):
        words = line.format(run).replace("--out ", f"--out {tmp_path}/").split()
        assert cli.main(words) == 0
    assert np.isfinite(np.load(tmp_path / "c.npz")["z_mean"]).all()
    assert np.isfinite(np.load(tmp_path / "s.npz")["x"]).all()
    exported = pv.export(run, draws=2, limit=5)
    assert np.isnan(exported.observed_data["x"].values).any()
    assert np.isfinite(exported.posterior_predictive["x"].values).all()


def test_impute_gives_the_rows_of_the_file_by_both_doors(folder, tmp_path, capsys):
    out = tmp_path / "imputed.npz"
    line = f"impute {folder / 'run'} --data {folder / 'x.npy'} --draws 3 --particles 20 --seed 2 --out {out}"
    assert cli.main(line.split()) == 0
    stored, x = np.load(out), gaps()
    found = pv.impute(folder / "run", folder / "x.npy", draws=3, particles=20, seed=2)
    assert set(stored) == set(found) == {"x", "ess"}
    for name, value in found.items():
        np.testing.assert_array_equal(stored[name], value.numpy())
    known = ~x.isnan()
    assert found["x"].shape == (3, 60, *SHAPE) and found["ess"].shape == (60,)
    assert torch.equal(found["x"][:, known], x[known].expand(3, -1)) and ((found["x"] == 0) | (found["x"] == 1)).all()
    few = pv.impute(folder / "run", draws=2, particles=20, split="test", limit=3)
    assert few["x"].shape == (2, 3, *SHAPE)


def test_a_table_with_empty_cells_is_trained_on_or_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"{i % 3}.5,{'' if i == 7 else i % 2}\n" for i in range(40))
    (tmp_path / "t.csv").write_text("a,b\n" + rows)
    line = "train --data ./t.csv --binarize none --likelihood gaussian --hidden 3 --batch_size 8 --epochs 1 --quiet"
    assert cli.main(f"{line} --out refused".split()) == 2
    assert "t.csv: x[7, 1] is nan, a missing value" in capsys.readouterr().err and not (tmp_path / "refused").exists()
    assert cli.main(f"{line} --missing marginalise --out taken".split()) == 0
    run = pv.load_run("taken")
    assert run.config["model"]["missing"] == "marginalise" and getattr(run.pair, FILL + "x").isfinite().all()
