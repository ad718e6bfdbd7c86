"""A pair in a file: what is taken from it, what it may import, and what is said of a file that cannot be used."""

import re
import sys
from pathlib import Path

import pytest
import torch

from pyro_vae import plugins, runs, scripts
from pyro_vae.errors import ContractError, DataError, PluginError, UnknownName
from pyro_vae.runs.options import model_options, options_of

HEAD = """import pyro
import pyro.distributions as dist
import torch
from torch import nn

"""

PAIRS = (
    HEAD
    + '''
class MyPair(nn.Module):
    """Factor analysis.

    Args:
        data_shape: of one datum.
        latent_dim: size of z.
    """

    def __init__(self, data_shape, latent_dim=2, spread: float = 1.0, widths=(4, 3), net: nn.Module | None = None):
        """Make one.

        Args:
            spread: of the likelihood.
        """
        super().__init__()
        self.latent_dim, self.spread, self.widths = latent_dim, spread, widths
        self.decoder = nn.Linear(latent_dim, data_shape[0])
        self.encoder = nn.Linear(data_shape[0], latent_dim)

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.latent_dim), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), self.spread).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.encoder(x), 0.5).to_event(1))


def make(data_shape, latent_dim: int = 3) -> nn.Module:
    """Makes one."""
    return MyPair(data_shape, latent_dim)


ready = MyPair((3,), 1)


class Bare(nn.Module):
    def forward(self, x):
        return x


class Nothing(MyPair):
    def __init__(self):
        raise KeyError("the sun")


def no_pair():
    return 7


number = 7
'''
)

FACTS = {"data_shape": (3,)}


@pytest.fixture
def folder(tmp_path):
    """The folder of a file with pairs; afterwards what may be imported, and from where, is checked to be as before."""
    (tmp_path / "my_model.py").write_text(PAIRS)
    path, modules, state = list(sys.path), dict(sys.modules), torch.get_rng_state()
    yield tmp_path
    new = [name for name in sys.modules.keys() - modules.keys() if _from(sys.modules[name], tmp_path)]
    assert sys.path == path and all(re.fullmatch(r"\w+_[0-9a-f]{12}", name) for name in new)
    assert all(sys.modules[name] is module for name, module in modules.items())
    assert torch.equal(torch.get_rng_state(), state)


def _from(module, folder: Path) -> bool:
    return str(getattr(module, "__file__", None) or "").startswith(str(folder))


def test_a_name_in_a_file_is_told_from_that_of_a_plugin():
    assert all(map(scripts.in_file, ["my_model.py:MyPair", "a/my_model.py:x", "my_model.py", "my_model:MyPair"]))
    assert not any(map(scripts.in_file, ["vae", "digits", None, 3, "scipy"]))


def test_a_class_a_function_and_an_object_are_built_as_a_model_is(folder):
    file = folder / "my_model.py"
    pair = runs.build_model(f"{file}:MyPair", FACTS, {"latent_dim": 4, "spread": 0.5}, seed=3)
    assert pair.latent_dim == 4 and pair.spread == 0.5 and pair.decoder.weight.shape == (3, 4)
    again = runs.build_model(f"{file}:MyPair", FACTS, {"latent_dim": 4}, seed=3)
    assert torch.equal(pair.decoder.weight, again.decoder.weight), "the seed fixes the weights"
    assert runs.build_model(f"{file}:make", FACTS, {}).latent_dim == 3
    assert runs.build_model(f"{file}:ready", FACTS, {}).latent_dim == 1


def test_an_object_is_copied_and_has_the_weights_that_the_file_gave_it(folder):
    name = f"{folder / 'my_model.py'}:ready"
    one, two = (runs.build_model(name, FACTS, {}, seed) for seed in (0, 1))
    assert one is not two and torch.equal(one.decoder.weight, two.decoder.weight)
    with torch.no_grad():
        one.decoder.weight.add_(1.0)
    (folder / "my_model.py").write_text(PAIRS + "\n# read anew\n")
    assert torch.equal(runs.build_model(name, FACTS, {}).decoder.weight, two.decoder.weight)


def test_the_options_of_a_class_are_typed_by_hint_or_default_and_helped_by_both_docstrings(folder):
    options = {o.name: o for o in model_options(plugins.load("model", f"{folder / 'my_model.py'}:MyPair"), {})}
    assert list(options) == ["latent_dim", "spread", "widths"]
    assert [options[name].type for name in options] == [int, float, list[int]]
    assert options["latent_dim"].help == "size of z." and options["spread"].help == "of the likelihood."
    assert options_of(plugins.load("model", f"{folder / 'my_model.py'}:ready")) == []


def test_a_file_is_run_once_and_again_when_it_changes(folder):
    file = folder / "counted.py"
    file.write_text("import builtins\nbuiltins.runs_of_a_file = getattr(builtins, 'runs_of_a_file', 0) + 1\n" + PAIRS)
    import builtins

    try:
        first = plugins.load("model", f"{file}:MyPair")
        assert plugins.load("model", f"{file}:MyPair") is first and builtins.runs_of_a_file == 1
        file.write_text(file.read_text() + "\n")
        assert plugins.load("model", f"{file}:MyPair") is not first and builtins.runs_of_a_file == 2
    finally:
        del builtins.runs_of_a_file


def test_what_lies_beside_a_file_is_imported_first_and_shadows_nothing(folder):
    """Two files of one name, each with a helper of one name, a package, and a helper that others know as well."""
    for name, width in (("one", 5), ("two", 6)):
        (folder / name / "nets").mkdir(parents=True)
        (folder / name / "helper.py").write_text(f"WIDTH = {width}\n")
        (folder / name / "nets" / "__init__.py").write_text("from helper import WIDTH\n")
        text = "from helper import WIDTH\nfrom nets import WIDTH as SAME\n" + PAIRS
        (folder / name / "my_model.py").write_text(text.replace("latent_dim=2", "latent_dim=WIDTH"))
    known = type(sys)("helper")
    sys.modules["helper"] = known
    try:
        made = [runs.build_model(f"{folder / name / 'my_model.py'}:MyPair", FACTS, {}) for name in ("one", "two")]
        assert sys.modules["helper"] is known and "nets" not in sys.modules
    finally:
        del sys.modules["helper"]
    assert [pair.latent_dim for pair in made] == [5, 6] and type(made[0]) is not type(made[1])


def test_a_file_in_the_working_folder_is_named_alone(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert runs.build_model("my_model.py:make", FACTS, {"latent_dim": 2}).latent_dim == 2
    assert scripts.source_of("my_model.py:make")["file"] == "my_model.py"
    assert len(scripts.source_of("./my_model.py:make")["sha256"]) == 64


MISTAKES = {
    "no file": ("nowhere.py:MyPair", None, PluginError, "cannot read nowhere.py: No such file or directory"),
    "no Python file": (
        "my_model:MyPair",
        None,
        PluginError,
        "'my_model' is no Python file; .* said as my_model",
    ),
    "no name": (
        "my_model.py",
        None,
        PluginError,
        "what in it is the pair: my_model.py:MyPair or my_model.py:make or",
    ),
    "empty name": ("my_model.py:", None, PluginError, "say what in it is the pair: my_model.py:MyPair or"),
    "name alone": ("empty.py", "", PluginError, "say what in it is the pair: empty.py:NAME"),
    "another name": (
        "my_model.py:MyPiar",
        None,
        UnknownName,
        "unknown name in my_model.py 'MyPiar'; known: MyPair, ",
    ),
    "class": (
        "my_model.py:Bare",
        None,
        PluginError,
        "Bare is a class without model and guide; a pair in",
    ),
    "number": ("my_model.py:number", None, PluginError, "my_model.py:number is of type int; a pair in a file is"),
    "module": ("my_model.py:torch", None, PluginError, "is of type module"),
    "returns a number": (
        "my_model.py:no_pair",
        None,
        ContractError,
        "'my_model.py:no_pair' is no pair: int has no",
    ),
    "raises when built": ("my_model.py:Nothing", None, PluginError, "raised KeyError as it was built: 'the sun'"),
    "needs more": (
        "needy.py:make",
        "def make(data_shape, wavelength): pass\n",
        DataError,
        "model 'needy.py:make' needs wavelength; these data offer data_shape",
    ),
    "raises": (
        "bad.py:MyPair",
        "import torch\n\nx = torch.ones(3) @ torch.ones(4)\n",
        PluginError,
        "^bad.py raised RuntimeError in line 3: [^\\n]*$",
    ),
    "raises in a helper": (
        "bad.py:MyPair",
        "from broken_helper import y\n",
        PluginError,
        "^bad.py raised ZeroDivisionError in line 1: division by zero$",
    ),
    "syntax": ("bad.py:MyPair", "\n\ndef model(:\n", PluginError, "^bad.py raised SyntaxError in line 3: "),
    "bytes": ("bad.py:MyPair", "x = '\0'\n", PluginError, "^bad.py raised (SyntaxError|ValueError)"),
    "stops": ("bad.py:MyPair", "raise SystemExit(3)\n", PluginError, "^bad.py raised SystemExit in line 1: 3$"),
    "annotation": (
        "bad.py:make",
        "def make(x: 'Unheard'): pass\n",
        PluginError,
        "an annotation of make cannot be read: name 'Unheard' is not defined",
    ),
}


@pytest.mark.parametrize("name, text, error, words", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line(name, text, error, words, folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "broken_helper.py").write_text("y = 1 / 0\n")
    if text is not None:
        (folder / name.partition(":")[0]).write_text(text)
    with pytest.raises(error, match=words) as caught:
        runs.build_model(name, FACTS, {})
    assert "\n" not in str(caught.value)
    assert "broken_helper" not in sys.modules
    assert ("raised" in words and "built" not in words) <= ("bad_" not in " ".join(sys.modules))
