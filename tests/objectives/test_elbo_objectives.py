"""Objectives against Pyro's own estimators for the same draws, and against exact gradients in the mean."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from model_examples import build, example
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from references import (
    Clusters,
    Labelled,
    NonReparameterisedNormal,
    Scalar,
    ScalarMixture,
    SharedNoise,
    TwoLayers,
    exact_gradients,
    gradient_draws,
    normal_log_density,
    z_scores,
)
from torch import Tensor, nn

from pyro_vae import plugins
from pyro_vae.errors import ContractError
from pyro_vae.objectives.elbo import TraceELBO, TraceMeanFieldELBO
from pyro_vae.objectives.trace_graph import TraceGraphELBO
from pyro_vae.pair.pair import select_fields
from pyro_vae.pair.particles import FOLDED, OWN_DIM, run_guide, run_model, ways
from pyro_vae.pair.structure import structure_of
from pyro_vae.pair.terms import log_terms

PYRO = {TraceELBO: Trace_ELBO, TraceMeanFieldELBO: TraceMeanField_ELBO, TraceGraphELBO: TraceGraph_ELBO}
READING = 0.7
COPIES = 40_000


def picture(n: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"picture": torch.randn(n, 4, dtype=torch.float64, generator=generator)}


def counts(n: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"counts": torch.randint(6, (n, 5), generator=generator).double()}


def registered(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """A registered model, in float64, and a batch for it, in which one label is hidden."""
    pair = build(name).double().eval()
    batch = {field: v.double() if v.is_floating_point() else v for field, v in example(name, 5).items()}
    if "label" in batch:
        batch["label"] = torch.arange(5) - 1
    return pair, select_fields(pair, batch)


def loss_and_gradients(objective, pair: nn.Module, batch: dict[str, Tensor], particles: int, **options) -> list[Tensor]:
    torch.manual_seed(7)
    loss = objective(pair, batch, particles, **options)
    gradients = torch.autograd.grad(loss, list(pair.parameters()), allow_unused=True)
    return [loss.detach(), *(g if g is not None else torch.zeros(()) for g in gradients)]


def pyros_loss_and_gradients(
    estimator: type[ELBO], pair: nn.Module, batch: dict[str, Tensor], particles: int
) -> list[Tensor]:
    """The same from `loss_and_grads` of Pyro's own estimator, per datum."""
    n = len(next(iter(batch.values())))
    pair.zero_grad()
    torch.manual_seed(7)
    at_once = particles > 1 and ways(pair, batch).model == OWN_DIM
    elbo = estimator(particles, max_plate_nesting=1, vectorize_particles=at_once)
    loss = elbo.loss_and_grads(_announcing(pair), lambda given: pair.guide(**given), batch)
    gradients = [p.grad / n if p.grad is not None else torch.zeros(()) for p in pair.parameters()]
    pair.zero_grad()
    return [torch.as_tensor(loss) / n, *(g.clone() for g in gradients)]


def _announcing(pair: nn.Module):
    """The model, with a `pyro.param` of its own: without one, `Trace_ELBO` takes no gradient of a plain pair."""

    def model(batch: dict[str, Tensor]) -> None:
        pyro.param("anything", torch.zeros(()))
        pair.model(**batch)

    return model


def same(ours: list[Tensor], pyros: list[Tensor]) -> None:
    """Equal to 1e-5 relative: each gradient on the scale of its largest entry."""
    for one, other in zip(ours, pyros, strict=True):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max().clamp(min=1e-8)


@pytest.fixture(autouse=True)
def pyros_own_store():
    """What the reference puts into Pyro's parameter store stays out of the others'."""
    with pyro.get_param_store().scope():
        yield


# --- the same draws give what Pyro gives --------------------------------------------------------------------


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("objective", PYRO)
@pytest.mark.parametrize("name", plugins.names("model"))
def test_registered_models_get_pyros_loss_and_gradients(name, objective, particles):
    pair, batch = registered(name)
    guide = run_guide(pair, batch)
    model = run_model(pair, batch, {name: site.value for name, site in guide.items()})
    if objective is TraceMeanFieldELBO and [n for n in model if n in guide] != [n for n in guide if n in model]:
        pytest.skip("the guide's order differs from the model's, where Pyro's mean-field ELBO is biased")
    if particles > 1 and ways(pair, batch).model == FOLDED:
        pytest.skip("Pyro gives particles a dim of their own, which its nets do not take")
    sums = structure_of(pair, batch).sums
    if sums and objective is not TraceELBO:
        pytest.skip("Pyro has one ELBO that sums, which takes the KL from draws")
    estimator = TraceEnum_ELBO if sums else PYRO[objective]
    ours = loss_and_gradients(objective(), pair, batch, particles)
    same(ours, pyros_loss_and_gradients(estimator, pair, batch, particles))


@pytest.mark.parametrize("beta", [1.0, 0.3, 4.0])
@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("objective", PYRO)
def test_two_latent_sites_under_beta_get_pyros_loss_and_gradients(objective, particles, beta):
    """Pyro's beta is a `poutine.scale` on the latent sites of model and guide."""
    ours = loss_and_gradients(objective(), TwoLayers(bottom_up=False), picture(), particles, beta=beta)
    reference = TwoLayers(bottom_up=False, beta=beta)
    same(ours, pyros_loss_and_gradients(PYRO[objective], reference, picture(), particles))


@pytest.mark.parametrize("beta", [1.0, 0.3])
@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("objective", [TraceELBO, TraceGraphELBO])
def test_a_discrete_site_gets_pyros_loss_and_gradients(objective, particles, beta):
    torch.manual_seed(0)
    pair = Labelled()
    reference = Labelled(beta, baseline={"use_decaying_avg_baseline": True})
    reference.load_state_dict(pair.state_dict())
    pyros = pyros_loss_and_gradients(PYRO[objective], reference, counts(), particles)
    same(loss_and_gradients(objective(), pair, counts(), particles, beta=beta), pyros)


@pytest.mark.parametrize("beta", [1.0, 0.3])
@pytest.mark.parametrize("particles", [1, 3])
def test_the_decaying_average_is_kept_from_step_to_step_as_in_pyros_store(particles, beta):
    torch.manual_seed(0)
    pair, objective = Labelled(), TraceGraphELBO()
    reference = Labelled(beta, baseline={"use_decaying_avg_baseline": True})
    reference.load_state_dict(pair.state_dict())
    for _ in range(3):
        ours = loss_and_gradients(objective, pair, counts(), particles, beta=beta)
        same(ours, pyros_loss_and_gradients(TraceGraph_ELBO, reference, counts(), particles))
    resumed = TraceGraphELBO()
    resumed.load_state_dict(objective.state_dict())
    ours = loss_and_gradients(resumed, pair, counts(), particles, beta=beta)
    same(ours, loss_and_gradients(objective, pair, counts(), particles, beta=beta))


def test_a_site_keeps_the_baseline_it_names():
    torch.manual_seed(0)
    names = [{"baseline_value": torch.full((6,), -9.0).double()}, {"use_decaying_avg_baseline": True}]
    pairs = [Labelled(baseline=baseline) for baseline in names]
    pairs[1].load_state_dict(pairs[0].state_dict())
    first, second = (loss_and_gradients(TraceGraphELBO(), pair, counts(), 1) for pair in pairs)
    assert torch.equal(first[0], second[0])
    same(first, pyros_loss_and_gradients(TraceGraph_ELBO, pairs[0], counts(), 1))
    assert any(not torch.allclose(one, other) for one, other in zip(first, second, strict=True))


def test_an_auxiliary_site_gets_pyros_mean_field_loss():
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.tensor(0.4).double())

        def model(self, x):
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x), dim=-1):
                u = pyro.sample("u", dist.Normal(self.gain * x, 0.7), infer={"is_auxiliary": True})
                pyro.sample("z", dist.Delta(u + self.gain))

    batch = {"x": torch.randn(6).double()}
    for objective in (TraceELBO, TraceMeanFieldELBO):
        ours = loss_and_gradients(objective(), Auxiliary(), batch, 3)
        same(ours, pyros_loss_and_gradients(PYRO[objective], Auxiliary(), batch, 3))


def test_the_loss_is_per_datum():
    """The mean over the parts of a batch is the loss of the whole; scales of nearly 0 make draws of the means."""
    pair, whole = TwoLayers(bottom_up=False), picture(6)["picture"]
    with torch.no_grad():
        pair.log_scales.fill_(-20.0)
        parts = torch.stack([TraceMeanFieldELBO()(pair, {"picture": part}) for part in whole.split(2)])
        assert torch.allclose(parts.mean(), TraceMeanFieldELBO()(pair, {"picture": whole}))
        assert parts.std() > 0.1


# --- in the mean, the exact gradient ------------------------------------------------------------------------

ESTIMATORS = {
    "trace_elbo": (TraceELBO, Scalar, {}),
    "trace_mean_field_elbo": (TraceMeanFieldELBO, Scalar, {}),
    "score function": (TraceELBO, Scalar, {"normal": NonReparameterisedNormal}),
    "score function with costs downstream": (TraceGraphELBO, Scalar, {"normal": NonReparameterisedNormal}),
    "score function, discrete": (TraceELBO, Clusters, {}),
    "costs downstream, discrete": (TraceGraphELBO, Clusters, {}),
    "score function and path": (TraceELBO, ScalarMixture, {}),
    "costs downstream and path": (TraceGraphELBO, ScalarMixture, {}),
}


@pytest.mark.parametrize("beta", [1.0, 0.5])
@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("case", ESTIMATORS)
def test_every_gradient_is_exact_in_the_mean(case, particles, beta):
    """Within 4 standard errors of the gradient of the exact ELBO, by quadrature or enumeration."""
    objective, kind, options = ESTIMATORS[case]
    torch.manual_seed(0)
    draws = gradient_draws(objective(), kind(COPIES, **options), READING, particles, beta)
    exact = exact_gradients(kind, READING, alpha=1.0, beta=beta)
    for name, expected in exact.items():
        assert z_scores(draws[name], expected).abs().max() < 4, name


@pytest.mark.parametrize("objective", [TraceELBO, TraceGraphELBO])
def test_a_scale_inside_the_pair_leaves_the_score_unscaled(objective):
    """A draw's score is that of its probability, however much its cost weighs."""
    pair = Clusters(COPIES)
    pair.beta = 0.2
    torch.manual_seed(0)
    draws = gradient_draws(objective(), pair, READING)
    for name, expected in exact_gradients(Clusters, READING, alpha=1.0, beta=0.2).items():
        assert z_scores(draws[name], expected).abs().max() < 4, name


def test_a_baseline_leaves_the_mean_and_lowers_the_variance():
    """Second and later steps, where the decaying average is not zero; each copy has its own average."""
    objective, pair = TraceGraphELBO(), Clusters(COPIES)
    torch.manual_seed(0)
    without = gradient_draws(objective, pair, READING)["guide_logits"].var(0)
    for _ in range(10):
        draws = gradient_draws(objective, pair, READING)["guide_logits"]
    assert z_scores(draws, exact_gradients(Clusters, READING, alpha=1.0)["guide_logits"]).abs().max() < 4
    assert (draws.var(0) < 0.6 * without).all()


def test_the_value_of_a_score_function_loss_is_the_elbo_alone():
    torch.manual_seed(0)
    pair, batch = Clusters(50), {"reading": torch.full((50,), READING, dtype=torch.float64)}
    losses = []
    for objective in (TraceELBO(), TraceGraphELBO()):
        torch.manual_seed(1)
        losses.append(objective(pair, batch, 3))
    torch.manual_seed(1)
    with torch.no_grad():
        losses.append(TraceELBO()(pair, batch, 3))
    assert torch.allclose(losses[0], losses[1]) and torch.allclose(losses[0], losses[2])


# --- hierarchies drawn bottom up ----------------------------------------------------------------------------


def test_the_closed_form_kl_does_not_bias_a_guide_that_draws_bottom_up():
    """The mean loss of both objectives agrees within 4 standard errors; Pyro's mean-field ELBO is off by far more."""
    pair, data = TwoLayers().match(), {"picture": picture(1)["picture"].expand(20_000, 4)}
    torch.manual_seed(0)
    drawn, closed = (objective()(pair, data).item() for objective in (TraceELBO, TraceMeanFieldELBO))
    with pyro.validation_enabled(False):
        biased = TraceMeanField_ELBO(max_plate_nesting=1).loss(pair.model, pair.guide, **data) / 20_000
    error = (2 * log_terms(pair, data).log_weight.var() / 20_000).sqrt().item()
    assert abs(drawn - closed) < 4 * error < abs(drawn - biased) / 2


# --- latents shared by all data -----------------------------------------------------------------------------


@pytest.mark.parametrize("objective", PYRO)
@pytest.mark.parametrize("particles", [1, 4])
@pytest.mark.parametrize("data_size, beta", [(None, 1.0), (60, 1.0), (60, 0.5)])
def test_a_shared_latent_counts_once_for_all_data(objective, particles, data_size, beta):
    """-1/n sum_i log w_i - beta/N (log p(shared) - log q(shared)), written out; each KL in closed form where it is."""
    n, pair = 6, SharedNoise()
    x = torch.linspace(-2.0, 2.0, n, dtype=torch.float64)
    torch.manual_seed(7)
    draws = [run_guide(pair, {"reading": x}) for _ in range(particles)]
    shared, code = (torch.cat([sites[name].value.reshape(1, -1) for sites in draws]) for name in ("log_noise", "code"))
    likelihood = normal_log_density(x, code, shared.exp())
    loc, scale = pair.gain * x, pair.scale
    kl = normal_log_density(code, loc, scale) - normal_log_density(code, 0.0, 1.0)
    shared_loc, shared_scale = pair.noise_loc, pair.noise_scale
    shared_kl = normal_log_density(shared, shared_loc, shared_scale) - normal_log_density(shared, 0.0, 1.0)
    if objective is TraceMeanFieldELBO:
        kl = 0.5 * (scale**2 + loc**2 - 1) - scale.log()
        shared_kl = 0.5 * (shared_scale**2 + shared_loc**2 - 1) - shared_scale.log()
    loss = -(likelihood - beta * kl).mean() + beta * shared_kl.mean() / (data_size or n)
    by_hand = [loss, *torch.autograd.grad(loss, list(pair.parameters()))]
    same(loss_and_gradients(objective(), pair, {"reading": x}, particles, beta=beta, data_size=data_size), by_hand)


def test_minibatches_weigh_a_shared_latent_as_all_data_do():
    """The mean over the minibatches of an epoch is the loss of all data, at the same shared draw."""
    pair, x = SharedNoise(), torch.linspace(-2.0, 2.0, 6, dtype=torch.float64)
    with torch.no_grad():
        pair.noise_scale.fill_(1e-9)
        pair.scale.fill_(1e-9)  # the draws are then the means
        whole = TraceMeanFieldELBO()(pair, {"reading": x}, data_size=6)
        parts = [TraceMeanFieldELBO()(pair, {"reading": part}, data_size=6) for part in x.split(2)]
    assert torch.allclose(torch.stack(parts).mean(), whole, rtol=0.05)  # log q of the shared draw still varies


class SharedKind(nn.Module):
    """One coin for all data, which no path leads to."""

    def __init__(self):
        super().__init__()
        self.logit = nn.Parameter(torch.tensor(0.3).double())

    def model(self, reading):
        kind = pyro.sample("kind", dist.Bernoulli(0.5))
        with pyro.plate("data", len(reading), dim=-1):
            pyro.sample("seen", dist.Normal(2 * kind, 1.0), obs=reading)

    def guide(self, reading):
        pyro.sample("kind", dist.Bernoulli(logits=self.logit))


def test_a_shared_latent_without_a_path_goes_to_trace_graph_elbo():
    pair, batch = SharedKind(), {"reading": torch.linspace(-2.0, 2.0, 6, dtype=torch.float64)}
    with pytest.raises(ContractError, match="'kind' is outside the data plate .* use objective='trace_graph_elbo'"):
        TraceELBO()(pair, batch)
    objective = TraceGraphELBO()
    torch.manual_seed(0)
    draws = torch.stack([torch.autograd.grad(objective(pair, batch), pair.logit)[0] for _ in range(600)])
    q = torch.sigmoid(pair.logit)
    joint = [normal_log_density(batch["reading"], mean, 1.0).sum() - torch.tensor(2.0).log() for mean in (0.0, 2.0)]
    exact = -(q * (joint[1] - q.log()) + (1 - q) * (joint[0] - (1 - q).log())) / 6
    assert abs(z_scores(draws, torch.autograd.grad(exact, pair.logit)[0])) < 4
    with torch.no_grad():
        assert TraceELBO()(pair, batch).isfinite(), "validation, which takes no gradient, needs no path"


# --- what they refuse, and what they leave alone ------------------------------------------------------------


def test_the_mean_field_elbo_names_the_objectives_that_take_a_discrete_site():
    with pytest.raises(ContractError, match="cannot be reparameterised.*use trace_elbo or trace_graph_elbo"):
        TraceMeanFieldELBO()(Labelled(), counts())


@pytest.mark.parametrize("objective", PYRO)
def test_the_parameter_store_stays_empty(objective):
    pair, batch = (Labelled(), counts()) if objective is not TraceMeanFieldELBO else (TwoLayers(), picture())
    for particles in (1, 3):
        objective()(pair, batch, particles).backward()
    assert len(pyro.get_param_store()) == 0


def test_two_runs_of_trace_graph_elbo_share_no_average():
    torch.manual_seed(0)
    pair, used = Labelled(), TraceGraphELBO()
    fresh = loss_and_gradients(TraceGraphELBO(), pair, counts(), 1)
    for _ in range(2):
        loss_and_gradients(used, pair, counts(), 1)
    same(loss_and_gradients(TraceGraphELBO(), pair, counts(), 1), fresh)
    assert any(
        not torch.allclose(a, b) for a, b in zip(loss_and_gradients(used, pair, counts(), 1), fresh, strict=True)
    )
    used(pair, counts(4))
    assert set(used.state_dict()) == {6, 4}, "one average for each batch size: a ragged last batch has its own"


def test_the_callers_parameters_in_the_store_are_untouched():
    pyro.param("mine", torch.tensor(3.0))
    TraceGraphELBO()(Labelled(), counts()).backward()
    assert dict(pyro.get_param_store().items()) == {"mine": torch.tensor(3.0)}
