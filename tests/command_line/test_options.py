"""Options read from signatures: which there are, their types, and what is said of bad values."""

import argparse
from collections.abc import Sequence
from typing import TypedDict, Unpack

import pytest
from torch import Tensor, nn

from pyro_vae import VAE, Pair, plugins
from pyro_vae.command_line.options import (
    Option,
    add_options,
    add_shared_options,
    options_of,
    own_values,
    parse_value,
)
from pyro_vae.errors import UsageError


class Plugin:
    """A plugin with one option of each kind.

    Args:
        count: how many,
            in words over two lines.
        rate: how fast, in %.
        name: what it is called.
        flag: whether.
        widths: sizes.
        limit: at most; none is no limit.
        part: a name or an object.
        tensor: no option.
        module: no option.
        other: another pair.
        needed: has no default.
    """

    def __init__(
        self,
        needed: int,
        count: int = 3,
        rate: float = 0.5,
        name: str = "it",
        flag: bool = False,
        widths: Sequence[int] = (4, 2),
        limit: int | None = None,
        part: str | nn.Module = "mlp",
        tensor: Tensor | None = None,
        module: nn.Module | None = None,
        other: Pair | None = None,
        **rest: int,
    ):
        pass


def by_name(plugin=Plugin, skip=()):
    return {option.name: option for option in options_of(plugin, skip)}


def parser_of(plugin=Plugin):
    parser = argparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    add_options(parser, options_of(plugin), "options")
    return parser


def test_options_are_what_a_command_line_can_give():
    options = by_name(skip=["name"])
    assert list(options) == ["needed", "count", "rate", "flag", "widths", "limit", "part", "other"]
    assert options["count"] == Option("count", int, 3, "how many, in words over two lines.")
    assert options["needed"].required and not options["count"].required
    assert options["widths"].type == list[int] and options["limit"].type == int | None
    assert options["part"].type is str
    assert options["other"].type == str | None, "the folder of its run"


class Passed(TypedDict, total=False):
    """What is passed on.

    Args:
        width: how wide,
            in words over two lines.
    """

    width: int | None


def test_options_that_a_plugin_passes_on_are_its_own():
    def plugin(count: int = 3, **options: Unpack[Passed]):
        """Passes on."""

    width = Option("width", int | None, None, "how wide, in words over two lines.")
    assert options_of(plugin) == [Option("count", int, 3, ""), width]


def test_every_registered_plugin_documents_its_options():
    for kind in plugins.GROUPS:
        for name in plugins.names(kind):
            plugin = plugins.load(kind, name)
            assert (plugin.__doc__ or "").strip(), f"{kind} {name} says nothing of itself"
            options_of(plugin)
    assert all(option.help for option in options_of(VAE, ["data_shape"]))


VALUES = [
    ("count", "7", 7),
    ("count", "1e3", 1000),
    ("count", 7, 7),
    ("rate", "1e-3", 1e-3),
    ("rate", 2, 2.0),
    ("name", "none", "none"),
    ("flag", "true", True),
    ("flag", "No", False),
    ("flag", True, True),
    ("widths", "256,64,32", [256, 64, 32]),
    ("widths", "[256, 64]", [256, 64]),
    ("widths", "()", []),
    ("widths", "", []),
    ("widths", [8, 4], [8, 4]),
    ("widths", 64, [64]),
    ("limit", "none", None),
    ("limit", "null", None),
    ("limit", None, None),
    ("limit", "5", 5),
]


@pytest.mark.parametrize("name, given, value", VALUES)
def test_a_value_becomes_the_type_of_its_option(name, given, value):
    parsed = parse_value(by_name()[name], given)
    assert parsed == value and type(parsed) is type(value)


def test_large_whole_numbers_are_kept_exactly():
    seed = 2**62 + 1
    assert parse_value(by_name()["count"], str(seed)) == seed == parse_value(by_name()["count"], seed)


MISTAKES = [
    ("count", "2.5", "a whole number, not '2.5'"),
    ("count", "many", "a whole number, not 'many'"),
    ("count", "inf", "a whole number of at most 63 bits, not 'inf'"),
    ("count", "nan", "a whole number, not 'nan'"),
    ("count", None, "a whole number, not None"),
    ("count", [1], r"a whole number, not \[1\]"),
    ("rate", "fast", "a finite number, not 'fast'"),
    ("flag", "perhaps", "true or false, not 'perhaps'"),
    ("widths", "4,wide", "comma-separated values, each a whole number, not '4,wide'"),
    ("limit", "x", "a whole number or none, not 'x'"),
]


@pytest.mark.parametrize("name, given, words", MISTAKES)
def test_a_bad_value_names_its_option_and_what_it_needs(name, given, words):
    with pytest.raises(UsageError, match=f"^--{name} needs {words}$"):
        parse_value(by_name()[name], given)


def test_the_command_line_gives_typed_values_and_defaults():
    given = parser_of().parse_args("--needed 1 --widths 8,8 --flag --limit none --rate 2".split())
    assert vars(given) == {
        "needed": 1,
        "count": 3,
        "rate": 2.0,
        "name": "it",
        "flag": True,
        "widths": [8, 8],
        "limit": None,
        "part": "mlp",
        "other": None,
    }
    assert parser_of().parse_args("--needed 1 --flag false".split()).flag is False


def test_help_shows_defaults_and_survives_percent_signs():
    text = parser_of().format_help()
    assert "how fast, in %. (default: 0.5)" in " ".join(text.split())
    assert "--needed NEEDED" in text


def few(steps: int, lr: float = 0.1, rate: float = 0.5, limit: int | None = None):
    """Few.

    Args:
        steps: how many.
        lr: step size.
        rate: how fast, in %.
    """
    return steps, lr, rate, limit


def many(steps: float = 300.0, lr: float = 0.1, rate: float = 2.5):
    """Many.

    Args:
        steps: how often.
        lr: step size.
        rate: how fast, in %.
    """
    return steps, lr, rate


def shared_parser():
    parser = argparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    owners = {"few": options_of(few), "many": options_of(many)}
    add_shared_options(parser, owners)
    return parser, owners


def test_defaults_are_each_plugins_own_and_a_given_value_is_everyones():
    parser, owners = shared_parser()
    given = parser.parse_args("--steps 7".split())
    few_values, many_values = (own_values(given, options) for options in owners.values())
    assert few_values == {"steps": 7, "lr": 0.1, "rate": 0.5, "limit": None}
    assert many_values == {"steps": 7.0, "lr": 0.1, "rate": 2.5} and type(many_values["steps"]) is float
    given = parser.parse_args("--steps 7 --rate 4 --limit 2".split())
    assert [own_values(given, options)["rate"] for options in owners.values()] == [4.0, 4.0]
    assert own_values(given, owners["few"])["limit"] == 2
    with pytest.raises((SystemExit, argparse.ArgumentError)):  # the latter from Python 3.13 on
        parser.parse_args("--rate 4".split())


def test_the_help_of_a_shared_option_tells_the_defaults_of_each():
    text = " ".join(shared_parser()[0].format_help().split())
    assert "options of few and many: --steps STEPS few: how many.; many: how often. (default: 300.0)" in text
    assert "--lr LR step size. (default: 0.1) --rate" in text
    assert "--rate RATE few: how fast, in %. (default: 0.5); many: how fast, in %. (default: 2.5)" in text
    assert text.endswith("options of few: --limit LIMIT")
