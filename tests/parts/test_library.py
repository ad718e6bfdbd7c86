"""Counts with a library size: log densities by hand, log p(x) by quadrature, and what a user does with them."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.command_line import main as cli
from pyro_vae.errors import ContractError, DataError, UnknownName
from pyro_vae.pair import generation
from pyro_vae.pair.particles import run_guide, run_model
from pyro_vae.pair.sites import values_of

GENES = 5
LOG_LIBRARY = (3.0, 0.4)
QUIET = {"progress": False, "device": "cpu"}
KINDS = {
    "poisson": pv.likelihoods.Poisson,
    "negative_binomial": pv.likelihoods.NegativeBinomial,
    "zero_inflated_negative_binomial": pv.likelihoods.ZeroInflatedNegativeBinomial,
}


def cells(n: int = 40, genes: int = GENES, seed: int = 0) -> Tensor:
    """Counts of two kinds of cells, whose library sizes scatter."""
    generator = torch.Generator().manual_seed(seed)
    shares = torch.softmax(1.5 * torch.randn(2, genes, generator=generator), -1)
    kind = torch.randint(2, (n,), generator=generator)
    library = (LOG_LIBRARY[0] + LOG_LIBRARY[1] * torch.randn(n, generator=generator)).exp()
    return torch.poisson(library[:, None] * shares[kind], generator=generator)


def likelihood(name: str, library: str, genes: int = GENES) -> torch.nn.Module:
    return KINDS[name]((genes,), library=library, log_library=LOG_LIBRARY)


def small(name: str = "negative_binomial", library: str = "latent", genes: int = GENES, **options) -> pv.VAE:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return pv.VAE((genes,), 2, hidden=(8,), likelihood=likelihood(name, library, genes), **options)


def log_nb(x, mu, theta):
    """As scvi-tools has it (`log_nb_positive`): mean mu, inverse dispersion theta."""
    return (
        theta * (theta / (theta + mu)).log()
        + x * (mu / (theta + mu)).log()
        + torch.lgamma(x + theta)
        - torch.lgamma(theta)
        - torch.lgamma(x + 1)
    )


def by_hand(built, features: Tensor, x: Tensor, library: Tensor) -> Tensor:
    """log p(x) of each datum: the mean is the library size times the softmax over the genes."""
    mu = library.unsqueeze(-1) * torch.softmax(features[..., 0, :], -1)
    if isinstance(built, KINDS["poisson"]):
        return (x * mu.log() - mu - torch.lgamma(x + 1)).sum(-1)
    of_counts = log_nb(x, mu, built.log_r.exp())
    if isinstance(built, KINDS["zero_inflated_negative_binomial"]):
        gate = torch.sigmoid(features[..., 1, :] + built.START)
        of_counts = (gate * (x == 0) + (1 - gate) * of_counts.exp()).log()
    return of_counts.sum(-1)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("given", [False, True])
def test_log_densities_given_the_library_are_those_by_hand(name, given):
    x = cells(6).double()
    built = likelihood(name, "observed").double()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.copy_(torch.linspace(-1, 1, GENES))
    features = torch.randn(3, 6, built.channels, GENES, dtype=torch.float64)
    library = torch.linspace(5, 60, 6, dtype=torch.float64) if given else x.sum(1)
    found = built.conditioned(features, x, **({"library": library} if given else {})).log_prob(x)
    assert torch.allclose(found, by_hand(built, features, x, library), rtol=1e-10)


def test_a_datum_without_counts_has_the_typical_library():
    built = likelihood("poisson", "observed")
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    assert torch.allclose(built.library.in_model(x), torch.tensor([math.exp(3.0), 7.0]))
    assert torch.allclose(built.library.in_model(x, torch.tensor([2, 0])), torch.tensor([2.0, math.exp(3.0)]))


@pytest.mark.parametrize("name", KINDS)
def test_log_p_with_a_latent_library_is_the_integral(name):
    """Over z and the log of the library, on a grid, in float64."""
    x = cells(4, genes=3).double()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = pv.VAE((3,), 1, hidden=(), likelihood=likelihood(name, "latent", 3)).double()
    z, log_l = torch.linspace(-8, 8, 321).double(), torch.linspace(0, 6, 301).double()
    with torch.no_grad():
        features = vae.decoder(z.reshape(-1, 1, 1, 1))  # [z, 1, 1, channels, genes]
        log_p = by_hand(vae.likelihood, features, x, log_l.exp().reshape(1, -1, 1))
    normal = torch.distributions.Normal
    log_prior = normal(0.0, 1.0).log_prob(z)[:, None] + normal(*LOG_LIBRARY).log_prob(log_l)
    mass = log_prior + math.log((z[1] - z[0]) * (log_l[1] - log_l[0]))
    exact = torch.logsumexp((log_p + mass.unsqueeze(-1)).flatten(0, 1), 0)
    found = pv.evaluate(vae, x, "importance", particles=20_000, progress=False).log_likelihood
    assert torch.allclose(found.double(), exact, atol=0.12), (found, exact)


def test_with_a_latent_library_the_model_is_a_distribution_of_counts():
    """One gene, so that only the library is left: the sum over all counts is 1."""
    vae = small("poisson", "latent", genes=1).double()
    x = torch.arange(400.0).double().unsqueeze(1)
    log_l = torch.linspace(0, 6, 3001).double()
    log_p = by_hand(vae.likelihood, torch.zeros(1, 1, 1, 1).double(), x, log_l.exp().unsqueeze(1))
    prior = torch.distributions.Normal(*LOG_LIBRARY).log_prob(log_l).exp() * (log_l[1] - log_l[0])
    assert (prior @ log_p.exp()).sum().item() == pytest.approx(1.0, abs=1e-6)
    sites = generation.sample(vae, {"x": torch.zeros(4000, 1).double()})
    assert sites["library"].raw.log().mean().item() == pytest.approx(LOG_LIBRARY[0], abs=0.05)
    expected = math.exp(LOG_LIBRARY[0] + LOG_LIBRARY[1] ** 2 / 2)
    assert sites["x"].raw.mean().item() == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("library", ["none", "observed", "latent"])
def test_it_is_a_pair_like_any_other(library):
    vae, x = small("zero_inflated_negative_binomial", library, data_mean=cells().mean(0)), cells()
    pv.testing.check_pair(vae, {"x": x[:16]})
    run = pv.train(vae, x, epochs=3, batch_size=10, **QUIET)
    assert {"z", "library"} & run_guide(run.pair, {"x": x}).keys() == (
        {"z", "library"} if library == "latent" else {"z"}
    )
    assert np.isfinite([row["loss"] for row in run.history]).all()


def test_the_kl_of_the_library_is_in_closed_form():
    vae, x = small(), cells(6)
    guide = run_guide(vae, {"x": x})
    model = run_model(vae, {"x": x}, values_of(guide))
    q = guide["library"].fn
    loc, scale = q.loc, q.scale
    expected = math.log(0.4) - scale.log() + (scale**2 + (loc - 3.0) ** 2) / (2 * 0.4**2) - 0.5
    assert torch.allclose(guide["library"].kl_to(model["library"]), expected.unsqueeze(0), rtol=1e-4)


@pytest.mark.parametrize("library", ["observed", "latent"])
def test_the_compiled_engine_takes_a_library(library, graphs):
    runs = [pv.train(small(library=library), cells(), 2, 10, engine=e, **QUIET) for e in ("eager", "compiled")]
    assert runs[1].engine == "compiled", runs[1].notes
    for eager, compiled in zip(*(run.history for run in runs), strict=True):
        assert compiled["loss"] == pytest.approx(eager["loss"], rel=1e-4)


def test_a_field_of_the_data_is_the_library_where_it_is_observed():
    x, library = cells(), torch.linspace(10, 90, 40)
    vae = small("poisson", "observed")
    with_field, without = ({"x": x[:6]}, {"x": x[:6], "library": library[:6]})
    rates = [run_model(vae, f, values_of(run_guide(vae, f)))["x"].fn.mean.sum(-1) for f in (without, with_field)]
    assert torch.allclose(rates[0], library[:6], rtol=1e-4) and torch.allclose(rates[1], x[:6].sum(1), rtol=1e-4)
    run = pv.train(vae, {"x": x, "library": library}, 1, 10, **QUIET)
    assert sorted(run.fields) == ["library", "x"]
    assert sorted(pv.train(small(), {"x": x, "library": library}, 1, 10, **QUIET).fields) == ["x"]


def test_training_recovers_the_library_of_its_data():
    """The prior of the latent library is that of the data, and the guide's mean follows the counts."""
    x = cells(400, genes=30, seed=1)
    mean, deviation = pv.data.log_library(x)
    assert mean == pytest.approx(x.sum(1).log().mean().item()) and 0.3 < deviation < 0.6
    built = pv.likelihoods.Poisson((30,), library="latent", log_library=(mean, deviation))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = pv.VAE((30,), 2, hidden=(16,), likelihood=built, data_mean=x.mean(0))
    run = pv.train(vae, x, epochs=12, batch_size=40, lr=5e-3, **QUIET)
    assert run.history[-1]["valid_elbo"] > run.history[0]["valid_elbo"]
    guide = run_guide(run.pair, {"x": x})["library"].fn
    assert np.corrcoef(guide.loc.detach(), x.sum(1).log())[0, 1] > 0.95


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("library", ["none", "observed", "latent"])
def test_counts_that_are_not_whole_are_refused_in_one_line(name, library):
    x = cells()
    x[3, 1] = 1.5
    with pytest.raises(DataError, match=r"x\[\d+\] holds 1.5: this likelihood needs counts 0, 1, 2, .* not normalised"):
        pv.train(small(name, library), x, 1, 10, **QUIET)


def test_a_library_needs_that_of_the_training_data():
    for wrong, error in (({"library": "latent"}, ContractError), ({"library": "size"}, UnknownName)):
        with pytest.raises(error, match="log_library|observed"):
            pv.likelihoods.Poisson((3,), **wrong)
    with pytest.raises(DataError, match="no datum has counts"):
        pv.data.log_library(torch.zeros(4, 3))
    with pytest.raises(ContractError, match="no library size; use a VAE"):
        likelihood("poisson", "observed")(torch.zeros(2, 1, GENES))


def test_the_facts_of_counts_name_their_library(tmp_path):
    x = cells()
    np.savez(tmp_path / "x.npz", x=x.numpy().astype(np.int64))
    data = pv.load_data(tmp_path / "x.npz")
    assert data.facts["log_library"] == pytest.approx(pv.data.log_library(data.train["x"]))


def test_single_cells_from_a_file_to_figures(tmp_path):
    """Sparse integer counts in an .h5ad, with labels and library sizes in `obs`."""
    anndata, scipy_sparse = pytest.importorskip("anndata"), pytest.importorskip("scipy.sparse")
    x = cells(120, genes=20).numpy().astype(np.int32)
    cell_data = anndata.AnnData(scipy_sparse.csr_matrix(x))
    cell_data.obs["label"] = np.where(x[:, 0] > x[:, 1], "one", "other")
    cell_data.obs["library"] = 2.0 * x.sum(1)
    cell_data.write_h5ad(tmp_path / "cells.h5ad")
    data = pv.load_data(tmp_path / "cells.h5ad")
    assert sorted(data.train) == ["label", "library", "x"] and data.train["x"].max() > 1
    assert torch.equal(data.train["library"], 2 * data.train["x"].sum(1))
    for library in ("observed", "latent"):
        log_library = data.facts["log_library"]
        built = pv.likelihoods.NegativeBinomial(data.facts["data_shape"], library=library, log_library=log_library)
        vae = pv.VAE(data.facts["data_shape"], 2, hidden=(16,), likelihood=built, data_mean=data.facts["data_mean"])
        run = pv.train(vae, data, epochs=2, batch_size=32, out=tmp_path / library, **QUIET)
        result = pv.evaluate(run, evaluator="importance", particles=50, data=data.test, progress=False)
        assert result.log_likelihood.isfinite().all() and result.bits_per_dim is not None
        codes = pv.encode(run, data.test)
        assert ("library_mean" in codes) == (library == "latent") and len(codes["label"]) == data.test.size
        assert pv.sample(run, 5)["x"].shape == (5, 20)
        assert pv.load_run(tmp_path / library, pair=run.pair).best_epoch == run.best_epoch


def test_both_doors_take_the_library_as_an_option_of_the_likelihood(tmp_path, monkeypatch, capsys):
    """The command line and names in Python: the data tell the prior, and a run is loaded as it was."""
    monkeypatch.chdir(tmp_path)
    np.savez("cells.npz", x=cells(120, genes=20).numpy().astype(np.int64))
    options = {"likelihood": "negative_binomial", "likelihood_library": "latent", "hidden": (8,)}
    how = {"epochs": 1, "batch_size": 32, "out": "python", **QUIET}
    run = pv.train("vae", "cells.npz", model_options=options, data_options={"binarize": "none"}, **how)
    shared = "--data cells.npz --binarize none --hidden 8 --epochs 1 --batch_size 32 --device cpu --quiet"
    line = f"train vae {shared} --likelihood negative_binomial --likelihood_library"
    assert cli.main(f"{line} latent --out command".split()) == 0
    for loaded in (pv.load_run("python"), pv.load_run("command")):
        for name, value in run.pair.state_dict().items():
            assert torch.equal(loaded.pair.state_dict()[name], value), name
        assert loaded.pair.likelihood.library.loc.item() == pytest.approx(run.data.facts["log_library"][0])
    assert cli.main(f"train burda {shared} --likelihood poisson --likelihood_library observed --out burda".split()) == 0
    capsys.readouterr()
    assert cli.main(f"{line} size".split()) == 2
    assert cli.main(f"train vae {shared} --likelihood_library latent".split()) == 2
    wrong_name, wrong_part = capsys.readouterr().err.splitlines()
    assert "unknown library 'size'; known: " in wrong_name
    assert "--likelihood_library needs --likelihood " in wrong_part and "negative_binomial" in wrong_part
