"""A scale that is on under train() alone: the loss is scaled, the validation figures are not, and training says so."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from scaled_pairs import Factored
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.errors import ContractError
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


class Once(Annealed):
    """Weighs z in one of the programs only, while it trains."""

    def __init__(self, program, scale=0.25, always=False):
        super().__init__(scale, always)
        self.program = program

    def model(self, x: Tensor) -> None:
        self.scaled(super().model, "model", x)

    def guide(self, x: Tensor) -> None:
        self.scaled(super().guide, "guide", x)

    def scaled(self, program, name: str, x: Tensor) -> None:
        scale, self.scale = self.scale, self.scale if name == self.program else 1.0
        program(x)
        self.scale = scale


@pytest.mark.parametrize("program", ["model", "guide"])
def test_a_scale_in_one_program_is_said(program):
    run = pv.train(Once(program), x(), engine="eager", progress=False, **QUIET)
    (note,) = told(run)
    assert "site 'z' by 0.25 under train()" in note


@pytest.mark.parametrize("objective", ["trace_elbo", "trace_mean_field_elbo"])
@pytest.mark.parametrize("program, scale", [("model", 0.25), ("guide", 2.0), ("model", torch.tensor(0.5))], ids=str)
def test_a_scale_in_one_program_counts_as_it_is_written(program, scale, objective):
    """The loss is the mean of s log q(z) - t log p(z) - log p(x|z), in closed form: all of it is normal."""
    pair, fields = Once(program, scale, always=True).eval(), {"x": x()}
    terms = pv.objectives.TraceMeanFieldELBO if objective == "trace_mean_field_elbo" else pv.objectives.TraceELBO
    with torch.no_grad():
        losses = torch.stack([terms()(pair, fields, particles=500) for _ in range(40)])
        loc = pair.encoder(pair.norm(x()))
        of_guide = -0.5 * loc.shape[1] * (1 + torch.tensor(2 * torch.pi).log())
        of_prior = -0.5 * (loc.square() + 1 + torch.tensor(2 * torch.pi).log()).sum(1)
        weight = pair.decoder.weight
        spread = (x() - pair.decoder(loc)).square().sum(1) + weight.square().sum()
        of_data = -0.5 * (spread + 3 * torch.tensor(2 * torch.pi).log())
    s, t = (scale, 1.0) if program == "guide" else (1.0, scale)
    expected = (s * of_guide - t * of_prior - of_data).mean()
    error = losses.std() / len(losses) ** 0.5
    assert abs(losses.mean() - expected) < 4 * error and error < 0.01


class Mean(Factored):
    """1/n around both programs."""

    def model(self, x: Tensor) -> None:
        with pyro.poutine.scale(scale=1 / len(x)):
            super().model(x, 1.0)

    def guide(self, x: Tensor) -> None:
        with pyro.poutine.scale(scale=1 / len(x)):
            super().guide(x, 1.0)


ALWAYS = {
    "number": (lambda: Factored(0.5), "0.5"),
    "tensor": (lambda: Factored(torch.tensor(0.5)), "0.5"),
    "one over n": (lambda: Mean(1.0), "0.0625"),
}


@pytest.mark.parametrize("engine", ["eager", "compiled"])
@pytest.mark.parametrize("make, said", ALWAYS.values(), ids=ALWAYS)
def test_a_scale_that_is_always_on_makes_the_figures_a_loss(make, said, engine, graphs):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pair = make()
    run = pv.train(pair, x()[:32], valid=x()[32:48], engine=engine, progress=False, **QUIET)
    lines = [note for note in run.notes if "is scaled by" in note]
    assert run.engine == engine and "valid_elbo" not in run.history[0] and not told(run)
    assert any(f"a loss, not a bound: site 'z' of the model is scaled by {said}, " in line for line in lines)
    assert any(f"site 'z' of the guide is scaled by {said}, " in line for line in lines)
    assert all("evaluate with scales='ignore'" in line for line in lines)


@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_it_counts_in_the_loss_of_both_engines(engine, graphs):
    """Half the KL at a factor of a half: what training with that weight of the KL minimises."""
    runs = []
    for factor, beta in ((0.5, 1.0), (1.0, 0.5)):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            pair = Factored(factor)
        runs.append(pv.train(pair, x(), engine=engine, beta=beta, progress=False, **QUIET))
    one, two = ([row["loss"] for row in run.history] for run in runs)
    assert one == pytest.approx(two, rel=1e-5)


class Mixture(nn.Module):
    """An enumerated site, scaled together with what it touches."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale
        self.loc = nn.Parameter(torch.tensor([-1.0, 1.0]))

    def model(self, x: Tensor) -> None:
        scale = self.scale[: len(x)] if isinstance(self.scale, Tensor) and self.scale.dim() else self.scale
        with pyro.plate("data", len(x), dim=-1), pyro.poutine.scale(scale=scale):
            k = pyro.sample("k", dist.Categorical(x.new_ones(2)), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(self.loc[k].unsqueeze(-1).expand(*k.shape, 3), 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pass


def test_an_enumerated_site_is_trained_with_one_scale_for_all_data():
    losses = [
        pv.train(Mixture(scale), x(), lr=1e-30, engine="eager", progress=False, **QUIET).history[0]["loss"]
        for scale in (1.0, 0.5, torch.tensor(0.5))
    ]
    assert losses[1] == pytest.approx(losses[0] / 2) == losses[2]
    with pytest.raises(ContractError, match=r"hang together by what is enumerated, but have different scales \[0.5, "):
        pv.train(Mixture(torch.linspace(0.5, 2.0, 64)), x(), engine="eager", progress=False, **QUIET)
