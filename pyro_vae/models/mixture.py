"""Finite mixtures: of normals, of Bernoulli vectors, of whatever has a likelihood."""

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor

from pyro_vae.pair.pair import Pair
from pyro_vae.parts import build
from pyro_vae.parts.build import LIKELIHOOD
from pyro_vae.parts.tables import Emissions, Table


class Mixture(Pair):
    """p(component) p(x|component), with no net: the component is summed out, so log p(x) is exact.

    The likelihood says which mixture it is: `bernoulli`, of bits; `gaussian_full`, of normals each with a covariance of
    its own; `gaussian_net`, the same with diagonal ones; `gaussian_per_dimension`, with one diagonal for all.
    `pv.encode` gives the probabilities of each datum's `component`.

    Args:
        data_shape: shape of one datum x; the data set's own on the command line.
        components: how many there are.
        likelihood: a name or an object, as for a VAE.
        data_mean: mean of the training data [*data_shape]; where given, the components start around it.
        part_options: options of the likelihood.

    Raises:
        ContractError: a size that is not positive.
        UnknownName: a likelihood that is not known; lists those that are.

    Source: Pyro's tutorial on Gaussian mixtures.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        components: int = 10,
        likelihood: build.LikelihoodPart = "bernoulli",
        data_mean: Float[Tensor, "..."] | None = None,
        **part_options: Any,
    ):
        super().__init__()
        build.check_sizes(data_shape=data_shape, components=[components])
        parts = build.Parts(part_options)
        built = parts.build("likelihood", LIKELIHOOD, likelihood, data_shape=data_shape)
        parts.check_all_taken()
        self.weights = Table(torch.zeros(components))
        self.emission = Emissions(components, built, data_shape, data_mean)

    def model(self, x: Float[Tensor, "batch ..."]) -> None:
        with self.plate(x.shape[0]):
            chosen = dist.Categorical(logits=self.weights())
            component = pyro.sample("component", chosen, infer={"enumerate": "parallel"})
            pyro.sample("x", self.emission(component), obs=x)

    def guide(self, x: Float[Tensor, "batch ..."]) -> None:
        """Empty: nothing is drawn."""
        with self.plate(x.shape[0]):
            pass
