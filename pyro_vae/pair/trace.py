"""What a program does by itself: its sample statements in their order, and how they are given values."""

from collections.abc import Mapping

from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor


class Trace(Messenger):
    """The sample statements of a program by name. Pyro's own refuses a plate that is entered twice."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes: dict[str, dict] = {}

    def _pyro_post_sample(self, msg: dict) -> None:
        self.nodes[msg["name"]] = msg

    @property
    def sites(self) -> dict[str, dict]:
        """The sample sites, those of plates left out."""
        return {
            name: node
            for name, node in self.nodes.items()
            if not isinstance(node["fn"], _Subsample) and not (node["infer"] or {}).get("_deterministic")
        }

    @property
    def values(self) -> dict[str, Tensor]:
        """The values of the latent sites."""
        return {name: node["value"] for name, node in self.sites.items() if not node["is_observed"]}

    @property
    def last(self) -> tuple[str, Tensor] | None:
        """Name and value of the last site that ran."""
        return next(((node["name"], node["value"]) for node in reversed(self.sites.values())), None)


class At(Messenger):
    """Gives latent sites values, and leaves what they are marked with as it is."""

    def __init__(self, values: Mapping[str, Tensor]):
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: dict) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            msg["value"], msg["done"] = self.values[msg["name"]], True
