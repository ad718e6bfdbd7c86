"""Distributions of x that Pyro lacks, or has in a slower or less exact form. Log-probabilities are in nats."""

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
import torch.distributions as td
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.distributions import constraints, register_kl
from torch.distributions.transforms import ReshapeTransform

from pyro_vae.errors import ContractError


class BernoulliDistribution(dist.Bernoulli):
    """A Bernoulli of logits l with log p(x) = x l - log(1 + e^l): fewer passes over memory than torch's form."""

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return value * self.logits - F.softplus(self.logits, threshold=40.0)


class ContinuousBernoulliDistribution(dist.ContinuousBernoulli):
    """A continuous Bernoulli that is normalised for every logit l: density l e^(l x) / (e^l - 1).

    torch's clamps the probability, so that in single precision its density is too small where |l| > 16.
    """

    def _away_from_zero(self, near: float) -> tuple[Tensor, Tensor]:
        """Where |l| < `near`, and |l| with 1 in these places."""
        is_near = self.logits.abs() < near
        return is_near, torch.where(is_near, 1.0, self.logits.abs())

    def _cont_bern_log_norm(self) -> Tensor:
        """log(l / tanh(l/2))."""
        is_near, size = self._away_from_zero(0.1)
        squared = self.logits.square()
        series = math.log(2.0) + squared / 12 - 7 * squared.square() / 1440
        return torch.where(is_near, series, size.log() - torch.tanh(size / 2).log())

    @property
    def mean(self) -> Tensor:
        is_near, size = self._away_from_zero(0.1)
        above_half = 0.5 / torch.tanh(size / 2) - 1 / size
        series = self.logits / 12 - self.logits**3 / 720
        return 0.5 + torch.where(is_near, series, above_half * self.logits.sign())

    def icdf(self, value: Tensor) -> Tensor:
        is_near, size = self._away_from_zero(1e-3)
        level = torch.where(self.logits > 0, value, 1 - value)
        inverse = (1 + torch.log(level + (1 - level) * torch.exp(-size)) / size).clamp(0, 1)
        return torch.where(is_near, value, torch.where(self.logits > 0, inverse, 1 - inverse))


def mixture(logits: Float[Tensor, " components"], components: dist.Distribution) -> dist.MixtureSameFamily:
    """The mixture of a batch of distributions [components], by matrix products where they are diagonal normals."""
    normal = isinstance(components, td.Independent) and isinstance(components.base_dist, td.Normal)
    kind = NormalMixture if normal and components.batch_shape == logits.shape else dist.MixtureSameFamily
    return kind(dist.Categorical(logits=logits), components)


class NormalMixture(dist.MixtureSameFamily):
    """A mixture of diagonal normals, event [dim], whose log-density takes matrix products in place of an array
    [..., components, dim].

    The squares are multiplied out, in double precision, so that nothing is lost by that.
    """

    whole: "NormalMixture | None" = None
    """The mixture that this one is an expansion of."""

    def expand(self, batch_shape: torch.Size, _instance: dist.Distribution | None = None) -> "NormalMixture":
        new = super().expand(batch_shape, _instance)
        new.whole = self.whole or self
        return new

    def log_prob(self, value: Float[Tensor, "... dim"]) -> Float[Tensor, "..."]:
        if self._validate_args:
            self._validate_sample(value)
        own = self.whole or self
        normals = own.component_distribution.base_dist
        loc, scale, z = normals.loc.double(), normals.scale.double(), value.double()
        weight = scale.square().reciprocal()
        squares = z.square() @ weight.mT - 2 * z @ (loc * weight).mT + (loc.square() * weight).sum(-1)
        constant = own.mixture_distribution.logits.double().log_softmax(-1) - scale.log().sum(-1)
        found = torch.logsumexp(constant - squares / 2, -1) - loc.shape[-1] * math.log(2 * math.pi) / 2
        shape = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        return found.to(value.dtype).expand(shape)


class Levels(dist.Categorical):
    """A categorical over the levels 0, 1, ..., whose mean and variance are those of the level."""

    @property
    def mean(self) -> Tensor:
        return self.probs @ self._levels()

    @property
    def variance(self) -> Tensor:
        return self.probs @ self._levels().square() - self.mean.square()

    def _levels(self) -> Tensor:
        return torch.arange(self._num_events, dtype=self.probs.dtype, device=self.probs.device)


class ShapedNormal(dist.TransformedDistribution):
    """A multivariate normal of vectors, in another shape."""

    @property
    def mean(self) -> Tensor:
        return self._shaped(self.base_dist.mean)

    @property
    def variance(self) -> Tensor:
        return self._shaped(self.base_dist.variance)

    def _shaped(self, vector: Tensor) -> Tensor:
        return vector.reshape(*vector.shape[:-1], *self.event_shape)


def shaped_normal(
    loc: Float[Tensor, "... d"], scale_tril: Float[Tensor, "... d d"], shape: Sequence[int]
) -> dist.Distribution:
    """N(loc, L L') with a lower triangular L, of values of this shape of d elements."""
    normal = dist.MultivariateNormal(loc, scale_tril=scale_tril)
    if tuple(shape) == normal.event_shape:
        return normal
    return ShapedNormal(normal, [ReshapeTransform(normal.event_shape, torch.Size(shape))])


class DiscretizedLogisticDistribution(dist.TorchDistribution):
    """A logistic on the levels 0, ..., 255: each level has the mass of its interval of width 1, the two outermost
    reach to infinity (Salimans et al. 2017, eq. 2).

    Args:
        loc: mean of the logistic, in levels, any shape.
        log_scale: log of its scale, in levels, broadcastable to `loc`.
    """

    arg_constraints = {"loc": constraints.real, "log_scale": constraints.real}
    support = constraints.integer_interval(0, 255)
    has_rsample = False

    def __init__(self, loc: Tensor, log_scale: Tensor, validate_args: bool | None = None):
        self.loc, self.log_scale = torch.broadcast_tensors(loc, log_scale)
        super().__init__(self.loc.shape, validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: None = None) -> "DiscretizedLogisticDistribution":
        loc, log_scale = self.loc.expand(batch_shape), self.log_scale.expand(batch_shape)
        return type(self)(loc, log_scale, validate_args=self._validate_args)

    @property
    def mean(self) -> Tensor:
        """Mean level; to half a level where the scale is far below 1."""
        scale = self.log_scale.exp()
        return scale * (F.softplus(self.loc / scale) - F.softplus((self.loc - 255) / scale))

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        with torch.no_grad():
            shape = self._extended_shape(torch.Size(sample_shape))
            uniform = torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device)
            logistic = self.loc + self.log_scale.exp() * torch.logit(uniform, eps=1e-6)
            return logistic.round().clamp(0, 255)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        inverse_scale = (-self.log_scale).exp()
        upper = inverse_scale * (value + 0.5 - self.loc)
        lower = inverse_scale * (value - 0.5 - self.loc)
        # sigmoid(u) - sigmoid(l) = sigmoid(u) sigmoid(-l) (1 - exp(l - u)), which never cancels
        inside = F.logsigmoid(upper) + F.logsigmoid(-lower) + torch.log(-torch.expm1(-inverse_scale))
        at_edge = torch.where(value < 0.5, F.logsigmoid(upper), F.logsigmoid(-lower))
        return torch.where((value < 0.5) | (value > 254.5), at_edge, inside)


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


class FlatDistribution(dist.ImproperUniform):
    """Improper: density 1 at every real number, so that log p is 0 and nothing can be drawn.

    Pyro's own has its zeros on the CPU, in the default precision.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        return torch.zeros_like(value).expand(torch.broadcast_shapes(value.shape, self.batch_shape))


@register_kl(torch.distributions.Normal, FlatDistribution)
def _kl_of_a_normal_to_flat(q: torch.distributions.Normal, p: FlatDistribution) -> Tensor:
    """Minus the entropy of q."""
    return -q.entropy()
