"""Plugins: found by name through entry points, loaded late, and harmless where they are broken."""

import sys
from importlib.metadata import EntryPoint

import pytest
import yaml

import pyro_vae as pv
from pyro_vae import plugins
from pyro_vae.command_line import main as cli
from pyro_vae.errors import DataError, PluginError, UnknownName, nearest_first
from pyro_vae.runs import build_model
from pyro_vae.training.schedules import SCHEDULES

MODULE = '''
import pyro_vae as pv
from pyro_vae.parts.build import PriorPart

class Wide(pv.VAE):
    """A wide one."""
    def __init__(self, data_shape, width: int = 7):
        super().__init__(data_shape, hidden=(width,))

class Greedy(pv.VAE):
    """Its options have names that others have too."""
    def __init__(self, data_shape, lr: float = 7.0, out: int = 3, alpha: float = 0.25):
        super().__init__(data_shape, hidden=(out,))

class Closed(pv.VAE):
    """Lets its prior be chosen, but not that prior's options."""
    def __init__(self, data_shape, prior: PriorPart = "mixture"):
        super().__init__(data_shape, prior=prior)

class Needy(pv.VAE):
    """Asks for what digits do not offer."""
    def __init__(self, data_shape, wavelength):
        super().__init__(data_shape)
'''

ENTRIES = """[pyro_vae.models]
wide = third_party:Wide
needy = third_party:Needy
greedy = third_party:Greedy
closed = third_party:Closed
broken = third_party_broken:Nothing
absent = third_party:Absent
"""


@pytest.fixture
def third_party(tmp_path, monkeypatch):
    """An installed package that registers models of its own, two of them broken."""
    (tmp_path / "third_party.py").write_text(MODULE)
    (tmp_path / "third_party_broken.py").write_text("raise RuntimeError('first line\\nsecond line')")
    info = tmp_path / "third_party-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRIES)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("third_party", "third_party_broken"):
        sys.modules.pop(name, None)


def test_built_in_plugins_are_registered_like_any_other():
    assert {"vae", "blog", "burda", "kingma"} <= set(plugins.names("model"))
    assert {"digits", "mnist"} <= set(plugins.names("dataset"))
    assert {"trace_elbo", "trace_mean_field_elbo", "trace_graph_elbo"} <= set(plugins.names("objective"))
    assert {"elbo", "reconstruction"} <= set(plugins.names("evaluator"))
    assert plugins.load("model", "vae") is pv.VAE


@pytest.mark.parametrize("kind", plugins.GROUPS)
def test_every_registered_plugin_loads(kind):
    assert all(callable(plugins.load(kind, name)) for name in plugins.names(kind))
    assert plugins.names(kind) == sorted(set(plugins.names(kind)))


def test_a_third_party_model_is_one_of_ours(third_party):
    assert "wide" in plugins.names("model") and "third_party" not in sys.modules, "loaded when first used"
    pair = build_model("wide", {"data_shape": (1, 8, 8)}, {"width": 5})
    assert pair.encoder.out_features == 5


def test_a_model_is_told_only_what_it_asks_for_and_what_it_lacks_is_named(third_party):
    with pytest.raises(DataError, match="model 'needy' needs wavelength.*these data offer data_shape, data_mean"):
        build_model("needy", {"data_shape": (1, 8, 8), "data_mean": None}, {})


def test_a_third_party_model_is_trained_from_the_command_line(third_party, capsys, monkeypatch):
    monkeypatch.chdir(third_party)
    assert cli.main("train wide --width 6 --print_config".split()) == 0
    assert "model:\n  name: wide\n  width: 6\n" in capsys.readouterr().out


def test_options_of_one_name_are_told_apart_by_their_owners(third_party, capsys):
    line = "train greedy --model_lr 5 --lr 0.5 --model_out 4 --objective renyi --print_config"
    named = "--optimizer rmsprop --model_alpha 1 --objective_alpha 0.5 --optimizer_alpha 0.75"
    assert cli.main([*line.split(), *named.split()]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["model"] == {"name": "greedy", "lr": 5.0, "out": 4, "alpha": 1.0}
    assert config["training"]["lr"] == 0.5 and config["training"]["optimizer_options"]["alpha"] == 0.75
    assert config["objective"]["alpha"] == 0.5
    assert cli.main(f"{line} --optimizer rmsprop --alpha 0.5".split()) == 2
    said = "--alpha could be --model_alpha or --objective_alpha or --optimizer_alpha; say which\n"
    assert capsys.readouterr().err == f"pyro-vae: {said}"
    assert cli.main("train --schedule ReduceLROnPlateau --schedule_patience 3 --patience 9 --print_config".split()) == 0
    training = yaml.safe_load(capsys.readouterr().out)["training"]
    assert training["patience"] == 9 and training["schedule_options"]["patience"] == 3


def test_a_family_that_passes_no_options_on_has_none_of_its_parts(third_party, capsys):
    assert cli.main("train closed --prior vamp --print_config".split()) == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"] == {"name": "closed", "prior": "vamp"}


def test_any_option_may_be_named_after_its_owner(capsys):
    assert (
        cli.main("train --optimizer adamw --optimizer_weight_decay 0.5 --model_latent_dim 3 --print_config".split())
        == 0
    )
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["training"]["optimizer_options"]["weight_decay"] == 0.5 and config["model"]["latent_dim"] == 3


def test_a_broken_plugin_is_named_and_stops_no_other(third_party, capsys):
    with pytest.raises(
        PluginError, match="model 'broken' of package third-party is broken: RuntimeError: first line second"
    ):
        plugins.load("model", "broken")
    with pytest.raises(PluginError, match="model 'absent' of package third-party is broken: AttributeError"):
        plugins.load("model", "absent")
    assert plugins.load("model", "vae") is pv.VAE
    assert cli.main(["list", "models"]) == 0
    listed = capsys.readouterr().out
    assert "BROKEN" in listed and "A wide one." in listed


def test_two_packages_that_claim_a_name_are_both_named(third_party, tmp_path):
    info = tmp_path / "rival-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rival\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[pyro_vae.models]\nwide = rival:Wide\n")
    with pytest.raises(PluginError, match="model 'wide' is registered by rival and third-party; uninstall one"):
        plugins.load("model", "wide")


def test_a_package_seen_twice_on_the_path_is_no_conflict(monkeypatch):
    """An editable install beside a wheel shows the same entry twice."""
    entry = EntryPoint("vae", "pyro_vae.models.vae:VAE", "pyro_vae.models")
    monkeypatch.setattr(plugins, "entry_points", lambda **_: [entry, entry])
    assert plugins.load("model", "vae") is pv.VAE and plugins.names("model") == ["vae"]


@pytest.mark.parametrize(
    "kind, near", [("model", "blog"), ("dataset", "digits"), ("objective", "iwae"), ("evaluator", "elbo")]
)
def test_an_unknown_name_lists_the_known_ones_the_nearest_first(kind, near):
    with pytest.raises(UnknownName) as caught:
        plugins.load(kind, near[:-1])
    assert str(caught.value).startswith(f"unknown {kind} {near[:-1]!r}; known: {near}, ")
    assert sorted(caught.value.known) == plugins.names(kind)


def few(steps: int, rate: float = 0.5):
    return steps, rate


def open_to_more(**rest: int):
    return rest


def test_a_plugin_is_made_of_options_that_it_has(monkeypatch):
    monkeypatch.setattr(plugins, "load", lambda kind, name: {"few": few, "open": open_to_more}[name])
    assert plugins.build("evaluator", "few", {"steps": 3, "rate": 1.0}) == (3, 1.0)
    with pytest.raises(UnknownName, match="unknown option 'step'; known: steps, "):
        plugins.build("evaluator", "few", {"step": 3})
    assert plugins.build("evaluator", "open", {"else": 2}) == {"else": 2}


def test_an_old_name_leads_to_the_new_one_and_is_not_listed():
    assert plugins.load("model", "iwae") is plugins.load("model", "burda")
    assert "iwae" not in plugins.names("model") and "iwae" in plugins.names("objective")


def test_every_old_name_leads_to_something_that_exists():
    known = {kind: plugins.names(kind) for kind in plugins.GROUPS} | {"schedule": list(SCHEDULES)}
    assert all(new in known[kind] and old not in known[kind] for (kind, old), new in plugins.RENAMED.items())


def test_a_user_is_told_of_the_new_name_and_a_stored_run_is_not(recwarn):
    assert plugins.current_name("schedule", "iwae") == "burda_steps" and not recwarn.list
    for same in (("objective", "iwae"), ("schedule", "cosine"), ("schedule", ["iwae"]), ("lr", 0.1)):
        assert plugins.current_name(*same, warn=True) == same[1] and not recwarn.list
    with pytest.warns(FutureWarning, match="^the schedule 'iwae' is now called 'burda_steps'$"):
        assert plugins.current_name("schedule", "iwae", warn=True) == "burda_steps"


def test_nearest_first_ignores_case_and_breaks_ties_by_name():
    assert nearest_first("MNIST", ["kmnist", "digits", "mnist"]) == ["mnist", "kmnist", "digits"]
    assert nearest_first("zzz", ["b", "a"]) == ["a", "b"]
