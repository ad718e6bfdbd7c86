"""`evaluate`: any evaluator on any pair."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from pyro_vae import plugins
from pyro_vae.data import Dataset, Split, choose_split
from pyro_vae.engine import processes
from pyro_vae.engine.devices import matrix_products
from pyro_vae.engine.threads import alone
from pyro_vae.errors import ContractError, RunError, check_positive, find
from pyro_vae.evaluation.bits_per_dim import bits_per_dim
from pyro_vae.evaluation.blocks import DATA_BLOCK, Block, Blocks
from pyro_vae.evaluation.evaluator import Called, Evaluator
from pyro_vae.evaluation.given_globals import GivenGlobals, shared_draws
from pyro_vae.evaluation.missing import described, settled, tolerant
from pyro_vae.evaluation.refit import refitted
from pyro_vae.evaluation.result import Estimate, Result
from pyro_vae.evaluation.unfinished import Unfinished, what_is_evaluated
from pyro_vae.kinds import checked
from pyro_vae.pair.checks import check_data_apart
from pyro_vae.pair.data_fit import check_support
from pyro_vae.pair.missing_checks import Absent
from pyro_vae.pair.pair import device_of, evaluating
from pyro_vae.pair.ready import make_ready
from pyro_vae.pair.scales import SCALES
from pyro_vae.pair.sequences import check_sequences, sequence_lengths
from pyro_vae.pair.sites import side_by_side
from pyro_vae.pair.topics import check_vocabulary
from pyro_vae.runs.folder import check_writable, keep_result
from pyro_vae.runs.run import Run, as_run

AnyPair = nn.Module | Run | str | Path
AnyData = str | Path | Dataset | Split | Tensor | Mapping[str, Tensor]

IGNORED = "scales ignored: each site counts once, whatever the pair multiplies it by"


@checked
def evaluate(
    pair: AnyPair,
    data: AnyData | None = None,
    evaluator: Any = "elbo",
    particles: int = 1,
    limit: int | None = None,
    progress: bool = True,
    *,
    split: str = "test",
    seed: int = 0,
    relaxed: bool = False,
    refit: int = 0,
    global_draws: int = 30,
    missing: str = "refuse",
    device: str = "auto",
    scales: str = "refuse",
    resume: str | Path | Unfinished | None = None,
    **options: Any,
) -> Result:
    """Evaluate a pair on every datum. Processes that `torchrun` started share the data, and all must call it.

    Args:
        pair: a model and a guide on one module; it runs under `eval()` and is left as it was. Or a run, or its folder,
            whose evaluation.json then keeps the latest result of each evaluator with the same settings.
        data: a `Dataset`, of which `split` is taken, or the data themselves (a tensor is the field `x`). Of a run: its
            own where None, or others by name or file.
        evaluator: a registered evaluator's name, an `Evaluator`, or a function that is called like one.
        particles: draws for each datum.
        limit: only the first so many data.
        progress: a progress bar on stderr.
        split: "train", "valid" or "test" of a `Dataset`.
        seed: fixes the draws.
        relaxed: allow grey values under a Bernoulli; the figures are then a loss, not a likelihood.
        refit: steps by which the parameters of each datum are fitted to these data, where the guide has such (an
            AutoNormal for local latents); all other parameters stay as they are.
        global_draws: draws of latents outside the plate of the data, where there are any: the figures of a datum are
            given these, and `data_set` is the bound of all data together.
        missing: "refuse": values may be missing (NaN) where the pair allows it; "marginalise": in every field that the
            model only observes. What is missing is left out of the likelihood and of bits per dim.
        device: auto, cpu or cuda, for a run; a pair stays where it is.
        scales: "refuse" a pair that scales a site under eval() (poutine.scale), or "ignore" its scales: each site then
            counts once, subsampled plates aside.
        resume: a folder that keeps each block of data as soon as it is done, until all are: called again after an
            interruption, evaluation goes on with the others, to the same figures. Evaluators that look at all data
            together (latent, usage, a plain function) keep nothing and begin anew.
        options: the evaluator's own.

    Returns:
        A `Result`: tensors [n, ...] of every datum, their mean and its standard error in nats, warnings.

    Raises:
        UnknownName: no such evaluator, or it has no such option; `scales` is neither of the two.
        RunError: fewer than one particle or datum; `resume` is no folder, or keeps blocks of another evaluation.
        DataError: the data do not fit the pair, or have no such split.
        ContractError: the pair breaks the contract, or evaluation changed one of its parameters.
    """
    name = evaluator if isinstance(evaluator, str) else getattr(evaluator, "__name__", type(evaluator).__name__)
    if isinstance(evaluator, str):
        evaluator = plugins.build("evaluator", evaluator, options)
    elif options:
        raise RunError(f"{name} is made already, so it takes no {', '.join(options)} here: make it with its options")
    settings = {"split": split, "seed": seed, "relaxed": relaxed, "device": device}
    settings |= {"refit": refit, "global_draws": global_draws, "missing": missing, "scales": scales, "resume": resume}
    (result,) = evaluate_each(pair, data, {name: evaluator}, particles, limit, progress, **settings)
    return result


@checked
@alone
def evaluate_each(
    pair: AnyPair,
    data: AnyData | None,
    evaluators: Mapping[str, Any],
    particles: int = 1,
    limit: int | None = None,
    progress: bool = True,
    *,
    split: str = "test",
    seed: int = 0,
    relaxed: bool = False,
    refit: int = 0,
    global_draws: int = 30,
    missing: str = "refuse",
    device: str = "auto",
    scales: str = "refuse",
    resume: str | Path | Unfinished | None = None,
) -> Iterator[Result]:
    """The `Result` of each of several evaluators. Where they can, they share one pass of the data through the encoder.

    Args:
        evaluators: evaluators by the names that their results bear.

    The other arguments, and the errors, are those of `evaluate`.
    """
    check_positive(RunError, particles=particles, limit=limit)
    if seed < 0:
        raise RunError(f"seed must be at least 0, not {seed}")
    as_asked = find("way with scales", scales, SCALES)
    run = as_run(pair, device) if isinstance(pair, Run | str | Path) else None
    if run is not None:
        pair, data, relaxed = run.pair, run.data_like(data), relaxed or run.relaxed
    keeps = run is not None and run.out is not None and processes.rank() == 0
    if keeps:
        check_writable(run.out)
    model = type(pair).__name__ if run is None else run.model_name
    check_vocabulary(pair, data)
    chosen = choose_split(data, split).head(limit).to(device_of(pair))
    made = {name: e if isinstance(e, Evaluator) else Called(e) for name, e in evaluators.items()}
    also = {name for evaluator in made.values() for name in evaluator.hides}
    source = data.name if isinstance(data, Dataset) else ""
    make_ready(pair, chosen, DATA_BLOCK, seed)
    if refit:
        with as_asked():
            pair, chosen = refitted(pair, chosen, refit, seed)
    with torch.random.fork_rng(), unchanged(pair), as_asked():
        pair, absent, notes = tolerant(pair, chosen, missing, run, also, source)
        first = Block(pair, chosen, slice(0, DATA_BLOCK), seed)
        check_sequences(pair, chosen)
        check_support(pair, chosen, relaxed)
        lengths = sequence_lengths(pair, chosen)
        check_data_apart(pair, first.batch())
        shared = shared_draws(first, global_draws, seed)
    remarks = [*(run.remarks if run is not None else []), *([IGNORED] if scales == "ignore" else [])]
    keep = len(made) > 1
    mine = Blocks(pair, chosen, seed, processes.rank(), processes.world_size(), keep)
    whole = mine if processes.world_size() == 1 else Blocks(pair, chosen, seed, keep=keep)
    figures_follow_from = {"particles": particles, "n": chosen.size, "missing": missing, "scales": scales}
    figures_follow_from |= {"refit": refit, "global_draws": global_draws, "device": chosen.device.type}
    unfinished = Unfinished.at(resume)
    for name, evaluator in made.items():
        began = time.perf_counter()
        done = unfinished and unfinished.of(name, what_is_evaluated(pair, evaluator, **figures_follow_from))
        evaluator = evaluator if shared is None else GivenGlobals(evaluator, shared)
        with torch.random.fork_rng(), unchanged(pair), matrix_products("32-true"), as_asked():
            blocks = (mine if evaluator.shareable else whole).going_on(done)
            estimate = _estimate(name, evaluator, blocks, particles, progress, absent)
            estimate = described(estimate, absent, notes)
        result = Result(
            evaluator=name,
            model=model,
            data=data.name if isinstance(data, Dataset) else "data",
            split=split,
            n=chosen.size,
            particles=particles,
            seconds=time.perf_counter() - began,
            estimate=estimate.as_loss() if relaxed else estimate,
            time_slices=None if lengths is None else int(lengths.sum()),
            relaxed=relaxed,
            remarks=remarks,
        )
        with torch.random.fork_rng(), as_asked():
            result.bits_per_dim, result.bits_per_dim_note = bits_per_dim(result, pair, chosen)
        if keeps:
            keep_result(run.out, result.entry(), result.estimate.figures)
        yield result
    if unfinished is not resume:
        unfinished.clear()


def _estimate(
    name: str, evaluator: Evaluator, blocks: Blocks, particles: int, progress: bool, absent: Absent
) -> Estimate:
    """What an evaluator finds on all data, of which each process has its share of the blocks where it lets them."""
    show = progress and processes.rank() == 0
    with (
        torch.inference_mode(not evaluator.needs_gradients),
        tqdm(total=blocks.size * particles, disable=not show, desc=name, unit="sample", unit_scale=True) as bar,
    ):
        found = evaluator(blocks.pair, blocks, particles, bar.update) if len(blocks) else None
        bar.update(bar.total - bar.n)
    if evaluator.shareable:
        parts = [part for part in processes.gather(found) if part is not None]  # in the data's order
        found = replace(parts[0], per_datum=side_by_side([part.per_datum for part in parts]))
    return evaluator.summarise(settled(found, absent), particles)


@contextmanager
def unchanged(pair: nn.Module) -> Iterator[None]:
    """Run under `eval()`, and raise `ContractError`, which names it, where a parameter or a buffer changed."""
    before = {name: value.detach().clone() for name, value in pair.state_dict().items()}
    with evaluating(pair):
        yield
    for name, value in pair.state_dict().items():
        if not torch.allclose(value, before[name], rtol=0, atol=0, equal_nan=True):
            raise ContractError(f"evaluation changed {name!r}; a pair must not write to its state under eval()")
