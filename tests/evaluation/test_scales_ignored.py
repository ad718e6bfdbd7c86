"""Scales that a pair has on purpose are refused where densities are needed, or ignored; then the figures are those of
the same pair without them."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.poutine.runtime import _PYRO_STACK
from scaled_pairs import Factored, Nets
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.errors import ContractError, UnknownName
from pyro_vae.evaluation import evaluate_each
from pyro_vae.pair.scales import Unscaled

QUIET = {"progress": False}


def x(n: int = 24, features: int = 3) -> Tensor:
    return torch.randn(n, features, generator=torch.Generator().manual_seed(0))


class Average(Nets):
    """1/n around both programs, whose plate takes a subsample, and whose features stand in a plate of their own."""

    def plate(self, x: Tensor):
        return pyro.plate("data", 10 * len(x), subsample=torch.arange(len(x)), dim=-2)

    def model(self, x: Tensor) -> None:
        with pyro.poutine.scale(scale=self.scale), self.plate(x):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1).expand([len(x), 1]))
            with pyro.plate("features", 3, dim=-1):
                pyro.sample("x", dist.Normal(self.decoder(z).squeeze(-2), 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.poutine.scale(scale=self.scale), self.plate(x):
            pyro.sample("z", self.posterior(x.unsqueeze(-2)))


class Observed(Nets):
    """A tensor around one of two observed sites, in the model alone; one number for all data or one for each."""

    def model(self, x: Tensor) -> None:
        scale = self.scale[: len(x)] if isinstance(self.scale, Tensor) and self.scale.dim() else self.scale
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            mean = self.decoder(z)
            with pyro.poutine.scale(scale=scale):
                pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)
            pyro.sample("sum", dist.Normal(mean.sum(-1), 2.0), obs=x.sum(-1))

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", self.posterior(x))


class Mixture(Nets):
    """An enumerated site in the model alone, beside a latent that is drawn; all of it scaled."""

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1), pyro.poutine.scale(scale=self.scale):
            k = pyro.sample("k", dist.Categorical(x.new_tensor([0.3, 0.7])), infer={"enumerate": "parallel"})
            z = pyro.sample(
                "z", dist.Normal(x.new_tensor([-1.0, 1.0])[k].unsqueeze(-1).expand(*k.shape, 2), 1.0).to_event(1)
            )
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1), pyro.poutine.scale(scale=self.scale):
            pyro.sample("z", self.posterior(x))


EACH = torch.linspace(0.5, 2.0, 24)
CASES = {
    "argument": (Factored, torch.tensor(0.5)),
    "one over n": (Average, 1 / 24),
    "tensor": (Observed, torch.tensor(0.25)),
    "a tensor for each datum": (Observed, EACH),
    "enumerated": (Mixture, 0.5),
    "enumerated, a tensor": (Mixture, torch.tensor(0.5)),
}
EVALUATORS = {
    "elbo": {"particles": 4},
    "importance": {"particles": 30},
    "prior": {"particles": 30},
    "ais": {"limit": 4, "particles": 2, "distributions": 3, "leapfrog": 2},
    "gaps": {"particles": 10, "steps": 3},
    "latent": {"particles": 4},
}


@pytest.mark.parametrize("evaluator, options", EVALUATORS.items(), ids=EVALUATORS)
@pytest.mark.parametrize("pair, scale", CASES.values(), ids=CASES)
def test_ignored_scales_give_the_figures_of_the_pair_without_them(pair, scale, evaluator, options):
    if pair is Mixture and evaluator in ("gaps", "latent"):
        pytest.skip("not for pairs whose model alone enumerates")
    found = pv.evaluate(pair(scale), x(), evaluator, scales="ignore", **options, **QUIET)
    expected = pv.evaluate(pair(1.0), x(), evaluator, **options, **QUIET)
    assert found.estimate.per_datum.keys() == expected.estimate.per_datum.keys() and found.kind == expected.kind
    for name, value in found.estimate.per_datum.items():
        torch.testing.assert_close(value, expected.estimate.per_datum[name], rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("pair, scale", CASES.values(), ids=CASES)
@pytest.mark.parametrize("evaluator", ["elbo", "importance", "ais"])
def test_a_scaled_pair_is_refused_with_a_line_that_names_the_option(pair, scale, evaluator):
    with pytest.raises(ContractError, match=r"is scaled by [\d.]+, .*scales='ignore' \(--scales ignore\)"):
        pv.evaluate(pair(scale), x(), evaluator, particles=2, **QUIET)


class Exact(nn.Module):
    """z ~ N(0, 1), x ~ N(z, 1), at the exact posterior: each weight is p(x) = N(0, 2), if nothing is scaled."""

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            with pyro.poutine.scale(scale=0.1):
                z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            with pyro.poutine.scale(scale=x.new_tensor(3.0)):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1), pyro.poutine.scale(scale=7.0):
            pyro.sample("z", dist.Normal(x / 2, math.sqrt(0.5)))


def test_against_the_closed_form():
    data = x(30, 1).squeeze(1).double()
    result = pv.evaluate(Exact(), data, "importance", particles=5, scales="ignore", **QUIET)
    torch.testing.assert_close(
        result.headline.double(), dist.Normal(0.0, math.sqrt(2.0)).log_prob(data), rtol=1e-5, atol=1e-5
    )


def test_the_results_say_that_scales_were_ignored():
    pair = Observed(torch.tensor(0.5))
    result = pv.evaluate(pair, x(), scales="ignore", **QUIET)
    assert result.warnings[0].startswith("scales ignored") and result.entry()["warnings"] == result.warnings
    assert not any("scales" in line for line in pv.evaluate(Observed(1.0), x(), **QUIET).warnings)
    with pytest.raises(UnknownName, match="unknown way with scales 'skip'; known: "):
        pv.evaluate(pair, x(), scales="skip", **QUIET)


def test_no_handler_is_left_between_results_and_the_pair_is_scaled_as_before():
    pair = Factored(torch.tensor(0.5))
    for _ in evaluate_each(pair, x(), dict.fromkeys(["a", "b"], pv.evaluators.ELBO()), scales="ignore", progress=False):
        assert not _PYRO_STACK
    with pytest.raises(ContractError, match="is scaled by 0.5"):
        pv.evaluate(pair, x(), **QUIET)


def test_the_scale_of_a_subsampled_plate_stays():
    with pyro.poutine.trace() as seen, Unscaled():
        Average(0.01).model(x())
    assert {name: node["scale"] for name, node in seen.trace.nodes.items() if name in "zx"} == {"z": 10.0, "x": 10.0}


def test_what_a_subsample_of_a_datums_own_plate_multiplies_is_no_density_still():
    class Words(Observed):
        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x), dim=-2):
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1).expand([len(x), 1]))
                with pyro.plate("words", 3, subsample=torch.arange(2), dim=-1):
                    pyro.sample("x", dist.Normal(self.decoder(z).squeeze(-2)[..., :2], 1.0), obs=x[:, :2])

        def guide(self, x: Tensor) -> None:
            with pyro.plate("data", len(x), dim=-2):
                pyro.sample("z", self.posterior(x.unsqueeze(-2)))

    with pytest.raises(ContractError, match="site 'x' of the model is scaled by 1.5"):
        pv.evaluate(Words(1.0), x(), "importance", particles=2, scales="ignore", **QUIET)


@pytest.mark.parametrize("pair, scale", CASES.values(), ids=CASES)
def test_a_reconstruction_is_that_of_the_density(pair, scale):
    found, expected = (pv.evaluate(pair(s), x(), "reconstruction", **QUIET) for s in (scale, 1.0))
    torch.testing.assert_close(found.reconstruction_nll, expected.reconstruction_nll)
