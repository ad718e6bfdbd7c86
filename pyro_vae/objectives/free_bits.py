"""Free bits: a least KL below which the guide is not pressed towards the prior (Kingma et al. 2016, appendix C.8)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_vae.engine import processes
from pyro_vae.errors import find
from pyro_vae.pair.kl import summed
from pyro_vae.pair.terms import ElboTerms

PER = {"dimension": True, "site": False}


@dataclass(frozen=True)
class FreeBits:
    """max(nats, KL) in place of KL, for the mean over the batch of the KL of each dimension, or of each site.

    Latents outside the data plate count as they do without.

    Args:
        nats: the least KL, in nats per datum.
        per: "dimension" or "site".

    Raises:
        UnknownName: neither of the two.
    """

    nats: float
    per: str = "dimension"

    def __post_init__(self) -> None:
        find("unit of free bits", self.per, PER)

    @property
    def by_dimension(self) -> bool:
        return PER[self.per]

    def floored(self, terms: ElboTerms) -> ElboTerms:
        """The terms with a KL whose mean is the floored one, and which has no gradient where the floor holds."""
        kl = torch.zeros_like(terms.kl)
        for part in (terms.kl_parts or {}).values():
            kl = kl + summed(torch.where(_mean(part) < self.nats, self.nats, part))
        return terms._replace(kl=kl)


def _mean(part: Float[Tensor, "particles batch ..."]) -> Float[Tensor, "..."]:
    """The mean over the batch and its particles, those of all processes; it has no gradient."""
    mean = part.detach().mean((0, 1))
    size = torch.full_like(mean, float(part.shape[0] * part.shape[1]))
    return processes.mean(mean * size) / processes.mean(size)
