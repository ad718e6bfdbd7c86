"""Densities that are fitted to the codes after training, and samples through them."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.command_line import main as cli
from pyro_vae.errors import ContractError, RunError, UnknownName
from pyro_vae.models.presets import autoencoder
from pyro_vae.pair.particles import run_guide
from pyro_vae.reporting import ex_post
from pyro_vae.reporting.ex_post import DENSITIES


def banana(n: int, seed: int = 0) -> Tensor:
    z = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))
    return torch.stack([z[:, 0], 0.7 * (z[:, 0].square() - 1) + 0.2 * z[:, 1]], 1)


@pytest.mark.parametrize("how", DENSITIES)
def test_a_density_of_codes_has_their_shape(how):
    """Draws lie on the banana that the codes lie on: the same moments, and as near to its ridge."""
    torch.manual_seed(0)
    codes = banana(2000)
    drawn = DENSITIES[how](codes)(4000)
    assert drawn.shape == (4000, 2) and drawn.dtype == codes.dtype
    assert torch.allclose(drawn.mean(0), codes.mean(0), atol=0.1)
    assert torch.allclose(torch.cov(drawn.T), torch.cov(codes.T), atol=0.15)
    off_ridge = (drawn[:, 1] - 0.7 * (drawn[:, 0].square() - 1)).abs().median()
    assert off_ridge < 0.3, "0.13 for the codes, 0.6 for a normal of their moments"


@pytest.fixture
def few_steps(monkeypatch):
    """A flow that is fitted in a moment."""
    monkeypatch.setattr(ex_post, "STEPS", 150)


def trained(pair: nn.Module, x: Tensor, **options) -> pv.Run:
    return pv.train(pair, x, epochs=3, batch_size=30, lr=1e-2, progress=False, engine="eager", **options)


@pytest.fixture(scope="module")
def run() -> pv.Run:
    torch.manual_seed(0)
    plane = torch.randn(200, 2) @ torch.randn(2, 16)
    return trained(autoencoder((1, 4, 4), 2, hidden=(8,), activation="tanh"), plane.reshape(200, 1, 4, 4))


@pytest.mark.parametrize("how", DENSITIES)
def test_samples_of_an_autoencoder_come_from_its_codes(run, how, few_steps):
    values = pv.sample(run, n=300, ex_post=how, seed=1)
    assert values["x"].shape == (300, 1, 4, 4)
    codes = run_guide(run.pair, run.data.train.take(slice(None)))["z"].value[0]
    assert torch.allclose(values["z"].mean(0), codes.mean(0), atol=0.3 * codes.std(0).max().item())
    assert torch.allclose(values["z"].std(0), codes.std(0), rtol=0.4)
    again = pv.sample(run, n=300, ex_post=how, seed=1)
    assert all(torch.equal(values[name], again[name]) for name in values)
    assert not torch.equal(values["z"], pv.sample(run, n=300, ex_post=how, seed=2)["z"])


def test_an_improper_prior_has_no_draws_and_the_line_offers_another_way(run, tmp_path):
    with pytest.raises(ContractError, match="the prior of site 'z' is improper.*--ex_post gmm"):
        pv.sample(run, n=4)
    with pytest.raises(UnknownName, match="unknown density of codes 'kde'; known: gmm, flow|known: flow, gmm"):
        pv.sample(run, n=4, ex_post="kde")


def test_both_doors_give_the_same(tmp_path, capsys):
    folder = tmp_path / "run"
    line = f"train autoencoder --hidden 4 --epochs 1 --engine eager --device cpu --quiet --out {folder}"
    assert cli.main(line.split()) == 0
    assert "Samples: not drawn" in (folder / "report.md").read_text()
    assert cli.main(f"sample {folder} -n 5 --out {tmp_path / 's.npz'}".split()) == 2
    assert "--ex_post gmm" in capsys.readouterr().err
    assert cli.main(f"sample {folder} -n 5 --ex_post gmm --out {tmp_path / 's.npz'}".split()) == 0
    values = pv.sample(folder, n=5, ex_post="gmm")
    stored = np.load(tmp_path / "s.npz")
    assert set(stored) == {"z", "x"} and all(np.array_equal(stored[name], values[name].numpy()) for name in stored)
    assert cli.main(f"sample {folder} -n 5 --ex_post gmm --out {tmp_path / 's.png'}".split()) == 0


class Rates(nn.Module):
    """Two latents, one of them positive, in a plain module: their joint density is fitted on all real numbers."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(3, 4)
        self.decoder = nn.Linear(3, 3)

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            rate = pyro.sample("rate", dist.LogNormal(x.new_zeros(2), 1.0).to_event(1))
            shift = pyro.sample("shift", dist.Normal(x.new_zeros(()), 1.0))
            loc = self.decoder(torch.cat([rate, shift.unsqueeze(-1)], -1))
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            out = self.encoder(x)
            pyro.sample("rate", dist.LogNormal(out[..., :2], 0.1).to_event(1))
            pyro.sample("shift", dist.Normal(out[..., 2], out[..., 3].exp()))


@pytest.mark.parametrize("how", DENSITIES)
def test_latents_with_supports_of_their_own(how, few_steps):
    torch.manual_seed(0)
    made = trained(Rates(), torch.randn(120, 3))
    values = pv.sample(made, n=50, ex_post=how)
    assert values["rate"].shape == (50, 2) and (values["rate"] > 0).all()
    assert values["shift"].shape == (50,) and values["x"].shape == (50, 3)


class Kinds(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.means = nn.Linear(3, 2), nn.Parameter(torch.randn(2, 3))

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            kind = pyro.sample("kind", dist.Categorical(x.new_ones(2)))
            pyro.sample("x", dist.Normal(self.means[kind], 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("kind", dist.Categorical(logits=self.encoder(x)))


def test_what_no_density_can_be_fitted_to_is_one_line():
    x = torch.randn(60, 3)
    with pytest.raises(ContractError, match="continuous latents of each datum, and 'kind' is discrete"):
        pv.sample(trained(Kinds(), x, objective="trace_graph_elbo"), n=4, ex_post="gmm")
    one = trained(autoencoder((3,), 1, hidden=(4,)), x)
    with pytest.raises(ContractError, match="at least 2 dimensions; use ex_post='gmm'"):
        pv.sample(one, n=4, ex_post="flow")
    assert math.isfinite(pv.sample(one, n=4, ex_post="gmm")["z"].sum())
    pair = pv.models.CVAE((3,), (2,), 2, hidden=(4,), likelihood="gaussian")
    fields = {"x": x, "context": torch.randn(60, 2)}
    with pytest.raises(RunError, match="those of this model depend on x, context; leave ex_post out"):
        pv.sample(trained(pair, fields), n=4, ex_post="gmm")
