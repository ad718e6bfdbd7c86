"""The conditional VAE against closed forms, its mask, its baseline, and the regressor that has no latent."""

import math
import shutil

import numpy as np
import pytest
import torch
from pairs import bits, same_state
from torch import Tensor

import pyro_vae as pv
from pyro_vae.errors import ContractError, DataError, RunError
from pyro_vae.models.cvae import CVAE
from pyro_vae.models.regressor import Regressor
from pyro_vae.pair import generation
from pyro_vae.pair.particles import run_guide, run_model
from pyro_vae.parts.distributions import Completed, completed
from pyro_vae.runs import build_model, load_run

SHAPE, CONTEXT = (1, 2, 3), (4,)
SIGMA = 0.7


def linear_cvae(seed: int = 0, **options) -> CVAE:
    """All nets linear, so that p(x|c) is a normal; the guide is wide, so that importance weights have no heavy tail."""
    torch.manual_seed(seed)
    pair = CVAE(SHAPE, CONTEXT, latent_dim=2, hidden=(), likelihood="gaussian", sigma=SIGMA, **options)
    with torch.no_grad():
        pair.posterior.heads.weight.zero_()
        pair.posterior.heads.bias.copy_(torch.tensor([0.0, 0.0, 0.8, 0.8]))
    return pair


def normal_fields(n: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {"x": torch.randn(n, *SHAPE, generator=generator), "context": torch.randn(n, *CONTEXT, generator=generator)}


@torch.no_grad()
def exact(pair: CVAE, fields: dict[str, Tensor], keep: Tensor | None = None) -> Tensor:
    """log p(x|c) in nats of a linear CVAE, of the elements `keep` alone: x is a linear map of a normal z plus noise."""
    features = pair.features(fields["context"])
    prior = pair.prior(features).base_dist
    columns = [pair.decoder(z, features) for z in torch.cat([torch.zeros(1, 2), torch.eye(2)]).unsqueeze(1)]
    start, *shifts = (column.flatten(1).double().expand(len(features), 6) for column in columns)
    w = torch.stack([shift - start for shift in shifts], -1)
    loc, scale = (value.expand(len(features), 2).double() for value in (prior.loc, prior.scale))
    mean = start + (w @ loc.unsqueeze(-1)).squeeze(-1)
    covariance = w @ torch.diag_embed(scale**2) @ w.mT + SIGMA**2 * torch.eye(6, dtype=torch.float64)
    x, keep = fields["x"].flatten(1).double(), torch.ones(6, dtype=torch.bool) if keep is None else keep
    normal = torch.distributions.MultivariateNormal(mean[:, keep], covariance[:, keep][:, :, keep])
    return normal.log_prob(x[:, keep])


@pytest.mark.parametrize("evaluator, particles", [("importance", 3000), ("prior", 20_000)])
@pytest.mark.parametrize(
    "options",
    [{}, {"decoder_context": False}, {"prior": "standard_normal"}],
    ids=["both", "prior alone", "decoder alone"],
)
def test_both_estimates_reach_the_exact_conditional_likelihood(options, evaluator, particles):
    pair, fields = linear_cvae(**options), normal_fields()
    result = pv.evaluate(pair, fields, evaluator, particles, progress=False)
    z = (result.log_likelihood - exact(pair, fields)) / result.monte_carlo_error.clamp(min=1e-4)
    assert z.abs().max() < 4.5


def test_a_mask_leaves_only_its_elements_in_the_likelihood():
    pair, fields = linear_cvae(), normal_fields()
    mask = torch.tensor([[[1, 0, 1], [0, 1, 1]]], dtype=torch.bool)
    fields["mask"] = mask.expand(6, *SHAPE)
    result = pv.evaluate(pair, fields, "importance", 3000, progress=False)
    z = (result.log_likelihood - exact(pair, fields, mask.flatten())) / result.monte_carlo_error.clamp(min=1e-4)
    assert z.abs().max() < 4.5
    everything = pv.evaluate(pair, fields | {"mask": torch.ones(6, *SHAPE)}, "importance", 50, progress=False)
    without = {name: fields[name] for name in ("x", "context")}
    assert torch.allclose(
        everything.log_likelihood, pv.evaluate(pair, without, "importance", 50, progress=False).log_likelihood
    )


def test_what_is_given_comes_back_and_the_rest_is_drawn():
    pair, fields = linear_cvae(), normal_fields(50)
    hidden = torch.tensor([[[1, 0, 1], [0, 1, 1]]], dtype=torch.bool).expand(50, *SHAPE)
    torch.manual_seed(0)
    drawn = generation.sample(pair, fields | {"mask": hidden})["x"]
    for values in (drawn.value[0], generation.center(drawn)):
        assert torch.equal(values[~hidden], fields["x"][~hidden])
        assert (values[hidden] != fields["x"][hidden]).all()


def test_bits_are_counted_for_the_elements_that_are_generated():
    torch.manual_seed(0)
    pair, x = CVAE(SHAPE, CONTEXT, latent_dim=2, hidden=(5,)), bits(8, SHAPE)
    mask = torch.tensor([[[1, 0, 0], [0, 1, 0]]], dtype=torch.bool).expand(8, *SHAPE)
    result = pv.evaluate(pair, {"x": x, "context": torch.rand(8, 4), "mask": mask}, "elbo", progress=False)
    assert result.bits_per_dim == pytest.approx(-result.mean / (2 * math.log(2)))


def test_a_likelihood_whose_elements_hang_together_takes_no_mask():
    normal = torch.distributions.MultivariateNormal(torch.zeros(4), torch.eye(4))
    with pytest.raises(ContractError, match="a mask needs a likelihood of independent elements"):
        completed(normal, torch.zeros(2, 4), torch.ones(2, 4))
    assert completed(normal, torch.zeros(2, 4), None) is normal


@pytest.mark.parametrize("particles", [1, 5])
def test_a_completed_distribution_is_that_of_its_open_elements(particles):
    torch.manual_seed(0)
    lead = (particles, 3) if particles > 1 else (3,)
    base = torch.distributions.Independent(torch.distributions.Normal(torch.randn(*lead, 4), 1.0), 1)
    mask, known = torch.rand(3, 4) > 0.5, torch.randn(3, 4)
    fn = Completed(base, known, mask).expand(lead)
    by_hand = (base.base_dist.log_prob(known) * mask).sum(-1)
    assert torch.allclose(fn.log_prob(known), by_hand) and fn.batch_shape == lead
    assert (fn.variance[..., ~mask] == 0).all()


# --- the regressor ------------------------------------------------------------------------------------------


def test_a_regressor_has_no_latent_and_an_exact_likelihood():
    torch.manual_seed(0)
    pair, fields = Regressor(SHAPE, CONTEXT, hidden=(5,), likelihood="gaussian", sigma=SIGMA), normal_fields()
    assert run_guide(pair, fields) == {}
    exact_value = run_model(pair, fields, {})["x"].log_prob().detach()
    guess = pair.guess(fields["context"])
    by_hand = torch.distributions.Normal(guess, SIGMA).log_prob(fields["x"]).flatten(1).sum(1)
    assert torch.allclose(exact_value, by_hand, atol=1e-5)
    for evaluator in ("elbo", "importance", "prior"):
        for particles in (1, 30):
            result = pv.evaluate(pair, fields, evaluator, particles, progress=False)
            assert torch.allclose(result.headline.float(), exact_value, atol=1e-4), evaluator


# --- trained from the command line --------------------------------------------------------------------------


def run(folder, model: str, data: str = "quadrants", epochs: int = 3, resume: bool = False, **options):
    how = {"epochs": epochs, "engine": "eager", "device": "cpu", "progress": False}
    pv.train(model, data, model_options={"hidden": (20,), **options}, out=folder, resume=resume, **how)
    return folder


@pytest.fixture(scope="module")
def regressor(tmp_path_factory):
    return run(tmp_path_factory.mktemp("runs") / "regressor", "regressor")


def test_a_baseline_is_seen_by_the_prior_and_stays_as_it_was(regressor, tmp_path):
    folder = run(tmp_path / "cvae", "cvae", baseline=str(regressor), latent_dim=3)
    pair, frozen = load_run(folder).pair, load_run(regressor).pair
    for name, value in frozen.state_dict().items():
        assert torch.equal(pair.baseline.state_dict()[name], value)
    assert not any(parameter.requires_grad for parameter in pair.baseline.parameters())
    batch = load_run(folder).data.test.take(slice(0, 3))
    before = pair.prior(pair.features(batch["context"])).mean
    with torch.no_grad():
        pair.baseline.net.out.bias += 3.0
    assert not torch.allclose(pair.prior(pair.features(batch["context"])).mean, before)


def test_samples_of_a_run_keep_what_the_test_data_give(regressor, tmp_path):
    pv.sample(regressor, 7, tmp_path / "samples.npz")
    x = torch.from_numpy(np.load(tmp_path / "samples.npz")["x"])
    batch = load_run(regressor).data.test.take(slice(0, 7))
    assert torch.equal(x[~batch["mask"]], batch["x"][~batch["mask"]])
    assert not torch.equal(x, batch["x"])


def facts(context: tuple[int, ...]) -> dict:
    return {"data_shape": (1, 8, 8), "context_shape": context}


def test_a_baseline_must_be_a_regressor_of_the_same_data(regressor, tmp_path):
    other = run(tmp_path / "cvae", "cvae", latent_dim=2)
    with pytest.raises(RunError, match=f"^baseline {other}: a CVAE has no guess.context. with shapes, as a regressor"):
        build_model("cvae", facts((1, 8, 8)), {"baseline": str(other)})
    with pytest.raises(
        RunError, match=rf"^baseline {regressor}: was trained on context of shape \[1, 8, 8\], not \[10\]"
    ):
        build_model("cvae", facts((10,)), {"baseline": str(regressor)})
    with pytest.raises(RunError, match=f"^baseline {tmp_path / 'nowhere'}: .* does not exist"):
        build_model("cvae", facts((1, 8, 8)), {"baseline": str(tmp_path / "nowhere")})
    with pytest.raises(ContractError, match="^baseline: a VAE has no guess"):
        CVAE((1, 8, 8), (1, 8, 8), baseline=pv.VAE((1, 8, 8)))
    assert build_model("cvae", facts((10,)), {"baseline": ""}).baseline is None


def test_a_run_is_read_and_resumed_when_the_folder_of_its_baseline_is_gone(regressor, tmp_path):
    baseline = tmp_path / "baseline"
    shutil.copytree(regressor, baseline)
    folder = run(tmp_path / "cvae", "cvae", baseline=str(baseline), latent_dim=3)
    before = load_run(folder).pair
    shutil.rmtree(baseline)
    after = load_run(folder).pair
    assert same_state(before, after) and same_state(after.baseline, load_run(regressor).pair)
    run(folder, "cvae", baseline=str(baseline), latent_dim=3, epochs=4, resume=True)
    resumed = load_run(folder)
    assert len(resumed.history) == 4 and same_state(resumed.pair.baseline, after.baseline)


def test_a_baseline_of_ones_own_is_handed_in():
    class Mean(pv.Pair):
        shapes = {"x": SHAPE, "context": CONTEXT}

        def guess(self, context):
            return context.mean(1).view(-1, 1, 1, 1).expand(-1, *SHAPE)

    pair, fields = linear_cvae(baseline=Mean()), normal_fields()
    seen = torch.cat([fields["context"], fields["context"].mean(1, keepdim=True).expand(-1, 6)], 1)
    assert torch.equal(pair.features(fields["context"]), seen)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"context": torch.zeros(2, 5)}, r"context has shape \[5\], but the model was made for \[4\]"),
        ({"x": torch.zeros(2, 1, 3, 3)}, r"x has shape \[1, 3, 3\], but the model was made for \[1, 2, 3\]"),
        ({"mask": torch.ones(2, 3, 2)}, r"mask has shape \[3, 2\], but the model was made for \[1, 2, 3\]"),
    ],
)
def test_fields_of_other_shapes_than_the_models_are_named(fields, message):
    with pytest.raises(DataError, match=message):
        pv.log_terms(linear_cvae(), normal_fields(2) | fields)


def test_a_model_that_never_sees_its_context_is_refused():
    with pytest.raises(ContractError, match="leave the context out"):
        linear_cvae(prior="standard_normal", decoder_context=False)


def test_data_without_a_context_are_refused(tmp_path):
    with pytest.raises(DataError, match="needs context_shape, so data with a field context; these"):
        run(tmp_path / "cvae", "cvae", data="digits")
