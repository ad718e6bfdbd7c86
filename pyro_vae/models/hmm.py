"""The hidden Markov model (Rabiner 1989), its states summed out."""

import math
from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyro_vae.errors import ContractError
from pyro_vae.pair.pair import Pair
from pyro_vae.pair.slices import slice_shape, until
from pyro_vae.pair.structure import MOST_STATES
from pyro_vae.parts import build
from pyro_vae.parts.build import LIKELIHOOD
from pyro_vae.parts.memory import memory_of
from pyro_vae.parts.tables import Emissions, Table

MOST = math.isqrt(MOST_STATES)

TRAINED, EVALUATED = 25, 3
"""About as many numbers are held of a time slice for each pair of states, and for each number of x in each state; seen
with gradients and without."""


class HiddenMarkovModel(Pair):
    """p(s_0) p(x_0|s_0) p(s_1|s_0) p(x_1|s_1) ...: a discrete state follows from the one before, x from the state.

    The states are summed out (the forward algorithm), so log p(x) is exact. Sites are `state_t` and `x_t`. `pv.encode`
    gives the path that is most probable (Viterbi's), one drawn path, and the probabilities of each state. Training may
    end at a local optimum: `restarts` of `train` tries several starts.

    Args:
        data_shape: shape of one sequence x, [time, ...]; the data set's own on the command line. Other numbers of time
            slices serve as well.
        states: how many there are.
        likelihood: of one time slice; a name or an object, as for a VAE.
        data_mean: mean of the training data [*data_shape]; where given, the states start around it.
        part_options: options of the likelihood.

    Raises:
        ContractError: data that are no sequences, a size that is not positive, more states than can be summed over, or
            than the memory holds.
        UnknownName: a likelihood that is not known; lists those that are.

    Source: Pyro's example hmm.py, model 1.
    """

    default_data = "planted_chains"

    def __init__(
        self,
        data_shape: Sequence[int],
        states: int = 4,
        likelihood: build.LikelihoodPart = "bernoulli",
        data_mean: Float[Tensor, "..."] | None = None,
        **part_options: Any,
    ):
        super().__init__()
        of_slice = slice_shape(data_shape)
        build.check_sizes(states=[states])
        if states > MOST:
            raise ContractError(f"states must be at most {MOST}, not {states}: every pair of them is summed over")
        parts = build.Parts(part_options)
        built = parts.build("likelihood", LIKELIHOOD, likelihood, data_shape=of_slice)
        parts.check_all_taken()
        self.states = states
        self.moves = Table(torch.cat([torch.eye(states), torch.zeros(1, states)]))  # the last row is before the first x
        self.emission = Emissions(states, built, of_slice, None if data_mean is None else data_mean.mean(0))

    def model(self, x: Float[Tensor, "batch time ..."], length: Int[Tensor, " batch"] | None = None) -> None:
        self.check_memory(x)
        moves, state = self.moves(), self.states
        with self.plate(x.shape[0]):
            for t in pyro.markov(range(x.shape[1])):
                with until(length, t):
                    chosen = dist.Categorical(logits=moves[state])
                    state = pyro.sample(f"state_{t}", chosen, infer={"enumerate": "parallel"})
                    pyro.sample(f"x_{t}", self.emission(state), obs=x[:, t])

    def guide(self, x: Float[Tensor, "batch time ..."], length: Int[Tensor, " batch"] | None = None) -> None:
        """Empty: nothing is drawn."""
        with self.plate(x.shape[0]):
            pass

    def check_memory(self, x: Float[Tensor, "batch time ..."]) -> None:
        """Raise `ContractError` where the sums over the states of these data would not fit in memory."""
        copies = TRAINED if torch.is_grad_enabled() else EVALUATED
        needed = copies * self.states * (self.states * x.shape[1] + x.numel()) * x.element_size()
        there = memory_of(x.device)
        if needed > there:
            raise ContractError(
                f"{self.states} states on sequences of {x.shape[1]} time slices take about {needed / 2**30:.1f} GiB, "
                f"but there are {there / 2**30:.1f}; use fewer states, or a smaller batch_size"
            )
