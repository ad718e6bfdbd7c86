"""The autoencoders of lectures as VAEs: each against a hand-written loss, PCA, or a closed form."""

import math

import numpy as np
import pytest
import torch
from references import data_with_axes, ppca_mean_log_likelihood
from sklearn.decomposition import PCA
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae import plugins
from pyro_vae.errors import ContractError, RunError, UnknownName
from pyro_vae.models.presets import (
    autoencoder,
    denoising_autoencoder,
    linear_autoencoder,
    linear_vae,
    probabilistic_autoencoder,
    sparse_autoencoder,
)
from pyro_vae.pair.particles import run_guide

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def loss_of(pair: nn.Module, x: Tensor, **options) -> Tensor:
    return plugins.load("objective", "trace_mean_field_elbo")()(pair, {"x": x}, **options)


def normals(n: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


def same_data(x: Tensor) -> pv.Dataset:
    """All of the data for training, validation and test."""
    return pv.Dataset("all", *[pv.Split({"x": x})] * 3)


def descend(pair: nn.Module, x: Tensor, objective: str, particles: int = 1, steps: int = 300) -> None:
    """L-BFGS on the loss of all data, with the same noise at every evaluation."""
    objective = plugins.load("objective", objective)()
    optimizer = torch.optim.LBFGS(
        list(pair.parameters()), max_iter=steps, history_size=30, tolerance_grad=1e-8, tolerance_change=1e-13,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Tensor:
        torch.manual_seed(0)
        optimizer.zero_grad()
        loss = objective(pair, {"x": x}, particles)
        loss.backward()
        return loss

    optimizer.step(closure)


# --- the autoencoder ----------------------------------------------------------------------------------------


def test_the_loss_of_an_autoencoder_is_that_of_a_hand_written_loop():
    """1/2 |x - r|^2, and 1/2 log(2 pi) for each element, at every step of ten."""
    torch.manual_seed(0)
    x, pair = normals(30, 6), autoencoder((6,), 2, hidden=(5,))
    encoder = [nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)]
    net = nn.Sequential(*encoder, nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 6))
    with torch.no_grad():
        for mine, theirs in zip(net.parameters(), pair.parameters(), strict=True):
            mine.copy_(theirs)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(10):
        loss = 0.5 * (x - net(x)).square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item() + 6 * HALF_LOG_2PI)
    run = pv.train(pair, same_data(x), epochs=10, batch_size=30, lr=1e-2, progress=False, engine="eager")
    assert [row["loss"] for row in run.history] == pytest.approx(losses, rel=1e-5)
    assert pv.evaluate(pair, x, progress=False).quantity == "loss"


def test_a_sigma_weighs_the_squared_error():
    x, pair = normals(8, 6), autoencoder((6,), likelihood_sigma=0.5)
    error = squared_error(pair, x)
    expected = 0.5 * error / 0.25 + 6 * (HALF_LOG_2PI + math.log(0.5))
    assert loss_of(pair, x).item() == pytest.approx(expected.mean().item(), rel=1e-5)


def squared_error(pair: nn.Module, x: Tensor) -> Tensor:
    """|x - r|^2 of each datum [n]."""
    with torch.no_grad():
        reconstruction = pair.decoder(run_guide(pair, {"x": x})["z"].value[0]).squeeze(1)
    return (x - reconstruction).square().flatten(1).sum(1)


def test_evaluators_of_densities_refuse_it_and_name_the_site():
    for prior in ("flat", "standard_normal"):
        pair = autoencoder((6,), prior=prior)
        with pytest.raises(ContractError, match="no log-likelihood can be given.*'z'"):
            pv.evaluate(pair, normals(8, 6), evaluator="importance", particles=5, progress=False)


@pytest.mark.parametrize("gradient", ["stl", "dreg"])
def test_estimators_that_hold_the_guide_fixed_would_not_train_its_encoder_and_are_refused(gradient):
    pair, objective = autoencoder((6,)), plugins.load("objective", "iwae")(gradient)
    with pytest.raises(ContractError, match="'z' is a point mass.*use gradient='pathwise'"):
        objective(pair, {"x": normals(8, 6)}, particles=3)


# --- linear: PCA and probabilistic PCA ----------------------------------------------------------------------


def test_a_linear_autoencoder_spans_the_plane_of_pca():
    """On digits: principal angles below 1 degree, and the error of scikit-learn's PCA up to 1e-3."""
    x = pv.load_data("digits").train["x"].flatten(1).double()
    torch.manual_seed(0)
    pair = linear_autoencoder((64,), latent_dim=5, data_mean=x.mean(0)).double()
    descend(pair, x, "trace_elbo")
    pca = PCA(5).fit(x.numpy())
    basis = np.linalg.qr(pair.decoder.out.weight.detach().numpy())[0]
    cosines = np.linalg.svd(pca.components_ @ basis, compute_uv=False)
    assert np.degrees(np.arccos(cosines.clip(-1, 1))).max() < 1.0
    best = np.square(x.numpy() - pca.inverse_transform(pca.transform(x.numpy()))).sum(1).mean()
    assert squared_error(pair, x).mean().item() == pytest.approx(best, rel=1e-3)


def test_a_linear_vae_is_probabilistic_pca():
    """Trained, its ELBO is within 0.01 nats of the largest log-likelihood that such a model has."""
    x = data_with_axes(1000, 6)
    torch.manual_seed(1)
    pair = linear_vae((6,), data_mean=x.mean(0)).double()
    descend(pair, x, "trace_mean_field_elbo", particles=10)
    elbo = pv.evaluate(pair, x, particles=100, progress=False).mean
    assert elbo == pytest.approx(ppca_mean_log_likelihood(x, 2), abs=0.01)


# --- sparse -------------------------------------------------------------------------------------------------


def test_the_loss_of_a_sparse_autoencoder_has_an_l1_penalty():
    x, pair = normals(9, 6), sparse_autoencoder((6,), latent_dim=12, l1=0.3)
    code = torch.relu(pair.posterior.code[0](x))
    columns = pair.decoder.out.weight / pair.decoder.out.weight.norm(dim=0)
    error = (x - code @ columns.T - pair.decoder.out.bias).square().sum(1)
    expected = 0.5 * error + 0.3 * code.sum(1) + 6 * HALF_LOG_2PI + 12 * math.log(2 / 0.3)
    assert loss_of(pair, x).item() == pytest.approx(expected.mean().item(), rel=1e-5)
    assert torch.allclose(pair.decoder.columns.norm(dim=0), torch.ones(12))


def test_more_of_the_code_is_exactly_zero_the_larger_the_penalty():
    x = pv.load_data("digits").train["x"][:300]
    shares = []
    for l1 in (0.01, 0.05, 0.2):
        torch.manual_seed(0)
        pair = sparse_autoencoder((1, 8, 8), latent_dim=80, l1=l1, data_mean=x.mean(0))
        pv.train(pair, same_data(x), epochs=60, batch_size=100, lr=3e-3, progress=False, engine="eager")
        shares.append((run_guide(pair, {"x": x})["z"].value == 0).float().mean().item())
    assert 0.3 < shares[0] < shares[1] - 0.03 < shares[2] - 0.06 < 0.94, shares


# --- denoising ----------------------------------------------------------------------------------------------


def test_noise_is_in_training_only():
    x = normals(8, 6)
    torch.manual_seed(0)
    pair = denoising_autoencoder((6,), noise=0.7)
    codes = [run_guide(pair, {"x": x})["z"].value for _ in range(2)]
    assert not torch.equal(*codes)
    pair.eval()
    codes = [run_guide(pair, {"x": x})["z"].value for _ in range(2)]
    assert torch.equal(*codes)
    assert torch.equal(codes[0][0], pair.posterior.code(pair.encoder(x)))


def test_the_field_of_a_denoising_autoencoder_points_back_to_the_curve():
    """Trained on a circle, r(x) - x points to it, from inside and outside, at 0.5 to 2 standard deviations of the
    noise."""
    noise, radius = 0.2, 1.5
    angle = 2 * math.pi * torch.rand(2000, generator=torch.Generator().manual_seed(0))
    circle = torch.stack([angle.cos(), angle.sin()], 1)
    torch.manual_seed(0)
    pair = denoising_autoencoder((2,), latent_dim=16, hidden=(64,), activation="tanh", noise=noise)
    pv.train(
        pair, same_data(radius * circle), epochs=80, batch_size=200, lr=1e-2, schedule="cosine", progress=False,
        engine="eager",
    )  # fmt: skip
    for distance in (0.5, 1.0, 2.0):
        for side in (-1, 1):
            x = (radius + side * distance * noise) * circle[:200]
            with torch.no_grad():
                field = pair.decoder(pair.posterior.code(pair.encoder(x))).squeeze(1) - x
            cosine = -side * nn.functional.cosine_similarity(field, circle[:200])
            assert cosine.mean() > 0.9, (distance, side)


# --- probabilistic ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", ["flat", "standard_normal"])
def test_a_probabilistic_autoencoder_is_one_with_noise_on_its_code(prior):
    """The same loss at the same noise, and the same gradient, up to the entropy of the code's noise; with a prior
    N(0, I), up to half the code's squares, whose mean takes the noise in."""
    sigma, x = 0.3, normals(9, 6)
    torch.manual_seed(0)
    pair = probabilistic_autoencoder((6,), 2, hidden=(5,), prior=prior, posterior_sigma=sigma)
    torch.manual_seed(1)
    site = run_guide(pair, {"x": x})["z"]
    noise = (site.value[0] - site.mean()[0]).detach()
    code = pair.posterior.loc(pair.encoder(x))
    error = (x - pair.decoder(code + noise).squeeze(1)).square().sum(1)
    by_hand = 0.5 * error + 6 * HALF_LOG_2PI - 2 * (HALF_LOG_2PI + 0.5 + math.log(sigma))
    if prior == "standard_normal":
        by_hand = by_hand + 0.5 * (code.square().sum(1) + 2 * sigma**2) + 2 * HALF_LOG_2PI
    torch.manual_seed(1)
    loss = loss_of(pair, x)
    assert loss.item() == pytest.approx(by_hand.mean().item(), rel=1e-5)
    found, expected = (torch.autograd.grad(each, list(pair.parameters())) for each in (loss, by_hand.mean()))
    assert all(torch.allclose(*each, atol=1e-5) for each in zip(found, expected, strict=True))
    quantity = pv.evaluate(pair, x, progress=False).quantity
    assert quantity == ("loss" if prior == "flat" else "elbo")


# --- bad input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "build, line",
    {
        lambda: pv.VAE((6,), noise=0.1): "noise is for a denoising autoencoder.*use posterior='delta'",
        lambda: denoising_autoencoder((6,), noise=-1.0): "noise must not be negative, but is -1.0",
        lambda: sparse_autoencoder((6,), l1=0.0): "l1 must be positive, not 0",
        lambda: probabilistic_autoencoder((6,), posterior_sigma=0.0): "posterior_sigma must be positive, not 0",
        lambda: pv.VAE((6,), prior="laplace", prior_scale=-2.0): "prior_scale must be positive, not -2",
        lambda: pv.VAE((6,), likelihood="gaussian_learned", likelihood_sigma=0.0): "sigma must be positive, not 0",
        lambda: pv.VAE((6,), likelihood="gaussian", likelihood_sigma=math.inf): "sigma must be positive, not inf",
        lambda: autoencoder((6,), posterior_layers=2): "posterior_layers needs posterior iaf or neural_spline or",
    }.items(),
)
def test_bad_input_is_one_line(build, line):
    with pytest.raises(ContractError, match=line) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_an_option_that_a_system_does_not_have_is_one_line():
    with pytest.raises(UnknownName, match="option of model 'linear_autoencoder' 'hidden'"):
        pv.train("linear_autoencoder", "digits", model_options={"hidden": (3,)}, progress=False)
    with pytest.raises(RunError, match="posterior_sigma needs posterior fixed_normal"):
        pv.train("probabilistic_autoencoder", "digits", progress=False,
                 model_options={"posterior": "delta", "posterior_sigma": 0.1})  # fmt: skip
