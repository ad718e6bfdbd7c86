"""The conditional variational autoencoder (Sohn, Lee & Yan 2015)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyro
import torch
from jaxtyping import Float
from torch import Tensor

from pyro_vae.errors import ContractError, UnfitPair
from pyro_vae.pair.pair import Pair
from pyro_vae.parts import build
from pyro_vae.parts.build import CONTEXT_PRIOR, LIKELIHOOD, POSTERIOR
from pyro_vae.parts.distributions import completed
from pyro_vae.parts.nets import ContextDecoder, mlp
from pyro_vae.parts.priors import ContextFree

Field = Float[Tensor, "batch ..."]


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
        posterior: a name or an object, as for a VAE.
        decoder_context: whether the decoder sees the context beside z.
        baseline: a trained pair with a `guess(context)` of x and with `shapes`, as a `Regressor` has them (on the
            command line: the folder of its run). Its guess stands beside the context as prior, encoder and decoder see
            it; it is frozen, and stored with this pair.
        data_mean: mean of the training data [*data_shape]; where given, the decoder starts at it.
        part_options: options of the chosen parts, named after their kind, as for a VAE.

    Raises:
        ContractError: a size that is not positive, or options that leave the context out of the model.
        UnfitPair: `baseline` makes no guess of such data.
        UnknownName: a part that is not known; lists those that are.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        context_shape: Sequence[int],
        latent_dim: int = 50,
        hidden: Sequence[int] = (512,),
        activation: str = "relu",
        likelihood: build.LikelihoodPart = "bernoulli",
        prior: build.ContextPriorPart = "conditional",
        decoder_context: bool = True,
        baseline: Pair | None = None,
        data_mean: Float[Tensor, "..."] | None = None,
        posterior: build.PosteriorPart = "diagonal_normal",
        **part_options: Any,
    ):
        super().__init__()
        build.check_sizes(data_shape=data_shape, context_shape=context_shape, latent_dim=[latent_dim], hidden=hidden)
        self.shapes = {"x": tuple(data_shape), "context": tuple(context_shape), "mask": tuple(data_shape)}
        size, seen = math.prod(data_shape), math.prod(context_shape)
        self.baseline = None if baseline is None else frozen(baseline, self.shapes)
        parts = build.Parts(part_options)
        self.likelihood = parts.build("likelihood", LIKELIHOOD, likelihood, data_shape=data_shape)
        sizes = [seen if baseline is None else seen + size, *hidden]
        self.context_net, features = mlp(sizes, activation), sizes[-1]
        sizes = [size + features, *hidden]
        self.encoder = mlp(sizes, activation)
        self.latent_dim = latent_dim
        self.posterior = parts.build("posterior", POSTERIOR, posterior, in_features=sizes[-1], latent_dim=latent_dim)
        self.prior = parts.build("prior", CONTEXT_PRIOR, prior, in_features=features, latent_dim=latent_dim)
        parts.check_all_taken()
        if isinstance(self.prior, ContextFree) and not decoder_context:
            raise ContractError(
                "prior='standard_normal' and decoder_context=False leave the context out of p(x|c); change one of them"
            )
        shown = features if decoder_context else 0
        out_shape = (self.likelihood.channels, *data_shape)
        self.decoder = ContextDecoder(latent_dim, shown, hidden[::-1], activation, out_shape)
        build.start_at(data_mean, self.decoder, self.likelihood)

    def features(self, context: Field) -> Float[Tensor, "batch features"]:
        """What prior, encoder and decoder see of the context, and of the baseline's guess where there is one."""
        seen = context.flatten(1)
        if self.baseline is not None:
            guess = self.likelihood.encoder_input(self.baseline.guess(context))
            seen = torch.cat([seen, guess.flatten(1)], 1)
        return self.context_net(seen)

    def model(self, x: Field, context: Field, mask: Field | None = None) -> None:
        build.check_shapes(self.shapes, {"x": x, "context": context, "mask": mask})
        features = self.features(context)
        with self.plate(x.shape[0]):
            z = pyro.sample("z", self.prior(features))
            pyro.sample("x", completed(self.likelihood(self.decoder(z, features)), x, mask), obs=x)

    def guide(self, x: Field, context: Field, mask: Field | None = None) -> None:
        build.check_shapes(self.shapes, {"x": x, "context": context, "mask": mask})
        seen = torch.cat([self.likelihood.encoder_input(x).flatten(1), self.features(context)], 1)
        with self.plate(x.shape[0]):
            pyro.sample("z", self.posterior(self.encoder(seen)))


def frozen(baseline: Pair, shapes: Mapping[str, tuple[int, ...]]) -> Pair:
    """The baseline, its parameters fixed.

    Raises:
        UnfitPair: it makes no guess of x, or was trained on data of other shapes.
    """
    if not (hasattr(baseline, "guess") and hasattr(baseline, "shapes")):
        raise UnfitPair(
            "baseline",
            f"a {type(baseline).__name__} has no guess(context) with shapes, as a regressor has; train one on the same "
            "data (pyro-vae train regressor) and give the folder of its run, or in Python its pair",
        )
    for name in ("x", "context"):
        if baseline.shapes[name] != shapes[name]:
            trained = f"was trained on {name} of shape {list(baseline.shapes[name])}, not {list(shapes[name])}"
            raise UnfitPair("baseline", f"{trained}; train it on the same data")
    return baseline.requires_grad_(False)
