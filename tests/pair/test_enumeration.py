"""Enumerated sites, chains and plates inside the data's plate, against sums by hand and Pyro's own ELBOs."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from enumerated import (
    IN_GUIDE,
    IN_MODEL,
    NOWHERE,
    SCORED,
    SUMMED_OUT,
    Both,
    Chain,
    Drawn,
    DrawnBeside,
    DrawnFirst,
    Fields,
    GuideChain,
    Label,
    Mixture,
    MixturePrior,
    PartlyLabelled,
    Pixels,
    SubsampledPixels,
    Sums,
    Switching,
    Tree,
    TwoChains,
    Words,
    WordsLast,
    latents_of,
    log_marginal,
    normal,
    sums_by_hand,
)
from exact import normal_log_prob, reasons_to_doubt
from pyro.infer import ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from references import z_scores
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae import plugins
from pyro_vae.engine.step import EagerStep, Loss, choose_step
from pyro_vae.pair import particles as ways_of
from pyro_vae.pair.particles import FOLDED, LOOPED, OWN_DIM, Ways, run_guide
from pyro_vae.pair.terms import elbo_terms, log_terms

CASES = (*IN_MODEL, *IN_GUIDE, *NOWHERE)
EXACT = {"rtol": 1e-9, "atol": 1e-9}


@pytest.fixture(autouse=True)
def pyros_own_store():
    """What the reference puts into Pyro's parameter store stays out of the others'."""
    with pyro.get_param_store().scope():
        yield


def gradients(pair: nn.Module, value: Tensor) -> list[Tensor]:
    parameters = list(pair.parameters())
    if not value.requires_grad:
        return [torch.zeros_like(p) for p in parameters]
    found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


@pytest.mark.parametrize("case", CASES)
def test_every_term_of_every_datum_is_its_sum_by_hand_and_so_are_the_gradients(case):
    pair = case()
    fields = pair.data()
    torch.manual_seed(0)
    drawn = run_guide(pair, fields, summing=True)
    torch.manual_seed(0)
    terms = log_terms(pair, fields)
    expected = sums_by_hand(pair, fields, drawn)
    for name, value in expected._asdict().items():
        ours = getattr(terms, name)
        assert ours.shape == (1, len(value)) and ours.dtype == torch.float64
        assert torch.allclose(ours[0], value, **EXACT), name
        weights = torch.arange(1.0, len(value) + 1, dtype=torch.float64)
        if case in SCORED:
            continue  # has gradients of the score besides
        for one, other in zip(gradients(pair, ours[0] @ weights), gradients(pair, value @ weights), strict=True):
            assert torch.allclose(one, other, **EXACT), name


def test_the_sums_by_hand_are_the_forward_algorithm_and_closed_form_mixtures():
    """What the other tests hold the library against, against formulas of its own."""
    pair = Mixture()
    x = pair.data()["x"]
    parts = normal_log_prob(x[:, None], pair.centres, pair.noise.exp())
    by_formula = torch.logsumexp(torch.log_softmax(pair.weights, 0) + parts, 1)
    assert torch.allclose(log_marginal(pair, {"x": x}), by_formula, **EXACT)
    pair = MixturePrior()
    scale = (1 + (2 * pair.noise).exp()).sqrt()  # of x given y: z is integrated out
    parts = normal_log_prob(x[:, None], pair.centres + pair.shifts, scale)
    by_formula = torch.logsumexp(torch.log_softmax(pair.weights, 0) + parts, 1)
    assert torch.allclose(log_marginal(pair, {"x": x}), by_formula, **EXACT)
    pair = Chain()
    fields = pair.data()
    for i, (x, length) in enumerate(zip(fields["x"], fields["length"], strict=True)):
        forward = torch.log_softmax(pair.start, 0) + normal_log_prob(x[0], pair.centres, 1.0)
        for t in range(1, length):
            forward = torch.logsumexp(forward[:, None] + torch.log_softmax(pair.steps, 1), 0)
            forward = forward + normal_log_prob(x[t], pair.centres, 1.0)
        assert torch.allclose(log_marginal(pair, fields)[i], forward.logsumexp(0), **EXACT)


@pytest.mark.parametrize("case", SUMMED_OUT)
def test_a_pair_that_is_summed_out_has_its_exact_log_marginal_and_the_gradients_of_it(case):
    pair = case()
    fields = pair.data()
    exact, ours = log_marginal(pair, fields), log_terms(pair, fields, 2).log_weight
    assert ours.shape == (2, len(exact)) and torch.allclose(ours, exact.expand(2, -1), **EXACT)
    for one, other in zip(gradients(pair, ours[0].sum()), gradients(pair, exact.sum()), strict=True):
        assert torch.allclose(one, other, **EXACT)


@pytest.mark.parametrize("way", [OWN_DIM, FOLDED, LOOPED])
@pytest.mark.parametrize("case", CASES)
def test_several_particles_have_the_sums_by_hand_however_they_are_held(case, way, monkeypatch):
    monkeypatch.setattr(ways_of, "_compare", lambda pair, fields: Ways(way, way, "asked for"))
    pair = case()
    fields = pair.data()
    torch.manual_seed(0)
    if way == LOOPED:
        drawn = [run_guide(pair, fields, summing=True) for _ in range(3)]
        expected = [sums_by_hand(pair, fields, sites) for sites in drawn]
    else:
        drawn = run_guide(pair, fields, 3, summing=True)
        expected = [sums_by_hand(pair, fields, drawn, particle) for particle in range(3)]
    torch.manual_seed(0)
    with torch.no_grad():
        terms = log_terms(pair, fields, 3)
    for name in Sums._fields:
        assert torch.allclose(getattr(terms, name), torch.stack([getattr(sums, name) for sums in expected]), **EXACT)
    draws_reals = case not in (*SUMMED_OUT, *SCORED, GuideChain)
    assert not draws_reals or not torch.equal(terms.log_weight[0], terms.log_weight[1]), "each has its own draw"


# --- Pyro's own -----------------------------------------------------------------------------------------------


def pyros_loss_and_gradients(estimator: ELBO, pair: nn.Module, fields: dict[str, Tensor]) -> list[Tensor]:
    """Per datum, at a seed. (Where a site is masked, Pyro 1.9.2 wants one dtype to be everyone's default.)"""

    def model(**fields: Tensor) -> None:
        pyro.param("anything", torch.zeros(()))
        pair.model(**fields)

    if isinstance(pair, SubsampledPixels):
        pair = Pixels()  # where Pyro draws no subsample
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(7)
        loss = estimator.differentiable_loss(model, lambda **fields: pair.guide(**fields), **fields)
    finally:
        torch.set_default_dtype(torch.float32)
    return [loss / len(fields["x"]), *gradients(pair, loss / len(fields["x"]))]


def our_loss_and_gradients(objective: str, pair: nn.Module, fields: dict[str, Tensor], **options) -> list[Tensor]:
    torch.manual_seed(7)
    loss = plugins.build("objective", objective, {})(pair, fields, **options)
    return [loss, *gradients(pair, loss)]


def same(ours: list[Tensor], pyros: list[Tensor]) -> None:
    for one, other in zip(ours, pyros, strict=True):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max().clamp(min=1.0)


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("case", [case for case in CASES if case not in SCORED])
def test_loss_and_gradients_are_those_of_pyros_trace_enum_elbo(case, particles, monkeypatch):
    monkeypatch.setattr(ways_of, "_compare", lambda pair, fields: Ways(OWN_DIM, OWN_DIM, "as Pyro"))
    pair = case()
    fields = pair.data()
    depth = max(len(node["fn"].batch_shape) for sites in latents_of(pair, fields) for node in sites.values())
    depth = max(depth, -case.data_dim)
    reference = TraceEnum_ELBO(particles, max_plate_nesting=depth, vectorize_particles=particles > 1)
    expected = pyros_loss_and_gradients(reference, pair, fields)
    same(our_loss_and_gradients("trace_enum_elbo", pair, fields, particles=particles), expected)
    same(our_loss_and_gradients("trace_elbo", pair, fields, particles=particles), expected)


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("case", NOWHERE)
def test_plates_inside_the_datas_get_the_loss_and_gradients_of_pyros_mean_field_elbo(case, particles):
    pair = case()
    fields = pair.data()
    reference = TraceMeanField_ELBO(particles, max_plate_nesting=2, vectorize_particles=particles > 1)
    expected = pyros_loss_and_gradients(reference, pair, fields)
    same(our_loss_and_gradients("trace_mean_field_elbo", pair, fields, particles=particles), expected)


@pytest.mark.parametrize("case", [case for case in CASES if case not in SCORED])
def test_the_mean_field_elbo_has_the_mean_of_the_other(case):
    """It takes the closed form where there is one, which is another estimate of the same."""
    pair = case()
    fields = pair.data()
    torch.manual_seed(0)
    with torch.no_grad():
        sampled, closed = (terms(pair, fields, 4000) for terms in (log_terms, elbo_terms))
    found = (closed.log_likelihood - closed.kl) - (sampled.log_likelihood - sampled.kl)
    assert found.abs().max() < 1e-9 or z_scores(found, 0.0).abs().max() < 5


# --- bounds -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_weights_are_unbiased_and_evaluators_agree_with_log_p_of_x(case):
    pair = case()
    fields = pair.data()
    with torch.no_grad():
        exact = log_marginal(pair, fields)
        torch.manual_seed(1)
        weights = (log_terms(pair, fields, 4000).log_weight - exact).exp()
    assert (weights - 1).abs().max() < 1e-9 or z_scores(weights, 1.0).abs().max() < 5
    if case in (*SUMMED_OUT, GuideChain):
        result = pv.evaluate(pair, fields, evaluator="importance", particles=500, progress=False)
        assert result.kind == "exact" and not result.warnings and not result.monte_carlo_error.any()
        assert torch.allclose(result.log_likelihood.double(), exact, rtol=1e-6)
    else:
        assert reasons_to_doubt(pair, fields, exact, particles=500, floor=1e-6) == []


# --- gradients ------------------------------------------------------------------------------------------------


def objective(name: str, **options):
    return plugins.build("objective", name, options)


@pytest.mark.parametrize("case", [Label, MixturePrior, Both, GuideChain, PartlyLabelled, Words])
def test_beta_weighs_the_divergence(case):
    pair = case()
    fields = pair.data()
    torch.manual_seed(7)
    by_hand = sums_by_hand(pair, fields, run_guide(pair, fields, summing=True))
    loss = (0.3 * (by_hand.log_guide - by_hand.log_prior) - by_hand.log_likelihood).mean()
    same(our_loss_and_gradients("trace_enum_elbo", pair, fields, beta=0.3), [loss, *gradients(pair, loss)])


def tables(pair: Drawn, x: Tensor) -> tuple[Tensor, Tensor]:
    """log p(x, y, k) and log q(y, k|x), [n, y, k] each; q(k|x) where the model enumerates y."""
    p = torch.log_softmax(pair.first, 0)[:, None] + torch.log_softmax(pair.second, 1)
    p = p + normal_log_prob(x[:, None, None], pair.centres, 1.0)
    values = torch.arange(2.0, dtype=x.dtype)
    if type(pair) is Drawn:
        q = torch.log_softmax(pair.logits + x[:, None] * pair.slopes, 1)[:, :, None]
        return p, q + torch.log_softmax(pair.moves, 1)
    q = torch.log_softmax(pair.moves[0] + x[:, None] * pair.moves[1], 1)[:, None]
    if type(pair) is DrawnFirst:
        q = q + torch.log_softmax(pair.logits + pair.slopes * values[:, None], 1).T
    return p, q


def gradient_draws(loss, pair: nn.Module, fields: Fields, repeats: int = 60, particles: int = 100) -> list[Tensor]:
    """For each parameter, its gradient in each of several runs."""
    torch.manual_seed(3)
    runs = [gradients(pair, loss(pair, fields, particles)) for _ in range(repeats)]
    return [torch.stack(column) for column in zip(*runs, strict=True)]


def check_unbiased(draws: list[Tensor], expected: list[Tensor]) -> None:
    for found, exact in zip(draws, expected, strict=True):
        error = found.std(0) / len(found) ** 0.5 + 1e-9
        assert ((found.mean(0) - exact) / error).abs().max() < 5


@pytest.mark.parametrize("case", SCORED)
def test_a_site_that_is_drawn_beside_enumerated_ones_has_unbiased_gradients(case):
    pair = case()
    fields = pair.data()
    p, q = tables(pair, fields["x"])
    p = p.logsumexp(1, keepdim=True) if case is DrawnBeside else p
    elbo = (q.exp() * (p - q)).sum((1, 2)).mean()
    check_unbiased(gradient_draws(objective("trace_elbo"), pair, fields), gradients(pair, -elbo))


def test_the_bound_of_several_particles_has_unbiased_gradients_where_the_model_enumerates():
    pair = DrawnBeside()
    fields = pair.data()
    p, q = tables(pair, fields["x"])
    p, q = p.logsumexp(1), q[:, 0]
    w = p - q
    both = torch.logaddexp(w[:, :, None], w[:, None]) - torch.tensor(2.0).log()
    bound = ((q[:, :, None] + q[:, None]).exp() * both).sum((1, 2)).mean()
    repeated = {"x": fields["x"].repeat(100)}
    loss = objective("iwae", gradient="vimco")
    check_unbiased(gradient_draws(lambda *given: loss(*given[:2], 2), pair, repeated), gradients(pair, -bound))


def test_doubly_reparameterised_gradients_have_the_mean_of_the_others_where_the_model_enumerates():
    pair = MixturePrior()
    repeated = {"x": pair.data()["x"].repeat(100)}
    draws = [
        gradient_draws(lambda *given, g=gradient: objective("iwae", gradient=g)(*given[:2], 3), pair, repeated)
        for gradient in ("pathwise", "dreg")
    ]
    for one, other in zip(*draws, strict=True):
        error = ((one.var(0) + other.var(0)) / len(one)).sqrt()
        assert ((one.mean(0) - other.mean(0)).abs() <= 5 * error + 1e-9).all()


# --- how it runs ----------------------------------------------------------------------------------------------

TRACED = (MixturePrior, Tree, Label, Both, Chain, TwoChains, GuideChain, Words, WordsLast, PartlyLabelled)


@pytest.mark.parametrize("case", TRACED)
def test_a_compiled_step_is_the_eager_step(case, graphs):
    pair = case()
    loss, fields = Loss(pair, objective("trace_elbo"), 2, data_size=100), pair.data()
    engine = choose_step("compiled", loss, fields, 1)
    assert engine.name == "compiled", engine.reason
    for size in (4, 3):
        some = {name: value[:size] for name, value in fields.items()}
        found = []
        for run in (engine.run, EagerStep(loss)):
            torch.manual_seed(5)
            found.append([run(some, torch.tensor(0.3)), *[p.grad for p in pair.parameters()]])
            pair.zero_grad()
        for ours, reference in zip(*found, strict=True):
            assert (ours is None) == (reference is None)
            assert ours is None or torch.allclose(ours, reference, **EXACT)


@pytest.mark.parametrize("case", [MixturePrior, Label, Words, Switching])
def test_a_compiled_evaluation_is_the_eager_one(case, graphs):
    pair = case()
    found = [
        pv.evaluate(pair, pair.data(), "importance", 20, progress=False, engine=engine)
        for engine in ("compiled", "eager")
    ]
    assert found[0].estimate.summary["engine"] == "compiled (asked for)"
    assert torch.allclose(found[0].log_likelihood, found[1].log_likelihood, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "lengths"), [(Label, 1), (Chain, 4)])
def test_a_compiled_run_is_the_eager_run_with_a_graph_for_each_length(case, lengths, compilations):
    options = {"epochs": 4, "batch_size": 2, "lr": 1e-2, "kl_warmup": 2, "progress": False}
    runs = [pv.train(case(), case().data(), engine=engine, **options) for engine in ("compiled", "eager")]
    assert runs[0].engine == "compiled", runs[0].notes
    assert 1 <= len(compilations) <= lengths
    for (name, value), reference in zip(runs[0].pair.named_parameters(), runs[1].pair.parameters(), strict=True):
        assert torch.allclose(value, reference, atol=1e-6), name


def test_sequential_enumeration_is_taken_as_parallel_and_said():
    class Sequential(Mixture):
        def model(self, x):
            with pyro.plate("data", len(x)):
                y = pyro.sample("y", dist.Categorical(logits=self.weights), infer={"enumerate": "sequential"})
                pyro.sample("x", normal(self.centres[y], self.noise), obs=x)

    pair = Sequential()
    with pytest.warns(UserWarning, match="site 'y' is enumerated in parallel, not sequentially"):
        terms = log_terms(pair, pair.data())
    assert torch.equal(terms.log_weight, log_terms(Mixture(), pair.data()).log_weight)
