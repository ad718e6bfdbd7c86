"""The pair: a model and a guide on one `torch.nn.Module`."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any, NamedTuple

import pyro
import torch
from pyro.poutine.messenger import _bound_partial, _context_wrap
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_vae.errors import ContractError, DataError
from pyro_vae.pair.parameters import announce, under_plain_pyro

PLATE = "data"
OBSERVED = "_observed"
"""What follows the name of a field in that of the field which says where its values are not missing."""


class Pair(nn.Module):
    """A convenient base class for a pair; any `nn.Module` with `model` and `guide` will do.

    Subclasses define both, which take the same fields [batch, ...] by name. The value of a site is [batch, *event], or
    [particles, batch, *event] where several particles are drawn and the nets broadcast over them; its log-probability,
    summed over the event dims, is [batch] in nats. What the two return is not used. A field that the data lack is a
    `DataError` when the pair is used, and a site that breaks the contract a `ContractError` that names it.

    Attributes:
        optional_fields: fields that both take as `**fields`, where the data have them.
        remembers: whether the guide may have parameters of each datum, so that `prepare` asks for all training data.
        indexed: whether it has, so that it needs the field `index` [n].
        missing: fields in which a value may be missing (NaN), such as ("x",). An element that a site of the model
            observes as NaN is left out of its log-probability; the guide sees the means of the training data in the
            gaps, or zeros where none are known. A field NAME_observed [batch, ...], True where NAME is not missing, is
            made for programs that name it. The model may only observe such a field.
        evaluators: what a run that is trained by name is evaluated by at its end, besides `elbo` and `reconstruction`.

    Example:

        class FactorAnalysis(Pair):
            def __init__(self, features):
                super().__init__()
                self.decoder, self.encoder = nn.Linear(2, features), nn.Linear(features, 2)

            def model(self, x):
                with self.plate(len(x)):
                    z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
                    pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

            def guide(self, x):
                with self.plate(len(x)):
                    pyro.sample("z", dist.Normal(self.encoder(x), 1.0).to_event(1))
    """

    optional_fields: Sequence[str] = ()
    remembers: bool = False
    indexed: bool = False
    missing: Sequence[str] = ()
    evaluators: Sequence[str] = ()

    def model(self, **batch: Tensor) -> Any:
        """Declare p(z) p(x|z): sample the latents z, and observe the data x with `obs=`."""
        raise NotImplementedError

    def guide(self, **batch: Tensor) -> Any:
        """Declare q(z|x): sample every latent of the model, under its name and with its shape, and no more."""
        raise NotImplementedError

    def prepare(self, batch: Mapping[str, Tensor]) -> None:
        """Make ready for data like these before the first use; nothing is to be done where all parameters are there."""

    def check_training(self, data: Mapping[str, Tensor]) -> None:
        """Raise `DataError` where it could learn nothing from these training data; by default any will do."""

    @contextmanager
    def plate(self, size: int) -> Iterator[None]:
        """The plate of the data, `pyro.plate("data", size, dim=-1)`.

        Inside it plain Pyro (`pyro.infer.SVI`) also learns of this module's parameters, without a write to Pyro's
        global parameter store.
        """
        if under_plain_pyro():
            announce(self)
        with pyro.plate(PLATE, size, dim=-1):
            yield


class Another(nn.Module):
    """A pair made of another: what it does not have of its own is the other's."""

    def __init__(self, pair: nn.Module):
        super().__init__()
        self.pair, self.training = pair, pair.training

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("pair"), name)


class Programs(nn.Module):
    """A pair's programs as one module, which `functional_call` can give other tensors."""

    def __init__(self, pair: nn.Module):
        super().__init__()
        self.pair = pair

    def forward(self, program: str, *arguments: Any, **fields: Any) -> Any:
        return getattr(self.pair, program)(*arguments, **fields)


@contextmanager
def validation_off() -> Iterator[None]:
    """Pyro's and torch's checks of arguments off, and as they were afterwards."""
    torch_default = Distribution._validate_args
    try:
        with pyro.validation_enabled(False):
            yield
    finally:
        Distribution.set_default_validate_args(torch_default)


@contextmanager
def evaluating(pair: nn.Module) -> Iterator[None]:
    """Run under `eval()`; afterwards each module is in the mode that it was in."""
    modes = {module: module.training for module in pair.modules()}
    pair.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def drawing_apart(fields: Mapping[str, Tensor]) -> Iterator[None]:
    """Torch's random numbers, on the CPU and where the fields are, go on afterwards as if nothing had been drawn."""
    devices = sorted({value.device.index for value in fields.values() if value.is_cuda})
    with torch.random.fork_rng(devices=devices):
        yield


def device_of(pair: nn.Module) -> torch.device:
    """Where the pair's parameters and buffers are; the CPU for a pair that has none."""
    return next((tensor.device for tensor in (*pair.parameters(), *pair.buffers())), torch.device("cpu"))


class FieldNames(NamedTuple):
    """The fields that a pair takes: those that it requires, those that it takes where the data have them, or all."""

    required: list[str]
    optional: list[str]
    every: bool


def field_names(pair: nn.Module) -> FieldNames:
    """The names of the fields that a pair's signature asks for; decorators and Pyro's handlers are looked through.

    Raises:
        ContractError: `pair` has no `model` or no `guide`, one of them names no field, or the two take different ones.
    """
    for program in ("model", "guide"):
        if not callable(getattr(pair, program, None)):
            raise ContractError(
                f"{type(pair).__name__} has no method {program!r}; a pair is a torch.nn.Module with "
                "model(self, **batch) and guide(self, **batch)"
            )
    if not isinstance(pair, nn.Module):
        raise ContractError(f"{type(pair).__name__} is not a torch.nn.Module; derive it from pyro_vae.Pair")
    programs = undecorated(pair.model), undecorated(pair.guide)
    kept = all(inspect.isfunction(function) for function, _ in programs)
    found = (_kept_fields if kept else _fields)(type(pair).__name__, *programs)
    return found._replace(optional=[*found.optional, *getattr(pair, "optional_fields", ())])


Program = tuple[Callable[..., Any], int]
"""A function, and how many of its arguments are bound."""


def _fields(pair: str, *programs: Program) -> FieldNames:
    model, guide = [_parameters(*program) for program in programs]
    for program, taken in (("model", model), ("guide", guide)):
        if not taken:
            raise ContractError(
                f"the {program} of {pair} names no field; name those that it takes, as in def {program}(self, x)"
            )
    if list(model) != list(guide):
        raise ContractError(f"model takes {list(model)} but guide takes {list(guide)}; both must take the same fields")
    named = {name: p for name, p in model.items() if p.kind is not p.VAR_KEYWORD}
    required = [name for name, p in named.items() if p.default is p.empty]
    return FieldNames(required, [name for name in named if name not in required], every=not named)


_kept_fields = lru_cache(maxsize=128)(_fields)
"""Kept for functions, because every step asks several times."""


def _parameters(function: Callable[..., Any], bound: int) -> dict[str, inspect.Parameter]:
    """The parameters of a program by name, without those that are bound already, and without *args.

    `**kwargs` counts where nothing else is named. Beside *args it does not: there a decorator hid the names.
    """
    parameters = list(inspect.signature(function).parameters.items())[bound:]
    named = {name: p for name, p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    hidden = any(p.kind is p.VAR_POSITIONAL for _, p in parameters)
    return named if named or hidden else dict(parameters)


def layers(program: Callable[..., Any]) -> Iterator[Program]:
    """A program and what it wraps: methods, decorators, modules, Pyro's handlers, and at last the function."""
    bound = 0
    while True:
        yield program, bound
        if inspect.ismethod(program):
            program, bound = program.__func__, bound + 1
        elif isinstance(program, nn.Module):
            program = program.forward
        elif hasattr(program, "__wrapped__") and not hasattr(program, "__signature__"):
            program = program.__wrapped__
        elif isinstance(program, _bound_partial):
            program = program.func
        elif isinstance(program, partial) and program.func is _context_wrap:
            _, program, *given = program.args
            bound += len(given)
        else:
            return


def undecorated(program: Callable[..., Any]) -> Program:
    """The function at the bottom of a program's layers."""
    *_, last = layers(program)
    return last


def first_rows(batch: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """So many data of a batch, from the first on; the first again where it has fewer."""
    rows = [row % batch_size(batch) for row in range(count)]
    return {name: value[rows] for name, value in batch.items()}


def batch_size(batch: Mapping[str, Tensor]) -> int:
    """The number of data in a batch of fields [batch, ...]."""
    return len(next(iter(batch.values())))


def select_fields(pair: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The fields of `batch` that the pair's signature names; all of them where it takes `**batch` alone.

    Raises:
        DataError: a field that the pair requires is not there; lists those that are.
    """
    fields = field_names(pair)
    if fields.every:
        return dict(batch)
    batch = {**_masks(pair, [*fields.required, *fields.optional], batch), **batch}
    missing = [name for name in fields.required if name not in batch]
    if missing:
        raise DataError(
            f"{type(pair).__name__} needs the field {missing[0]!r}; "
            f"the data have {', '.join(sorted(batch)) or 'no fields'}"
        )
    return {name: batch[name] for name in [*fields.required, *fields.optional] if name in batch}


def missing_fields(pair: nn.Module) -> tuple[str, ...]:
    """The fields in which the pair allows values to be missing; raises `ContractError` where they are no list."""
    declared = getattr(pair, "missing", ())
    if isinstance(declared, str):
        raise ContractError(f"missing = {declared!r} must be a tuple of the names of fields: missing = ({declared!r},)")
    return tuple(declared) if isinstance(declared, list | tuple) else ()


def _masks(pair: nn.Module, asked: Sequence[str], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Where the fields that may have gaps are observed, as far as the pair asks for it."""
    known = [name for name in missing_fields(pair) if name in batch and name + OBSERVED in asked]
    return {name + OBSERVED: ~batch[name].isnan() for name in known}
