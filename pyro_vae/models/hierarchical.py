"""Variational autoencoders with several stochastic layers (Rezende, Mohamed & Wierstra 2014; Burda et al. 2016)."""

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
from jaxtyping import Float
from torch import Tensor, nn

from pyro_vae.errors import ContractError
from pyro_vae.pair.pair import Pair
from pyro_vae.parts import build
from pyro_vae.parts.build import LIKELIHOOD, PRIOR
from pyro_vae.parts.nets import MLPDecoder, MLPEncoder, glorot, mlp
from pyro_vae.parts.posteriors import DiagonalNormal


class HierarchicalVAE(Pair):
    """p(z_L) p(z_L-1|z_L) ... p(z_1|z_2) p(x|z_1), sites `z_1` (next to x) to `z_L`, each given the one above normal.

    The guide draws bottom up, q(z_1|x) q(z_2|z_1) ... (Burda, Grosse & Salakhutdinov 2016), or as a ladder top down,
    q(z_L|x) q(z_L-1|z_L, x) ... q(z_1|z_2, x): there each is the product of the model's p(z_i|z_i+1) and of a normal
    that a net of x gives (Sonderby et al. 2016, eq. 19 to 21; without batch normalisation, which mixes data).

    Args:
        data_shape: shape of one datum x; the data set's own on the command line.
        latent_dims: size of each stochastic layer, from x upwards.
        hidden: width of the deterministic layers below each stochastic one, from x upwards; as many as latent_dims.
            Empty: all linear.
        depth: how many deterministic layers of each width.
        activation: any torch activation by name ("relu", "elu", "tanh", ...).
        likelihood: a name or an object, as for a VAE.
        prior: that of the top layer, a name or an object, as for a VAE.
        ladder: whether the guide draws top down, as a ladder.
        data_mean: mean of the training data [*data_shape]; where given, the decoder starts at it.
        log_library: as for a VAE.
        part_options: options of the chosen parts, named after their kind, as for a VAE.

    Raises:
        ContractError: no stochastic layer, a size that is not positive, or another number of widths than of layers.
        UnknownName: a part that is not known; lists those that are.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dims: Sequence[int] = (16, 8),
        hidden: Sequence[int] = (256, 128),
        depth: int = 1,
        activation: str = "relu",
        likelihood: build.LikelihoodPart = "bernoulli",
        prior: build.PriorPart = "standard_normal",
        ladder: bool = False,
        data_mean: Float[Tensor, "..."] | None = None,
        log_library: Sequence[float] | None = None,
        **part_options: Any,
    ):
        super().__init__()
        if not latent_dims:
            raise ContractError("latent_dims is empty; give the size of at least one stochastic layer, such as 16,8")
        build.check_sizes(data_shape=data_shape, latent_dims=latent_dims, hidden=hidden, depth=[depth])
        if hidden and len(hidden) != len(latent_dims):
            raise ContractError(
                f"hidden has {len(hidden)} widths for {len(latent_dims)} stochastic layers; give one for each of "
                "latent_dims, or none for linear nets"
            )
        parts = build.Parts(part_options)
        of_data = {"data_shape": data_shape, "log_library": log_library}
        self.likelihood = parts.build("likelihood", LIKELIHOOD, likelihood, **of_data)
        self.optional_fields = self.likelihood.fields
        of_top = {"latent_dim": latent_dims[-1], "data_shape": data_shape, "likelihood": self.likelihood}
        self.prior = parts.build("prior", PRIOR, prior, **of_top)
        parts.check_all_taken()
        self.names, self.ladder = [f"z_{i}" for i in range(1, len(latent_dims) + 1)], ladder
        widths = [(width,) * depth for width in hidden] or [()] * len(latent_dims)
        encoders: list[nn.Module] = [MLPEncoder(data_shape, widths[0], activation)]
        features = [encoders[0].out_features]
        for below, width in zip(latent_dims, widths[1:], strict=False):
            sizes = [features[-1] if ladder else below, *width]
            encoders.append(mlp(sizes, activation))
            features.append(sizes[-1])
        self.encoders = nn.ModuleList(encoders)
        self.posteriors = nn.ModuleList(map(DiagonalNormal, features, latent_dims))
        self.priors = nn.ModuleList(
            conditional([above, *width[::-1]], below, activation)
            for above, width, below in zip(latent_dims[1:], widths[1:], latent_dims, strict=False)
        )
        self.decoder = MLPDecoder(latent_dims[0], widths[0][::-1], activation, data_shape, self.likelihood.channels)
        build.start_at(data_mean, self.decoder, self.likelihood)

    def model(self, x: Float[Tensor, "batch ..."], **fields: Tensor) -> None:
        with self.plate(x.shape[0]):
            z = pyro.sample(self.names[-1], self.prior())
            for name, prior in zip(self.names[-2::-1], reversed(self.priors), strict=True):
                z = pyro.sample(name, prior(z))
            pyro.sample("x", self.likelihood.conditioned(self.decoder(z), x, **fields), obs=x)

    def guide(self, x: Float[Tensor, "batch ..."], **fields: Tensor) -> None:
        with self.plate(x.shape[0]):
            (self._top_down if self.ladder else self._bottom_up)(self.likelihood.encoder_input(x))
            self.likelihood.guide(x)

    def _bottom_up(self, below: Float[Tensor, "..."]) -> None:
        for name, encoder, posterior in zip(self.names, self.encoders, self.posteriors, strict=True):
            below = pyro.sample(name, posterior(encoder(below)))

    def _top_down(self, seen: Float[Tensor, "..."]) -> None:
        given_x = []
        for encoder, posterior in zip(self.encoders, self.posteriors, strict=True):
            seen = encoder(seen)
            given_x.append(posterior(seen))
        z = pyro.sample(self.names[-1], given_x[-1])
        layers = zip(self.names[:-1], self.priors, given_x[:-1], strict=True)
        for name, prior, by_x in reversed(list(layers)):
            z = pyro.sample(name, product(prior(z), by_x))


def conditional(sizes: Sequence[int], latent_dim: int, activation: str) -> nn.Sequential:
    """A net from [..., sizes[0]] to a normal of [..., latent_dim]."""
    return nn.Sequential(mlp(sizes, activation), DiagonalNormal(sizes[-1], latent_dim))


def product(one: dist.Independent, other: dist.Independent) -> dist.Distribution:
    """The normalised product of two diagonal normals: precisions add, means are weighted by them."""
    normals = [one.base_dist, other.base_dist]
    precisions = [normal.scale**-2 for normal in normals]
    total = sum(precisions)
    loc = sum(precision * normal.loc for precision, normal in zip(precisions, normals, strict=True)) / total
    return dist.Normal(loc, total.rsqrt()).to_event(1)


def burda_two_layers(
    data_shape: Sequence[int],
    latent_dims: Sequence[int] = (100, 50),
    hidden: Sequence[int] = (200, 100),
    depth: int = 2,
    activation: str = "tanh",
    likelihood: build.LikelihoodPart = "bernoulli",
    data_mean: Float[Tensor, "..."] | None = None,
    log_library: Sequence[float] | None = None,
    **part_options: Any,
) -> HierarchicalVAE:
    """x-200-200-100-100-100-50 with tanh, Glorot uniform weights (Burda et al. 2016, two stochastic layers)."""
    vae = HierarchicalVAE(
        data_shape, latent_dims, hidden, depth, activation, likelihood, log_library=log_library, **part_options
    )
    glorot(vae)
    build.start_at(data_mean, vae.decoder, vae.likelihood)
    return vae
