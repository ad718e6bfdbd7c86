"""p(x|z): what the decoder puts out, turned into a distribution of x.

A likelihood is an `nn.Module` with `channels`, how many numbers the decoder gives for each element of x, and a
`forward` from those numbers [..., channels, *data_shape] to a distribution with batch shape [...] and event shape
`data_shape`. `start(mean)` says which numbers make the distribution's mean the given one, so that a decoder can start
at the mean of the data, and `encoder_input(x)` is what the encoder is given. Log-probabilities are in nats.

What a likelihood needs besides the decoder's numbers it asks for: `fields` are fields of the data that it takes where
they are there, `conditioned` is the distribution of given data, and `guide` draws what that has drawn.
"""

import math
from collections.abc import Callable, Sequence

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pyro_vae.errors import ContractError
from pyro_vae.parts.build import check_scales
from pyro_vae.parts.distributions import (
    BernoulliDistribution,
    ContinuousBernoulliDistribution,
    DiscretizedLogisticDistribution,
    Levels,
    shaped_normal,
)
from pyro_vae.parts.library import make_library


class Likelihood(nn.Module):
    """Base class: remembers the shape of one datum."""

    channels = 1
    fields: tuple[str, ...] = ()

    def __init__(self, data_shape: Sequence[int]):
        super().__init__()
        self.event_dims = len(data_shape)

    def conditioned(
        self, features: Float[Tensor, "..."], x: Float[Tensor, "batch ..."], **fields: Tensor
    ) -> dist.Distribution:
        """The distribution of the data x, for the model to observe; it may draw latent sites of its own."""
        return self(features)

    def guide(self, x: Float[Tensor, "batch ..."]) -> None:
        """Draw the latent sites of `conditioned` in the guide."""

    def split(self, features: Float[Tensor, "..."]) -> tuple[Tensor, ...]:
        """[..., channels, *data_shape] -> `channels` tensors [..., *data_shape]."""
        return features.unbind(-self.event_dims - 1)

    def start(self, mean: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Features [channels, *data_shape] whose distribution has about this mean [*data_shape]."""
        return torch.stack([self.inverse_mean(mean), *[torch.zeros_like(mean)] * (self.channels - 1)])

    def inverse_mean(self, mean: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return mean

    def encoder_input(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """x at about unit size, as a net's initial weights need it."""
        return x


def _solve(increasing: Callable[[Tensor], Tensor], target: Tensor, reach: float) -> Tensor:
    """The number in [-reach, reach] at which an increasing function is nearest to the target, elementwise."""
    low, high = torch.full_like(target, -reach), torch.full_like(target, reach)
    for _ in range(60):
        middle = (low + high) / 2
        below = increasing(middle) < target
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


class Bernoulli(Likelihood):
    """x in {0, 1}: logits from the decoder."""

    def forward(self, features: Float[Tensor, "..."]) -> dist.Distribution:
        (logits,) = self.split(features)
        return BernoulliDistribution(logits=logits).to_event(self.event_dims)

    def inverse_mean(self, mean: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return torch.logit(mean, eps=1e-3)


class ContinuousBernoulli(Likelihood):
    """x in [0, 1]: the normalised form of cross-entropy on grey values (Loaiza-Ganem & Cunningham 2019)."""

    def forward(self, features: Float[Tensor, "..."]) -> dist.Distribution:
        (logits,) = self.split(features)
        return ContinuousBernoulliDistribution(logits=logits).to_event(self.event_dims)

    def inverse_mean(self, mean: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return _solve(lambda logits: ContinuousBernoulliDistribution(logits=logits).mean, mean, reach=20.0)


class Gaussian(Likelihood):
    """Real x: means from the decoder, one fixed standard deviation `sigma`.

    Args:
        sigma: the standard deviation.

    Raises:
        ContractError: it is not positive.
    """

    def __init__(self, data_shape: Sequence[int], sigma: float = 1.0):
        super().__init__(data_shape)
        check_scales(sigma=sigma)
        self.register_buffer("sigma", torch.tensor(float(sigma)))

    def forward(self, features: Float[Tensor, "..."]) -> dist.Distribution:
        (loc,) = self.split(features)
        return dist.Normal(loc, self.sigma).to_event(self.event_dims)


class GaussianLearned(Likelihood):
    """Real x: means from the decoder, one learned standard deviation for all elements.

    Args:
        sigma: where the standard deviation starts.

    Raises:
        ContractError: it is not positive.
    """

    def __init__(self, data_shape: Sequence[int], sigma: float = 1.0):
        super().__init__(data_shape)
        check_scales(sigma=sigma)
        self.log_sigma = nn.Parameter(torch.tensor(math.log(sigma)))

    def forward(self, features: Float[Tensor, "..."]) -> dist.Distribution:
        (loc,) = self.split(features)
        return dist.Normal(loc, self.log_sigma.exp()).to_event(self.event_dims)


class GaussianPerDimension(GaussianLearned):
    """Real x: means from the decoder, a learned standard deviation for each element.

    Args:
        sigma: where the standard deviations start.

    Raises:
        ContractError: it is not positive.
    """

    def __init__(self, data_shape: Sequence[int], sigma: float = 1.0):
        super().__init__(data_shape, sigma)
        self.log_sigma = nn.Parameter(torch.full(tuple(data_shape), math.log(sigma)))


class GaussianNet(Likelihood):
    """Real x: means and log standard deviations from the decoder."""

    channels = 2

    def forward(self, features: Float[Tensor, "..."]) -> dist.Distribution:
        loc, log_sigma = self.split(features)
        return dist.Normal(loc, log_sigma.exp()).to_event(self.event_dims)


class GaussianFull(Likelihood):
    """Real x whose elements are correlated: means from the decoder, and the lower triangle of L, the logarithms of its
    diagonal among it, for a covariance L L'. That is d + 1 numbers for each of d elements of x, so d should be small.
    """

    def __init__(self, data_shape: Sequence[int]):
        super().__init__(data_shape)
        self.data_shape = tuple(data_shape)
        self.channels = 1 + math.prod(data_shape)

    def forward(self, features: Float[Tensor, "..."]) -> dist.Distribution:
        lead = features.shape[: features.dim() - self.event_dims]
        loc, matrix = features.reshape(*lead, self.channels - 1).split([1, self.channels - 1], -2)
        diagonal = torch.diag_embed(matrix.diagonal(dim1=-2, dim2=-1).exp())
        return shaped_normal(loc.squeeze(-2), matrix.tril(-1) + diagonal, self.data_shape)


class Categorical(Likelihood):
    """x in {0, ..., 255}: the decoder gives 256 logits for each element."""

    channels = 256

    def forward(self, features: Float[Tensor, "..."]) -> dist.Distribution:
        logits = features.movedim(-self.event_dims - 1, -1)
        return Levels(logits=logits).to_event(self.event_dims)

    def start(self, mean: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The levels' distribution of largest entropy with this mean: logits that are linear in the level."""
        shares = (torch.arange(256).to(mean) / 255).view(-1, *[1] * self.event_dims)
        slope = _solve(lambda slope: (torch.softmax(slope * shares, 0) * shares).sum(0), mean / 255, reach=256.0)
        return slope * shares

    def encoder_input(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return x / 127.5 - 1


class DiscretizedLogistic(Likelihood):
    """x in {0, ..., 255}: location and log scale of a discretised logistic from the decoder.

    The decoder's numbers are in units of half the range, so that a net at its initialisation covers the middle of it.
    """

    channels = 2
    start_scale = 32.0

    def forward(self, features: Float[Tensor, "..."]) -> dist.Distribution:
        loc, log_scale = self.split(features)
        loc, log_scale = 127.5 * (loc + 1), log_scale + math.log(self.start_scale)
        return DiscretizedLogisticDistribution(loc, log_scale).to_event(self.event_dims)

    def inverse_mean(self, mean: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        mean = mean.clamp(1, 254)
        above, below = torch.expm1(mean / self.start_scale), -torch.expm1((mean - 255) / self.start_scale)
        return self.start_scale * (above / below).log() / 127.5 - 1

    def encoder_input(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return x / 127.5 - 1


class Counts(Likelihood):
    """Counts x in {0, 1, ...}, whose means may be shares of the datum's library size, its number of counts.

    With a library size, the shares are the softmax of the decoder's output over all elements, as scvi-tools has them
    for genes (Lopez et al. 2018). "latent" gives log p(x). "observed" takes it as given: the number is
    log p(x | library), of counts beside their library size. Where that is the sum of x itself, the number is no density
    of x, and compares only with numbers that were found in the same way.

    Args:
        library: "none"; "observed", the field `library` [batch] where the data have it, else the sum of x; "latent", a
            site with a log-normal prior. Data without counts have the typical library size of the training data.
        log_library: mean and standard deviation of the log of the training data's library sizes, which "observed" and
            "latent" need; see `pyro_vae.data.log_library`. The data set's own on the command line.

    Raises:
        UnknownName: no such library.
        ContractError: a library without `log_library`.
    """

    def __init__(self, data_shape: Sequence[int], library: str = "none", log_library: Sequence[float] | None = None):
        super().__init__(data_shape)
        self.library = make_library(library, data_shape, log_library)
        self.fields = () if self.library is None else self.library.fields

    def conditioned(
        self, features: Float[Tensor, "..."], x: Float[Tensor, "batch ..."], **fields: Tensor
    ) -> dist.Distribution:
        return self(features) if self.library is None else self(features, self.library.in_model(x, **fields))

    def guide(self, x: Float[Tensor, "batch ..."]) -> None:
        if self.library is not None:
            self.library.in_guide(x)

    def log_mean(self, raw: Float[Tensor, "..."], library: Float[Tensor, "..."] | None) -> Float[Tensor, "..."]:
        """The log of the means: `raw` itself, or with a library size [...] the log of its shares."""
        if self.library is None:
            return raw
        if library is None:
            raise ContractError("this model gives its likelihood no library size; use a VAE, or library='none'")
        shares = raw.flatten(-self.event_dims).log_softmax(-1).reshape(raw.shape)
        return shares + library.log().reshape(*library.shape, *[1] * self.event_dims)

    def inverse_mean(self, mean: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return mean.clamp(min=1e-2).log()

    def encoder_input(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return x.log1p()


class Poisson(Counts):
    """Counts x in {0, 1, ...}: the rate is the softplus of the decoder's output, or with a library size its softmax
    times that size.

    Args:
        library: the library size that the counts are shares of: "none", "observed" (the field `library`, or the sum of
            x) or "latent"; see `Counts`.
        log_library: see `Counts`.
    """

    def forward(self, features: Float[Tensor, "..."], library: Float[Tensor, "..."] | None = None) -> dist.Distribution:
        (raw,) = self.split(features)
        rate = F.softplus(raw) if self.library is None else self.log_mean(raw, library).exp()
        return dist.Poisson(rate + torch.finfo(raw.dtype).tiny).to_event(self.event_dims)

    def inverse_mean(self, mean: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        if self.library is not None:
            return super().inverse_mean(mean)
        rate = mean.clamp(min=1e-2)
        return rate + torch.log(-torch.expm1(-rate))


class NegativeBinomial(Counts):
    """Counts x in {0, 1, ...} that scatter more than a Poisson's: the mean m is the exponential of the decoder's
    output, or with a library size its softmax times that size; the variance is m + m^2 / r with a learned r for each
    element (as Lopez et al. 2018 have it for genes).

    Args:
        library: the library size that the counts are shares of: "none", "observed" (the field `library`, or the sum of
            x) or "latent"; see `Counts`.
        log_library: see `Counts`.
    """

    def __init__(self, data_shape: Sequence[int], library: str = "none", log_library: Sequence[float] | None = None):
        super().__init__(data_shape, library, log_library)
        self.log_r = nn.Parameter(torch.zeros(tuple(data_shape)))

    def forward(self, features: Float[Tensor, "..."], library: Float[Tensor, "..."] | None = None) -> dist.Distribution:
        (raw,) = self.split(features)
        logits = self.log_mean(raw, library) - self.log_r
        return dist.NegativeBinomial(self.log_r.exp(), logits=logits, validate_args=False).to_event(self.event_dims)


class ZeroInflatedNegativeBinomial(NegativeBinomial):
    """The same with further zeros, whose log odds come from a second output of the decoder (Lopez et al. 2018).

    Args:
        library: the library size that the counts are shares of: "none", "observed" (the field `library`, or the sum of
            x) or "latent"; see `Counts`.
        log_library: see `Counts`.
    """

    channels = 2
    START = -3.0

    def forward(self, features: Float[Tensor, "..."], library: Float[Tensor, "..."] | None = None) -> dist.Distribution:
        raw, gate_logits = self.split(features)
        counts = dist.ZeroInflatedNegativeBinomial(
            self.log_r.exp(),
            logits=self.log_mean(raw, library) - self.log_r,
            gate_logits=gate_logits + self.START,
            validate_args=False,
        )
        return counts.to_event(self.event_dims)

    def inverse_mean(self, mean: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return super().inverse_mean(mean) + math.log1p(math.exp(self.START))
