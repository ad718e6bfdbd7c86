"""Semi-supervised variational autoencoders: M2 and M1+M2 (Kingma, Rezende, Mohamed & Welling 2014), and SCANVI for
counts (Xu et al. 2021).

The field `label` [batch] is a whole number, -1 where it is hidden. A known label is observed, so that the bounds of its
datum are on log p(x, label); a hidden one is summed out, and they are on log p(x).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float, Int
from pyro import poutine
from torch import Tensor, nn

from pyro_vae.data.labels import HIDDEN
from pyro_vae.errors import ContractError, DataError
from pyro_vae.pair.pair import Pair
from pyro_vae.parts import build
from pyro_vae.parts.build import LIKELIHOOD, NET, POSTERIOR
from pyro_vae.parts.nets import mlp
from pyro_vae.parts.posteriors import DiagonalNormal
from pyro_vae.parts.priors import StandardNormal
from pyro_vae.parts.trained import parts_of

Data = Float[Tensor, "batch ..."]
Labels = Int[Tensor, " batch"]


class SemiSupervised(Pair):
    """What the pairs of this file share: a label with an even prior, observed where it is known.

    Args:
        num_labels: how many labels there are: 0, 1, ..., num_labels - 1.
        classification: weight of -log q(label|x) of each datum whose label is known, in training only.

    Raises:
        ContractError: fewer than two labels, or a negative weight.
    """

    default_data = "partly_labelled"
    evaluators = ("classify",)

    def __init__(self, num_labels: int, classification: float):
        super().__init__()
        if num_labels < 2:
            raise ContractError(
                f"num_labels is {num_labels}, so the labels tell nothing apart: semi-supervised learning needs known "
                "labels of at least 2 classes in the field label (-1 where one is hidden); without any, train gmvae"
            )
        if not 0 <= classification < math.inf:
            raise ContractError(f"classification must not be negative, but is {classification}")
        self.num_labels, self.classification = num_labels, classification
        self.register_buffer("even", torch.zeros(num_labels), persistent=False)

    def prepare(self, batch: Mapping[str, Tensor]) -> None:
        """Raise `DataError` where a label is none of the classes and not hidden."""
        label = batch.get("label", torch.zeros(0))
        wrong = label[(label < HIDDEN) | (label >= self.num_labels) | (label != label.round())]
        if len(wrong):
            raise DataError(
                f"a label is {wrong[0].item()}, but this model has the labels 0 to {self.num_labels - 1}, and {HIDDEN} "
                "where one is hidden"
            )

    def check_training(self, data: Mapping[str, Tensor]) -> None:
        """Raise `DataError` where all labels are hidden."""
        if "label" in data and (data["label"] == HIDDEN).all():
            raise DataError(
                f"all labels of the training data are {HIDDEN}, which is hidden, so nothing tells which class is "
                "which; give some of them, or train gmvae"
            )

    def label_in_model(self, label: Labels) -> Int[Tensor, "... batch"]:
        """The labels, each value of a hidden one where it is enumerated: what Pyro's `obs_mask` makes, without the
        deterministic site, which Pyro's own ELBOs cannot take in double precision."""
        known, prior = label != HIDDEN, dist.Categorical(logits=self.even)
        with poutine.mask(mask=known):
            seen = pyro.sample("label_observed", prior, obs=zero_where_hidden(label, known))
        with poutine.mask(mask=~known):
            drawn = pyro.sample("label_unobserved", prior)
        return torch.where(known, seen, drawn)

    def label_in_guide(self, logits: Float[Tensor, "... labels"], label: Labels) -> Int[Tensor, "... batch"]:
        """The same, drawn from q(label) where it is hidden; where it is known, q(label) is trained to find it."""
        known, said = label != HIDDEN, dist.Categorical(logits=logits)
        with poutine.mask(mask=~known):
            drawn = pyro.sample("label_unobserved", said, infer={"enumerate": "parallel"})
        if self.training and self.classification:
            nats = torch.where(known, -said.log_prob(zero_where_hidden(label, known)), 0.0)
            pyro.factor("classification", self.classification * nats, has_rsample=True)
        return torch.where(known, label, drawn)

    def indicators(self, label: Int[Tensor, "..."]) -> Float[Tensor, "... labels"]:
        """1 at the label, 0 elsewhere."""
        return (label.unsqueeze(-1) == torch.arange(self.num_labels, device=label.device)).to(self.even.dtype)


def zero_where_hidden(label: Labels, known: Tensor) -> Labels:
    """The labels, 0 where they are hidden."""
    return torch.where(known, label, torch.zeros_like(label))


def beside(*parts: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Features side by side; what is enumerated has dims of its own to the left."""
    lead = torch.broadcast_shapes(*[part.shape[:-1] for part in parts])
    return torch.cat([part.expand(*lead, part.shape[-1]) for part in parts], -1)


def classifier(features: int, num_labels: int, hidden: Sequence[int], activation: str) -> nn.Sequential:
    """A net from features to the logits of labels."""
    sizes = [features, *hidden]
    return nn.Sequential(mlp(sizes, activation), nn.Linear(sizes[-1], num_labels))


def conditional(features: int, latent_dim: int, hidden: Sequence[int], activation: str) -> nn.Sequential:
    """A net from features to a normal of a latent."""
    sizes = [features, *hidden]
    return nn.Sequential(mlp(sizes, activation), DiagonalNormal(sizes[-1], latent_dim))


class M2(SemiSupervised):
    """p(label) p(z) p(x|label, z) with q(label|x) q(z|x, label): z is the style of a datum, whatever its label.

    Args:
        data_shape: shape of one datum x; the data set's own on the command line.
        num_labels: how many labels there are; the data set's own on the command line.
        latent_dim: size of z.
        hidden: widths of the encoders' hidden layers; the decoder mirrors them.
        activation: any torch activation by name ("relu", "elu", "tanh", ...).
        likelihood: a name or an object, as for a VAE.
        posterior: that of z, a name or an object, as for a VAE.
        net: a name or an object, as for a VAE.
        classification: weight of -log q(label|x) of each datum whose label is known, in training only. Kingma et al.
            have 0.1 times the number of training data by that of known labels.
        data_mean: mean of the training data [*data_shape]; where given, the decoder starts at it.
        log_library: as for a VAE.
        part_options: options of the chosen parts, named after their kind, as for a VAE.

    Raises:
        ContractError: a size that is not positive, fewer than two labels, or a negative weight.
        UnknownName: a part that is not known; lists those that are.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        num_labels: int,
        latent_dim: int = 10,
        hidden: Sequence[int] = (512,),
        activation: str = "relu",
        likelihood: build.LikelihoodPart = "bernoulli",
        posterior: build.PosteriorPart = "diagonal_normal",
        net: build.NetPart = "mlp",
        classification: float = 50.0,
        data_mean: Float[Tensor, "..."] | None = None,
        log_library: Sequence[float] | None = None,
        **part_options: Any,
    ):
        super().__init__(num_labels, classification)
        build.check_sizes(data_shape=data_shape, latent_dim=[latent_dim], hidden=hidden)
        parts = build.Parts(part_options)
        of_data = {"data_shape": data_shape, "log_library": log_library}
        self.likelihood = parts.build("likelihood", LIKELIHOOD, likelihood, **of_data)
        self.optional_fields = self.likelihood.fields
        nets = parts.build("net", NET, net, hidden=hidden, activation=activation)
        self.reader = nets.encoder(data_shape)
        self.classifier = nn.Linear(self.reader.out_features, num_labels)
        self.encoder = nets.encoder(data_shape)
        width = hidden[-1] if hidden else self.encoder.out_features + num_labels
        self.joint = mlp([self.encoder.out_features + num_labels, *hidden[-1:]], activation)
        self.posterior = parts.build("posterior", POSTERIOR, posterior, in_features=width, latent_dim=latent_dim)
        parts.check_all_taken()
        self.prior = StandardNormal(latent_dim)
        self.decoder = nets.decoder(latent_dim + num_labels, data_shape, self.likelihood.channels)
        build.start_at(data_mean, self.decoder, self.likelihood)

    def model(self, x: Data, label: Labels, **fields: Tensor) -> None:
        with self.plate(x.shape[0]):
            y = self.label_in_model(label)
            z = pyro.sample("z", self.prior())
            features = self.decoder(beside(z, self.indicators(y)))
            pyro.sample("x", self.likelihood.conditioned(features, x, **fields), obs=x)

    def guide(self, x: Data, label: Labels, **fields: Tensor) -> None:
        seen = self.likelihood.encoder_input(x)
        with self.plate(x.shape[0]):
            y = self.label_in_guide(self.classifier(self.reader(seen)), label)
            pyro.sample("z", self.posterior(self.joint(beside(self.encoder(seen), self.indicators(y)))))
            self.likelihood.guide(x)


class M1M2(SemiSupervised):
    """p(label) p(z_2) p(z_1|label, z_2) p(x|z_1), and q(z_1|x) q(label|z_1) q(z_2|z_1, label): M2 on a VAE's latent.

    With `m1`, a VAE that was trained before on all data, labelled or not, its encoder and decoder stand between x and
    z_1 and stay as they are (Kingma et al. 2014). Without, everything is trained together.

    Args:
        data_shape: shape of one datum x; the data set's own on the command line.
        num_labels: how many labels there are; the data set's own on the command line.
        latent_dims: size of z_1, which is that of `m1` where one is given, and of z_2.
        hidden: widths of the hidden layers of each net; those of the model have them mirrored.
        activation: any torch activation by name ("relu", "elu", "tanh", ...).
        likelihood: a name or an object, as for a VAE; with `m1`, its own is taken.
        net: that between x and z_1, a name or an object, as for a VAE; with `m1`, its own is taken.
        classification: weight of -log q(label|z_1) of each datum whose label is known, as for `M2`.
        m1: a trained VAE (on the command line: the folder of its run), which is stored with this pair.
        data_mean: mean of the training data [*data_shape]; where given, the decoder starts at it.
        log_library: as for a VAE.
        part_options: options of the chosen parts, named after their kind, as for a VAE.

    Raises:
        ContractError: a size that is not positive, other than two latents, fewer than two labels, a negative weight.
        UnfitPair: `m1` is no VAE of such data.
        UnknownName: a part that is not known; lists those that are.
    """

    context_size = 0
    """How many numbers the decoder sees beside z_1."""

    def __init__(
        self,
        data_shape: Sequence[int],
        num_labels: int,
        latent_dims: Sequence[int] = (10, 10),
        hidden: Sequence[int] = (512,),
        activation: str = "relu",
        likelihood: build.LikelihoodPart = "bernoulli",
        net: build.NetPart = "mlp",
        classification: float = 50.0,
        m1: Pair | None = None,
        data_mean: Float[Tensor, "..."] | None = None,
        log_library: Sequence[float] | None = None,
        **part_options: Any,
    ):
        super().__init__(num_labels, classification)
        build.check_sizes(data_shape=data_shape, latent_dims=latent_dims, hidden=hidden)
        if len(latent_dims) != 2:
            raise ContractError(f"latent_dims must be two sizes, of z_1 and z_2, not {list(latent_dims)}")
        below, above = latent_dims
        if m1 is None:
            parts = build.Parts(part_options)
            of_data = {"data_shape": data_shape, "log_library": log_library}
            self.likelihood = parts.build("likelihood", LIKELIHOOD, likelihood, **of_data)
            nets = parts.build("net", NET, net, hidden=hidden, activation=activation)
            parts.check_all_taken()
            self.encoder = nets.encoder(data_shape)
            self.posterior = DiagonalNormal(self.encoder.out_features, below)
            self.decoder = nets.decoder(below + self.context_size, data_shape, self.likelihood.channels)
            build.start_at(data_mean, self.decoder, self.likelihood)
        else:
            taken = parts_of(m1, "m1", data_shape)
            self.likelihood, self.encoder, self.posterior, self.decoder = (p.requires_grad_(False) for p in taken[:4])
            below = taken.latent_dim
        self.optional_fields = self.likelihood.fields
        self.classifier = classifier(below, num_labels, hidden, activation)
        self.upper = conditional(below + num_labels, above, hidden, activation)
        self.prior = StandardNormal(above)
        self.lower = conditional(above + num_labels, below, hidden[::-1], activation)

    def model(self, x: Data, label: Labels, **fields: Tensor) -> None:
        self.generate(x, label, (), fields)

    def generate(self, x: Data, label: Labels, given: Sequence[Tensor], fields: Mapping[str, Tensor]) -> None:
        """The model, whose decoder sees what is given [batch, features] beside z_1."""
        with self.plate(x.shape[0]):
            y = self.label_in_model(label)
            z_2 = pyro.sample("z_2", self.prior())
            z_1 = pyro.sample("z_1", self.lower(beside(z_2, self.indicators(y))))
            features = self.decoder(beside(z_1, *given))
            pyro.sample("x", self.likelihood.conditioned(features, x, **fields), obs=x)

    def guide(self, x: Data, label: Labels, **fields: Tensor) -> None:
        with self.plate(x.shape[0]):
            z_1 = pyro.sample("z_1", self.posterior(self.encoder(self.likelihood.encoder_input(x))))
            y = self.label_in_guide(self.classifier(z_1), label)
            pyro.sample("z_2", self.upper(beside(z_1, self.indicators(y))))
            self.likelihood.guide(x)


class M1M2InContext(M1M2):
    """`M1M2` trained together, whose decoder sees the field `context` [batch, *context_shape] beside z_1.

    Args:
        context_shape: shape of one context.
        sizes: as for `M1M2`.
        options: as for `M1M2`, without `m1`.
    """

    def __init__(self, context_shape: Sequence[int], *sizes: Any, **options: Any):
        self.context_size = math.prod(context_shape)
        super().__init__(*sizes, **options)
        self.context_shape = tuple(context_shape)

    def model(self, x: Data, label: Labels, context: Data, **fields: Tensor) -> None:
        build.check_shapes({"context": self.context_shape}, {"context": context})
        self.generate(x, label, [context.flatten(1).to(x.dtype)], fields)

    def guide(self, x: Data, label: Labels, context: Data, **fields: Tensor) -> None:
        super().guide(x, label, **fields)


def scanvi(
    data_shape: Sequence[int],
    num_labels: int,
    log_library: Sequence[float],
    context_shape: Sequence[int] | None = None,
    latent_dims: Sequence[int] = (10, 10),
    hidden: Sequence[int] = (128,),
    activation: str = "relu",
    likelihood: str = "negative_binomial",
    library: str = "latent",
    classification: float = 50.0,
    data_mean: Float[Tensor, "..."] | None = None,
) -> M1M2:
    """Counts of cells, some of them labelled, with their library sizes and their batches (Xu et al. 2021).

    It is `M1M2` trained together, with a likelihood of counts and a latent library size. Where the data have a field
    `context`, such as indicators of the batch that a cell was measured in, the decoder sees it.

    Args:
        likelihood: "negative_binomial", "zero_inflated_negative_binomial" or "poisson".
        library: "latent", or "observed"; "none" for means that are no shares. As for the likelihoods of counts.
    """
    of_data = {"data_mean": data_mean, "log_library": log_library}
    options = {"classification": classification, "likelihood_library": library, **of_data}
    sizes = (data_shape, num_labels, latent_dims, hidden, activation, likelihood)
    return M1M2(*sizes, **options) if context_shape is None else M1M2InContext(context_shape, *sizes, **options)


scanvi.default_data = "planted_cells"
