"""The contract of a pair as a function: `check_pair` runs on a user's pair the checks that our own models pass, and
`check` does so on a model and data that may be named."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pyro_vae.data import Dataset, Split, as_split, load_data
from pyro_vae.data.stream import Stream
from pyro_vae.engine.threads import alone
from pyro_vae.errors import ContractError
from pyro_vae.evaluation import evaluate
from pyro_vae.evaluation.blocks import Block
from pyro_vae.kinds import checked
from pyro_vae.objectives.elbo import TraceELBO
from pyro_vae.pair.checks import BOTH, check_data_apart
from pyro_vae.pair.data_fit import check_support, observed_sites
from pyro_vae.pair.generation import sample
from pyro_vae.pair.global_latents import held_at_a_draw
from pyro_vae.pair.missing import with_gaps
from pyro_vae.pair.missing_checks import check_missing
from pyro_vae.pair.pair import batch_size, select_fields
from pyro_vae.pair.particles import run_guide, run_model
from pyro_vae.pair.ready import make_ready
from pyro_vae.pair.sequences import check_sequences, sequence_lengths
from pyro_vae.pair.sites import is_improper, observed, values_of
from pyro_vae.pair.structure import structure_of
from pyro_vae.pair.terms import log_terms
from pyro_vae.runs.build import build_model
from pyro_vae.runs.config import DEFAULTS, default_of
from pyro_vae.training.by_name import data_settings

Batch = Mapping[str, Tensor]
SEED = 0
CHECKED = 16
"""As many of the training data are checked on."""


@checked
@alone
def check(
    pair: nn.Module | str = DEFAULTS["model"],
    data: Any = None,
    seed: int = 0,
    *,
    fields: Sequence[str] | None = None,
    model_options: Mapping[str, Any] | None = None,
    data_options: Mapping[str, Any] | None = None,
) -> list[str]:
    """Does a model keep the contract of a pair on a data set? Runs `check_pair` on 16 of the training data.

    Args:
        pair: a model and a guide on one module, which is left as it was, or the name of a registered model.
        data: a data set's name or file, a `Dataset`, or data in any form that `train` takes; None: as for `train`.
        seed: fixes the initial weights of a named model, and how named data are divided and drawn.
        fields: what the members of an item of the data are called where it is a tuple: ("x", "label").
        model_options: of a named model: `{"latent_dim": 5}`.
        data_options: of named data: `{"binarize": "static"}` (the default is "dynamic"), and the data set's own.

    Returns:
        What was checked, in words.

    Raises:
        ContractError: one or more checks failed; says in words what.
        DataError: data that are missing, unreadable or unfit.
        UnknownName: no such model or data set.
    """
    data = default_of("data", pair) if data is None else data
    if isinstance(data, str | Path):
        data = load_data(data, seed=seed, **data_settings(data, data_options))
    elif not isinstance(data, Dataset):
        split = Stream(data, fields) if isinstance(data, DataLoader) else as_split(data, fields)
        data = Dataset("data", split, split, split)
    if isinstance(pair, str):
        pair = build_model(pair, data.facts, model_options or {}, seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return check_pair(pair, data.train.head(CHECKED).take(slice(None)))


def check_pair(pair: nn.Module, batch: Batch) -> list[str]:
    """Run every check of the contract of a pair; the pair and all global state are left as they were.

    Of a pair that has a loss and no density its weights are left out, and where a prior is improper, that it generates.

    Args:
        pair: a model and a guide on one module.
        batch: the fields that it takes, at least two data, as it is given them in training.

    Returns:
        What was checked, in words.

    Raises:
        ContractError: one or more checks failed; says in words what.
    """
    failures: dict[str, str] = {}
    made: list[str] = []
    make_ready(pair, Split(batch), batch_size(batch))
    with torch.random.fork_rng():
        for what, check in CHECKS.items():
            torch.manual_seed(SEED)
            try:
                with _left_alone(pair):
                    check(pair, batch)
                made.append(what)
            except _LeftOut:
                pass
            except Exception as problem:
                failures.setdefault(" ".join(str(problem).split()) or type(problem).__name__, what)
                if check in FIRST:
                    break
    if failures:
        listed = "; ".join(f"({i}) {what}: {message}" for i, (message, what) in enumerate(failures.items(), start=1))
        raise ContractError(f"{type(pair).__name__} fails {len(failures)} of {len(CHECKS)} checks: {listed}")
    return made


@contextmanager
def _left_alone(pair: nn.Module) -> Iterator[None]:
    """Afterwards the pair has its parameters, buffers, gradients and modes back.

    The pair itself is checked and no copy, whose programs may know the nets of the first by name.
    """
    parts = [(part, dict(part._parameters), dict(part._buffers), part.training) for part in pair.modules()]
    tensors = (*pair.parameters(), *pair.buffers())
    before = [(tensor, tensor.detach().clone(), tensor.grad) for tensor in tensors]
    pair.zero_grad()
    try:
        yield
    finally:
        for part, parameters, buffers, training in parts:
            part._parameters.update(parameters)
            part._buffers.update(buffers)
            part.training = training
        with torch.no_grad():
            for tensor, value, gradient in before:
                tensor.copy_(value)
                tensor.grad = gradient


def _takes_fields(pair: nn.Module, batch: Batch) -> None:
    sizes = {name: len(value) for name, value in select_fields(pair, batch).items()}
    if len(set(sizes.values())) > 1 or min(sizes.values()) < 2:
        raise ContractError(f"the batch must hold at least two data, as many in each field, not {sizes}")
    check_missing(pair, Split(batch))
    sequence_lengths(pair, Split(batch))


def _has_terms_of_each_datum(pair: nn.Module, batch: Batch) -> None:
    pair, size = held_at_a_draw(pair, batch), batch_size(batch)
    as_loss = _is_loss(pair, batch)
    for particles in (1, 3, size):
        terms = log_terms(pair, batch, particles, as_loss=as_loss)
        for name, value in zip(("log_likelihood", "log_prior", "log_guide"), terms[:3], strict=True):
            if not value.isfinite().all():
                raise ContractError(f"{name} is not finite at {particles} draws of the guide")


def _has_one_support(pair: nn.Module, batch: Batch) -> None:
    pair = held_at_a_draw(pair, batch)
    _block(pair, batch).check(() if _is_loss(pair, batch) else BOTH)


def _ends_with_its_length(pair: nn.Module, batch: Batch) -> None:
    check_sequences(pair, Split(batch))


def _trains_all_parameters(pair: nn.Module, batch: Batch) -> None:
    TraceELBO()(pair, batch, particles=2).backward()
    for name, parameter in pair.named_parameters():
        if parameter.requires_grad and parameter.grad is None:
            raise ContractError(
                f"parameter {name!r} gets no gradient; use it in the model or the guide, or freeze it with "
                "requires_grad_(False)"
            )
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            raise ContractError(f"the gradient of parameter {name!r} is not finite")


def _works_with_plain_pyro(pair: nn.Module, batch: Batch) -> None:
    fields = select_fields(pair, batch)
    structure = structure_of(pair, fields)
    elbo = TraceEnum_ELBO(max_plate_nesting=structure.depth) if structure.sums else Trace_ELBO()
    with pyro.get_param_store().scope():
        model, guide = (with_gaps(pair, name, getattr(pair, name)) for name in ("model", "guide"))
        loss = elbo.loss(lambda b: model(**b), lambda b: guide(**b), fields)
    if not torch.tensor(loss).isfinite():
        raise ContractError(f"Pyro's {type(elbo).__name__} of the pair is not finite")


def _generates(pair: nn.Module, batch: Batch) -> None:
    fields = select_fields(pair, batch)
    guide = run_guide(pair, fields)
    if any(is_improper(site.fn) for site in run_model(pair, fields, values_of(guide)).values()):
        raise _LeftOut
    given, drawn = observed_sites(pair, fields), observed(sample(pair, fields))
    if not given:
        raise ContractError("the model observes nothing; give a site obs=")
    for name, site in given.items():
        if drawn[name].raw.shape != site.raw.shape:
            raise ContractError(
                f"site {name!r} draws values of shape {list(drawn[name].raw.shape)} but observes "
                f"{list(site.raw.shape)}; give its distribution the shape of the data"
            )


def _is_left_alone_by_evaluation(pair: nn.Module, batch: Batch) -> None:
    evaluate(pair, Split(batch), "elbo", 2, progress=False, relaxed=True, global_draws=2)


def _fits_the_data(pair: nn.Module, batch: Batch) -> None:
    check_support(pair, Split(batch))


def _has_finite_weights(pair: nn.Module, batch: Batch) -> None:
    if _is_loss(held_at_a_draw(pair, batch), batch):
        raise _LeftOut
    evaluate(pair, Split(batch), "importance", 30, progress=False, global_draws=2)


class _LeftOut(Exception):
    """A check asks for what a pair with a loss alone does not have."""


def _block(pair: nn.Module, batch: Batch) -> Block:
    return Block(pair, Split(batch), slice(0, batch_size(batch)), SEED)


def _is_loss(pair: nn.Module, batch: Batch) -> bool:
    """Whether the pair has no density, but a loss."""
    faults = _block(pair, batch).faults()
    return bool(faults) and all(fault.is_loss for fault in faults)


CHECKS: dict[str, Callable[[nn.Module, Batch], None]] = {
    "model and guide take the same fields, which the data have": _takes_fields,
    "model and guide have the same latents, with one support, in the data plate or for all data": _has_one_support,
    "every site has one finite log-probability a datum": _has_terms_of_each_datum,
    "a datum's terms do not depend on the other data": check_data_apart,
    "what lies beyond the length of a sequence does not count": _ends_with_its_length,
    "every parameter gets a gradient": _trains_all_parameters,
    "plain Pyro takes the pair": _works_with_plain_pyro,
    "the model generates what it observes": _generates,
    "evaluation changes no parameter and no buffer": _is_left_alone_by_evaluation,
    "the data are in the likelihood's support": _fits_the_data,
    "importance weights are finite": _has_finite_weights,
}

FIRST = (_takes_fields, _has_one_support, _has_terms_of_each_datum)
"""What fails these fails others for the same reason."""
