"""A scale that is on under train() alone: the loss is scaled, the validation figures are not, and training says so."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.pair.scales import Scales

QUIET = {"batch_size": 16, "device": "cpu", "epochs": 2}


class Annealed(nn.Module):
    """A user's pair that weighs its latent while it trains; under eval() too where `always`."""

    def __init__(self, scale=0.25, always=False, size=None):
        super().__init__()
        self.scale, self.always, self.size = scale, always, size
        self.norm = nn.BatchNorm1d(3)
        self.encoder, self.decoder = nn.Linear(3, 2), nn.Linear(2, 3)
        self.runs = 0

    def plate(self, x: Tensor):
        return pyro.plate("data", self.size or len(x), subsample=torch.arange(len(x)) if self.size else None, dim=-1)

    @property
    def weight(self):
        return self.scale if self.training or self.always else 1.0

    def model(self, x: Tensor) -> None:
        with self.plate(x):
            with pyro.poutine.scale(scale=self.weight):
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with self.plate(x), pyro.poutine.scale(scale=self.weight):
            pyro.sample("z", dist.Normal(self.encoder(self.norm(x)), 1.0).to_event(1))


def x() -> Tensor:
    return torch.randn(64, 3, generator=torch.Generator().manual_seed(0))


def told(run) -> list[str]:
    return [note for note in run.notes if "training loss is scaled" in note]


@pytest.mark.parametrize("objective", ["trace_elbo", "trace_mean_field_elbo", "trace_graph_elbo", "iwae"])
def test_training_says_that_its_loss_is_scaled(objective, capfd):
    run = pv.train(Annealed(), x(), objective=objective, particles=2, kl_warmup=2, **QUIET)
    (note,) = told(run)
    assert "site 'z' by 0.25 under train()" in note and "valid_elbo" in run.history[0]
    assert capfd.readouterr().err.count("training loss is scaled") == 1


def test_it_does_so_where_the_step_is_compiled(graphs):
    run = pv.train(Annealed(torch.tensor(0.25)), x(), engine="compiled", progress=False, **QUIET)
    assert run.engine == "compiled" and len(told(run)) == 1


def test_a_tensor_of_scales_names_the_first_that_is_not_one():
    scale = torch.ones(16)
    scale[3] = 0.5
    with Scales() as scales:
        Annealed(scale).model(x()[:16])
    assert scales.found() == {"z": 0.5}


@pytest.mark.parametrize(
    "pair",
    [Annealed(1.0), Annealed(0.25, always=True), Annealed(1.0, size=640), pv.VAE((3,), likelihood="gaussian")],
    ids=["one", "always", "subsampled", "vae"],
)
@pytest.mark.parametrize("objective", ["trace_mean_field_elbo", "trace_graph_elbo"])
def test_it_is_silent_where_there_is_none_or_where_it_is_said_already(pair, objective):
    run = pv.train(pair, x(), objective=objective, beta=0.5, progress=False, **QUIET)
    assert not told(run)
    always = getattr(pair, "always", False)
    assert ("valid_elbo" not in run.history[0]) == always
    assert any("is scaled by 0.25" in note for note in run.notes) == always


def test_no_run_of_the_pair_is_added_and_no_statistic_is_moved():
    """As many runs in training as there are steps, and BatchNorm has seen as many batches."""
    seen = []
    pair = Annealed()
    pair.encoder.register_forward_hook(lambda module, given, out: seen.append(1) if module.training else None)
    pv.train(pair, x()[:40], valid=x()[40:], progress=False, engine="eager", monitor="loss", lr=1e-30, **QUIET)
    assert len(seen) == 6 and pair.norm.num_batches_tracked in (3, 6)
