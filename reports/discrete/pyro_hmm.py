"""The hidden Markov model as Pyro's users write it: model 1 of Pyro's example hmm.py, with its point estimates."""

from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import SVI, TraceEnum_ELBO
from pyro.infer.autoguide import AutoDelta
from pyro.optim import Adam
from torch import Tensor

AHEAD, CHECKS = 2, 20
"""The dims that the plates of sequences and keys take, to whose left are those of the states; and how often the
validation data are looked at."""

Splits = Mapping[str, Mapping[str, Tensor]]


def model(x: Tensor, length: Tensor, states: int, batch_size: int | None = None, with_prior: bool = True) -> None:
    """States that mostly stay, with priors on the moves and on which keys are down; their sums are Pyro's work."""
    with poutine.mask(mask=with_prior):
        moves = pyro.sample("probs_x", dist.Dirichlet(0.9 * torch.eye(states) + 0.1).to_event(1))
        keys = pyro.sample("probs_y", dist.Beta(0.1, 0.9).expand([states, x.shape[2]]).to_event(2))
    plate_of_keys = pyro.plate("tones", x.shape[2], dim=-1)
    with pyro.plate("sequences", len(x), batch_size, dim=-2) as chosen:
        within, state = length[chosen], 0
        for t in pyro.markov(range(int(within.max()))):
            with poutine.mask(mask=(t < within).unsqueeze(-1)):
                state = pyro.sample(f"x_{t}", dist.Categorical(moves[state]), infer={"enumerate": "parallel"})
                with plate_of_keys:
                    pyro.sample(f"y_{t}", dist.Bernoulli(keys[state.squeeze(-1)]), obs=x[chosen, t])


def nats_per_time_slice(guide: AutoDelta, x: Tensor, length: Tensor, states: int) -> float:
    """Minus log p(x) without the priors, by the sum of the lengths."""
    with torch.no_grad():
        loss = TraceEnum_ELBO(max_plate_nesting=AHEAD).loss(model, guide, x, length, states, None, False)
    return loss / length.sum().item()


def trained(data: Splits, states: int, steps: int, lr: float, batch_size: int) -> dict[str, float]:
    """Nats per time slice of each split after that twentieth of the steps which is best on the validation data."""
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    guide = AutoDelta(poutine.block(model, expose_fn=lambda site: site["name"].startswith("probs_")))
    svi = SVI(model, guide, Adam({"lr": lr}), TraceEnum_ELBO(max_plate_nesting=AHEAD))
    found, every = [], max(1, steps // CHECKS)
    for step in range(steps):
        svi.step(data["train"]["x"], data["train"]["length"], states, batch_size)
        if (step + 1) % every == 0:
            found.append({name: nats_per_time_slice(guide, **split, states=states) for name, split in data.items()})
    return min(found, key=lambda each: each["valid"])
