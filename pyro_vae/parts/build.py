"""A part of a model is the name of a plugin, or an object of the user's own."""

import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from torch import Tensor, nn

from pyro_vae import plugins
from pyro_vae.errors import ContractError, DataError, PluginError, UnknownName
from pyro_vae.parts.nets import Net


@dataclass(frozen=True)
class Kind:
    """A kind of part: that of its plugins, and what a model hands to such a part where its constructor asks for it.

    All other parameters of a part's constructor are options of its own.
    """

    plugin: str
    handed: tuple[str, ...]


LIKELIHOOD = Kind("likelihood", ("data_shape", "log_library"))
NET = Kind("net", ("hidden", "activation"))
POSTERIOR = Kind("posterior", ("in_features", "latent_dim"))
PRIOR = Kind("prior", ("latent_dim", "data_shape", "likelihood", "encoder", "posterior", "data_mean"))
CONTEXT_PRIOR = Kind("context_prior", ("in_features", "latent_dim"))

LikelihoodPart = Annotated[str | nn.Module, LIKELIHOOD]
NetPart = Annotated[str | Net, NET]
PosteriorPart = Annotated[str | nn.Module, POSTERIOR]
PriorPart = Annotated[str | nn.Module, PRIOR]
ContextPriorPart = Annotated[str | nn.Module, CONTEXT_PRIOR]
"""The annotations of a model's parameters that are parts. Their options carry the parameter's name."""


class Parts:
    """Builds the parts of a model, each with its own of the options that the model was given.

    Args:
        options: `PARAMETER_OPTION: value`, such as `prior_components: 20`.
    """

    def __init__(self, options: Mapping[str, Any]):
        self.left = {plugins.RENAMED_OPTIONS.get(name, name): value for name, value in options.items()}
        self.known: list[str] = []

    def build(self, parameter: str, kind: Kind, part: Any, **handed: Any) -> Any:
        """The part that `part` names, from what it asks for of `handed` and its own options; an object as it is.

        Raises:
            UnknownName: the name is not that of a plugin, or it has no such option.
            ContractError: an option of another part than the one that was chosen, or a part that needs more.
        """
        prefix = f"{parameter}_"
        own = {n.removeprefix(prefix): self.left.pop(n) for n in list(self.left) if n.startswith(prefix)}
        if not isinstance(part, str):
            if own:
                raise ContractError(f"{parameter} is an object; give it its {next(iter(own))} when you make it")
            return part
        constructor = plugins.load(kind.plugin, part)
        known = own_options(constructor, kind)
        self.known += [prefix + name for name in known]
        for name in own:
            if name not in known:
                line = needs(parameter, kind, name)
                raise ContractError(line) if line else UnknownName("option", prefix + name, self.known)
        parameters = named_parameters(constructor)
        given = {name: value for name, value in handed.items() if name in parameters} | own
        for name, asked in parameters.items():
            if asked.default is asked.empty and name not in given:
                how = f"give {prefix}{name}" if name in known else "this model has none for it; choose another"
                raise ContractError(f"the {parameter} {part!r} needs {name}: {how}")
        return constructor(**given)

    def check_all_taken(self) -> None:
        """Raise `UnknownName` where an option is left that no part took."""
        for name in self.left:
            raise UnknownName("option", name, self.known)


def part_kinds(constructor: Callable[..., Any]) -> dict[str, Kind]:
    """The parameters of a model's constructor that are parts, and their kinds."""
    marks = {name: getattr(hint, "__metadata__", ()) for name, hint in hints_of(constructor).items()}
    return {name: mark for name, found in marks.items() for mark in found if isinstance(mark, Kind)}


def hints_of(constructor: Callable[..., Any]) -> dict[str, Any]:
    """The type hints of the parameters of a class or function; what it gives may be of a library that is imported only
    to make it.

    Raises:
        PluginError: one cannot be read.
    """
    function = inspect.unwrap(constructor.__init__ if inspect.isclass(constructor) else constructor)
    taken = {name: hint for name, hint in inspect.get_annotations(function).items() if name != "return"}
    names = getattr(function, "__globals__", {})
    try:
        return typing.get_type_hints(types.SimpleNamespace(__annotations__=taken), names, include_extras=True)
    except (NameError, TypeError, SyntaxError) as reason:
        raise PluginError(f"an annotation of {constructor.__qualname__} cannot be read: {reason}") from reason


def own_options(constructor: Callable[..., Any], kind: Kind) -> list[str]:
    """The parameters of a part's constructor that no model hands to it."""
    return [name for name in named_parameters(constructor) if name not in kind.handed]


def named_parameters(constructor: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters of a constructor that have a name of their own."""
    parameters = inspect.signature(constructor).parameters
    return {n: p for n, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}


def needed(model: Callable[..., Any], option: str, dashes: str = "") -> str | None:
    """The line of an option, present or renamed, of a part of the model that was not chosen; None where it is none."""
    option = plugins.RENAMED_OPTIONS.get(option, option)
    for parameter, kind in part_kinds(model).items():
        if option.startswith(f"{parameter}_"):
            return needs(parameter, kind, option.removeprefix(f"{parameter}_"), dashes)
    return None


def needs(parameter: str, kind: Kind, option: str, dashes: str = "") -> str | None:
    """The line of an option that the chosen part has not but others of its kind have; None where none has it."""
    having = []
    for name in plugins.names(kind.plugin):
        try:
            having += [name] if option in own_options(plugins.load(kind.plugin, name), kind) else []
        except PluginError:
            continue
    return f"{dashes}{parameter}_{option} needs {dashes}{parameter} {' or '.join(having)}" if having else None


def check_sizes(**sizes: Sequence[int]) -> None:
    """Raise `ContractError` where one of these sizes, by name, is not positive."""
    for name, values in sizes.items():
        for value in values:
            if value < 1:
                raise ContractError(f"{name} must be at least 1, not {value}")


def check_scales(**scales: float) -> None:
    """Raise `ContractError` where one of these numbers, by name, is not positive and finite."""
    for name, value in scales.items():
        if not 0 < value < math.inf:
            raise ContractError(f"{name} must be positive, not {value}")


def start_at(mean: Tensor | None, net: nn.Module, likelihood: nn.Module) -> None:
    """Let a net that gives the numbers of a likelihood start at the mean of the training data, where it is known."""
    if mean is not None:
        net.set_output(likelihood.start(mean))


def check_shapes(shapes: Mapping[str, Sequence[int]], fields: Mapping[str, Tensor | None]) -> None:
    """Raise `DataError` where the data of a field [batch, ...] are of another shape than the model was made for."""
    for name, field in fields.items():
        if field is not None and tuple(field.shape[1:]) != shapes[name]:
            raise DataError(
                f"{name} has shape {list(field.shape[1:])}, but the model was made for {list(shapes[name])}; "
                "give it data of the task that it was trained on"
            )
