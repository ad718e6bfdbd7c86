"""Parts: plugins with options of their own, which carry the name of the model's parameter; objects; what is missing."""

import copy
import sys

import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae import plugins
from pyro_vae.command_line import main as cli
from pyro_vae.errors import ContractError, UnknownName
from pyro_vae.models.cvae import CVAE
from pyro_vae.models.regressor import Regressor
from pyro_vae.parts.priors import MixtureOfNormals, StandardNormal

MODULE = '''
import torch
from torch import nn
import pyro.distributions as dist
from pyro_vae.parts.posteriors import DiagonalNormal
from pyro_vae.parts.nets import MLP

class Deep(DiagonalNormal):
    """Some layers before the heads.

    Args:
        layers: how many layers.
    """
    def __init__(self, in_features, latent_dim, layers: int = 2):
        super().__init__(in_features, latent_dim)
        self.layers = nn.Sequential(*[nn.Linear(in_features, in_features) for _ in range(layers)])
    def forward(self, features):
        return super().forward(self.layers(features))

class Wide(MLP):
    """Wider by a factor."""
    def __init__(self, hidden, activation, factor: int = 2):
        super().__init__([factor * width for width in hidden], activation)

class Needy(nn.Module):
    """Asks for what no model has."""
    def __init__(self, latent_dim, telescope: nn.Module):
        super().__init__()
'''
ENTRIES = """[pyro_vae.posteriors]
deep = third_parts:Deep
[pyro_vae.nets]
wide = third_parts:Wide
[pyro_vae.priors]
needy = third_parts:Needy
"""


@pytest.fixture
def third_parts(tmp_path, monkeypatch):
    """An installed package with parts of its own."""
    (tmp_path / "third_parts.py").write_text(MODULE)
    info = tmp_path / "third_parts-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: third-parts\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRIES)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("third_parts", None)


@pytest.mark.parametrize("model, data", [("vae", "digits"), ("cvae", "label")])
def test_a_third_partys_posterior_brings_its_option_to_every_family(model, data, third_parts, capsys):
    line = f"train {model} --data {data} --hidden 4 --posterior deep --posterior_layers 4"
    with pytest.raises(SystemExit):
        cli.main([*line.split(), "--help"])
    assert "--posterior_layers POSTERIOR_LAYERS how many layers. (default: 2)" in " ".join(
        capsys.readouterr().out.split()
    )
    assert cli.main([*line.split(), "--epochs", "1", "--engine", "eager", "--quiet", "--out", "run"]) == 0
    run = pv.load_run("run")
    assert len(run.pair.posterior.layers) == 4
    assert run.config["model"]["posterior"] == "deep" and run.config["model"]["posterior_layers"] == 4


def test_a_net_has_options_as_well(third_parts):
    pair = pv.VAE((6,), hidden=(3,), net="wide", net_factor=3)
    assert pair.encoder.out_features == 9 and pair.decoder.layers[0].out_features == 9
    assert "wide" in plugins.names("net") and pv.VAE((6,), hidden=(3,), net="wide").encoder.out_features == 6


def test_a_part_that_needs_what_the_model_does_not_have_is_named(third_parts):
    with pytest.raises(ContractError, match="the prior 'needy' needs telescope: give prior_telescope"):
        pv.VAE((6,), prior="needy")


def test_options_of_the_chosen_parts_carry_their_kind():
    pair = pv.VAE((6,), prior="mixture", prior_components=20, likelihood="gaussian", likelihood_sigma=0.5)
    assert len(pair.prior.logits) == 20 and pair.likelihood.sigma == 0.5
    assert Regressor((6,), (2,), likelihood="gaussian", likelihood_sigma=0.5).likelihood.sigma == 0.5
    assert pv.models.blog((6,), likelihood="gaussian", likelihood_sigma=0.5).likelihood.sigma == 0.5


def test_old_names_of_options_go_on_working():
    pair = pv.VAE((6,), prior="mixture", components=4, likelihood="gaussian", sigma=0.5)
    assert len(pair.prior.logits) == 4 and pair.likelihood.sigma == 0.5
    assert CVAE(
        (6,), (2,), likelihood="gaussian_learned", sigma=0.5
    ).likelihood.log_sigma.exp().item() == pytest.approx(0.5)


def test_an_option_of_a_part_that_was_not_chosen_says_which_has_it():
    with pytest.raises(ContractError, match="^prior_components needs prior mixture or vamp$"):
        pv.VAE((6,), prior_components=3)
    with pytest.raises(ContractError, match="^likelihood_sigma needs likelihood gaussian or gaussian_learned or "):
        pv.VAE((6,), sigma=0.5)
    with pytest.raises(UnknownName, match="unknown option 'prior_component'; known: prior_components"):
        pv.VAE((6,), prior="mixture", prior_component=3)
    with pytest.raises(UnknownName, match="unknown option 'colour'"):
        pv.VAE((6,), colour=3)
    with pytest.raises(ContractError, match="prior_components must be at least 1, not 0"):
        pv.VAE((6,), prior="mixture", prior_components=0)


def test_a_part_may_be_an_object_which_has_its_options_already():
    prior = MixtureOfNormals(2, components=3)
    assert pv.VAE((6,), prior=prior).prior is prior
    with pytest.raises(ContractError, match="prior is an object; give it its components when you make it"):
        pv.VAE((6,), prior=prior, prior_components=4)


def test_a_net_may_be_an_object():
    pair = pv.VAE((6,), net=pv.nets.MLP((3,), "tanh"))
    assert pair.encoder.out_features == 3 and pv.log_terms(pair, {"x": torch.ones(2, 6)}).log_weight.shape == (1, 2)


def test_parts_are_registered_and_listed(capsys):
    assert plugins.load("prior", "standard_normal") is StandardNormal
    assert cli.main(["list"]) == 0
    listed = capsys.readouterr().out
    for words in ("likelihoods:", "priors:", "posteriors:", "nets:", "  vamp ", "  full_covariance ", "  residual "):
        assert words in listed


LINES = {
    "an option without its part": ("--prior_components 3", "--prior_components needs --prior mixture or vamp"),
    "by its old name": ("--components 3", "--prior_components needs --prior mixture or vamp"),
    "of another part": ("--likelihood poisson --sigma 3", "--likelihood_sigma needs --likelihood gaussian or "),
    "a misspelt one": (
        "--prior mixture --prior_component 3",
        "unknown option '--prior_component'; known: --prior_comp",
    ),
}


@pytest.mark.parametrize("words, line", LINES.values(), ids=LINES)
def test_the_command_line_says_what_an_option_needs(words, line, capsys):
    assert cli.main(f"train {words} --print_config".split()) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith(f"pyro-vae: {line}") and printed.err.count("\n") == 1


def test_old_and_new_names_are_one_option_on_the_command_line(capsys):
    for words in ("--prior_components 4 --likelihood_sigma 0.5", "--components 4 --sigma 0.5"):
        assert cli.main(f"train --prior mixture --likelihood gaussian {words} --print_config".split()) == 0
        assert "  prior_components: 4\n" in capsys.readouterr().out


# --- a prior that asks for the encoder ----------------------------------------------------------------------


def vamp(**options) -> pv.VAE:
    torch.manual_seed(0)
    return pv.VAE((6,), 2, hidden=(4,), activation="tanh", prior="vamp", prior_components=3, **options).double()


@pytest.mark.parametrize("posterior", ["diagonal_normal", "full_covariance"])
def test_the_vamp_prior_is_the_mean_of_the_posteriors_at_its_pseudo_inputs(posterior):
    pair, z = vamp(posterior=posterior), torch.randn(5, 2, dtype=torch.float64)
    each = torch.stack([pair.posterior(pair.encoder(u)).log_prob(z) for u in pair.prior.inputs])
    assert torch.allclose(pair.prior().log_prob(z), each.logsumexp(0) - torch.tensor(3.0).log().double())


def test_the_vamp_prior_holds_the_encoder_once_and_follows_it_into_a_copy():
    pair = vamp()
    assert [name for name in pair.state_dict() if name.startswith("prior.")] == ["prior.inputs"]
    assert sum(p.numel() for p in pair.prior.parameters()) == 3 * 6
    twin = copy.deepcopy(pair)
    assert twin.prior.encode[0] is twin.encoder and twin.prior.encode[1] is twin.posterior
    with torch.no_grad():
        twin.encoder.layers[0].weight.zero_()
    z = torch.zeros(2, dtype=torch.float64)
    assert not torch.equal(twin.prior().log_prob(z), pair.prior().log_prob(z))


def test_pseudo_inputs_start_like_the_data():
    mean = torch.full((6,), 100.0)
    start = pv.VAE((6,), prior="vamp", likelihood="poisson", prior_components=7, data_mean=mean).prior.inputs
    assert start.shape == (7, 6) and (start - mean.log1p()).abs().max() < 1 and start.std() > 0.01


def test_a_vae_with_a_vamp_prior_trains_and_is_stored(tmp_path):
    options = {"hidden": (4,), "prior": "vamp", "prior_components": 5}
    how = {"epochs": 2, "engine": "eager", "progress": False, "device": "cpu"}
    run = pv.train("vae", "digits", model_options=options, out=tmp_path / "run", **how)
    stored = pv.load_run(tmp_path / "run")
    z = torch.randn(4, 2)
    assert torch.equal(stored.pair.prior().log_prob(z), run.pair.prior().log_prob(z))
    assert run.history[1]["valid_loss"] < run.history[0]["valid_loss"]
    weight = stored.pair.encoder.layers[0].weight
    stored.pair.prior().log_prob(z).sum().backward()
    assert weight.grad is not None and isinstance(stored.pair.prior.inputs, nn.Parameter)
