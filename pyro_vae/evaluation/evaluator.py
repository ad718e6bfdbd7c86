"""What `evaluate` calls: the base class of all evaluators, and how a plain function becomes one."""

from collections.abc import Callable, Sequence

from torch import nn

from pyro_vae.evaluation.blocks import Block, Blocks
from pyro_vae.evaluation.result import Estimate, PerDatum

Progress = Callable[[int], None]
"""Is told how many more data x particles are done."""


class Evaluator:
    """Finds figures of each datum under a trained pair. Its constructor takes its options.

    A subclass defines `of_block`; where it must see the data of several blocks together, it defines `__call__` instead.
    What `blocks.figures` runs there is kept, block by block, for an evaluation that is to go on after an interruption.

    Attributes:
        needs_gradients: whether it takes gradients; else it runs in inference mode.
        shareable: whether several processes may share the data. Each then calls the evaluator on blocks of its own, and
            the figures that they find are put together before `summarise`; the rest comes from the first process.
        hides: fields of which it leaves elements out; the pair that it is given allows values to be missing there.
    """

    needs_gradients = False
    shareable = False
    hides: Sequence[str] = ()

    def __call__(self, pair: nn.Module, blocks: Blocks, particles: int, progress: Progress) -> Estimate:
        """The figures of all data of the blocks, from `particles` draws for each; raises `ContractError` where the pair
        has none."""
        return Estimate(blocks.figures(lambda block: self.of_block(block, particles, progress), particles, progress))

    def of_block(self, block: Block, particles: int, progress: Progress) -> PerDatum:
        """The figures [batch, ...] of the data of one block, by name; errors as for `__call__`."""
        raise NotImplementedError(f"{type(self).__name__} defines neither of_block nor __call__")

    def summarise(self, found: Estimate, particles: int) -> Estimate:
        """What was found on all data, with a summary and warnings added."""
        return found


class Called(Evaluator):
    """Evaluates by a function, or an object of another class, that is called like an evaluator. It may have
    `needs_gradients` and, where processes may share it, `summarise`."""

    def __init__(self, function: Callable[..., Estimate]):
        self.function = function
        self.needs_gradients = getattr(function, "needs_gradients", False)
        self.shareable = hasattr(function, "summarise")
        self.summarise = getattr(function, "summarise", self.summarise)

    def __call__(self, pair: nn.Module, blocks: Blocks, particles: int, progress: Progress) -> Estimate:
        return self.function(pair, blocks, particles, progress)


def ticker(progress: Progress, samples: int, moves: int) -> Callable[[int], None]:
    """For work that is not made of samples: a function to be told of the moves made, `moves` in all, which tells
    `progress` of `samples` in proportion."""
    made = 0

    def tick(count: int) -> None:
        nonlocal made
        before, made = samples * made // moves, made + count
        progress(samples * made // moves - before)

    return tick
