"""Pyro's `obs_mask` makes three sites of one: NAME_observed, the latent NAME_unobserved, and NAME, which has the values
of both. Where the guide lacks the latent and nothing depends on it, it is left out: its integral is 1."""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_vae.errors import ContractError
from pyro_vae.pair.equality import same
from pyro_vae.pair.sites import OF_A_PROGRAM, elements

UNOBSERVED, OBSERVED = "_unobserved", "_observed"
DRAWS, VALUES = 3, 50
"""How many draws, or listed values, a site is given to see whether another depends on it."""

Nodes = Mapping[str, dict]
"""The sample sites of a trace by name."""


def left_out(
    model: Nodes, guide: Collection[str], enumerated: Collection[str], run: Callable[[Messenger], Nodes]
) -> frozenset[str]:
    """The latents that `obs_mask` made and that need not be drawn.

    Args:
        guide: the sites of the guide.
        enumerated: the sites that are enumerated.
        run: the sites of the model as it runs under a handler.

    Raises:
        ContractError: a site depends on one that the guide lacks; names both.
    """
    drawn = {name: node["value"] for name, node in model.items() if not node["is_observed"]}
    found = set()
    for name in drawn.keys() - {*guide, *enumerated}:
        base = name.removesuffix(UNOBSERVED)
        if name == base or base + OBSERVED not in model:
            continue
        for value in _others(model[name]):
            dependent = _dependent(model, name, _Instead(drawn, base, value), run)
            if dependent:
                raise ContractError(
                    f"site {name!r}, which Pyro's obs_mask makes, is not in the guide, and {dependent} depends on it; "
                    "sample it in the guide under poutine.mask(mask=~obs_mask), or enumerate it "
                    "(pyro.infer.config_enumerate)"
                )
        found.add(name)
    return frozenset(found)


class _Instead(Messenger):
    """Gives latents their values, and the site that `obs_mask` puts together another one, whatever is observed."""

    def __init__(self, values: Mapping[str, Tensor], name: str, value: Tensor):
        super().__init__()
        self.values, self.name, self.value = values, name, value

    def _pyro_sample(self, msg: dict) -> None:
        if msg["name"] == self.name:
            msg["value"] = self.value
        elif msg["name"] in self.values and not msg["is_observed"]:
            msg["value"], msg["done"] = self.values[msg["name"]], True


def _others(node: dict) -> Iterator[Tensor]:
    """Other values that a site may have: all that can be listed, else some draws."""
    fn, part = node["fn"], elements(node["fn"])
    try:
        values = part.enumerate_support(expand=False)[:VALUES]
    except (NotImplementedError, AttributeError):
        values = [fn() for _ in range(DRAWS)]
    yield from (value.expand(node["value"].shape) for value in values)


def _dependent(model: Nodes, name: str, handler: Messenger, run: Callable[[Messenger], Nodes]) -> str | None:
    """What changes with the value of a site, in words."""
    try:
        other = run(handler)
        changed = [n for n, node in model.items() if n != name and not _alike(node, other.get(n))]
    except (*OF_A_PROGRAM, ContractError):
        return "what the model does next"
    more = [*changed, *(other.keys() - model.keys())]
    return f"site {more[0]!r}" if more else None


def _alike(node: dict, other: dict | None) -> bool:
    """Whether two runs of a site have the same value and the same distribution there."""
    return other is not None and same(_log_prob(other), _log_prob(node)) and same(*_values(other, node))


def _log_prob(node: dict) -> Tensor:
    return node["fn"].log_prob(node["value"])


def _values(*nodes: dict) -> list[Any]:
    return [torch.as_tensor(node["value"]).double() for node in nodes]
