"""Normal distributions in unconstrained coordinates, one for each datum."""

import math
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int
from torch import Tensor

Places = Float[Tensor, "draws data dim"]


@dataclass(frozen=True)
class Normals:
    """N(mean, S (I + U (D^2 - I) U') S), with S the diagonal of `scale`, U the orthonormal `axes`, D of `widths`: low
    rank plus diagonal in many dimensions, any covariance where there are as many axes as dimensions. In float64."""

    mean: Float[Tensor, "data dim"]
    scale: Float[Tensor, "data dim"]
    axes: Float[Tensor, "data dim rank"]
    widths: Float[Tensor, "data rank"]

    @property
    def log_volume(self) -> Float[Tensor, " data"]:
        """Half the log of the covariance's determinant."""
        return self.scale.log().sum(-1) + self.widths.log().sum(-1)

    def along(self, steps: Float[Tensor, "draws data dim"], power: float = 1.0) -> Tensor:
        """(I + U (D^power - I) U') of vectors, in coordinates whose scale is 1."""
        of_data, dtype = steps.transpose(0, 1), steps.dtype  # one product of matrices for each datum
        axes, more = self.axes.to(dtype), (self.widths**power - 1).to(dtype).unsqueeze(1)
        if self.axes.shape[1] > self.axes.shape[2]:
            return steps + (of_data @ axes * more @ axes.mT).transpose(0, 1)
        return (of_data @ (torch.eye(axes.shape[1]).to(axes) + axes * more @ axes.mT)).transpose(0, 1)

    def at(self, noise: Places, width: float = 1.0) -> Places:
        """Draws from standard normal noise, `width` times as wide, in the precision of the noise."""
        return self.mean.to(noise.dtype) + (width * self.scale).to(noise.dtype) * self.along(noise)

    def whitened(self, places: Places) -> Places:
        """The noise that `at` would make these places of."""
        return self.along((places - self.mean.to(places.dtype)) / self.scale.to(places.dtype), -1.0)

    def distance(self, places: Places) -> Float[Tensor, "draws data"]:
        """The squared Mahalanobis distance."""
        return self.whitened(places).square().sum(-1).double()

    def log_density(self, places: Places, width: float = 1.0) -> Float[Tensor, "draws data"]:
        """In nats, of the normal that is `width` times as wide."""
        return self.log_density_at(self.distance(places), width)

    def log_density_at(self, distance: Float[Tensor, "draws data"], width: float = 1.0) -> Float[Tensor, "draws data"]:
        """The same at places that are so far away."""
        dim = self.mean.shape[-1]
        return -0.5 * distance / width**2 - self.log_volume - dim * (math.log(width) + 0.5 * math.log(2 * math.pi))

    def step(self, slope: Float[Tensor, "data dim"]) -> Float[Tensor, "data dim"]:
        """The covariance times a vector: Newton's step."""
        return self.scale * self.along((self.scale * slope)[None], 2.0)[0]

    def moved(self, mean: Float[Tensor, "data dim"]) -> "Normals":
        return Normals(mean, self.scale, self.axes, self.widths)

    def widened(self, width: float) -> "Normals":
        return Normals(self.mean, width * self.scale, self.axes, self.widths)

    def of(self, data: Int[Tensor, " data"]) -> "Normals":
        """Those of some data."""
        return Normals(*[getattr(self, field.name)[data] for field in fields(self)])

    def put(self, data: Int[Tensor, " data"], others: "Normals") -> "Normals":
        """The same, with others in the place of those of some data."""
        parts = [getattr(self, field.name).clone() for field in fields(self)]
        for part, field in zip(parts, fields(self), strict=True):
            part[data] = getattr(others, field.name)
        return Normals(*parts)


def eigen(matrix: Float[Tensor, "data dim dim"]) -> tuple[Tensor, Tensor]:
    """Eigenvalues and axes of symmetric matrices; where none are found, the diagonal and the coordinates."""
    try:
        return torch.linalg.eigh(matrix)
    except torch.linalg.LinAlgError:
        if len(matrix) > 1:
            values, axes = zip(*map(eigen, matrix.split(1)), strict=True)
            return torch.cat(values), torch.cat(axes)
        return matrix.diagonal(dim1=1, dim2=2), torch.eye(matrix.shape[-1]).to(matrix).unsqueeze(0)


def from_draws(places: Places, least: Float[Tensor, " dim"] | Tensor, weights: Tensor | None = None) -> Normals:
    """The normal with the moments of some draws; diagonal, as far as there are too few to tell of more.

    Args:
        least: the smallest scale.
        weights: of the draws [draws, data], of sum 1.
    """
    places = places.double()
    if weights is None:
        weights = places.new_full(places.shape[:2], 1 / len(places))
    mean = (weights.unsqueeze(-1) * places).sum(0)
    centred = places - mean
    scale = (weights.unsqueeze(-1) * centred.square()).sum(0).sqrt()
    scale = torch.maximum(scale, least.double().expand_as(scale))
    size, dim = mean.shape
    if dim > RANK:
        return Normals(mean, scale, mean.new_zeros(size, dim, AXES), mean.new_ones(size, AXES))
    effective = 1 / weights.square().sum(0)
    share = (effective / (effective + SHRINK * dim))[:, None, None]
    units = (centred / scale * weights.sqrt().unsqueeze(-1)).permute(1, 2, 0)
    covariance = units @ units.mT
    eye = torch.eye(dim, dtype=mean.dtype, device=mean.device)
    values, axes = eigen(share * covariance + (1 - share) * eye)
    return Normals(mean, scale, axes, values.clamp(min=1e-6).sqrt())


RANK = 100
"""Up to so many dimensions a covariance is kept whole; beyond, so many axes are looked for."""

AXES = 40
"""So many axes are looked for in many dimensions."""

SHRINK = 60.0
"""How many effective draws for each dimension a covariance needs to count for half."""
