"""Wake-sleep and reweighted wake-sleep: against Pyro's estimator, exact gradients, and on pairs of many forms."""

from itertools import product

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from pairs import bits, small_vae
from pyro.infer import ReweightedWakeSleep as PyrosRWS
from pyro.infer import config_enumerate
from pyro.poutine.messenger import Messenger
from references import Clusters, Labelled, SharedNoise, TwoLayers, exact_gradients, gradient_draws, z_scores
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.errors import ContractError, RunError
from pyro_vae.models.sigmoid_belief_net import SigmoidBeliefNet
from pyro_vae.objectives.wake_sleep import ReweightedWakeSleep, WakeSleep, asleep, awake
from pyro_vae.pair.dreams import dream

READING, COPIES = 0.7, 40_000
BOTH = pytest.mark.parametrize("objective", [WakeSleep(), ReweightedWakeSleep(0.5)], ids=["plain", "reweighted"])


def pictures(n: int) -> dict[str, Tensor]:
    return {"picture": torch.randn(n, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))}


def net(latent_dims: tuple[int, ...] = (3, 2), size: int = 4) -> SigmoidBeliefNet:
    torch.manual_seed(0)
    return SigmoidBeliefNet((size,), latent_dims).double()


CASES = {
    "two layers": (TwoLayers, pictures),
    "top down": (lambda: TwoLayers(bottom_up=False), pictures),
    "discrete and continuous": (Labelled, lambda n: {"counts": torch.arange(5.0 * n).reshape(n, 5).double() % 4}),
    "bits": (net, lambda n: {"x": bits(n, (4,)).double()}),
}
EVERY = pytest.mark.parametrize("case", CASES)


# --- against Pyro -------------------------------------------------------------------------------------------


class Held(Messenger):
    """Holds draws fixed as they are drawn. Pyro does so when the guide has run, so that the gradient of log q passes
    through the draws that others depend on, which that of log q at given draws does not."""

    def _pyro_post_sample(self, msg: dict) -> None:
        msg["value"] = msg["value"].detach()


def pyros(pair: nn.Module, fields: dict[str, Tensor], **options) -> tuple[float, float, list[Tensor]]:
    """Both losses of Pyro's estimator, and the gradient of their sum."""
    (field,) = fields

    def model(observations=None):
        pair.model(**fields)

    def guide(observations=None):
        (dreamt,) = (observations or fields).values()
        with Held():
            pair.guide(**{field: dreamt})

    pair.zero_grad()
    with pyro.get_param_store().scope():
        losses = PyrosRWS(max_plate_nesting=1, **options).loss_and_grads(model, guide)
    return *losses, [p.grad if p.grad is not None else torch.zeros_like(p) for p in pair.parameters()]


def check_gradients(loss: Tensor, pair: nn.Module, expected: list[Tensor], scale: float = 1.0) -> None:
    found = torch.autograd.grad(loss, list(pair.parameters()), materialize_grads=True, allow_unused=True)
    for gradient, theirs in zip(found, expected, strict=True):
        assert torch.allclose(gradient, theirs / scale, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("insomnia", [1.0, 0.3, 0.0])
@EVERY
def test_of_one_datum_it_is_pyros_in_value_and_gradient(case, insomnia):
    """Pyro's weighs all data of a batch together, which is right of one datum alone."""
    make, data = CASES[case]
    pair, fields, objective = make(), data(1), ReweightedWakeSleep(insomnia)
    torch.manual_seed(3)
    loss = objective(pair, fields, 5)
    torch.manual_seed(3)
    terms = awake(pair, fields, 5)
    of_guide = objective.guide_loss(pair, fields, terms, terms.log_weight.detach())
    torch.manual_seed(3)
    model_loss, guide_loss, gradients = pyros(
        pair, fields, num_particles=5, insomnia=insomnia, num_sleep_particles=1, vectorize_particles=True
    )
    assert loss.item() == pytest.approx(model_loss, rel=1e-6)
    assert of_guide.item() == pytest.approx(guide_loss, rel=1e-6)
    check_gradients(loss, pair, gradients)


@EVERY
def test_asleep_it_is_pyros_on_a_batch_with_several_dreams(case):
    make, data = CASES[case]
    pair, fields = make(), data(6)
    asleep(pair, fields, 1)
    torch.manual_seed(3)
    loss = asleep(pair, fields, 3)
    torch.manual_seed(3)
    _, theirs, gradients = pyros(
        pair, fields, insomnia=0.0, model_has_params=False, num_sleep_particles=3, vectorize_particles=False
    )
    assert loss.shape == (6,) and loss.sum().item() == pytest.approx(theirs, rel=1e-6)
    check_gradients(loss.mean(), pair, gradients, scale=6)


# --- gradients in the mean ----------------------------------------------------------------------------------


def draws_of(objective, particles: int, beta: float = 1.0) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return gradient_draws(objective, Clusters(COPIES), READING, particles, beta)


def check_exact(draws: Tensor, expected: Tensor) -> None:
    assert z_scores(draws, expected).abs().max() < 4


@pytest.mark.parametrize("beta", [1.0, 0.5])
@pytest.mark.parametrize("particles", [2, 5])
@pytest.mark.parametrize("objective, alpha", [(WakeSleep(), 1.0), (ReweightedWakeSleep(), 0.0)])
def test_the_model_gets_the_exact_gradient_of_its_bound(objective, alpha, particles, beta):
    draws, exact = draws_of(objective, particles, beta), exact_gradients(Clusters, READING, particles, alpha, beta)
    for name in ("logits", "centres"):
        check_exact(draws[name], exact[name])


@pytest.mark.parametrize("particles", [2, 3])
def test_awake_the_guide_gets_the_mean_over_all_draws_of_its_weighted_score(particles):
    parameters = Clusters.single()
    log_mass, log_weight = Clusters.nodes(parameters, READING)
    tuples = torch.tensor(list(product(range(3), repeat=particles)))
    score = (log_weight[tuples].softmax(1).detach() * log_mass[tuples]).sum(1)
    loss = -(log_mass[tuples].sum(1).exp().detach() * score).sum()
    (exact,) = torch.autograd.grad(loss, [parameters["guide_logits"]])
    check_exact(draws_of(ReweightedWakeSleep(), particles)["guide_logits"], exact)


def test_the_bias_of_the_waking_guide_falls_with_the_particles():
    """Against the gradient of KL(p(z|x) || q(z|x))."""
    parameters = Clusters.single()
    log_mass, log_weight = Clusters.nodes(parameters, READING)
    posterior = (log_mass + log_weight).softmax(0).detach()
    (exact,) = torch.autograd.grad(-(posterior * log_mass).sum(), [parameters["guide_logits"]])
    biases = [(draws_of(ReweightedWakeSleep(), k)["guide_logits"].mean(0) - exact).norm() for k in (2, 8, 32)]
    assert biases[0] > 3 * biases[1] > 6 * biases[2]


def test_dreams_give_the_exact_gradient_summed_over_all_data_and_codes():
    pair = net((2,), size=3)
    x = torch.tensor(list(product((0.0, 1.0), repeat=3))).double().repeat_interleave(4, 0)
    z = torch.tensor(list(product((0.0, 1.0), repeat=2))).double().repeat(8, 1)
    logits = [pair.top.expand(32, 2), pair.decoder(z).squeeze(1), pair.up[0](x)]
    prior, likelihood, guide = (
        dist.Bernoulli(logits=part).log_prob(value).sum(1) for part, value in zip(logits, (z, x, z), strict=True)
    )
    parameters = list(pair.up.parameters())
    exact = torch.autograd.grad(-((prior + likelihood).exp().detach() * guide).sum(), parameters)
    draws = []
    for seed in range(200):
        torch.manual_seed(seed)
        draws.append(torch.autograd.grad(WakeSleep()(pair, {"x": x[:1].expand(400, 3)}), parameters))
    for found, expected in zip(zip(*draws, strict=True), exact, strict=True):
        check_exact(torch.stack(found), expected)


def test_the_value_of_wake_sleep_is_minus_the_elbo_at_its_draws():
    pair = net()
    batch = {"x": bits(6, (4,)).double()}
    torch.manual_seed(1)
    loss = WakeSleep()(pair, batch, 3)
    torch.manual_seed(1)
    assert torch.allclose(loss, pv.objectives.TraceELBO()(pair, batch, 3))


# --- pairs of many forms ------------------------------------------------------------------------------------


class Chain(nn.Module):
    """Sequences of different lengths, a latent at each step, the next after it; the guide reads the whole sequence."""

    def __init__(self):
        super().__init__()
        self.step, self.tone = nn.Linear(2, 2), nn.Linear(2, 3)
        self.reader, self.to_loc = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)

    def model(self, x, length):
        with pyro.plate("sequences", len(x)):
            z = x.new_zeros(len(x), 2)
            for t in range(x.shape[1]):
                with pyro.poutine.mask(mask=t < length):
                    z = pyro.sample(f"z_{t}", dist.Normal(self.step(z), 1.0).to_event(1))
                    pyro.sample(f"x_{t}", dist.Bernoulli(logits=self.tone(z)).to_event(1), obs=x[:, t])

    def guide(self, x, length):
        loc = self.to_loc(self.reader(x)[0])
        with pyro.plate("sequences", len(x)):
            for t in range(x.shape[1]):
                with pyro.poutine.mask(mask=t < length):
                    pyro.sample(f"z_{t}", dist.Normal(loc[:, t], 1.0).to_event(1))

    def data(self):
        return {"x": bits(12, (3, 3)), "length": torch.tensor([3, 1, 2] * 4)}


class Topics(nn.Module):
    """Documents in the plate of the data, words in one of their own; each word's topic is summed out."""

    def __init__(self):
        super().__init__()
        self.weights, self.words = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.randn(2, 5))
        self.predictor = nn.Linear(5, 2)

    def model(self, x):
        with pyro.plate("documents", len(x)):
            topics = pyro.sample("topics", dist.Dirichlet(self.weights.exp() + 0.5))
            with pyro.plate("words", x.shape[1]):
                topic = pyro.sample("topic", dist.Categorical(topics), infer={"enumerate": "parallel"})
                pyro.sample("word", dist.Categorical(logits=self.words[topic]), obs=x.T)

    def guide(self, x):
        with pyro.plate("documents", len(x)):
            counts = F.one_hot(x, 5).sum(1).to(self.words.dtype)
            pyro.sample("topics", dist.Dirichlet(F.softplus(self.predictor(counts)) + 0.5))

    def data(self):
        return {"x": torch.randint(5, (12, 4), generator=torch.Generator().manual_seed(0))}


class Mixture(nn.Module):
    """Nothing is left for the guide to draw."""

    def __init__(self):
        super().__init__()
        self.centres = nn.Parameter(torch.tensor([-1.0, 1.0]))

    @config_enumerate
    def model(self, x):
        with pyro.plate("data", len(x)):
            kind = pyro.sample("kind", dist.Categorical(torch.ones(2) / 2))
            pyro.sample("x", dist.Normal(self.centres[kind], 1.0), obs=x)

    def guide(self, x):
        pass

    def data(self):
        return {"x": torch.randn(12)}


class Several(nn.Module):
    """Two observed sites, a plate of a datum's own, a latent of a Gamma."""

    def __init__(self):
        super().__init__()
        self.rate, self.loc = nn.Parameter(torch.tensor(0.3)), nn.Parameter(torch.tensor(0.2))

    def model(self, picture, size):
        with pyro.plate("rows", len(picture), dim=-2):
            spread = pyro.sample("spread", dist.Gamma(picture.new_full((len(picture), 1), 2.0), self.rate.exp()))
            with pyro.plate("pixels", 4, dim=-1):
                light = pyro.sample("light", dist.Normal(self.loc, spread))
                pyro.sample("seen", dist.Normal(light, 1.0), obs=picture)
            pyro.sample("size", dist.LogNormal(spread, 1.0), obs=size.unsqueeze(1))

    def guide(self, picture, size):
        with pyro.plate("rows", len(picture), dim=-2):
            pyro.sample("spread", dist.LogNormal(self.rate * size.log().unsqueeze(1), 1.0))
            with pyro.plate("pixels", 4, dim=-1):
                pyro.sample("light", dist.Normal(self.loc * picture, 1.0))

    def data(self):
        return {"picture": torch.randn(12, 4), "size": torch.rand(12) + 0.5}


FORMS = {form.__name__: form for form in (Chain, Topics, Mixture, Several)}
EVERY_FORM = pytest.mark.parametrize("form", [*CASES, *FORMS])


def made(form: str) -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    if form in CASES:
        make, data = CASES[form]
        return make(), data(6)
    pair = FORMS[form]()
    return pair, pair.data()


@EVERY_FORM
def test_awake_the_weights_are_those_of_each_datum(form):
    """By a loop over the data, in plain exp."""
    pair, fields = made(form)
    torch.manual_seed(3)
    loss = ReweightedWakeSleep()(pair, fields, 5)
    torch.manual_seed(3)
    terms = awake(pair, fields, 5)
    size = terms.log_guide.shape[1]
    expected, value = 0.0, 0.0
    for i in range(size):
        log_joint, log_guide = terms.log_likelihood[:, i] + terms.log_prior[:, i], terms.log_guide[:, i]
        weight = (log_joint - log_guide).double().exp().detach()
        value -= weight.mean().log() / size
        expected -= (weight / weight.sum() * (log_joint + log_guide)).sum() / size
    assert loss.item() == pytest.approx(value.item(), rel=1e-5)
    found, theirs = (
        torch.autograd.grad(each, list(pair.parameters()), materialize_grads=True, allow_unused=True)
        for each in (loss, expected)
    )
    for gradient, other in zip(found, theirs, strict=True):
        assert torch.allclose(gradient, other, rtol=1e-3, atol=1e-5)


@EVERY_FORM
def test_asleep_it_is_the_density_of_the_guide_at_a_dream_under_plain_pyro(form):
    pair, fields = made(form)
    asleep(pair, fields, 1)
    torch.manual_seed(3)
    loss = asleep(pair, fields, 1)
    torch.manual_seed(3)
    dreamt = dream(pair, fields, "")
    plain = pyro.poutine.trace(pair.guide).get_trace(**dreamt.fields)
    values = {
        name: value.reshape(plain.nodes[name]["value"].shape) for name, value in dreamt.latents.items() if name in plain
    }
    trace = pyro.poutine.trace(pyro.poutine.condition(pair.guide, values)).get_trace(**dreamt.fields)
    assert loss.sum().item() == pytest.approx(-float(trace.log_prob_sum()), rel=1e-5)
    assert all(not torch.equal(dreamt.fields[name], fields[name]) for name in fields if name != "length")


@BOTH
def test_it_trains_plain_functions(objective):
    encoder, decoder = nn.Linear(6, 4), nn.Linear(2, 6)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    torch.manual_seed(0)
    pair, x = pv.as_pair(model, guide), bits(60, (6,))
    run = pv.train(pair, x, 20, 20, 1e-2, objective=objective, particles=3, engine="eager", progress=False)
    assert run.history[-1]["valid_loss"] < run.history[0]["valid_loss"]


@pytest.mark.parametrize("form", ["Chain", "Several"])
@BOTH
def test_it_trains_compiled(graphs, form, objective):
    """Views of fields, and plates, in one graph that gives the eager numbers."""
    pair, fields = made(form)
    fields = {name: value.repeat(2, *[1] * (value.dim() - 1)) for name, value in fields.items()}
    how = {"epochs": 2, "batch_size": 10, "lr": 1e-2, "particles": 2, "engine": "compiled", "progress": False}
    run = pv.train(pair, fields, objective=objective, **how)
    assert run.engine == "compiled", run.notes


def test_a_model_without_parameters_is_compiled_inference(graphs):
    """Only the guide learns, from dreams alone (Pyro's CSIS)."""

    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc, self.log_scale = nn.Linear(1, 1), nn.Parameter(torch.zeros(1))

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(2 * z, 1.0).to_event(1), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.loc(x), self.log_scale.exp()).to_event(1))

    torch.manual_seed(0)
    how = {"lr": 0.1, "schedule": "cosine", "engine": "compiled", "progress": False}
    run = pv.train(Fixed(), 5**0.5 * torch.randn(2000, 1), 10, 100, objective=ReweightedWakeSleep(0.0), **how)
    assert run.engine == "compiled", run.notes
    x = torch.tensor([[-2.0], [0.0], [3.0]])
    assert torch.allclose(run.pair.loc(x), 0.4 * x, atol=0.06), "the posterior is N(2x/5, 1/5)"
    assert run.pair.log_scale.exp().item() == pytest.approx(0.2**0.5, abs=0.03)


# --- what is refused ----------------------------------------------------------------------------------------


class Classified(nn.Module):
    """The guide enumerates the label."""

    def __init__(self):
        super().__init__()
        self.classifier = nn.Linear(4, 3)

    def model(self, x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.ones(3) / 3))
            pyro.sample("x", dist.Normal(y.unsqueeze(-1).float(), 1.0).expand([*y.shape, 4]).to_event(1), obs=x)

    @config_enumerate
    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=self.classifier(x)))


def refused(pair: nn.Module, fields: dict[str, Tensor], line: str, objective: WakeSleep, particles: int = 2) -> None:
    with pytest.raises(ContractError, match=line):
        objective(pair, fields, particles)


@BOTH
def test_sites_that_it_cannot_score_are_refused_by_name(objective):
    x = {"x": torch.randn(6, 4)}
    refused(Classified(), x, "the guide enumerates 'y'.*use trace_enum_elbo", objective)
    refused(pv.models.autoencoder((4,)), x, "'z' is a point mass.*use trace_elbo", objective)
    flow = pv.VAE((4,), posterior="planar", likelihood="gaussian")
    refused(flow, x, "a flow of it has no inverse.*use trace_elbo", objective)
    flat = pv.models.probabilistic_autoencoder((4,))
    refused(flat, x, "'z' is an improper prior.*use reweighted_wake_sleep with insomnia=1", objective)
    refused(SharedNoise(), {"reading": torch.zeros(4).double()}, "'log_noise' is outside the data plate", objective)


def test_one_particle_teaches_a_waking_guide_nothing():
    x = {"x": bits(6)}
    refused(small_vae(), x, "use at least 2 particles, or insomnia=0", ReweightedWakeSleep(), 1)
    assert ReweightedWakeSleep(0.0)(small_vae(), x, 1).isfinite()


def test_bad_options_are_one_line():
    with pytest.raises(ContractError, match=r"insomnia must be in \[0, 1\], not 1.5"):
        ReweightedWakeSleep(1.5)
    for kind in (WakeSleep, ReweightedWakeSleep):
        with pytest.raises(ContractError, match="dreams must be at least 1, not 0"):
            kind(dreams=0)
        with pytest.raises(RunError, match="takes no free bits"):
            kind().with_free_bits(0.1, "site")
