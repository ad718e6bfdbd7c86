"""Where the dims of a program's tensors stand, and how they become [particles, batch, ...] and back."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Shaped
from torch import Tensor


class Layout(NamedTuple):
    """How a program holds `particles` draws for each of `size` data: in a dim of their own to the left of all plates,
    or folded into the batch, particle after particle. One particle has no dim.

    Everywhere else a value is [particles, batch, *rest, *event]; here alone it becomes what the program takes, and
    back. The rest are a datum's own plates, and before them the dims of sites that are enumerated, each in the order in
    which the program has them. Dims are counted from the right, without those of the event: -1 is the last plate.
    """

    particles: int
    size: int
    folded: bool = False
    data: int = -1  # the dim of the data's plate
    depth: int = 1  # how many dims plates take

    @property
    def rows(self) -> int:
        """The length of the data's plate."""
        return self.particles * self.size if self.folded else self.size

    @property
    def own(self) -> int | None:
        """The dim that the particles have to themselves, if they do."""
        return None if self.folded or self.particles == 1 else -self.depth - 1

    @property
    def draws(self) -> torch.Size:
        """The particles' dim: [particles] where they have one of their own, else []."""
        return torch.Size([] if self.own is None else [self.particles])

    def unfold(
        self, tensor: Shaped[Tensor, "..."], event_dims: int, rest: Sequence[int] = (), shared: bool = False
    ) -> Shaped[Tensor, "particles batch ..."]:
        """A tensor of the program as [particles, batch, *rest, *event]; what all particles share is expanded.

        Args:
            event_dims: how many dims its event has.
            rest: the dims of the program that are kept besides.
            shared: all data may share one value, which is expanded.

        Raises:
            ValueError: its leading dims are not those of a site in the data's plate.
        """
        lead, event = list(tensor.shape[: tensor.dim() - event_dims]), tensor.shape[tensor.dim() - event_dims :]
        if self.depth == 1 and not rest and lead == [*self.draws, self.rows]:
            return tensor.reshape(self.particles, self.size, *event)
        outer = [dim for dim in (self.own, self.data) if dim is not None]
        kept = [*outer, *sorted(rest)]
        width = max(len(lead), *[-dim for dim in kept])
        sizes = [1] * (width - len(lead)) + lead
        places = [width + dim for dim in kept]
        spare = [place for place in range(width) if place not in places]
        fits = sizes[self.data] == self.rows or (shared and sizes[self.data] == 1)
        fits = fits and (self.own is None or sizes[self.own] in (1, self.particles))
        if not fits or any(sizes[place] != 1 for place in spare):
            raise ValueError(f"leading dims {lead} do not have the {self.rows} data at dim {self.data}")
        if spare or places != list(range(width)) or width != len(lead):
            order = [*places, *spare, *range(width, width + event_dims)]
            tensor = tensor.reshape(*sizes, *event).permute(order)
            tensor = tensor.reshape(*[sizes[place] for place in places], *event)
        others = tensor.shape[len(outer) :]
        if self.own is not None:
            return tensor.expand(self.particles, self.size, *others)
        if shared:
            tensor = tensor.expand(self.rows, *others)
        return tensor.reshape(self.particles, self.size, *others)

    def fold(
        self, value: Shaped[Tensor, "particles batch ..."], event_dims: int = 0, rest: Sequence[int] = ()
    ) -> Shaped[Tensor, "..."]:
        """A value [particles, batch, *rest, *event] as the program takes it."""
        if self.folded:
            value = value.flatten(0, 1)
        elif self.particles == 1:
            value = value.squeeze(0)
        kept = [dim for dim in (self.own, self.data) if dim is not None] + sorted(rest)
        width = max(-dim for dim in kept)
        if sorted(kept) == kept and width == len(kept):
            return value
        order = sorted(range(len(kept)), key=kept.__getitem__)
        sizes = [1] * width
        for place, dim in enumerate(kept):
            sizes[dim] = value.shape[place]
        event = range(len(kept), len(kept) + event_dims)
        return value.permute(*order, *event).reshape(*sizes, *[value.shape[place] for place in event])

    def repeat(self, field: Shaped[Tensor, "batch ..."]) -> Shaped[Tensor, "rows ..."]:
        """A field as the program takes it."""
        return torch.cat([field] * self.particles) if self.folded else field
