"""Missing values: NaN in the fields in which a pair allows it.

The model is given such a field as it is. Where one of its sites observes NaN, the element is left out of the site's
log-probability: a value of the support stands in its place, so that gradients stay finite, and a mask leaves it out.
The guide is given the field with its gaps filled, by the means of the training data or by zeros where none are known.
Nothing here reads a tensor's value on the host.
"""

from collections.abc import Callable, Mapping
from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Bool, Float
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import Independent, constraints, transform_to

from pyro_vae.pair.pair import Another, device_of, missing_fields
from pyro_vae.pair.sites import unwrapped

FILL = "_fill_"
"""What precedes the name of a field in that of the buffer which holds what fills its gaps."""

GIVEN = "_given"
"""The entry of a message's `infer` that holds the value with its gaps."""


def with_gaps(pair: nn.Module, like: str, program: Callable[..., Any]) -> Callable[..., Any]:
    """A program that takes the pair's fields, for data that may lack values where the pair allows it.

    Args:
        like: whether it is given them as the pair's "model" is, or as its "guide".
    """
    if not missing_fields(pair):
        return program

    def run(**fields: Tensor) -> Any:
        if like == "guide":
            return program(**filled(pair, fields))
        with LeaveOut():
            return program(**fields)

    return run


def filled(pair: nn.Module, fields: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The fields [batch, ...] as the guide is given them: without gaps."""
    found = dict(fields)
    for name in missing_fields(pair):
        field = fields.get(name)
        if field is not None and field.is_floating_point():
            fill = getattr(pair, FILL + name, None)
            # a sequence may be cut
            fill = field.new_zeros(()) if fill is None else fill[tuple(map(slice, field.shape[1:]))].to(field)
            found[name] = torch.where(field.isnan(), fill, field)
    return found


def keep_means(pair: nn.Module, means: Mapping[str, Float[Tensor, "..."]]) -> None:
    """Let the guide see these values [*event] in the gaps of the fields."""
    for name, mean in means.items():
        pair.register_buffer(FILL + name, mean.to(device_of(pair)), persistent=False)


class LeaveOut(Messenger):
    """Leaves the elements that a site observes as NaN out of its log-probability.

    Args:
        masks: the elements to leave out of each site by its name, in place of those that are NaN.

    Attributes:
        masks: the elements that were left out.
    """

    def __init__(self, masks: Mapping[str, Bool[Tensor, "..."]] | None = None):
        super().__init__()
        self.given, self.masks = masks, dict(masks or {})

    def _pyro_sample(self, msg: dict) -> None:
        value = msg["value"]
        if not (msg["is_observed"] and isinstance(value, Tensor) and value.is_floating_point()):
            return
        if msg["infer"].get("_deterministic") or isinstance(unwrapped(msg["fn"]), dist.Unit):
            return
        if self.given is None:
            self.masks[msg["name"]] = value.isnan()
        elif msg["name"] not in self.given:
            return
        msg["infer"].setdefault(GIVEN, value)
        msg["fn"], msg["value"] = _left_out(msg["fn"], value, self.masks[msg["name"]])


def _left_out(fn: Any, value: Tensor, missing: Bool[Tensor, "..."]) -> tuple[Any, Tensor]:
    """A distribution that leaves missing elements out, and its value with others in their place.

    Of elements that depend on each other only all together can be left out: where some of them are missing, the value
    stays NaN, and so does its log-probability.
    """
    tied = len(independent_part(fn).event_shape)
    whole = missing.flatten(-tied).all(-1) if tied else missing
    gone = whole.reshape(*whole.shape, *[1] * tied)
    return _masked(fn, ~whole), torch.where(gone, _inside(fn, value), value)


def independent_part(fn: Any) -> Any:
    """The distribution of the largest part of a datum that is independent of the rest: an element, or an event."""
    while isinstance(fn, Independent | dist.MaskedDistribution):
        fn = fn.base_dist
    return fn


def _masked(fn: Any, keep: Bool[Tensor, "..."]) -> Any:
    """The distribution with some of its independent parts left out."""
    if isinstance(fn, Independent):
        return dist.Independent(_masked(fn.base_dist, keep), fn.reinterpreted_batch_ndims)
    if isinstance(fn, dist.MaskedDistribution):
        return dist.MaskedDistribution(_masked(fn.base_dist, keep), fn._mask)
    return dist.MaskedDistribution(fn, keep)


def _inside(fn: Any, like: Tensor) -> Tensor:
    """A value of the support, of the shape of `like`: a fixed one where elements have a support of their own, else a
    draw."""
    try:
        support = fn.support
        while isinstance(support, constraints.independent):
            support = support.base_constraint
        if support.event_dim == 0 and support.is_discrete:
            return torch.zeros_like(like) + getattr(support, "lower_bound", 0)
        if support.event_dim == 0:
            return transform_to(support)(torch.zeros_like(like))
    except (NotImplementedError, AttributeError):
        pass
    return fn.sample().to(like)


def marginalised(pair: nn.Module, names: tuple[str, ...]) -> nn.Module:
    """The same pair, in whose fields of these names, too, values may be missing."""
    also = tuple(dict.fromkeys([*missing_fields(pair), *names]))
    if also == missing_fields(pair):
        return pair
    allowing = type(type(pair).__name__, (Another,), {})(pair)  # of the name that messages give
    allowing.missing = also
    return allowing
