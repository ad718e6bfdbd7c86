"""Missing values are NaN in a field of numbers: where they are, and what is known of the elements elsewhere."""

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pyro_vae.data.split import Split


@dataclass
class Missing:
    """What is missing of one field of a split.

    Attributes:
        first: the place of the first NaN, counted in what the split was made of: [row, *element].
        elements: how many elements are missing.
        size: how many elements there are.
        ever: [*event], whether an element is missing in any datum.
        blank: the positions of the data that lack every element.
    """

    first: list[int]
    elements: int
    size: int
    ever: Bool[Tensor, "..."]
    blank: list[int] = field(default_factory=list)


def missing_of(split: Split, names: Collection[str]) -> dict[str, Missing]:
    """What is missing of each of these fields, in one pass over the data; a field that lacks nothing is left out."""
    found: dict[str, Missing] = {}
    sizes = dict.fromkeys(names, 0)
    with torch.random.fork_rng():
        for positions, batch in split.scan():
            for name in names:
                sizes[name] += batch[name].numel()
                missing = batch[name].isnan()
                if missing.any():
                    missing = missing.cpu()
                    _add(found, name, missing, _numbers(positions, len(missing)), split.origin)
    for name, seen in found.items():
        seen.size = sizes[name]
    return found


def _add(
    found: dict[str, Missing],
    name: str,
    missing: Bool[Tensor, "chunk ..."],
    rows: Int[Tensor, " chunk"],
    origin: Int[Tensor, " size"] | None,
) -> None:
    """Count the missing elements of a chunk of the data, which are `rows` of the split."""
    if name not in found:
        row, *element = missing.nonzero()[0].tolist()
        number = int(rows[row] if origin is None else origin[rows[row]])
        found[name] = Missing([number, *element], 0, 0, torch.zeros_like(missing[0]))
    seen = found[name]
    seen.elements += int(missing.sum())
    seen.ever |= missing.any(0)
    seen.blank += rows[missing.reshape(len(missing), -1).all(1)].tolist()


def _numbers(positions: Int[Tensor, " chunk"] | slice, count: int) -> Int[Tensor, " chunk"]:
    return torch.arange(positions.start, positions.start + count) if isinstance(positions, slice) else positions.cpu()


def observed_sum(field: Float[Tensor, "chunk ..."]) -> tuple[Float[Tensor, "..."], Int[Tensor, "..."]]:
    """The sum of each element over the data in which it is observed, in float64, and how many they are."""
    missing = field.isnan()
    return field.masked_fill(missing, 0).sum(0, dtype=torch.float64).cpu(), (~missing).sum(0).cpu()


def observed_means(split: Split, names: Collection[str]) -> dict[str, Float[Tensor, "..."]]:
    """The mean of each element of these fields over the data in which it is observed; 0 where it is in none."""
    sums: dict[str, list[Tensor]] = {}
    with torch.random.fork_rng():
        for _, batch in split.scan() if names else ():
            for name in names:
                parts = observed_sum(batch[name])
                sums[name] = [a + b for a, b in zip(sums[name], parts, strict=True)] if name in sums else [*parts]
    return {name: mean_of(*parts) for name, parts in sums.items()}


def mean_of(total: Float[Tensor, "..."], count: Int[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Means in torch's default dtype; 0 where nothing was counted."""
    return (total / count.clamp(min=1)).to(torch.get_default_dtype())
