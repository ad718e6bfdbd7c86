"""Hierarchies of latents against closed forms, the ladder's guide, and Burda's two-layer net."""

import math

import pytest
import torch
from pairs import SHAPE, bits, small_vae
from references import gaussian_log_density
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.errors import ContractError, UnknownName
from pyro_vae.models.hierarchical import HierarchicalVAE, burda_two_layers, product
from pyro_vae.pair.particles import run_guide
from pyro_vae.pair.sites import latent

SIGMA = 0.7
WAYS = pytest.mark.parametrize("ladder", [False, True], ids=["bottom up", "ladder"])


def normal_data(n: int = 8, size: int = 4) -> Tensor:
    return torch.randn(n, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def linear(latent_dims: tuple[int, ...], ladder: bool, seed: int = 0) -> HierarchicalVAE:
    """All linear in float64, with scales that depend on nothing, so that p(x) is normal."""
    torch.manual_seed(seed)
    options = {"likelihood": "gaussian", "likelihood_sigma": SIGMA}
    pair = HierarchicalVAE((4,), latent_dims, hidden=(), ladder=ladder, **options).double()
    with torch.no_grad():
        for conditional in [*pair.posteriors, *[prior[-1] for prior in pair.priors]]:
            conditional.heads.weight.chunk(2)[1].zero_()
            conditional.heads.bias.chunk(2)[1].fill_(-0.2)
    return pair


def conditional(layer: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """Weight, bias and variances of a linear layer that gives a normal."""
    weight, bias = layer.heads.weight.detach().chunk(2)[0], layer.heads.bias.detach()
    return weight, bias.chunk(2)[0], (2 * bias.chunk(2)[1]).exp()


def exact(pair: HierarchicalVAE, x: Tensor) -> Tensor:
    """log p(x), by the normals one below the other."""
    top = pair.posteriors[-1].heads.out_features // 2
    mean, covariance = torch.zeros(top).double(), torch.eye(top).double()
    layers = [conditional(prior[-1]) for prior in reversed(pair.priors)]
    out = pair.decoder.out
    layers.append((out.weight.detach(), out.bias.detach(), torch.full((4,), SIGMA**2).double()))
    for weight, bias, variances in layers:
        mean, covariance = weight @ mean + bias, weight @ covariance @ weight.T + variances.diag()
    return gaussian_log_density(x, mean, covariance)


@WAYS
def test_the_importance_weighted_bound_reaches_the_exact_likelihood(ladder):
    """Three layers; the guide is about as wide as the prior, so that no weight has a heavy tail."""
    pair, x = linear((3, 2, 2), ladder), 0.5 * normal_data()
    with torch.no_grad():
        for i, posterior in enumerate(pair.posteriors):
            posterior.heads.weight.zero_()
            posterior.heads.bias.zero_()
            posterior.heads.bias.chunk(2)[1].fill_(0.3 if not ladder or i == 2 else 1.5)
    result = pv.evaluate(pair, x, "importance", 10_000, progress=False, engine="eager")
    assert result.pareto_k.max() < 0.7
    z = (result.log_likelihood - exact(pair, x)) / result.monte_carlo_error
    assert z.abs().max() < 5
    elbo = pv.evaluate(pair, x, "elbo", 2000, progress=False).elbo
    assert (elbo < exact(pair, x)).all()


@WAYS
def test_with_the_exact_posterior_every_weight_is_the_likelihood(ladder):
    """One unit a layer: q(z_1|x) q(z_2|z_1), and the ladder's q(z_2|x) q(z_1|z_2, x), are exact at these weights."""
    pair, x = linear((1, 1), ladder), normal_data()
    a, b, s = (part.squeeze() for part in conditional(pair.priors[0][-1]))
    w, c = pair.decoder.out.weight.detach().squeeze(1), pair.decoder.out.bias.detach()
    seen = SIGMA**2 / (w @ w)  # variance of w'(x - c) / w'w given z_1
    spread = a**2 + s  # of z_1
    with torch.no_grad():
        if ladder:
            _set(pair.posteriors[0], w / (w @ w), -(w @ c) / (w @ w), seen)
            gain = a / (spread + seen)
            _set(pair.posteriors[1], gain * w / (w @ w), -gain * ((w @ c) / (w @ w) + b), 1 - gain * a)
        else:
            gain = spread / (spread + seen)
            _set(pair.posteriors[0], gain * w / (w @ w), b - gain * ((w @ c) / (w @ w) + b), (1 - gain) * spread)
            _set(pair.posteriors[1], a / spread, -b * a / spread, 1 - a**2 / spread)
        terms = pv.log_terms(pair, {"x": x}, 5)
    assert torch.allclose(terms.log_weight, exact(pair, x).expand(5, -1), atol=1e-10)
    drawn = pv.evaluate(pair, x, "elbo", 4000, progress=False).elbo - exact(pair, x)
    assert abs(drawn.mean()) < 5 * 2 / math.sqrt(4000 * len(x)), "the KL is that of the draws where no formula holds"


def _set(posterior: nn.Module, weight: Tensor, bias: Tensor, variance: Tensor) -> None:
    posterior.heads.weight[0] = weight
    posterior.heads.bias.copy_(torch.stack([bias, 0.5 * variance.log()]))


def test_the_ladder_multiplies_what_the_model_says_and_what_x_says():
    z = torch.linspace(-3, 3, 7)
    normals = [pv.posteriors.DiagonalNormal(2, 1)(torch.randn(2)) for _ in range(2)]
    both = product(*normals)
    rest = sum(normal.base_dist.log_prob(z) for normal in normals) - both.base_dist.log_prob(z)
    assert torch.allclose(rest, rest[:1].expand(7), atol=1e-4)


@WAYS
def test_the_guide_draws_in_its_own_order_and_each_site_has_its_size(ladder):
    pair = HierarchicalVAE(SHAPE, (4, 3, 2), hidden=(8, 7, 6), ladder=ladder)
    sites = latent(run_guide(pair, {"x": bits(5)}, 3))
    assert list(sites) == (["z_3", "z_2", "z_1"] if ladder else ["z_1", "z_2", "z_3"])
    assert {name: site.value.shape[2:].numel() for name, site in sites.items()} == {"z_1": 4, "z_2": 3, "z_3": 2}


@WAYS
def test_one_layer_is_a_vae(ladder):
    one, vae = HierarchicalVAE(SHAPE, (2,), hidden=(8,), ladder=ladder), small_vae()
    names = {"encoders.0": "encoder", "posteriors.0": "posterior"}
    state = vae.state_dict()
    for name, parameter in one.named_parameters():
        prefix = next((old for old in names if name.startswith(old)), "")
        parameter.data.copy_(state[name.replace(prefix, names.get(prefix, ""), 1)])
    weights = []
    for pair in (one, vae):
        torch.manual_seed(3)
        weights.append(pv.log_terms(pair, {"x": bits()}, 4).log_weight)
    assert torch.allclose(*weights)


@pytest.mark.parametrize("ladder, objective", [(False, "iwae"), (True, "trace_mean_field_elbo")])
def test_it_trains_compiled(graphs, ladder, objective):
    pair = HierarchicalVAE(SHAPE, (3, 2), hidden=(8, 8), ladder=ladder)
    options = {"objective": objective, "particles": 2, "engine": "compiled", "batch_size": 20, "lr": 1e-2}
    run = pv.train(pair, bits(80), epochs=30, progress=False, **options)
    assert run.engine == "compiled" and run.history[-1]["loss"] < run.history[0]["loss"] - 0.5


@WAYS
def test_free_bits_by_site_leave_each_layer_its_nats(ladder):
    """Where the KL of a layer is below its free bits, they stand in its place."""
    pair, batch = HierarchicalVAE(SHAPE, (3, 2), hidden=(8, 8), ladder=ladder), {"x": bits()}
    losses = []
    for nats in (0.0, 100.0):
        objective = pv.objectives.TraceMeanFieldELBO()
        objective = objective.with_free_bits(nats, "site") if nats else objective
        torch.manual_seed(3)
        losses.append(objective(pair, batch))
    torch.manual_seed(3)
    kl = objective.elbo_terms(pair, batch, 1).kl
    assert torch.allclose(kl, torch.full_like(kl, 200.0)) and losses[1] - losses[0] > 100


def test_units_are_active_by_layer():
    """z_1[0] follows x and z_2[0] follows z_1[0]; the others follow nothing."""
    pair, x = linear((2, 2), ladder=False), normal_data(200)
    with torch.no_grad():
        for posterior in pair.posteriors:
            posterior.heads.weight.zero_()
            posterior.heads.bias.zero_()
            posterior.heads.weight[0, 0] = 1.0
    entry = pv.evaluate(pair, x, "latent", particles=200, progress=False).entry()
    assert entry["active_units_per_site"] == {"z_1": 1, "z_2": 1}
    expected = x[:, 0].var().item()
    assert entry["variance_of_mean"]["z_1[0]"] == pytest.approx(expected, rel=1e-6)
    assert entry["variance_of_mean"]["z_2[0]"] == pytest.approx(expected, rel=0.05), "the mean over draws of z_1"


def test_burdas_two_layers_are_the_papers_net():
    mean = bits(40, (1, 28, 28)).mean(0)
    pair = burda_two_layers((1, 28, 28), data_mean=mean)
    sizes = [tuple(layer.weight.shape[::-1]) for layer in pair.modules() if isinstance(layer, nn.Linear)]
    encoder = [(784, 200), (200, 200), (100, 100), (100, 100), (200, 200), (100, 100)]
    assert sizes == [*encoder, (50, 100), (100, 100), (100, 200), (100, 200), (200, 200), (200, 784)]
    assert sum(isinstance(layer, nn.Tanh) for layer in pair.modules()) == 8
    weight = pair.encoders[0].layers[0].weight
    assert weight.abs().max() <= math.sqrt(6 / 984)
    assert weight.std().item() == pytest.approx(math.sqrt(2 / 984), rel=0.02)
    assert torch.allclose(pair.decoder.out.bias, torch.logit(mean.flatten(), eps=1e-3))
    assert isinstance(pv.models.burda_two_layers((4,), ladder=True), HierarchicalVAE)


@pytest.mark.parametrize(
    "options, line",
    [
        ({"latent_dims": ()}, "latent_dims is empty; give the size of at least one stochastic layer"),
        ({"latent_dims": (), "ladder": True}, "latent_dims is empty"),
        ({"latent_dims": (3, 2, 1)}, "hidden has 2 widths for 3 stochastic layers"),
        ({"depth": 0}, "depth must be at least 1, not 0"),
        ({"latent_dims": (3, 0)}, "latent_dims must be at least 1, not 0"),
        ({"prior": "vamp"}, "needs encoder"),
    ],
)
def test_bad_input_is_one_line(options, line):
    with pytest.raises(ContractError, match=line):
        HierarchicalVAE(SHAPE, **options)


def test_an_option_of_another_system_is_one_line():
    with pytest.raises(UnknownName, match="unknown option 'posterior_layers'"):
        HierarchicalVAE(SHAPE, posterior_layers=2)
    with pytest.raises(ContractError, match="prior_components needs prior mixture or vamp"):
        HierarchicalVAE(SHAPE, prior_components=3)


@pytest.mark.parametrize(
    "name, options", [("hierarchical", {}), ("hierarchical", {"ladder": True}), ("burda_two_layers", {})]
)
def test_it_trains_by_name_on_a_default_that_needs_no_file(name, options):
    run = pv.train(name, epochs=3, model_options=options, engine="eager", progress=False)
    assert run.history[-1]["valid_elbo"] > run.history[0]["valid_elbo"]


def test_the_command_line_says_so_too(capsys):
    from pyro_vae.command_line import main as cli

    assert cli.main(["train", "hierarchical", "--latent_dims", "", "--ladder"]) == 2
    assert "latent_dims is empty" in capsys.readouterr().err
