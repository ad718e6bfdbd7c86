"""The Gaussian-mixture VAE: clusters without labels (Dilokthanakul et al. 2016; Jiang et al. 2017)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_vae.pair.pair import Pair
from pyro_vae.parts import build
from pyro_vae.parts.build import LIKELIHOOD, NET, POSTERIOR
from pyro_vae.parts.trained import parts_of

DRAWS, STARTS, LEAST = 8, 10, 0.1
"""Draws of the guide for each datum that clusters are placed by, starts of k-means, and the least scale."""


class GMVAE(Pair):
    """p(cluster) p(z|cluster) p(x|z) with q(z|x): each cluster has a diagonal normal of its own. The cluster is summed
    out, so that its probability given z is exact, and `encode` gives it for each datum.

    From a random start, clusters that are alike may end as one. With `vae`, a VAE that was trained before, training
    starts at its nets, and the normals at groups of its codes of the first training batch (Jiang et al. 2017).

    Args:
        data_shape: shape of one datum x; the data set's own on the command line.
        clusters: how many there are.
        latent_dim: size of z.
        hidden: widths of the encoder's hidden layers; the decoder mirrors them.
        activation: any torch activation by name ("relu", "elu", "tanh", ...).
        likelihood: a name or an object, as for a VAE.
        posterior: a name or an object, as for a VAE.
        net: a name or an object, as for a VAE.
        vae: a trained VAE to start at (on the command line: the folder of its run); its latent_dim, likelihood,
            posterior and net are taken.
        data_mean: mean of the training data [*data_shape]; where given, the decoder starts at it.
        log_library: as for a VAE.
        part_options: options of the chosen parts, named after their kind, as for a VAE.

    Raises:
        ContractError: a size that is not positive.
        UnfitPair: `vae` is no VAE of such data.
        UnknownName: a part that is not known; lists those that are.
    """

    evaluators = ("classify",)

    def __init__(
        self,
        data_shape: Sequence[int],
        clusters: int = 10,
        latent_dim: int = 10,
        hidden: Sequence[int] = (512,),
        activation: str = "relu",
        likelihood: build.LikelihoodPart = "bernoulli",
        posterior: build.PosteriorPart = "diagonal_normal",
        net: build.NetPart = "mlp",
        vae: Pair | None = None,
        data_mean: Float[Tensor, "..."] | None = None,
        log_library: Sequence[float] | None = None,
        **part_options: Any,
    ):
        super().__init__()
        build.check_sizes(data_shape=data_shape, clusters=[clusters], latent_dim=[latent_dim], hidden=hidden)
        if vae is None:
            parts = build.Parts(part_options)
            of_data = {"data_shape": data_shape, "log_library": log_library}
            self.likelihood = parts.build("likelihood", LIKELIHOOD, likelihood, **of_data)
            nets = parts.build("net", NET, net, hidden=hidden, activation=activation)
            self.encoder = nets.encoder(data_shape)
            sizes = {"in_features": self.encoder.out_features, "latent_dim": latent_dim}
            self.posterior = parts.build("posterior", POSTERIOR, posterior, **sizes)
            self.decoder = nets.decoder(latent_dim, data_shape, self.likelihood.channels)
            parts.check_all_taken()
            build.start_at(data_mean, self.decoder, self.likelihood)
        else:
            taken = parts_of(vae, "vae", data_shape)
            self.likelihood, self.encoder, self.posterior, self.decoder = (p.requires_grad_() for p in taken[:4])
            latent_dim = taken.latent_dim
        self.optional_fields = self.likelihood.fields
        self.logits = nn.Parameter(torch.zeros(clusters))
        self.loc = nn.Parameter(torch.randn(clusters, latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(clusters, latent_dim))
        self.register_buffer("unplaced", torch.tensor(float(vae is not None)))

    def prepare(self, batch: Mapping[str, Tensor]) -> None:
        """Place the clusters at the codes of these data, where they are to start there."""
        if self.unplaced and len(batch["x"]) >= len(self.logits):
            self.place(batch["x"])

    @torch.no_grad()
    def place(self, x: Float[Tensor, "batch ..."]) -> None:
        """Give each cluster the weight, mean and scale of a group of draws of q(z|x), found by k-means."""
        from sklearn.cluster import KMeans  # scikit-learn takes seconds to import

        codes = self.posterior(self.encoder(self.likelihood.encoder_input(x))).sample((DRAWS,)).flatten(0, 1)
        grouping = KMeans(len(self.logits), n_init=STARTS, random_state=int(torch.randint(2**31, ())))
        group = torch.from_numpy(grouping.fit_predict(codes.cpu().numpy())).to(codes.device)
        for number in range(len(self.logits)):
            members = codes[group == number]
            self.logits[number] = math.log(len(members) / len(codes))
            self.loc[number] = members.mean(0)
            self.log_scale[number] = members.std(0, correction=0).clamp(min=LEAST).log()
        self.unplaced.zero_()

    def model(self, x: Float[Tensor, "batch ..."], **fields: Tensor) -> None:
        with self.plate(x.shape[0]):
            cluster = pyro.sample("cluster", dist.Categorical(logits=self.logits), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(self.loc[cluster], self.log_scale[cluster].exp()).to_event(1))
            pyro.sample("x", self.likelihood.conditioned(self.decoder(z), x, **fields), obs=x)

    def guide(self, x: Float[Tensor, "batch ..."], **fields: Tensor) -> None:
        with self.plate(x.shape[0]):
            pyro.sample("z", self.posterior(self.encoder(self.likelihood.encoder_input(x))))
            self.likelihood.guide(x)
