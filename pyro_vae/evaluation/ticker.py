"""Progress of work that is not made of samples."""

from collections.abc import Callable


def ticker(progress: Callable[[int], None], samples: int, moves: int) -> Callable[[int], None]:
    """A function to be told of moves made, `moves` in all, that tells `progress` of `samples` in proportion."""
    made = 0

    def tick(count: int) -> None:
        nonlocal made
        before, made = samples * made // moves, made + count
        progress(samples * made // moves - before)

    return tick
