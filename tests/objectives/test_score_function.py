"""gradient='score': the score function at sites that could be reparameterised, by an option of the objective."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs import bits, small_vae
from references import (
    Labelled,
    NonReparameterisedNormal,
    Scalar,
    SharedNoise,
    TwoLayers,
    exact_gradients,
    gradient_draws,
    z_scores,
)
from torch import Tensor, nn
from torch.distributions.transforms import AffineTransform

import pyro_vae as pv
from pyro_vae.errors import ContractError, RunError, UnknownName
from pyro_vae.objectives.elbo import TraceELBO
from pyro_vae.objectives.trace_graph import TraceGraphELBO
from pyro_vae.pair.terms import log_terms

READING, COPIES = 0.7, 40_000
BOTH = pytest.mark.parametrize("kind", [TraceELBO, TraceGraphELBO])


@pytest.mark.parametrize("beta", [1.0, 0.5])
@pytest.mark.parametrize("particles", [1, 3])
@BOTH
def test_the_gradient_is_exact_in_the_mean(kind, particles, beta):
    torch.manual_seed(0)
    draws = gradient_draws(kind("score"), Scalar(COPIES), READING, particles, beta)
    for name, expected in exact_gradients(Scalar, READING, alpha=1.0, beta=beta).items():
        assert z_scores(draws[name], expected).abs().max() < 4, name


@BOTH
def test_it_is_that_of_a_distribution_that_cannot_be_reparameterised(kind):
    found = []
    for options, gradient in (({}, "score"), ({"normal": NonReparameterisedNormal}, "pathwise")):
        torch.manual_seed(0)
        found.append(gradient_draws(kind(gradient), Scalar(200, **options), READING, 3))
    for name, gradient in found[0].items():
        assert torch.allclose(gradient, found[1][name]), name


class ByFlow(Scalar):
    """The same guide as a flow that remembers its last draw, so that a density could be had without its gradient."""

    def guide(self, reading: Tensor) -> None:
        with pyro.plate("readings", len(reading), dim=-1):
            moved = AffineTransform(self.loc, self.log_scale.exp(), cache_size=1)
            base = dist.Normal(torch.zeros_like(self.loc), 1.0)
            pyro.sample("code", dist.TransformedDistribution(base, [moved]))


@BOTH
def test_a_flow_does_not_leave_its_jacobian_out(kind):
    found = []
    for pair in (ByFlow(200), Scalar(200)):
        torch.manual_seed(0)
        found.append(gradient_draws(kind("score"), pair, READING, 2))
    for name, gradient in found[0].items():
        assert torch.allclose(gradient, found[1][name]), name


def picture() -> dict[str, Tensor]:
    return {"picture": torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))}


class Nested(nn.Module):
    """A latent in a plate of a datum's own, one of a Gamma, and two observed sites."""

    def __init__(self):
        super().__init__()
        self.rate, self.loc = nn.Parameter(torch.tensor(0.3).double()), nn.Parameter(torch.tensor(0.2).double())

    def model(self, picture: Tensor) -> None:
        with pyro.plate("rows", len(picture), dim=-2):
            spread = pyro.sample("spread", dist.Gamma(picture.new_full((len(picture), 1), 2.0), 1.0))
            with pyro.plate("pixels", 4, dim=-1):
                light = pyro.sample("light", dist.Normal(0.0, spread))
                pyro.sample("seen", dist.Normal(light, 1.0), obs=picture)
            pyro.sample("largest", dist.Normal(spread, 1.0), obs=picture.amax(1, keepdim=True))

    def guide(self, picture: Tensor) -> None:
        with pyro.plate("rows", len(picture), dim=-2):
            pyro.sample("spread", dist.Gamma(picture.new_full((len(picture), 1), 2.0), self.rate.exp()))
            with pyro.plate("pixels", 4, dim=-1):
                pyro.sample("light", dist.Normal(self.loc * picture, 1.0))


CASES = {
    "two layers": (lambda: TwoLayers(), picture),
    "mixture prior": (lambda: small_vae(prior="mixture").double(), lambda: {"x": bits(6).double()}),
    "a discrete site beside": (Labelled, lambda: {"counts": torch.arange(30.0).reshape(6, 5).double() % 4}),
    "nested plates": (Nested, picture),
}


@pytest.mark.parametrize("case", CASES)
@BOTH
def test_the_loss_is_the_same_and_its_gradient_is_another(kind, case):
    make, data = CASES[case]
    torch.manual_seed(0)
    pair, found = make(), []
    for gradient in ("pathwise", "score"):
        torch.manual_seed(1)
        loss = kind(gradient)(pair, data(), 2)
        found.append([loss.detach(), *torch.autograd.grad(loss, list(pair.parameters()), materialize_grads=True)])
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-9)
    assert any(not torch.allclose(one, other) for one, other in zip(*found, strict=True))


def test_a_draw_has_no_path_and_the_pair_is_left_as_it_was():
    pair = Scalar(3)
    objective, batch = TraceELBO("score"), {"reading": torch.full((3,), READING).double()}
    objective(pair, batch)
    assert log_terms(pair, batch).score is None


def test_a_baseline_lowers_the_variance():
    """At a reading far from the prior, whose cost is large."""
    torch.manual_seed(0)
    with_baseline = TraceGraphELBO("score")
    for _ in range(30):
        draws = gradient_draws(with_baseline, Scalar(4000), 4.0)
    without = gradient_draws(TraceELBO("score"), Scalar(4000), 4.0)
    for name in ("loc", "log_scale"):
        assert draws[name].var() < 0.6 * without[name].var(), name


def test_it_trains_compiled_and_by_name(graphs):
    options = {"objective": "trace_elbo", "objective_options": {"gradient": "score"}, "batch_size": 20, "lr": 1e-2}
    run = pv.train(small_vae(), bits(80), epochs=20, particles=4, engine="compiled", progress=False, **options)
    assert run.engine == "compiled", run.notes
    assert run.history[-1]["valid_loss"] < run.history[0]["valid_loss"] - 0.5


def test_bad_input_is_one_line():
    for kind in (TraceELBO, TraceGraphELBO):
        with pytest.raises(UnknownName, match="known: score, pathwise"):
            kind("scores")
    with pytest.raises(RunError, match="free bits"):
        TraceELBO("score").with_free_bits(0.1, "site")
    with pytest.raises(ContractError, match="use objective='trace_graph_elbo'"):
        TraceELBO("score")(SharedNoise(), {"reading": torch.zeros(4).double()})
