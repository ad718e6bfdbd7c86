"""Programs as people have them, made a pair by one line: the numbers are those of Pyro's own SVI."""

import copy
import math

import pyro
import pyro.distributions as dist
import pyro.distributions.constraints as constraints
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuideList,
    AutoIAFNormal,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoStructured,
    init_to_feasible,
)
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn

import pyro_vae as pv
from pyro_vae.errors import ContractError, DataError
from pyro_vae.objectives.elbo import TraceELBO
from pyro_vae.pair.terms import log_terms

N, D = 12, 5


@pytest.fixture(autouse=True)
def own_store():
    with pyro.get_param_store().scope():
        torch.manual_seed(0)
        yield


def images(n=N, seed=0):
    return torch.rand(n, D, generator=torch.Generator().manual_seed(seed)).round()


def trained_by_pyro(model, guide, *args, steps=5, elbo=None, **kwargs):
    """A script's own training, which leaves its parameters in Pyro's store."""
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), elbo or Trace_ELBO())
    for _ in range(steps):
        svi.step(*args, **kwargs)
    return svi


def stored():
    return {name: value.detach().clone() for name, value in pyro.get_param_store().items()}


def assert_the_loss_is_pyros(pair, batch, svi, args, kwargs=None, draws=100):
    """The mean of our loss of all data over draws is that of `SVI.evaluate_loss`, and Pyro's store is as it was."""
    before, size = stored(), len(next(iter(batch.values())))
    kwargs = kwargs or {}
    theirs = torch.tensor([svi.evaluate_loss(*args, **kwargs) for _ in range(draws)], dtype=torch.double)
    pair.prepare(batch)
    with torch.no_grad():
        ours = torch.stack([size * TraceELBO()(pair, batch) for _ in range(draws)]).double()
    error = math.sqrt((ours.var() + theirs.var()).item() / draws)
    difference = (ours.mean() - theirs.mean()).item()
    assert abs(difference) < 4 * error + 1e-4 * abs(theirs.mean()), (ours.mean(), theirs.mean(), error)
    assert stored().keys() == before.keys()
    for name, value in stored().items():
        assert torch.equal(value, before[name]), name


# A VAE with nets that pyro.module names, in plain functions.


def vae_programs():
    encoder = nn.Sequential(nn.Linear(D, 8), nn.Tanh(), nn.Linear(8, 4))
    decoder = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, D))

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
            return pyro.sample("obs", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", x.shape[0]):
            loc, scale = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))

    return model, guide, encoder, decoder


def test_a_vae_of_plain_functions_is_trained_and_evaluated():
    model, guide, encoder, decoder = vae_programs()
    svi = trained_by_pyro(model, guide, images())
    pair = pv.as_pair(model, guide)
    assert_the_loss_is_pyros(pair, {"x": images()}, svi, (images(),))
    assert {id(p) for p in pair.parameters()} == {id(p) for net in (encoder, decoder) for p in net.parameters()}
    before = decoder[0].weight.detach().clone()
    run = pv.train(pair, images(60), epochs=3, batch_size=10, progress=False)
    assert not torch.equal(decoder[0].weight, before)
    result = pv.evaluate(run, images(20, seed=1), "importance", particles=50, progress=False)
    assert result.log_likelihood.shape == (20,) and result.log_likelihood.isfinite().all()


def test_a_stored_run_is_read_into_a_new_pair_of_the_same_programs(tmp_path):
    run = pv.train(
        pv.as_pair(*vae_programs()[:2]), images(60), epochs=2, batch_size=10, progress=False, out=tmp_path / "r"
    )
    model, guide, *_ = vae_programs()
    again = pv.load_run(tmp_path / "r", pair=pv.as_pair(model, guide))
    found = [pv.evaluate(r.pair, images(), "elbo", progress=False).mean for r in (run, again)]
    assert found[0] == found[1]


class Methods:
    """A plain class whose nets are attributes."""

    def __init__(self):
        torch.manual_seed(1)
        self.encoder, self.decoder = nn.Linear(D, 4), nn.Linear(2, D)

    def model(self, data):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(data)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=data)

    def guide(self, data):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(data)):
            loc, scale = self.encoder(data).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))


class OfTorch(Methods, nn.Module):
    def __init__(self):
        nn.Module.__init__(self)
        Methods.__init__(self)
        self.spare = nn.Linear(3, 3)  # which no program names


class Called(PyroModule):
    """A PyroModule whose forward is the model."""

    def __init__(self):
        super().__init__()
        self.decoder = PyroModule[nn.Linear](2, D)
        self.noise = PyroParam(torch.tensor(0.7), constraint=constraints.positive)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), self.noise).to_event(1), obs=x)


def by_params(x):
    loc = pyro.param("loc", lambda: torch.randn(2))
    scale = pyro.param("scale", torch.ones(2), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, scale).to_event(1))


@pytest.mark.parametrize("kind", [Methods, OfTorch])
def test_methods_of_an_object(kind):
    script = kind()
    svi = trained_by_pyro(script.model, script.guide, images())
    pair = pv.as_pair(script)
    assert_the_loss_is_pyros(pair, {"x": images()}, svi, (images(),))
    names = {name.split(".", 1)[1] for name, p in pair.named_parameters() if p.requires_grad}
    assert not any("spare" in name for name in names) and len(names) == 4


def test_a_pyro_module_that_is_called_beside_a_guide_of_params():
    model = Called()
    svi = trained_by_pyro(model, by_params, images())
    assert "noise" in stored() and "scale" in stored()
    pair = pv.as_pair(model, by_params)
    assert_the_loss_is_pyros(pair, {"x": images()}, svi, (images(),))
    assert len(list(pair.parameters())) == 5
    run = pv.train(pair, images(60), epochs=3, batch_size=10, progress=False, engine="compiled")
    assert run.engine == "compiled"
    assert (model.noise > 0).all() and model.noise.item() != pytest.approx(0.7)


def test_handlers_around_the_programs_are_looked_through():
    @config_enumerate
    def model(x, y=None):
        weights = pyro.param("weights", torch.ones(3) / 3, constraint=constraints.simplex)
        locs = pyro.param("locs", torch.randn(3))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[k], 1.0), obs=x)

    def guide(x, y=None):
        pass

    x = torch.randn(N)
    svi = trained_by_pyro(model, guide, x, elbo=TraceEnum_ELBO(max_plate_nesting=1))
    pair = pv.as_pair(model, guide)
    result = pv.evaluate(pair, x, "importance", progress=False)
    assert result.kind == "exact"
    assert result.log_likelihood.sum().item() == pytest.approx(-svi.evaluate_loss(x), rel=1e-5)
    half = pv.as_pair(poutine.scale(model, scale=0.5), guide)
    with pytest.raises(ContractError, match="scaled by 0.5"):
        pv.evaluate(half, x, "importance", progress=False)


@pytest.mark.parametrize("form", ["dict", "tuple", "args"])
def test_programs_that_take_a_dict_a_tuple_or_more_than_fields(form):
    def model(batch, size=None):
        x = batch["x"] if form == "dict" else batch[0]
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(batch, size=None):
        x = batch["x"] if form == "dict" else batch[0]
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.5 * x, math.sqrt(0.5)))

    inputs = {
        "dict": lambda batch: ((batch,), {}),
        "tuple": lambda batch: (((batch["x"], None),), {}),
        "args": lambda batch: ([(batch["x"],)], {"size": 3}),
    }[form]
    x = torch.randn(N)
    result = pv.evaluate(pv.as_pair(model, guide, inputs), x, "importance", particles=5, progress=False)
    exact = dist.Normal(0.0, math.sqrt(2)).log_prob(x)
    assert torch.allclose(result.log_likelihood.float(), exact, atol=1e-5)


def test_programs_of_any_arguments_get_what_the_other_one_gets():
    def model(x, noise=1.0):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, noise), obs=x)

    def guide(*args, **kwargs):
        (x,) = [*args, *kwargs.values()]
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.5 * x, math.sqrt(0.5)))

    x = torch.randn(N)
    result = pv.evaluate(pv.as_pair(model, guide), {"x": x}, "importance", particles=5, progress=False)
    assert torch.allclose(result.log_likelihood.float(), dist.Normal(0.0, math.sqrt(2)).log_prob(x), atol=1e-5)


# Global latents and AutoGuides.

X = torch.linspace(-1, 1, N)
Y = 0.5 + 2 * X + 0.3 * torch.randn(N, generator=torch.Generator().manual_seed(3))


def regression(x, y):
    slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
    offset = pyro.sample("offset", dist.Normal(0.0, 10.0))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(offset + slope * x, noise), obs=y)


class BayesianLinear(PyroModule):
    """Regression as in Pyro's tutorial, with random weights."""

    def __init__(self):
        super().__init__()
        self.linear = PyroModule[nn.Linear](1, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 1]).to_event(2))
        self.linear.bias = PyroSample(dist.Normal(0.0, 10.0).expand([1]).to_event(1))

    def forward(self, x, y=None):
        sigma = pyro.sample("sigma", dist.Uniform(0.0, 10.0))
        mean = self.linear(x.unsqueeze(-1)).squeeze(-1)
        with pyro.plate("data", x.shape[0]):
            return pyro.sample("obs", dist.Normal(mean, sigma), obs=y)


def schools(y, sigma):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


SCHOOLS = {
    "y": torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]),
    "sigma": torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]),
}


def sparse_gamma(x):
    """The sparse gamma deep exponential family of Pyro's examples, two layers."""
    with pyro.plate("w_top_plate", 4 * 3):
        w_top = pyro.sample("w_top", dist.Gamma(0.1, 0.3)).reshape(4, 3)
    with pyro.plate("w_bottom_plate", 3 * D):
        w_bottom = pyro.sample("w_bottom", dist.Gamma(0.1, 0.3)).reshape(3, D)
    with pyro.plate("data", len(x)):
        z_top = pyro.sample("z_top", dist.Gamma(torch.full((4,), 0.1), 0.1).to_event(1))
        mean = torch.matmul(z_top, w_top).clamp(min=1e-4)
        z_bottom = pyro.sample("z_bottom", dist.Gamma(0.1, 0.1 / mean).to_event(1))
        rate = torch.matmul(z_bottom, w_bottom).clamp(min=1e-4)
        pyro.sample("obs", dist.Poisson(rate).to_event(1), obs=x)


GLOBAL = [
    AutoNormal,
    AutoDiagonalNormal,
    AutoMultivariateNormal,
    lambda model: AutoLowRankMultivariateNormal(model, rank=2),
    AutoDelta,
]


@pytest.mark.parametrize(
    ("make", "program"), [*((make, lambda: regression) for make in GLOBAL), (AutoNormal, BayesianLinear)]
)
def test_bayesian_regression_with_an_autoguide(make, program):
    model = program()
    batch = {"x": X, "y": Y}
    guide = make(model)
    svi = trained_by_pyro(model, guide, X, Y)
    assert_the_loss_is_pyros(pv.as_pair(model, guide), batch, svi, (X, Y))


@pytest.mark.parametrize("make", [AutoDiagonalNormal, AutoIAFNormal, AutoLaplaceApproximation])
def test_an_autoguide_that_has_not_run_is_trained(make):
    pair = pv.as_pair(regression, make(regression))
    run = pv.train(pair, {"x": X.repeat(10), "y": Y.repeat(10)}, epochs=30, batch_size=12, lr=0.02, progress=False)
    assert run.history[-1]["valid_loss"] < run.history[0]["valid_loss"]


def test_eight_schools():
    guide = AutoNormal(schools)
    svi = trained_by_pyro(schools, guide, SCHOOLS["y"], SCHOOLS["sigma"])
    batch = SCHOOLS | {"index": torch.arange(8)}
    assert_the_loss_is_pyros(pv.as_pair(schools, guide), batch, svi, tuple(SCHOOLS.values()), draws=200)


def test_the_sparse_gamma_def():
    x = torch.poisson(torch.full((N, D), 2.0), generator=torch.Generator().manual_seed(0))
    guide = AutoNormal(sparse_gamma, init_loc_fn=init_to_feasible)
    svi = trained_by_pyro(sparse_gamma, guide, x)
    assert_the_loss_is_pyros(pv.as_pair(sparse_gamma, guide), {"x": x, "index": torch.arange(N)}, svi, (x,), draws=150)


@config_enumerate
def mixture(data):
    weights = pyro.sample("weights", dist.Dirichlet(0.5 * torch.ones(2)))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 2.0))
    with pyro.plate("components", 2):
        locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(data)):
        assignment = pyro.sample("assignment", dist.Categorical(weights))
        pyro.sample("obs", dist.Normal(locs[assignment], scale), obs=data)


def test_the_mixture_of_pyros_tutorial_at_a_point_estimate():
    data = torch.tensor([0.0, 1.0, 10.0, 11.0, 12.0])
    guide = AutoDelta(poutine.block(mixture, expose=["weights", "locs", "scale"]))
    svi = trained_by_pyro(mixture, guide, data, elbo=TraceEnum_ELBO(max_plate_nesting=1))
    pair = pv.as_pair(mixture, guide)
    assert_the_loss_is_pyros(pair, {"x": data}, svi, (data,), draws=2)


def chain(sequences, lengths, args=None, include_prior=True):
    """Model 1 of Pyro's hmm.py, on sequences of the same batch."""
    count, longest, width = sequences.shape
    with poutine.mask(mask=include_prior):
        move = pyro.sample("move", dist.Dirichlet(0.9 * torch.eye(3) + 0.1).to_event(1))
        tones = pyro.sample("tones", dist.Beta(0.1, 0.9).expand([3, width]).to_event(2))
    with pyro.plate("sequences", count, dim=-2):
        y = 0
        plate = pyro.plate("tones_plate", width, dim=-1)
        for t in pyro.markov(range(longest)):
            with poutine.mask(mask=(t < lengths).unsqueeze(-1)):
                y = pyro.sample(f"y_{t}", dist.Categorical(move[y]), infer={"enumerate": "parallel"})
                with plate:
                    pyro.sample(f"x_{t}", dist.Bernoulli(tones[y.squeeze(-1)]), obs=sequences[:, t])


def test_a_hidden_markov_model_with_a_point_estimate():
    x = torch.rand(4, 3, 2, generator=torch.Generator().manual_seed(1)).round()
    lengths = torch.tensor([3, 1, 2, 3])
    guide = AutoDelta(poutine.block(chain, expose=["move", "tones"]))
    svi = trained_by_pyro(chain, guide, x, lengths, elbo=TraceEnum_ELBO(max_plate_nesting=2))
    pair = pv.as_pair(chain, guide, lambda batch: ((batch["x"], batch["length"]), {}), data_plate="sequences")
    assert_the_loss_is_pyros(pair, {"x": x, "length": lengths}, svi, (x, lengths), draws=2)


def test_latents_of_a_datum_are_amortised_by_index():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = torch.randn(40)
    run = pv.train(pv.as_pair(model, AutoNormal(model)), x, epochs=200, batch_size=8, lr=0.05, progress=False)
    assert any("validated on the training data" in note for note in run.notes)
    exact = dist.Normal(0.0, math.sqrt(2)).log_prob(x)
    data = {"x": x, "index": torch.arange(40)}
    found = pv.evaluate(run, data, "importance", particles=2000, progress=False)
    assert ((found.log_likelihood - exact).abs() < 5 * found.monte_carlo_error + 1e-3).all()
    few = pv.evaluate(run, {name: value[[7, 3]] for name, value in data.items()}, "elbo", 100, progress=False)
    assert torch.allclose(few.elbo.float(), exact[[7, 3]], atol=0.1)
    with pytest.raises(DataError, match="has parameters of its own for each of the 40 data"):
        pv.evaluate(run, x, "elbo", progress=False)
    other = torch.randn(15)
    before = [parameter.clone() for parameter in run.pair.parameters()]
    refit = pv.evaluate(run, other, "importance", particles=2000, progress=False, refit=300)
    exact = dist.Normal(0.0, math.sqrt(2)).log_prob(other)
    assert ((refit.log_likelihood - exact).abs() < 5 * refit.monte_carlo_error + 1e-3).all()
    assert all(torch.equal(*both) for both in zip(run.pair.parameters(), before, strict=True))


def test_a_point_for_each_datum_is_a_loss():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    run = pv.train(pv.as_pair(model, AutoDelta(model)), torch.randn(20), epochs=2, batch_size=5, progress=False)
    assert "valid_elbo" not in run.history[-1]


def test_a_list_of_autoguides_for_globals_and_locals():
    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 5.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    guide = AutoGuideList(model)
    guide.append(AutoDiagonalNormal(poutine.block(model, expose=["loc"])))
    guide.append(AutoNormal(poutine.block(model, expose=["z"])))
    x = torch.randn(N)
    svi = trained_by_pyro(model, guide, x)
    assert_the_loss_is_pyros(pv.as_pair(model, guide), {"x": x, "index": torch.arange(N)}, svi, (x,))


def test_an_autoguide_for_globals_and_locals_is_trained():
    guide = AutoNormal(schools)
    run = pv.train(pv.as_pair(schools, guide), SCHOOLS, epochs=20, batch_size=4, lr=0.05, progress=False)
    assert run.history[-1]["valid_loss"] < run.history[0]["valid_loss"]


TYING = [AutoDiagonalNormal, AutoMultivariateNormal, AutoIAFNormal, AutoLaplaceApproximation, AutoStructured]


@pytest.mark.parametrize("make", TYING)
def test_an_autoguide_that_ties_data_together_is_refused_by_name(make):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(ContractError, match=f"{make.__name__} ties the latents of all data together"):
        pv.train(pv.as_pair(model, make(model)), torch.randn(20), epochs=1, batch_size=5, progress=False)


# Copies, plain Pyro, and what goes wrong.


def test_a_copy_has_parameters_of_its_own():
    model, guide, *_ = vae_programs()
    pair = pv.as_pair(model, guide)
    pair.prepare({"x": images()})
    twin = copy.deepcopy(pair)
    assert list(twin.state_dict()) == list(pair.state_dict())
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(2)
    torch.manual_seed(0)
    moved = log_terms(twin, {"x": images()}).log_guide
    with torch.no_grad():
        for parameter in pair.parameters():
            parameter.mul_(2)
    torch.manual_seed(0)
    assert torch.equal(log_terms(pair, {"x": images()}).log_guide, moved)
    TraceELBO()(twin, {"x": images()}).backward()
    assert all(p.grad is not None for p in twin.parameters()) and all(p.grad is None for p in pair.parameters())


class Native(nn.Module):
    """The same VAE as a pair that needs no adapting."""

    def __init__(self, encoder, decoder):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def model(self, x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("obs", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", x.shape[0]):
            loc, scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))


@pytest.mark.parametrize("options", [{"ema": 0.5}, {"objective": "iwae", "particles": 3}], ids=str)
def test_programs_are_trained_as_a_pair_of_their_own_is(options):
    """With a moving average, whose copy of the pair is what is validated and kept, to the last bit."""
    runs = []
    for make in (lambda *programs: pv.as_pair(*programs[:2]), lambda *programs: Native(*programs[2:])):
        torch.manual_seed(0)
        run = pv.train(make(*vae_programs()), images(60), epochs=3, batch_size=10, progress=False, **options)
        runs.append([{name: number for name, number in row.items() if name != "seconds"} for row in run.history])
    assert runs[0] == runs[1]


def test_an_autoguide_serves_a_second_pair_and_plain_pyro_as_before():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    guide, x = AutoNormal(model), torch.randn(20)
    pv.train(pv.as_pair(model, guide), x, epochs=1, batch_size=5, progress=False)
    assert guide.create_plates is None
    few = {"x": x[:7], "index": torch.arange(7)}
    found = [pv.evaluate(pv.as_pair(model, guide), few, "importance", 20, progress=False).mean for _ in range(2)]
    assert found[0] == found[1]
    assert math.isfinite(trained_by_pyro(model, guide, x).evaluate_loss(x))


def test_what_fails_at_its_first_run_leaves_the_nets_in_their_mode():
    net = nn.Linear(D, 2)

    def guide(x):
        pyro.module("net", net)
        raise ValueError("no")

    refused("the guide raised ValueError", lambda x: None, guide)
    assert net.training


@pytest.mark.parametrize("programs", [lambda: vae_programs()[:2], lambda: (Called(), by_params)])
def test_plain_pyro_takes_the_pair(programs):
    pair, x = pv.as_pair(*programs()), images()
    pair.prepare({"x": x})
    before = [p.detach().clone() for p in pair.parameters()]
    svi = SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    svi.step(x=x)
    svi.step(x)
    assert all(not torch.equal(p, old) for p, old in zip(pair.parameters(), before, strict=True))
    drawn = Predictive(pair.model, guide=pair.guide, num_samples=7)(x=x)
    assert drawn["z"].shape[0] == 7


def test_two_pairs_of_one_function_have_parameters_of_their_own():
    def model(x):
        loc = pyro.param("loc", lambda: torch.zeros(x.shape[1]))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def guide(x):
        pass

    pairs = {width: pv.as_pair(model, guide) for width in (3, 5)}
    for width, pair in pairs.items():
        pv.train(pair, torch.ones(20, width), epochs=1, batch_size=10, progress=False)
        assert [p.shape for p in pair.parameters()] == [(width,)]
    assert not stored()


def refused(match, model, guide=lambda x: None, inputs=None, error=ContractError):
    with pytest.raises(error, match=match):
        pv.train(pv.as_pair(model, guide, inputs), images(), epochs=2, batch_size=6, progress=False)


def observing(loc, x):
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)


def test_what_cannot_be_called_is_refused():
    for model, match in ((3, "the model must be a program"), (Methods, "the class Methods; make an object of it")):
        with pytest.raises(ContractError, match=match):
            pv.as_pair(model, lambda x: None)
    with pytest.raises(ContractError, match="the guide must be a program"):
        pv.as_pair(lambda x: None)


def test_a_parameter_with_two_shapes_is_refused():
    def model(x):
        observing(pyro.param("w", torch.zeros(D)), x)

    def guide(x):
        pyro.param("w", torch.zeros(2))

    refused(r"pyro.param 'w' starts with shape \[5\] here and has \[2\] elsewhere", model, guide)


def test_a_parameter_that_fits_the_store_no_longer_is_refused():
    pyro.param("w", torch.zeros(2))

    def model(x):
        observing(pyro.param("w", torch.zeros(D)), x)

    refused(r"Pyro's store holds 'w' with shape \[2\]", model)


def test_a_parameter_of_some_runs_only_is_refused():
    runs = []

    def model(x):
        runs.append(1)
        loc = pyro.param("first", torch.zeros(D))
        observing(loc + pyro.param("later", torch.zeros(D)) if len(runs) > 2 else loc, x)

    refused("pyro.param 'later' did not appear when the programs first ran", model)


def test_a_net_that_is_made_in_each_run_is_refused():
    def model(x):
        net = pyro.module("net", nn.Linear(1, D))
        observing(net(torch.ones(1)), x)

    refused("pyro.module 'net' gets another net in each run", model)


def test_a_net_that_is_made_in_each_run_and_updated_is_trained():
    def model(x):
        net = pyro.module("net", nn.Linear(1, D), update_module_params=True)
        observing(net(torch.ones(1)), x)

    pair = pv.as_pair(model, lambda x: None)
    run = pv.train(pair, 3 + images(60), epochs=60, batch_size=10, lr=0.1, progress=False)
    assert run.history[-1]["loss"] < run.history[0]["loss"] - 1


def test_a_parameter_that_is_read_before_it_is_given_a_value_is_refused():
    refused("'w' is read before it has a value", lambda x: observing(pyro.param("w"), x))


def test_inputs_that_make_no_arguments_are_refused():
    model = lambda x: observing(0.0, x)  # noqa: E731
    refused("inputs must return the programs' arguments.*not a Tensor", model, inputs=lambda batch: batch["x"])
    refused(r"not \(Tensor\)", model, inputs=lambda batch: (batch["x"],))


def test_what_a_program_raises_at_its_first_run_is_one_line():
    def model(x):
        observing(pyro.param("w", torch.zeros(D)) @ torch.zeros(3), x)

    refused("the model raised RuntimeError before its first site: ", model)
    with pytest.raises(ContractError, match="the model raised TypeError"):
        pv.evaluate(pv.as_pair(lambda x: print(x=x), lambda x: None), images(), progress=False)


def test_a_field_that_a_program_takes_and_the_data_lack_is_named():
    def model(a, b):
        observing(0.0, a)

    refused("the model takes 'a'; the data have x", model, error=DataError)


def test_a_guide_that_samples_nothing_is_refused():
    def model(x):
        loc = pyro.param("loc", torch.zeros(()))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).expand([len(x), D]).to_event(1), obs=x)

    refused("the model's latent site 'z' is not in the guide", model, lambda x: {"z": torch.zeros(len(x))})
