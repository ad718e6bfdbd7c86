"""The distribution of a site's single elements, where they are independent."""

from typing import Any

from torch.distributions import Independent


def elements(fn: Any) -> Any:
    """What `.to_event()` wraps: a distribution whose batch shape holds the event dims that it declared."""
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return fn
