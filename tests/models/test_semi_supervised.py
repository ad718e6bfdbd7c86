"""M2, M1+M2 and SCANVI: their terms against sums by hand, what training adds, and what they learn."""

import math

import pyro
import pytest
import torch
from enumerated import log_marginal
from pairs import SHAPE, assert_terms_are_their_sums, bits, counts, small_vae
from pyro.infer import TraceEnum_ELBO
from torch import Tensor

import pyro_vae as pv
from pyro_vae.data.labels import HIDDEN
from pyro_vae.errors import ContractError, DataError, UnknownName
from pyro_vae.models.semi_supervised import M1M2, M2, scanvi
from pyro_vae.pair.generation import sample
from pyro_vae.pair.particles import run_guide
from pyro_vae.pair.terms import log_terms

K, N = 3, 6
QUIET = {"progress": False, "batch_size": 20}
EXACT = {"rtol": 1e-9, "atol": 1e-9}
SOME = torch.tensor([0, HIDDEN, 2, HIDDEN, HIDDEN, 1])


def m2(**options) -> M2:
    torch.manual_seed(0)
    return M2(SHAPE, K, **{"latent_dim": 1, "hidden": (6,), **options})


def m1_m2(**options) -> M1M2:
    torch.manual_seed(0)
    return M1M2(SHAPE, K, **{"latent_dims": (1, 1), "hidden": (6,), **options})


def cells(**options) -> M1M2:
    torch.manual_seed(0)
    return scanvi((4,), K, (2.0, 0.5), (2,), **{"latent_dims": (1, 1), "hidden": (6,), **options})


def fields_of(pair: M2 | M1M2, label: Tensor = SOME) -> dict[str, Tensor]:
    """Data of a pair, in float64."""
    if getattr(pair, "context_shape", None) is None:
        return {"x": bits(len(label)).double(), "label": label}
    return {
        "x": counts(len(label)).double(),
        "label": label,
        "context": torch.eye(2).repeat(len(label), 1)[: len(label)],
    }


PAIRS = (m2, m1_m2, cells)


# --- the terms ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", PAIRS)
def test_every_term_is_its_sum_by_hand_where_labels_are_known_and_where_they_are_hidden(made):
    pair = made().double().eval()
    fields = fields_of(pair)
    assert_terms_are_their_sums(pair, fields)


def test_the_bound_of_a_known_label_is_on_the_joint_and_that_of_a_hidden_one_on_its_sum():
    """By the trapezoidal rule: log p(x) is the log of the sum of p(x, label) over labels; L_K is near both."""
    pair = m2().double().eval()
    x = bits(N).double()
    joint = torch.stack([log_marginal(pair, {"x": x, "label": torch.full((N,), k)}) for k in range(K)])
    hidden = {"x": x, "label": torch.full((N,), HIDDEN)}
    assert torch.allclose(log_marginal(pair, hidden), joint.logsumexp(0), atol=1e-6)
    result = pv.evaluate(pair, hidden, "importance", particles=3000, progress=False)
    assert ((result.log_likelihood - joint.logsumexp(0)) / result.monte_carlo_error).abs().max() < 5
    shown = {"x": x, "label": torch.full((N,), 1)}
    result = pv.evaluate(pair, shown, "importance", particles=3000, progress=False)
    assert ((result.log_likelihood - joint[1]) / result.monte_carlo_error).abs().max() < 5


@pytest.mark.parametrize("made", PAIRS)
def test_the_elbo_is_pyros(made):
    """On average over draws, for data some of which are labelled."""
    pair = made().eval()
    fields = {name: value.float() if value.is_floating_point() else value for name, value in fields_of(pair).items()}
    theirs = TraceEnum_ELBO(num_particles=1000, max_plate_nesting=1, vectorize_particles=True)
    with pyro.get_param_store().scope(), torch.no_grad():
        torch.manual_seed(0)
        expected = -theirs.loss(lambda f: pair.model(**f), lambda f: pair.guide(**f), fields) / N
    ours = pv.evaluate(pair, fields, "elbo", particles=1000, progress=False)
    assert ours.mean == pytest.approx(expected, abs=0.2)


@pytest.mark.parametrize("made", [m2, m1_m2])
def test_training_adds_the_classification_of_known_labels_and_nothing_else(made):
    fields = {"x": bits(N), "label": SOME}

    def loss(training: bool, weight: float) -> float:
        pair = made(classification=weight).train(training)
        torch.manual_seed(2)
        return pv.objectives.TraceELBO()(pair, fields).item()

    assert loss(False, 5.0) == loss(False, 0.0) == loss(True, 0.0)
    pair = made()
    torch.manual_seed(2)
    guide = run_guide(pair, fields)
    with torch.no_grad():
        seen = guide["z_1"].value[0] if "z_1" in guide else pair.reader(fields["x"])
        log_q = pair.classifier(seen).log_softmax(-1)
    known = SOME != HIDDEN
    added = -5.0 * log_q[known, SOME[known]].sum().item() / N
    assert loss(True, 5.0) - loss(True, 0.0) == pytest.approx(added, rel=1e-4)


def test_what_is_shown_of_the_label_goes_to_the_style_and_the_picture():
    """The class of a generated datum is what it is given, and the style is the same for all classes."""
    pair = m2(latent_dim=2).eval()
    blank = {"x": torch.zeros(K, *SHAPE), "label": torch.full((K,), HIDDEN)}
    z = torch.randn(1, 2).expand(K, 2)
    sites = sample(pair, blank, {"z": z, "label_unobserved": torch.arange(K)})
    means = sites["x"].fn.mean.reshape(K, -1)
    expected = pair.likelihood(pair.decoder(torch.cat([z, torch.eye(K)], 1))).mean.reshape(K, -1)
    assert torch.allclose(means, expected, atol=1e-6) and (means[0] - means[1]).abs().max() > 1e-3


def test_labels_are_drawn_evenly_where_nothing_is_given():
    run = pv.train(m2(), {"x": bits(), "label": torch.arange(40) % K}, epochs=1, batch_size=20, progress=False)
    drawn = pv.sample(run, n=600)
    label = torch.where(torch.zeros(600) != HIDDEN, drawn["label_observed"], drawn["label_unobserved"])
    assert (torch.bincount(label.long(), minlength=K) - 200).abs().max() < 4.5 * math.sqrt(600 * 2 / 9)


# --- what they learn ----------------------------------------------------------------------------------------


def test_m2_learns_from_data_without_labels_what_two_labels_of_each_class_cannot_tell():
    data = pv.load_data("partly_labelled", source="planted_clusters", labels=10, copies=20)
    torch.manual_seed(0)
    pair = M2((1, 8, 8), 5, latent_dim=2, hidden=(64,), data_mean=data.facts["data_mean"])
    run = pv.train(pair, data, epochs=8, batch_size=100, lr=3e-3, engine="eager", progress=False)
    result = pv.evaluate(run.pair, data, "classify", progress=False)
    assert result.n == 400 and result.mean < 0.03


def test_m1_and_m2_leave_m1_as_it_is_and_learn_its_classes():
    data = pv.load_data("partly_labelled", source="planted_clusters", labels=10, copies=20)
    torch.manual_seed(0)
    m1 = pv.VAE((1, 8, 8), 5, hidden=(64,), data_mean=data.facts["data_mean"])
    pv.train(m1, data, epochs=8, batch_size=100, lr=3e-3, engine="eager", progress=False)
    before = {name: value.clone() for name, value in m1.state_dict().items()}
    pair = M1M2((1, 8, 8), 5, (9, 2), (64,), m1=m1)
    pv.train(pair, data, epochs=8, batch_size=100, lr=3e-3, engine="eager", progress=False)
    assert all(torch.equal(before[name], value) for name, value in m1.state_dict().items())
    assert run_guide(pair, data.test.head(2).take(slice(None)))["z_1"].value.shape[-1] == 5, "the size is m1's"
    assert pv.evaluate(pair, data, "classify", particles=10, progress=False).mean < 0.04


@pytest.mark.slow
def test_scanvi_tells_types_apart_across_batches():
    data = pv.load_data("planted_cells", labels=25)
    facts = data.facts
    torch.manual_seed(0)
    pair = scanvi(facts["data_shape"], 5, facts["log_library"], facts["context_shape"], hidden=(64,))
    run = pv.train(pair, data, epochs=15, batch_size=100, lr=3e-3, engine="eager", progress=False)
    assert pv.evaluate(run.pair, data, "classify", particles=5, progress=False).mean < 0.05
    elbo = pv.evaluate(run.pair, data, "elbo", progress=False)
    assert elbo.quantity == "elbo" and elbo.elbo.isfinite().all() and not elbo.warnings


def test_the_decoder_of_scanvi_sees_the_batch_and_the_guide_does_not():
    pair = cells().eval()
    x, label = counts(N), torch.full((N,), HIDDEN)
    here, there = ({"x": x, "label": label, "context": torch.eye(2)[[k] * N]} for k in (0, 1))
    found = []
    for fields in (here, there):
        torch.manual_seed(0)
        found.append(log_terms(pair, fields))
    assert torch.equal(found[0].log_guide, found[1].log_guide) and torch.equal(found[0].log_prior, found[1].log_prior)
    assert not torch.isclose(found[0].log_likelihood, found[1].log_likelihood).any()


# --- runs by name -------------------------------------------------------------------------------------------


def test_a_run_by_name_trains_on_partly_labelled_digits_and_reports_what_it_tells_apart(tmp_path):
    options = {"hidden": [16], "latent_dim": 2}
    run = pv.train("m2", epochs=1, out=tmp_path / "m2", model_options=options, engine="eager", progress=False)
    assert run.config["data"]["name"] == "partly_labelled" and run.config["data"]["labels"] == 100
    assert [result.evaluator for result in run.results] == ["elbo", "reconstruction", "classify"]
    text = (tmp_path / "m2" / "report.md").read_text()
    assert "of the data** (error)" in text and "classify_confusion.png" in text and "class_conditional.png" in text
    assert (tmp_path / "m2/figures/class_conditional.png").stat().st_size > 1000


def test_m1_is_the_folder_of_a_run_and_is_kept_when_that_is_gone(tmp_path):
    small = {"hidden": [16]}
    quiet = {"epochs": 1, "engine": "eager", "progress": False}
    pv.train("vae", out=tmp_path / "m1", model_options=small, **quiet)
    options = {**small, "m1": str(tmp_path / "m1")}
    run = pv.train("m1_m2", out=tmp_path / "both", model_options=options, **quiet)
    (tmp_path / "m1").rename(tmp_path / "gone")
    stored = pv.load_run(tmp_path / "both")
    for name, value in run.pair.state_dict().items():
        assert torch.equal(value, stored.pair.state_dict()[name]), name
    assert not any(p.requires_grad for p in stored.pair.decoder.parameters())


# --- bad input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", [m2, m1_m2])
@pytest.mark.parametrize("wrong", [K, HIDDEN - 1])
@pytest.mark.parametrize("row", [0, 39])
def test_labels_outside_the_classes_are_refused(made, wrong, row):
    label = torch.arange(40) % K
    label[row] = wrong
    for use in (pv.train, pv.evaluate):
        with pytest.raises(DataError, match=f"{wrong}.*(labels 0 to 2|levels 0..2)"):
            use(made(), {"x": bits(), "label": label}, **(QUIET if use is pv.train else {"progress": False}))


def test_labels_that_are_all_hidden_or_are_not_there_are_refused():
    hidden = {"x": bits(), "label": torch.full((40,), HIDDEN)}
    data = pv.Dataset("hidden", *[pv.Split(hidden)] * 3)
    with pytest.raises(ContractError, match="num_labels is 0, .* without any, train gmvae"):
        M2(SHAPE, data.facts["num_labels"])
    with pytest.raises(DataError, match="M2 needs the field 'label'; the data have x"):
        pv.train(m2(), bits(), progress=False)
    with pytest.raises(DataError, match="model 'm2' needs num_labels, so data with a field label"):
        pv.check("m2", bits())
    with pytest.raises(DataError, match="all labels of the training data are -1, .* train gmvae"):
        pv.train(m2(), hidden, epochs=1, batch_size=20, progress=False)


def test_counts_that_are_not_whole_are_refused():
    fields = fields_of(cells(), torch.arange(40) % K)
    with pytest.raises(DataError, match=r"x\[\d+\] holds 0.5: this likelihood needs counts"):
        x = fields["x"].float()
        x[3, 1] = 0.5
        pv.train(cells(), {**fields, "x": x, "context": fields["context"].float()}, **QUIET)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: m2(classification=-1.0), "classification must not be negative"),
        (lambda: m1_m2(latent_dims=(2,)), "latent_dims must be two sizes"),
        (lambda: m1_m2(m1=m2()), "m1: a M2 that is no VAE"),
        (lambda: M1M2((1, 8, 8), K, m1=small_vae()), r"m1: a VAE that is no VAE of data of shape \[1, 8, 8\]"),
        (lambda: scanvi((4,), K, (2.0, 0.5), likelihood="poison"), "unknown likelihood 'poison'; known: poisson"),
    ],
)
def test_options_that_do_not_fit_are_one_line(build, message):
    with pytest.raises((ContractError, UnknownName), match=message):
        build()
