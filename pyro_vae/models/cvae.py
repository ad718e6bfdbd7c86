"""The conditional variational autoencoder (Sohn, Lee & Yan 2015), and the regressor that it is held against."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_vae import runs
from pyro_vae.errors import ContractError, DataError, RunError
from pyro_vae.pair.pair import Pair
from pyro_vae.parts import build
from pyro_vae.parts.likelihoods import LIKELIHOODS
from pyro_vae.parts.nets import MLPDecoder, activation_class, mlp
from pyro_vae.parts.posteriors import DiagonalNormal
from pyro_vae.parts.priors import StandardNormal


class CVAE(Pair):
    """p(z|c) p(x|z, c) with q(z|x, c), where c is the context; in fields, x is generated and `context` given.

    A net turns the context into features, which the encoder sees, the prior if it is conditional, and the decoder
    if it is to. An optional field `mask` [batch, *data_shape] is 1 at the elements of x that are to be generated:
    only they count, the others are taken as they are.

    Args:
        data_shape: shape of one datum x; the data set's own on the command line.
        context_shape: shape of one context; the data set's own on the command line.
        latent_dim: size of z.
        hidden: widths of the encoder's hidden layers, and of the context's net; the decoder mirrors them. Empty: all
            linear.
        activation: any torch activation by name ("relu", "elu", "tanh", ...).
        likelihood: a name or an object, as for a VAE.
        prior: "conditional", a normal whose mean and scale are a net of the context (Sohn, Lee & Yan 2015);
            "standard_normal", the same z for every context (Doersch 2016); or a module from features of the context
            to a distribution of z.
        decoder_context: whether the decoder sees the context beside z.
        baseline: run folder of a trained `regressor`, whose guess of x stands beside the context as prior, encoder and
            decoder see it; it is frozen. The folder is read again whenever the run is loaded.
        sigma: standard deviation of a Gaussian likelihood (its start, where it is learned).
        data_mean: mean of the training data [*data_shape]; where given, the decoder starts at it.

    Raises:
        ContractError: a size that is not positive, or options that leave the context out of the model.
        RunError: `baseline` is no run of a regressor on such data.
        UnknownName: a part that is not known; lists those that are.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        context_shape: Sequence[int],
        latent_dim: int = 50,
        hidden: Sequence[int] = (512,),
        activation: str = "relu",
        likelihood: str | nn.Module = "bernoulli",
        prior: str | nn.Module = "conditional",
        decoder_context: bool = True,
        baseline: str = "",
        sigma: float = 1.0,
        data_mean: Float[Tensor, "..."] | None = None,
    ):
        super().__init__()
        build.check_sizes(data_shape=data_shape, context_shape=context_shape, latent_dim=[latent_dim], hidden=hidden)
        if prior == "standard_normal" and not decoder_context:
            raise ContractError(
                "prior='standard_normal' and decoder_context=False leave the context out of p(x|c); change one of them"
            )
        self.shapes = {"x": tuple(data_shape), "context": tuple(context_shape)}
        size, seen = math.prod(data_shape), math.prod(context_shape)
        self.baseline = frozen_regressor(baseline, self.shapes) if baseline else None
        self.likelihood = build.build("likelihood", likelihood, LIKELIHOODS, data_shape=data_shape, sigma=sigma)
        sizes = [seen + size if baseline else seen, *hidden]
        self.context_net, features = mlp(sizes, activation), sizes[-1]
        sizes = [size + features, *hidden]
        self.encoder = mlp(sizes, activation)
        self.latent_dim = latent_dim
        self.posterior = DiagonalNormal(sizes[-1], latent_dim)
        self.prior = build.build("prior", prior, PRIORS, in_features=features, latent_dim=latent_dim)
        shown = features if decoder_context else 0
        out_shape = (self.likelihood.channels, *data_shape)
        self.decoder = ContextDecoder(latent_dim, shown, hidden[::-1], activation, out_shape)
        if data_mean is not None:
            self.decoder.set_output(self.likelihood.start(data_mean))

    def features(self, context: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch features"]:
        """What prior, encoder and decoder see of the context, and of the baseline's guess where there is one."""
        seen = context.flatten(1)
        if self.baseline is not None:
            guess = self.likelihood.encoder_input(self.baseline.guess(context))
            seen = torch.cat([seen, guess.flatten(1)], 1)
        return self.context_net(seen)

    def model(
        self,
        x: Float[Tensor, "batch ..."],
        context: Float[Tensor, "batch ..."],
        mask: Float[Tensor, "batch ..."] | None = None,
    ) -> None:
        check_shapes(self.shapes, x, context, mask)
        features = self.features(context)
        with self.plate(x.shape[0]):
            z = pyro.sample("z", self.prior(features))
            pyro.sample("x", completed(self.likelihood(self.decoder(z, features)), x, mask), obs=x)

    def guide(
        self,
        x: Float[Tensor, "batch ..."],
        context: Float[Tensor, "batch ..."],
        mask: Float[Tensor, "batch ..."] | None = None,
    ) -> None:
        check_shapes(self.shapes, x, context, mask)
        seen = torch.cat([self.likelihood.encoder_input(x).flatten(1), self.features(context)], 1)
        with self.plate(x.shape[0]):
            pyro.sample("z", self.posterior(self.encoder(seen)))


class Regressor(Pair):
    """p(x|c) by one net of the context c and no latent: its guess of x, and a log-likelihood that needs no bound.

    Fields are as for `CVAE`.

    Args:
        data_shape: shape of one datum x; the data set's own on the command line.
        context_shape: shape of one context; the data set's own on the command line.
        hidden: widths of the hidden layers.
        activation: any torch activation by name ("relu", "elu", "tanh", ...).
        likelihood: a name or an object, as for a VAE.
        sigma: standard deviation of a Gaussian likelihood (its start, where it is learned).
        data_mean: mean of the training data [*data_shape]; where given, the net starts at it.

    Raises:
        ContractError: a size that is not positive.
        UnknownName: a part that is not known; lists those that are.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        context_shape: Sequence[int],
        hidden: Sequence[int] = (512,),
        activation: str = "relu",
        likelihood: str | nn.Module = "bernoulli",
        sigma: float = 1.0,
        data_mean: Float[Tensor, "..."] | None = None,
    ):
        super().__init__()
        build.check_sizes(data_shape=data_shape, context_shape=context_shape, hidden=hidden)
        self.shapes = {"x": tuple(data_shape), "context": tuple(context_shape)}
        self.likelihood = build.build("likelihood", likelihood, LIKELIHOODS, data_shape=data_shape, sigma=sigma)
        self.net = MLPDecoder(math.prod(context_shape), hidden, activation, data_shape, self.likelihood.channels)
        if data_mean is not None:
            self.net.set_output(self.likelihood.start(data_mean))

    def guess(self, context: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """The mean of p(x|c), [batch, *data_shape]."""
        return self.likelihood(self.net(context.flatten(1))).mean

    def model(
        self,
        x: Float[Tensor, "batch ..."],
        context: Float[Tensor, "batch ..."],
        mask: Float[Tensor, "batch ..."] | None = None,
    ) -> None:
        check_shapes(self.shapes, x, context, mask)
        with self.plate(x.shape[0]):
            pyro.sample("x", completed(self.likelihood(self.net(context.flatten(1))), x, mask), obs=x)

    def guide(
        self,
        x: Float[Tensor, "batch ..."],
        context: Float[Tensor, "batch ..."],
        mask: Float[Tensor, "batch ..."] | None = None,
    ) -> None:
        """Empty: no latent."""
        with self.plate(x.shape[0]):
            pass


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


class ContextFree(StandardNormal):
    """N(0, I), whatever the context."""

    def forward(self, features: Float[Tensor, "batch features"]) -> dist.Distribution:
        return super().forward()


PRIORS = {"conditional": DiagonalNormal, "standard_normal": ContextFree}


class Completed(dist.TorchDistribution):
    """x some elements of which are known: they are as given with probability 1, the others follow `base`.

    Args:
        base: a distribution with independent elements, batch shape [..., batch].
        known: values [batch, *event], of which those count where `mask` is 0.
        mask: 1 at the elements that follow `base`, 0 at the known ones, [batch, *event].
    """

    arg_constraints: dict[str, Any] = {}

    def __init__(self, base: dist.Independent, known: Float[Tensor, "..."], mask: Float[Tensor, "..."]):
        self.base, self.known, self.mask = base, known, mask.bool()
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return self.base.support

    @property
    def mean(self) -> Tensor:
        return torch.where(self.mask, self.base.mean, self.known)

    @property
    def variance(self) -> Tensor:
        return torch.where(self.mask, self.base.variance, 0.0)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return torch.where(self.mask, self.base.sample(torch.Size(sample_shape)), self.known)

    def log_prob(self, value: Tensor) -> Tensor:
        elements = self.base.base_dist.log_prob(value)
        return torch.where(self.mask, elements, 0.0).flatten(-len(self.event_shape)).sum(-1)

    def expand(self, batch_shape: torch.Size, _instance: dist.Distribution | None = None) -> "Completed":
        return Completed(self.base.expand(batch_shape), self.known, self.mask)


def completed(
    fn: dist.Distribution, x: Float[Tensor, "batch ..."], mask: Float[Tensor, "batch ..."] | None
) -> dist.Distribution:
    """The distribution of the elements of x that the mask leaves open, where there is a mask.

    Raises:
        ContractError: the elements of `fn` are not independent, so none can be left out.
    """
    if mask is None:
        return fn
    if not isinstance(fn, torch.distributions.Independent) or fn.base_dist.event_shape:
        raise ContractError(f"a mask needs a likelihood of independent elements, not {type(fn).__name__}")
    return Completed(fn, x, mask)


def check_shapes(shapes: dict[str, tuple[int, ...]], x: Tensor, context: Tensor, mask: Tensor | None) -> None:
    """Raise `DataError` where a field is of another shape than the pair was made for."""
    given = {"x": x, "context": context} if mask is None else {"x": x, "context": context, "mask": mask}
    for name, field in given.items():
        shape = shapes["x"] if name == "mask" else shapes[name]
        if tuple(field.shape[1:]) != shape:
            raise DataError(
                f"{name} has shape {list(field.shape[1:])}, but the model was made for {list(shape)}; "
                "give it data of the task that it was trained on"
            )


def frozen_regressor(folder: str, shapes: dict[str, tuple[int, ...]]) -> Regressor:
    """The trained regressor in a run folder, its parameters fixed.

    Raises:
        RunError: no run folder, or the run of another model, or of one for data of other shapes.
    """
    try:
        pair = runs.load_run(folder).pair
    except RunError as reason:
        raise RunError(f"baseline {folder}: {reason}") from reason
    if not isinstance(pair, Regressor):
        raise RunError(
            f"baseline {folder} is a run of {type(pair).__name__}, not of a regressor; train one on the same data: "
            "pyro-vae train regressor"
        )
    for name, shape in shapes.items():
        if pair.shapes[name] != shape:
            raise RunError(
                f"baseline {folder} was trained on {name} of shape {list(pair.shapes[name])}, not {list(shape)}; "
                "train it on the same data"
            )
    return pair.requires_grad_(False)
