"""Evaluators, one a file, and `evaluate`, which runs any of them on any pair."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from pyro_vae import plugins
from pyro_vae.data import Dataset, Split, as_split
from pyro_vae.engine import processes
from pyro_vae.errors import ContractError, RunError
from pyro_vae.evaluation.blocks import DATA_BLOCK, Block, Blocks
from pyro_vae.evaluation.result import BOUNDED, Estimate, Evaluator, Result, headline_of
from pyro_vae.pair.checks import check_data_apart
from pyro_vae.pair.data_fit import check_support, is_discrete, observed_sites
from pyro_vae.pair.pair import evaluating
from pyro_vae.pair.sites import has_mask

__all__ = ["Block", "Blocks", "Estimate", "Evaluator", "Result", "evaluate", "evaluate_each"]


def evaluate(
    pair: nn.Module,
    data: Dataset | Split | Tensor | Mapping[str, Tensor],
    evaluator: Any = "elbo",
    particles: int = 1,
    limit: int | None = None,
    progress: bool = True,
    *,
    split: str = "test",
    seed: int = 0,
    relaxed: bool = False,
    **options: Any,
) -> Result:
    """Evaluate a pair on every datum. Several processes, started by `torchrun`, share the data, and all must call it.

    Args:
        pair: a model and a guide on one module; runs under `eval()`, and is left as it was.
        data: a `Dataset`, of which `split` is taken, or the data themselves (a tensor is the field `x`).
        evaluator: a registered evaluator's name, or an `Evaluator`.
        particles: draws of the guide for each datum.
        limit: only the first so many data.
        progress: a progress bar on stderr.
        split: "train", "valid" or "test" of a `Dataset`.
        seed: fixes the draws.
        relaxed: allow grey values under a Bernoulli; the figures are then a loss, not a likelihood.
        options: the evaluator's own.

    Returns:
        A `Result`: per-datum tensors, mean and standard error in nats, warnings.

    Raises:
        UnknownName: no such evaluator, or it has no such option.
        RunError: fewer than one particle or datum, or no such split.
        DataError: the data do not fit the pair.
        ContractError: the pair breaks the contract, or evaluation changed one of its parameters.
    """
    name = evaluator if isinstance(evaluator, str) else type(evaluator).__name__
    if isinstance(evaluator, str):
        evaluator = plugins.build("evaluator", evaluator, options)
    elif options:
        raise RunError(f"{name} is made already, so it takes no {', '.join(options)} here: make it with its options")
    (result,) = evaluate_each(
        pair, data, {name: evaluator}, particles, limit, progress, split=split, seed=seed, relaxed=relaxed
    )
    return result


def evaluate_each(
    pair: nn.Module,
    data: Dataset | Split | Tensor | Mapping[str, Tensor],
    evaluators: Mapping[str, Any],
    particles: int = 1,
    limit: int | None = None,
    progress: bool = True,
    *,
    split: str = "test",
    seed: int = 0,
    relaxed: bool = False,
) -> Iterator[Result]:
    """The `Result` of each of several evaluators, which share one pass of the data through the encoder where they can.

    Args and errors as for `evaluate`, but for `evaluators`: evaluators by the names that their results bear.
    """
    for name, value in {"particles": particles, "limit": limit}.items():
        if value is not None and value < 1:
            raise RunError(f"{name} must be at least 1, not {value}")
    if seed < 0:
        raise RunError(f"seed must be at least 0, not {seed}")
    chosen = _choose(data, split).head(limit).to(device_of(pair))
    with torch.random.fork_rng(), unchanged(pair):
        check_support(pair, chosen, relaxed)
        check_data_apart(pair, Block(pair, chosen, slice(0, DATA_BLOCK), seed).batch())
    keep = len(evaluators) > 1
    mine = Blocks(pair, chosen, seed, processes.rank(), processes.world_size(), keep)
    whole = mine if processes.world_size() == 1 else Blocks(pair, chosen, seed, keep=keep)
    for name, evaluator in evaluators.items():
        began = time.perf_counter()
        with torch.random.fork_rng(), unchanged(pair):
            estimate = _estimate(name, evaluator, whole, mine, particles, progress)
        if relaxed:
            estimate.per_datum = _as_loss(estimate.per_datum)
        result = Result(
            evaluator=name,
            model=type(pair).__name__,
            data=data.name if isinstance(data, Dataset) else "data",
            split=split,
            n=chosen.size,
            particles=particles,
            seconds=time.perf_counter() - began,
            estimate=estimate,
            relaxed=relaxed,
        )
        with torch.random.fork_rng():
            _add_bits_per_dim(result, pair, chosen)
        yield result


def _estimate(name: str, evaluator: Evaluator, whole: Blocks, mine: Blocks, particles: int, progress: bool) -> Estimate:
    """What an evaluator finds on all blocks, shared among the processes where it can summarise what each found."""
    shared = hasattr(evaluator, "summarise")
    blocks = mine if shared else whole
    show = progress and processes.rank() == 0
    with (
        torch.inference_mode(not getattr(evaluator, "needs_gradients", False)),
        tqdm(total=blocks.size * particles, disable=not show, desc=name, unit="sample", unit_scale=True) as bar,
    ):
        found = evaluator(blocks.pair, blocks, particles, bar.update) if len(blocks) else None
        bar.update(bar.total - bar.n)
    return evaluator.summarise(_joined(processes.gather(found)), particles) if shared else found


def _joined(parts: Sequence[Estimate | None]) -> Estimate:
    """The figures of all processes, in the data's order."""
    found = [part for part in parts if part is not None]
    per_datum = {name: torch.cat([part.per_datum[name] for part in found]) for name in found[0].per_datum}
    return replace(found[0], per_datum=per_datum)


def _as_loss(per_datum: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same figures, minus the headline called a loss."""
    headline = headline_of(per_datum)
    if headline not in BOUNDED:
        return per_datum
    return {"loss": -per_datum[headline], **{name: value for name, value in per_datum.items() if name != headline}}


def device_of(pair: nn.Module) -> torch.device:
    """Where the pair's parameters and buffers are; the CPU for a pair that has none."""
    return next((tensor.device for tensor in (*pair.parameters(), *pair.buffers())), torch.device("cpu"))


def _choose(data: Any, split: str) -> Split:
    if not isinstance(data, Dataset):
        return as_split(data)
    if split not in ("train", "valid", "test"):
        raise RunError(f"no split {split!r}; there are train, valid and test")
    return getattr(data, split)


@contextmanager
def unchanged(pair: nn.Module) -> Iterator[None]:
    """Run under `eval()`, and prove that no parameter and no buffer changed.

    Raises:
        ContractError: one did; names it.
    """
    before = {name: value.detach().clone() for name, value in pair.state_dict().items()}
    with evaluating(pair):
        yield
    for name, value in pair.state_dict().items():
        if not torch.allclose(value, before[name], rtol=0, atol=0, equal_nan=True):
            raise ContractError(f"evaluation changed {name!r}; a pair must not write to its state under eval()")


def _add_bits_per_dim(result: Result, pair: nn.Module, split: Split) -> None:
    if result.quantity not in BOUNDED:
        result.bits_per_dim_note = "not a log-likelihood"
    elif not is_discrete(pair, split.head(1).take(slice(None))):
        result.bits_per_dim_note = "the data are continuous, so their density has no bits"
    else:
        elements = observed_elements(pair, split)
        if elements > 0:
            result.bits_per_dim = -result.headline.double().sum().item() / (elements * math.log(2))
        else:
            result.bits_per_dim_note = "every element is masked"


def observed_elements(pair: nn.Module, split: Split) -> float:
    """How many elements the model observes in all data, those left out that a mask leaves out."""
    first = observed_sites(pair, split.head(2).take(slice(None))).values()
    if not any(has_mask(site) for site in first):
        return split.size * sum(site.event_shape.numel() for site in first)
    total = 0.0
    for batch in split.batches(DATA_BLOCK):
        total += sum(site.counted().sum().item() for site in observed_sites(pair, batch).values())
    return total
