"""Options read from signatures: which there are, their types, and what is said of bad values."""

import argparse
from collections.abc import Sequence

import pytest
from torch import Tensor, nn

from pyro_vae import VAE, plugins
from pyro_vae.errors import UsageError
from pyro_vae.options import Option, add_options, options_of, parse_value


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
    assert list(options) == ["needed", "count", "rate", "flag", "widths", "limit", "part"]
    assert options["count"] == Option("count", int, 3, "how many, in words over two lines.")
    assert options["needed"].required and not options["count"].required
    assert options["widths"].type == list[int] and options["limit"].type == int | None
    assert options["part"].type is str


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
    ("count", "inf", "a whole number, not 'inf'"),
    ("count", "nan", "a whole number, not 'nan'"),
    ("count", None, "a whole number, not None"),
    ("count", [1], r"a whole number, not \[1\]"),
    ("rate", "fast", "a number, not 'fast'"),
    ("flag", "perhaps", "true or false, not 'perhaps'"),
    ("widths", "4,wide", "comma-separated values, each a whole number, not 'wide'"),
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
    }
    assert parser_of().parse_args("--needed 1 --flag false".split()).flag is False


def test_help_shows_defaults_and_survives_percent_signs():
    text = parser_of().format_help()
    assert "how fast, in %. (default: 0.5)" in " ".join(text.split())
    assert "--needed NEEDED" in text
