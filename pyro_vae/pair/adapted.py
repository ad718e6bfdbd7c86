"""A pair made of programs that were not written as one: functions, bound methods, modules, AutoGuides."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cached_property, partial
from operator import attrgetter
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import transform_to

from pyro_vae.errors import ContractError, ProgramError
from pyro_vae.pair.arguments import Arguments, Inputs, arguments, of_inputs, parameters_of
from pyro_vae.pair.autoguides import INDEX, IndexedGuide, indexed
from pyro_vae.pair.pair import Pair, Programs, batch_size, evaluating, layers, validation_off
from pyro_vae.pair.parameters import (
    OF_A_NET,
    LocalParameters,
    Stored,
    announce,
    answer,
    asker,
    initial,
    stored,
    under_plain_pyro,
)
from pyro_vae.pair.sites import said
from pyro_vae.pair.trace import At, Trace


def as_pair(
    model: Any, guide: Any = None, inputs: Inputs | None = None, data_plate: str | None = None
) -> "AdaptedPair":
    """A pair of any Pyro model and guide, so that a script's programs are trained and evaluated as they are.

    The programs may be functions, bound methods, modules that are called, AutoGuides, or any of these under Pyro's
    handlers (`pyro.condition`, `config_enumerate`, `poutine.scale`). When the pair is first given data they run once,
    and everything that they name with `pyro.param`, `pyro.module`, `PyroModule` and `PyroParam` becomes a parameter of
    the pair, under its constraint. A value that Pyro's store holds already is where it starts; the store is not
    written.

    Args:
        model, guide: the programs; or one object that has both as methods.
        inputs: makes of a batch, a dict of fields [batch, ...], the arguments `(args, kwargs)` of both programs;
            without it, each gets the fields that its signature names, and a single argument of another name gets `x`.
        data_plate: the name of the data's plate, where two plates are as long as the batch.

    Raises:
        ContractError: something that cannot be called. Once there are data: a parameter with two shapes, or one that
            appears in some runs only; `inputs` that makes no arguments.

    Example:

        pair = pv.as_pair(model, guide)
        run = pv.train(pair, {"x": x}, epochs=100)
        pv.evaluate(pair, {"x": x}, "importance", particles=1000)
    """
    if guide is None and callable(getattr(model, "model", None)) and callable(getattr(model, "guide", None)):
        model, guide = model.model, model.guide
    for name, program in (("model", model), ("guide", guide)):
        if not callable(program) or inspect.isclass(program):
            what = f"the class {program.__name__}; make an object of it" if inspect.isclass(program) else repr(program)
            raise ContractError(f"the {name} must be a program that can be called, not {what}")
    return AdaptedPair({"model": model, "guide": guide}, inputs, data_plate)


class AdaptedPair(Pair):
    """See `as_pair`.

    A copy has parameters of its own. It runs the same programs, with these in place of the first pair's: a function
    knows its nets by name, and no copy could know others.
    """

    def __init__(self, programs: dict[str, Callable[..., Any]], inputs: Inputs | None, data_plate: str | None):
        super().__init__()
        self.programs, self.inputs, self.data_plate = programs, inputs, data_plate
        self.owners, self.nets, self.values = nn.ModuleList(), nn.Module(), nn.Module()
        self.kinds: dict[str, Any] = {}  # the constraint of each plain parameter
        self.first: list[AdaptedPair] = []  # of a copy
        self.local: IndexedGuide | None = None
        self.collected = False
        for program in programs.values():
            for owner in owners_of(program):
                self.own(owner)

    def __deepcopy__(self, memo: dict) -> "AdaptedPair":
        copied = AdaptedPair({}, self.inputs, self.data_plate)
        copied.owners, copied.nets, copied.values = (shell(m, memo) for m in (self.owners, self.nets, self.values))
        copied.kinds, copied.collected, copied.training = self.kinds, self.collected, self.training
        for name, buffer in self._buffers.items():
            copied.register_buffer(name, buffer.clone(), persistent=False)
        copied.first = self.first or [self]
        memo[id(self)] = copied
        return copied

    def model(self, *arguments: Any, **batch: Any) -> Any:
        """The user's model. Plain Pyro may give it the arguments that the model takes itself."""
        return self._run("model", arguments, batch)

    def guide(self, *arguments: Any, **batch: Any) -> Any:
        """The user's guide; as for `model`."""
        return self._run("guide", arguments, batch)

    _fields = inspect.Signature(
        [
            inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY),
            inspect.Parameter("batch", inspect.Parameter.VAR_KEYWORD),
        ]
    )
    model.__signature__ = guide.__signature__ = _fields

    def prepare(self, batch: Mapping[str, Tensor]) -> None:
        """Run both programs once, as `model` and `guide` do at their first call, and keep the parameters they name."""
        if not self.collected:
            self._collect(lambda program: self._arguments(program, batch), batch)

    @property
    def remembers(self) -> bool:  # of an AutoGuide, only its first run tells
        return isinstance(self.programs.get("guide"), AutoGuide)

    @property
    def indexed(self) -> bool:
        return self.local is not None

    def own(self, module: nn.Module) -> bool:
        """Train a module's parameters, and let it follow the pair's mode and device; whether it was new."""
        new = all(module is not part for part in self.modules())
        if new:
            self.owners.append(module)
        return new

    def _arguments(self, name: str, batch: Mapping[str, Tensor]) -> Arguments:
        """The arguments of one program."""
        return arguments(name, self.taken, batch) if self.inputs is None else of_inputs(self.inputs, batch)

    @cached_property
    def taken(self) -> dict[str, list[inspect.Parameter]]:
        """What each program takes."""
        return {name: parameters_of(name, program) for name, program in self.programs.items()}

    def _run(self, name: str, arguments: tuple, batch: Mapping[str, Any]) -> Any:
        if self.first:
            return self._run_first(name, arguments, batch)
        args, kwargs = (arguments, batch) if arguments else self._arguments(name, batch)
        if not self.collected:
            self._collect(lambda program: (arguments, batch) if arguments else self._arguments(program, batch))
        plain = under_plain_pyro()
        store = pyro.get_param_store().scope() if plain else nullcontext()
        cut = self.local.at(batch) if self.local and name == "guide" and batch else nullcontext()
        with store, Named(self), cut:
            returned = self.programs[name](*args, **kwargs)
        if plain:
            announce(self)
        return returned

    def _run_first(self, name: str, arguments: tuple, batch: Mapping[str, Any]) -> Any:
        """The first pair's program with the tensors of this copy."""
        programs = Programs(self.first[0])
        tensors = {f"pair.{n}": tensor for n, tensor in (*self.named_parameters(), *self.named_buffers())}
        if under_plain_pyro():
            announce(self)
        with in_the_modes_of(self, programs.pair), LocalParameters(stand_ins=True):
            return torch.func.functional_call(programs, tensors, (name, *arguments), dict(batch))

    def _collect(self, given: Callable[[str], Arguments], batch: Mapping[str, Tensor] | None = None) -> None:
        before = stored()
        with ExitStack() as stack:
            for context in (poutine.block(), torch.no_grad(), validation_off(), evaluating(self)):
                stack.enter_context(context)
            stack.enter_context(pyro.get_param_store().scope())
            collecting = stack.enter_context(Collecting(self, before))
            if batch is not None and self.remembers:
                with said("guide"):
                    self.local = indexed(self.programs["guide"], batch, partial(self._arguments, "guide"))
                here = {INDEX: torch.arange(batch_size(batch)), **batch}
                stack.enter_context(self.local.at(here) if self.local else nullcontext())
            drawn: dict[str, Tensor] = {}
            for name in ("guide", "model"):
                args, kwargs = given(name)
                seen = Trace()
                with said(name, lambda: seen.last), seen, At(drawn):  # noqa: B023
                    self.programs[name](*args, **kwargs)
                drawn = seen.values
        collecting.leave_the_rest()
        self.collected = True


class Named(Messenger):
    """Gives each `pyro.param` of a pair's programs the pair's parameter of this name."""

    def __init__(self, pair: AdaptedPair):
        super().__init__()
        self.pair = pair

    def _pyro_param(self, msg: dict) -> None:
        name, start = msg["name"], initial(msg)
        if name in self.pair.kinds:
            answer(msg, self.constrained(name, start))
        elif OF_A_NET in name:
            answer(msg, self._of_net(name, start))
        elif start is None and name in pyro.get_param_store():
            return  # a PyroModule's own
        elif isinstance(start, nn.Parameter):
            answer(msg, start)
        else:
            raise ContractError(
                f"pyro.param {name!r} did not appear when the programs first ran; name every parameter in every run"
            )

    def constrained(self, name: str, start: Any = None) -> Tensor:
        """The value of a plain parameter; raises `ContractError` where it starts elsewhere from another shape."""
        value = transform_to(self.pair.kinds[name])(getattr(self.pair.values, key_of(name)))
        if isinstance(start, Tensor) and start.shape != value.shape:
            raise ProgramError(
                f"pyro.param {name!r} starts with shape {list(start.shape)} here and has {list(value.shape)} elsewhere;"
                " give the two different names, or a shape that does not depend on the batch"
            )
        return value

    def _of_net(self, name: str, start: Any) -> Any:
        net, _, part = name.partition(OF_A_NET)
        known = getattr(self.pair.nets, key_of(net), None)
        ours = start if known is None else attrgetter(part)(known)
        if ours is not start and isinstance(start, nn.Parameter) and not asker().updates:
            raise ContractError(
                f"pyro.module {net!r} gets another net in each run, whose weights no training could keep; make the net "
                "once, outside the program"
            )
        return ours


class Collecting(Named):
    """Makes a parameter of a pair of each that its programs name, and takes the nets and modules that have others.

    Args:
        before: the values in Pyro's store, from which these parameters start.
    """

    def __init__(self, pair: AdaptedPair, before: Mapping[str, Stored]):
        super().__init__(pair)
        self.before = before
        self.told: set[int] = set()  # parameters that Pyro was told of
        self.modes: dict[nn.Module, bool] = {}

    def _pyro_param(self, msg: dict) -> None:
        name, start, by = msg["name"], initial(msg), asker()
        if OF_A_NET in name:
            self._take_net(name, start, by.net, by.updates)
            answer(msg, start)
        elif by.net is not None:
            self._take_module(by.net)
        else:
            if name not in self.pair.kinds:
                self._make(name, start, msg["kwargs"].get("constraint"))
            answer(msg, self.constrained(name, start))

    def _pyro_post_param(self, msg: dict) -> None:
        store, name = pyro.get_param_store(), msg["name"]
        if name in store:
            self._start(name, dict(store.named_parameters())[name])

    def _make(self, name: str, start: Any, constraint: Any) -> None:
        if name not in self.before and start is None:
            raise ContractError(f"pyro.param {name!r} is read before it has a value; give it one where it first stands")
        start = start() if callable(start) else start
        value = self.before[name].value if name in self.before else start
        if isinstance(start, Tensor) and value.shape != start.shape:
            raise ContractError(
                f"Pyro's store holds {name!r} with shape {list(value.shape)}, but the program starts it with "
                f"{list(start.shape)}; call pyro.clear_param_store() first, or rename it"
            )
        if not value.is_floating_point():
            raise ContractError(f"pyro.param {name!r} holds whole numbers, which cannot be trained; use a constant")
        free = self.before[name].free if name in self.before else transform_to(constraint).inv(value)
        free = free.detach().clone().contiguous()
        self.pair.values.register_parameter(key_of(name), nn.Parameter(free))
        self.pair.kinds[name] = constraint

    def _take_net(self, name: str, start: Any, net: nn.Module, updates: bool) -> None:
        self.told.add(id(start))
        if updates:
            self._start(name, start)
        called, known = name.partition(OF_A_NET)[0], list(self.pair.modules())
        if all(net is not part for part in known):
            if hasattr(self.pair.nets, key_of(called)):
                raise ContractError(f"pyro.module {called!r} names two nets; give each a name of its own")
            self.pair.nets.add_module(key_of(called), net)
            self._resting(net)

    def _take_module(self, module: nn.Module) -> None:
        self.told |= set(map(id, module.parameters()))
        if self.pair.own(module):
            self._resting(module)

    def _start(self, name: str, parameter: Tensor) -> None:
        """Give a module's parameter the value that the store has for it."""
        known = self.before.get(name)
        if known is not None and known.free is not parameter and known.free.shape == parameter.shape:
            parameter.data.copy_(known.free)

    def __exit__(self, *reason: Any) -> None:
        for module, mode in self.modes.items():
            module.training = mode
        super().__exit__(*reason)

    def leave_the_rest(self) -> None:
        """Leave alone, as Pyro's SVI does, what a module has beside the nets that its programs name."""
        for owner in self.pair.owners:
            parameters = list(owner.parameters())
            if any(id(parameter) in self.told for parameter in parameters):
                for parameter in parameters:
                    parameter.requires_grad_(parameter.requires_grad and id(parameter) in self.told)

    def _resting(self, module: nn.Module) -> None:
        """Run a module that was found just now under `eval()`."""
        self.modes |= {part: part.training for part in module.modules()}
        module.eval()


def owners_of(program: Callable[..., Any]) -> Iterator[nn.Module]:
    """The modules that a program is, or is a method of, under decorators and Pyro's handlers."""
    for layer, _ in layers(program):
        owner = layer if isinstance(layer, nn.Module) else getattr(layer, "__self__", None)
        if isinstance(owner, nn.Module):
            yield owner


def key_of(name: str) -> str:
    """The name of a parameter or net as an attribute of a module."""
    key = name.replace(".", "_")
    return f"{key}_" if hasattr(nn.Module, key) else key


def shell(module: nn.Module, memo: dict) -> nn.Module:
    """A module that computes nothing, with copies of another's parameters and buffers under their names."""
    made = memo[id(module)] = memo.get(id(module)) or nn.Module()
    for name, parameter in module._parameters.items():
        if parameter is not None and id(parameter) not in memo:
            memo[id(parameter)] = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
        made.register_parameter(name, None if parameter is None else memo[id(parameter)])
    for name, buffer in module._buffers.items():
        kept = name not in module._non_persistent_buffers_set
        made.register_buffer(name, None if buffer is None else buffer.clone(), persistent=kept)
    for name, part in module._modules.items():
        made.add_module(name, None if part is None else memo.get(id(part)) or shell(part, memo))
    made.training = module.training
    return made


@contextmanager
def in_the_modes_of(copied: nn.Module, first: nn.Module) -> Iterator[None]:
    """Put the modules of a pair into the modes that those of its copy are in, and back."""
    modes = {module: module.training for module in first.modules()}
    for module, other in zip(first.modules(), copied.modules(), strict=True):
        module.training = other.training
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
