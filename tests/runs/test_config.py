"""config.yaml: sections, an old flat list sorted into them, and what is no setting."""

import pytest
import yaml

import pyro_vae as pv
from pyro_vae.command_line import main as cli
from pyro_vae.errors import UnknownName
from pyro_vae.runs.config import sectioned

FLAT = """
model: vae
hidden: [4]
likelihood: gaussian
prior: standard_normal
sigma: 0.5
components: 10
data: quadrants
binarize: none
seed: 3
scale: unit
source: digits
observed: 2
objective: renyi
alpha: 0.25
gradient: pathwise
epochs: 2
lr: 0.01
schedule: iwae
weight_decay: 0.5
"""


def test_a_flat_list_is_sorted_by_who_knows_a_setting_under_present_names():
    config = sectioned(yaml.safe_load(FLAT))
    parts = {"likelihood": "gaussian", "prior": "standard_normal", "likelihood_sigma": 0.5}
    assert config["model"] == {"name": "vae", "hidden": [4], **parts}, "of a part that was not chosen nothing is left"
    data = {"name": "quadrants", "binarize": "none", "scale": "unit", "source": "digits", "observed": 2}
    assert config["data"] == data
    assert config["objective"] == {"name": "renyi", "alpha": 0.25, "gradient": "pathwise"}
    rest = {"seed": 3, "epochs": 2, "lr": 0.01, "schedule": "burda_steps", "weight_decay": 0.5}
    assert config["training"] == rest


def test_sections_are_kept_and_an_unknown_one_is_named():
    config = {"model": {"name": "vae", "hidden": [4]}, "training": {"lr": 0.1}}
    assert sectioned(config) == config and sectioned({}) == {}
    with pytest.raises(UnknownName, match="unknown section 'trainings'; known: training, "):
        sectioned({"trainings": {"lr": 0.1}})


def printed(capsys, tmp_path, config: dict | str, words: str = "") -> tuple[int, str]:
    text = config if isinstance(config, str) else yaml.safe_dump(config)
    (tmp_path / "config.yaml").write_text(text)
    capsys.readouterr()
    status = cli.main(f"train --config {tmp_path / 'config.yaml'} {words} --print_config".split())
    told = capsys.readouterr()
    return status, told.err if status else told.out


def test_flat_and_sectioned_say_the_same(capsys, tmp_path):
    status, text = printed(capsys, tmp_path, FLAT)
    assert status == 0
    assert printed(capsys, tmp_path, text) == (0, text)
    config = yaml.safe_load(text)
    assert config["training"]["optimizer_options"]["weight_decay"] == 0.5 and config["training"]["seed"] == 3
    assert config["model"]["likelihood_sigma"] == 0.5 and "prior_components" not in config["model"]


def test_the_command_line_goes_before_a_config_and_takes_the_options_of_the_other_choice_along(capsys, tmp_path):
    words = "--likelihood bernoulli --objective trace_elbo --optimizer sgd --momentum 0.5"
    status, text = printed(capsys, tmp_path, printed(capsys, tmp_path, FLAT)[1], words)
    config = yaml.safe_load(text)
    assert status == 0 and config["objective"] == {"name": "trace_elbo", "gradient": "pathwise"}
    assert "likelihood_sigma" not in config["model"]
    assert config["training"]["optimizer_options"]["momentum"] == 0.5
    assert config["training"]["optimizer_options"]["weight_decay"] == 0.0


MISTAKES = {
    "section": ({"modle": {"latent_dim": 3}}, "unknown section 'modle'; known: model, "),
    "setting": ({"model": {"latent_dims": 3}}, "unknown setting 'latent_dims'; known: latent_dim, "),
    "flat setting": ({"latent_dims": 3}, "unknown setting 'latent_dims'; known: latent_dim, "),
    "setting elsewhere": ({"training": {"latent_dim": 3}}, "the setting 'latent_dim' belongs under model:, not"),
    "type": ({"training": {"lr": "fast"}}, "--lr needs a finite number, not 'fast'"),
    "part": ({"model": {"prior_components": 3}}, "prior_components needs prior mixture or vamp"),
    "model": ({"model": {"name": "vea"}}, "unknown model 'vea'; known: vae, "),
    "likelihood": ({"likelihood": "bernouli", "sigma": 2}, "unknown likelihood 'bernouli'; known: bernoulli, "),
}


@pytest.mark.parametrize("config, line", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_a_config_is_one_line(config, line, capsys, tmp_path):
    status, told = printed(capsys, tmp_path, config)
    assert status == 2 and told.startswith(f"pyro-vae: {line}") and told.count("\n") == 1


def test_settings_in_sections_are_typed_and_completed(capsys, tmp_path):
    config = {"model": {"prior": "mixture", "components": 3, "hidden": 8}, "training": {"optimizer": "adamw"}}
    status, text = printed(capsys, tmp_path, config)
    told = yaml.safe_load(text)
    assert status == 0 and told["model"]["prior_components"] == 3 and told["model"]["hidden"] == [8]
    assert told["training"]["optimizer_options"]["weight_decay"] == 0.01 and told["training"]["epochs"] == 600


def test_a_run_of_a_flat_config_has_sections(tmp_path):
    run = pv.Run(pv.VAE((1, 8, 8)), [], 1, {}, config=sectioned(yaml.safe_load(FLAT)))
    assert run.model_name == "vae" and not run.relaxed
