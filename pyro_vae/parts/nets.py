"""Nets, each an encoder and a decoder. They know sizes only; every one accepts any number of leading dimensions."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pyro_vae.errors import ContractError, UnknownName

NOT_ELEMENTWISE = {"GLU", "LogSoftmax", "MultiheadAttention", "Softmax", "Softmax2d", "Softmin", "Threshold"}
ACTIVATIONS = {name.lower(): getattr(nn, name) for name in nn.modules.activation.__all__ if name not in NOT_ELEMENTWISE}


def activation_class(name: str) -> type[nn.Module]:
    """The torch activation of this name, in any case ("relu", "ELU", "tanh", ...)."""
    if name.lower() not in ACTIVATIONS:
        raise UnknownName("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name.lower()]


def mlp(sizes: Sequence[int], activation: str) -> nn.Sequential:
    """Linear layers of the given sizes, each followed by the activation."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), activation_class(activation)()]
    return nn.Sequential(*layers)


def glorot(module: nn.Module) -> None:
    """Glorot uniform weights and zero biases in all linear layers (Glorot & Bengio 2010)."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)


class MLPEncoder(nn.Module):
    """x [..., *data_shape] -> features [..., out_features]; no hidden layer gives x itself, flattened."""

    def __init__(self, data_shape: Sequence[int], hidden: Sequence[int], activation: str):
        super().__init__()
        sizes = [math.prod(data_shape), *hidden]
        self.event_dims = len(data_shape)
        self.out_features = sizes[-1]
        self.layers = mlp(sizes, activation)

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "... features"]:
        return self.layers(x.flatten(-self.event_dims))


class MLPDecoder(nn.Module):
    """z [..., latent_dim] -> [..., channels, *data_shape]: `channels` numbers for each element of x."""

    def __init__(
        self, latent_dim: int, hidden: Sequence[int], activation: str, data_shape: Sequence[int], channels: int
    ):
        super().__init__()
        sizes = [latent_dim, *hidden]
        self.out_shape = (channels, *data_shape)
        self.layers = mlp(sizes, activation)
        self.out = nn.Linear(sizes[-1], math.prod(self.out_shape))

    def forward(self, z: Float[Tensor, "... latent"]) -> Float[Tensor, "..."]:
        return self.out(self.layers(z)).unflatten(-1, self.out_shape)

    def set_output(self, values: Float[Tensor, "..."]) -> None:
        """Let the output start at `values` [channels, *data_shape]."""
        with torch.no_grad():
            self.out.bias.copy_(values.reshape(-1))


class DictionaryDecoder(MLPDecoder):
    """z [..., latent_dim] -> [..., channels, *data_shape]: a sum of columns of unit norm, one for each latent, by z."""

    def __init__(self, latent_dim: int, data_shape: Sequence[int], channels: int):
        super().__init__(latent_dim, (), "relu", data_shape, channels)

    def forward(self, z: Float[Tensor, "... latent"]) -> Float[Tensor, "..."]:
        return F.linear(z, self.columns, self.out.bias).unflatten(-1, self.out_shape)

    @property
    def columns(self) -> Float[Tensor, "elements latent"]:
        """The columns, each of unit norm."""
        return F.normalize(self.out.weight, dim=0)


class ContextDecoder(nn.Module):
    """z [..., latent_dim] and features of the context [batch, features] -> [..., *out_shape].

    The first layer is linear in both together, so the context goes through it once, however many z there are.
    """

    def __init__(
        self, latent_dim: int, features: int, hidden: Sequence[int], activation: str, out_shape: Sequence[int]
    ):
        super().__init__()
        sizes = [*hidden, math.prod(out_shape)]
        self.out_shape = tuple(out_shape)
        self.from_z = nn.Linear(latent_dim, sizes[0])
        self.from_context = nn.Linear(features, sizes[0], bias=False) if features else None
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(sizes):
            layers += [activation_class(activation)(), nn.Linear(n_in, n_out)]
        self.layers = nn.Sequential(*layers)

    def forward(
        self, z: Float[Tensor, "... latent"], features: Float[Tensor, "batch features"]
    ) -> Float[Tensor, "..."]:
        first = self.from_z(z)
        if self.from_context is not None:
            first = first + self.from_context(features)
        return self.layers(first).unflatten(-1, self.out_shape)

    def set_output(self, values: Float[Tensor, "..."]) -> None:
        """Let the output start around `values` [*out_shape]."""
        last = self.layers[-1] if len(self.layers) else self.from_z
        with torch.no_grad():
            last.bias.copy_(values.reshape(-1))


class ResidualBlock(nn.Module):
    """h + f(h), f two 3x3 convolutions; the resolution and the number of channels stay."""

    def __init__(self, channels: int, activation: str):
        super().__init__()
        act = activation_class(activation)
        first, second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.f = nn.Sequential(act(), first, act(), second)

    def forward(self, h: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return h + self.f(h)


class ConvEncoder(nn.Module):
    """Images [..., C, H, W] -> features [..., out_features], halving the resolution once for each width in `hidden`.

    With `residual` there is a residual block at each resolution.
    """

    def __init__(self, data_shape: Sequence[int], hidden: Sequence[int], activation: str, residual: bool = False):
        super().__init__()
        channels, *sizes = _image_shape(data_shape, hidden)
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise([channels, *hidden]):
            layers += [nn.Conv2d(n_in, n_out, 3, stride=2, padding=1)]
            layers += [ResidualBlock(n_out, activation)] if residual else []
            layers += [activation_class(activation)()]
            sizes = [(size + 1) // 2 for size in sizes]
        self.layers = nn.Sequential(*layers)
        self.data_shape = tuple(data_shape)
        self.out_features = hidden[-1] * math.prod(sizes)

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "... features"]:
        lead = x.shape[:-3]
        return self.layers(x.reshape(-1, *self.data_shape)).reshape(*lead, self.out_features)


class ConvDecoder(nn.Module):
    """z [..., latent_dim] -> [..., channels, *data_shape]: a linear layer, then transposed convolutions, the
    mirror of `ConvEncoder` with the same `hidden`."""

    def __init__(
        self,
        latent_dim: int,
        hidden: Sequence[int],
        activation: str,
        data_shape: Sequence[int],
        channels: int,
        residual: bool = False,
    ):
        super().__init__()
        image_channels, *size = _image_shape(data_shape, hidden)
        sizes = [size]
        for _ in hidden:
            sizes.append([(s + 1) // 2 for s in sizes[-1]])
        self.out_shape = (channels, *data_shape)
        self.start_shape = (hidden[0], *sizes[-1])
        self.start = nn.Linear(latent_dim, math.prod(self.start_shape))
        layers: list[nn.Module] = []
        widths = pairwise([*hidden, image_channels * channels])
        for (n_in, n_out), target in zip(widths, sizes[-2::-1], strict=True):
            layers += [ResidualBlock(n_in, activation)] if residual else []
            layers += [activation_class(activation)()]
            padding = tuple(1 - s % 2 for s in target)
            layers += [nn.ConvTranspose2d(n_in, n_out, 3, stride=2, padding=1, output_padding=padding)]
        self.layers = nn.Sequential(*layers)
        self.bias = nn.Parameter(torch.zeros(self.out_shape))

    def forward(self, z: Float[Tensor, "... latent"]) -> Float[Tensor, "..."]:
        lead = z.shape[:-1]
        start = self.start(z).reshape(-1, *self.start_shape)
        return self.layers(start).reshape(*lead, *self.out_shape) + self.bias

    def set_output(self, values: Float[Tensor, "..."]) -> None:
        """Let the output start around `values` [channels, *data_shape]."""
        with torch.no_grad():
            self.bias.copy_(values.reshape(self.out_shape))


def _image_shape(data_shape: Sequence[int], hidden: Sequence[int]) -> Sequence[int]:
    if not hidden:
        raise ContractError("a convolutional net needs at least one width in `hidden`, such as 32,64")
    if len(data_shape) != 3:
        raise ContractError(
            f"a convolutional net needs data of shape [channels, height, width], not {list(data_shape)}; use net='mlp'"
        )
    return data_shape


class Net(ABC):
    """An encoder and the decoder that mirrors it.

    Args:
        hidden: widths of the encoder's hidden layers.
        activation: the name of a torch activation.
    """

    def __init__(self, hidden: Sequence[int], activation: str):
        self.hidden, self.activation = tuple(hidden), activation

    @abstractmethod
    def encoder(self, data_shape: Sequence[int]) -> nn.Module:
        """A module from x [..., *data_shape] to features [..., out_features], with this attribute `out_features`."""

    @abstractmethod
    def decoder(self, latent_dim: int, data_shape: Sequence[int], channels: int) -> nn.Module:
        """A module from z [..., latent_dim] to [..., channels, *data_shape], with a method `set_output(values)` that
        lets its output start around `values` [channels, *data_shape]."""


class MaskedEncoder(nn.Module):
    """An encoder that sees which elements of x are observed, side by side with x, which is 0 where they are not.

    Args:
        net: makes the encoder.
        data_shape: shape of one datum.
    """

    def __init__(self, net: Net, data_shape: Sequence[int]):
        super().__init__()
        self.encoder = net.encoder((2 * data_shape[0], *data_shape[1:]))
        self.out_features, self.dim = self.encoder.out_features, -len(data_shape)

    def forward(
        self, x: Float[Tensor, "..."], observed: Bool[Tensor, "..."] | None = None
    ) -> Float[Tensor, "... features"]:
        """Features of x [..., *data_shape]; of a whole x where nothing is said of what is observed."""
        mask = torch.ones_like(x) if observed is None else observed.to(x)
        return self.encoder(torch.cat([x * mask, mask], self.dim))


class MLP(Net):
    """Fully connected layers, `hidden` their widths; none makes a linear model."""

    def encoder(self, data_shape: Sequence[int]) -> nn.Module:
        return MLPEncoder(data_shape, self.hidden, self.activation)

    def decoder(self, latent_dim: int, data_shape: Sequence[int], channels: int) -> nn.Module:
        return MLPDecoder(latent_dim, self.hidden[::-1], self.activation, data_shape, channels)


class Dictionary(MLP):
    """Fully connected layers as `mlp` has them, and a linear decoder whose columns have unit norm: what a penalty on
    the code takes from it, the decoder cannot give back."""

    def decoder(self, latent_dim: int, data_shape: Sequence[int], channels: int) -> nn.Module:
        return DictionaryDecoder(latent_dim, data_shape, channels)


class Conv(Net):
    """Convolutions that halve the resolution of images once for each number of channels in `hidden`."""

    residual = False

    def encoder(self, data_shape: Sequence[int]) -> nn.Module:
        return ConvEncoder(data_shape, self.hidden, self.activation, self.residual)

    def decoder(self, latent_dim: int, data_shape: Sequence[int], channels: int) -> nn.Module:
        return ConvDecoder(latent_dim, self.hidden[::-1], self.activation, data_shape, channels, self.residual)


class Residual(Conv):
    """Convolutions as `conv` has them, and a residual block at each resolution."""

    residual = True
