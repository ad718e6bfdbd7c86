"""Trunks: sizes, leading dims, where a decoder starts, and what does not fit."""

import math

import pytest
import torch
from torch import nn

from pyro_vae import plugins
from pyro_vae.errors import ContractError, UnknownName
from pyro_vae.parts.nets import ACTIVATIONS, activation_class, mlp

LATENT, CHANNELS = 3, 2
CASES = [
    ("mlp", (5,), ()),
    ("mlp", (5,), (7,)),
    ("mlp", (2, 3, 4), (7, 6)),
    ("conv", (1, 8, 8), (4,)),
    ("conv", (1, 28, 28), (4, 5, 6)),
    ("conv", (3, 7, 9), (4, 5)),
    ("conv", (1, 1, 5), (4, 5)),
    ("residual", (1, 8, 8), (4, 5)),
    ("residual", (2, 5, 6), (4,)),
]


def encoder(net: str, data_shape: tuple[int, ...], hidden: tuple[int, ...], activation: str = "tanh") -> nn.Module:
    torch.manual_seed(0)
    return plugins.load("net", net)(hidden, activation).encoder(data_shape).double()


def decoder(net: str, data_shape: tuple[int, ...], hidden: tuple[int, ...], activation: str = "tanh") -> nn.Module:
    torch.manual_seed(0)
    return plugins.load("net", net)(hidden, activation).decoder(LATENT, data_shape, CHANNELS).double()


# --- activations and MLPs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_works_in_any_case_and_keeps_the_shape(name):
    net = mlp([4, 3], name.upper())
    assert net(torch.randn(5, 4)).shape == (5, 3)
    assert type(net[1]) is activation_class(name)


def test_an_unknown_activation_names_the_nearest_first():
    with pytest.raises(UnknownName, match=r"unknown activation 'rellu'; known: relu, "):
        activation_class("rellu")


def test_an_mlp_is_its_formula():
    net = mlp([4, 3, 2], "tanh").double()
    x = torch.randn(5, 4).double()
    first, second = net[0], net[2]
    hidden = (x @ first.weight.T + first.bias).tanh()
    assert torch.allclose(net(x), (hidden @ second.weight.T + second.bias).tanh())


def test_no_hidden_layer_leaves_a_linear_map():
    x = torch.randn(5, 2, 3).double()
    assert torch.equal(encoder("mlp", (2, 3), ())(x), x.flatten(1))
    linear = decoder("mlp", (2, 3), ())
    z = torch.randn(LATENT).double()
    assert torch.allclose(linear(2 * z) - linear(z), linear(z) - linear(torch.zeros_like(z)))


# --- every trunk --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lead", [(), (4,), (2, 3), (2, 1, 3)])
@pytest.mark.parametrize("net, data_shape, hidden", CASES)
def test_trunks_take_any_number_of_leading_dims(net, data_shape, hidden, lead):
    """Each datum and particle gets what it gets alone."""
    enc, dec = encoder(net, data_shape, hidden), decoder(net, data_shape, hidden)
    x, z = torch.randn(*lead, *data_shape).double(), torch.randn(*lead, LATENT).double()
    features, numbers = enc(x), dec(z)
    assert features.shape == (*lead, enc.out_features)
    assert numbers.shape == (*lead, CHANNELS, *data_shape)
    last_x, last_z = x.reshape(-1, *data_shape)[-1], z.reshape(-1, LATENT)[-1]
    assert torch.allclose(features.reshape(-1, enc.out_features)[-1], enc(last_x))
    assert torch.allclose(numbers.reshape(-1, CHANNELS, *data_shape)[-1], dec(last_z))


@pytest.mark.parametrize("net, data_shape, hidden", CASES)
def test_every_parameter_gets_a_gradient(net, data_shape, hidden):
    enc, dec = encoder(net, data_shape, hidden), decoder(net, data_shape, hidden)
    (enc(torch.randn(6, *data_shape).double()).sum() + dec(torch.randn(6, LATENT).double()).sum()).backward()
    for name, parameter in [*enc.named_parameters(), *dec.named_parameters()]:
        assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("net, data_shape, hidden", CASES)
def test_a_decoder_starts_at_the_given_output(net, data_shape, hidden):
    dec = decoder(net, data_shape, hidden)
    values = torch.randn(CHANNELS, *data_shape).double()
    z = torch.randn(4, LATENT).double()
    before = dec(z)
    dec.set_output(torch.zeros_like(values))
    around_zero = dec(z)
    dec.set_output(values)
    assert torch.allclose(dec(z), around_zero + values) and not torch.equal(dec(z), before)


@pytest.mark.parametrize("net, data_shape, hidden", CASES)
def test_every_output_depends_on_the_latent_and_every_feature_on_the_data(net, data_shape, hidden):
    """No element is lost by a stride or a crop."""
    dec = decoder(net, data_shape, hidden)
    moved = (dec(torch.randn(8, LATENT).double()) - dec(torch.zeros(LATENT).double())).abs().amax(0)
    assert (moved > 0).all()
    enc = encoder(net, data_shape, hidden)
    x = torch.zeros(1, *data_shape, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(enc(x).square().sum() + enc(x).sum(), x)
    assert (gradient != 0).all()


def test_a_convolution_halves_the_resolution_for_each_width():
    assert encoder("conv", (1, 28, 28), (4, 5, 6)).out_features == 6 * 4 * 4
    assert encoder("conv", (3, 7, 9), (4, 5)).out_features == 5 * 2 * 3
    assert encoder("mlp", (2, 3), ()).out_features == math.prod((2, 3))


def test_a_residual_block_adds_to_its_input():
    block = encoder("residual", (1, 8, 8), (4,)).layers[1]
    h = torch.randn(2, 4, 4, 4).double()
    assert not torch.allclose(block(h), h)
    nn.init.zeros_(block.f[-1].weight)
    nn.init.zeros_(block.f[-1].bias)
    assert torch.equal(block(h), h)


@pytest.mark.parametrize("build", [encoder, decoder])
@pytest.mark.parametrize("net", ["conv", "residual"])
def test_what_a_convolution_cannot_take(build, net):
    with pytest.raises(ContractError, match=r"not \[5\]; use net='mlp'"):
        build(net, (5,), (4,))
    with pytest.raises(ContractError, match="at least one width in `hidden`"):
        build(net, (1, 8, 8), ())
