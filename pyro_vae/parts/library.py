"""The library size of a datum: the number of its counts, of which each element has a share (Lopez et al. 2018)."""

from collections.abc import Sequence
from math import prod

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_vae.errors import ContractError, find
from pyro_vae.parts.nets import mlp

SITE = "library"
HIDDEN = 128  # as scvi-tools has it
SMALL = 0.01


class Library(nn.Module):
    """The library size of each datum [batch], as the model and the guide have it.

    Attributes:
        fields: the fields that `in_model` takes where the data have them.

    Args:
        data_shape: shape of one datum.
        log_library: mean and standard deviation of the log of the training data's library sizes.
    """

    fields: tuple[str, ...] = ()

    def __init__(self, data_shape: Sequence[int], log_library: Sequence[float]):
        super().__init__()
        mean, deviation = log_library
        self.register_buffer("loc", torch.tensor(float(mean)))
        self.register_buffer("scale", torch.tensor(max(float(deviation), SMALL)))

    def total(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, " batch"]:
        """The number of counts of each datum; the typical one of the training data where there are none."""
        return self.known(x.reshape(len(x), -1).sum(1))

    def known(self, library: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        return torch.where(library > 0, library, self.loc.exp())

    def in_model(self, x: Float[Tensor, "batch ..."], library: Float[Tensor, " batch"] | None = None) -> Tensor:
        """The library sizes [batch]; [particles, batch] where they are drawn."""
        raise NotImplementedError

    def in_guide(self, x: Float[Tensor, "batch ..."]) -> None:
        """Draw what `in_model` draws."""


class Observed(Library):
    """The field `library` [batch] where the data have it, else the number of the datum's counts."""

    fields = ("library",)

    def in_model(self, x: Float[Tensor, "batch ..."], library: Float[Tensor, " batch"] | None = None) -> Tensor:
        return self.total(x) if library is None else self.known(library.reshape(len(x)).to(x.dtype))


class Latent(Library):
    """A latent site `library`: log-normal with the mean and scale of the training data's, and of a net in the guide."""

    def __init__(self, data_shape: Sequence[int], log_library: Sequence[float]):
        super().__init__(data_shape, log_library)
        self.net = mlp([prod(data_shape) + 1, HIDDEN], "relu")
        self.heads = nn.Linear(HIDDEN, 2)

    def in_model(self, x: Float[Tensor, "batch ..."], library: Float[Tensor, " batch"] | None = None) -> Tensor:
        return pyro.sample(SITE, dist.LogNormal(self.loc, self.scale))

    def in_guide(self, x: Float[Tensor, "batch ..."]) -> None:
        seen = (self.total(x).log() - self.loc) / self.scale
        features = self.net(torch.cat([seen.unsqueeze(1), x.reshape(len(x), -1).log1p()], 1))
        shift, log_scale = self.heads(features).unbind(-1)
        pyro.sample(SITE, dist.LogNormal(self.loc + self.scale * (seen + shift), self.scale * log_scale.exp()))


LIBRARIES: dict[str, type[Library] | None] = {"none": None, "observed": Observed, "latent": Latent}


def make_library(library: str, data_shape: Sequence[int], log_library: Sequence[float] | None) -> Library | None:
    """The library size of this kind; None for "none".

    Raises:
        UnknownName: no such kind.
        ContractError: the training data's are needed and not given.
    """
    kind = find("library", library, LIBRARIES)
    if kind is None:
        return None
    if log_library is None:
        raise ContractError(
            f"library={library!r} needs log_library, the mean and standard deviation of the log of the training data's "
            "library sizes: log_library=pyro_vae.data.log_library(x)"
        )
    return kind(data_shape, log_library)
