"""Missing values: what a pair's terms are where its data hold NaN, and what is refused by name."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from missing_pairs import Asking, Joint, Linear, Loop, Mask, Mixture, Plates, Q, Undeclared, data

import pyro_vae as pv
from pyro_vae.errors import ContractError, DataError
from pyro_vae.pair.data_fit import check_support, observed_sites
from pyro_vae.pair.missing import FILL, LeaveOut, keep_means, marginalised
from pyro_vae.pair.missing_checks import check_missing
from pyro_vae.pair.particles import run_model
from pyro_vae.pair.terms import model_terms

WAYS = [Linear, Plates, Loop, Mask, Asking]


def values(particles, n, seed=0):
    z = torch.randn(particles, n, Q, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return {"z": z}, z


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("kind", WAYS)
def test_what_is_missing_counts_nowhere(kind, particles):
    pair, x = kind(), data(7)
    given, z = values(particles, len(x))
    found, _ = model_terms(pair, {"x": x}, given, particles)
    torch.testing.assert_close(found, pair.log_likelihood(z, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", WAYS)
def test_the_elements_that_count_are_those_that_are_observed(kind):
    pair, x = kind(), data(7)
    expected = (~x.isnan()).sum(1)
    if kind is Mask:
        expected = (~x[:, :-1].isnan()).sum(1) * (torch.arange(7) != 3)
    counted = sum(site.counted().squeeze(0) for site in observed_sites(pair, {"x": x}).values())
    assert torch.equal(counted.long(), expected)


@pytest.mark.parametrize("kind", [*WAYS, Mixture])
def test_gradients_are_those_of_what_is_observed(kind):
    """They are finite, and the same whatever would stand in the gaps."""
    pair, x = kind(), data(7)
    given, z = values(2, len(x))
    model_terms(pair, {"x": x}, given, 2)[0].sum().backward()
    if kind is not Mixture:
        written = torch.autograd.grad(pair.log_likelihood(z, x).sum(), [pair.w, pair.mean])
        for parameter, expected in zip((pair.w, pair.mean), written, strict=True):
            torch.testing.assert_close(parameter.grad, expected)
    assert all(p.grad.isfinite().all() for p in (pair.w, pair.mean))


@pytest.mark.parametrize("kind", WAYS)
def test_a_loss_has_finite_gradients(kind):
    pair, x = kind(), data(7)
    for name in ("TraceELBO", "TraceMeanFieldELBO", "IWAE"):
        loss = getattr(pv.objectives, name)()(pair, {"x": x}, particles=2)
        gradients = torch.autograd.grad(loss, list(pair.parameters()))
        assert loss.isfinite() and all(gradient.isfinite().all() for gradient in gradients)


LIKELIHOODS = {
    "bernoulli": lambda loc: dist.Bernoulli(logits=loc),
    "continuous_bernoulli": lambda loc: dist.ContinuousBernoulli(logits=loc),
    "poisson": lambda loc: dist.Poisson(loc.exp()),
    "gamma": lambda loc: dist.Gamma(loc.exp(), 1.0),
    "beta": lambda loc: dist.Beta(loc.exp(), 2.0),
    "log_normal": lambda loc: dist.LogNormal(loc, 1.0),
    "uniform": lambda loc: dist.Uniform(loc - 3.0, loc + 3.0),
    "student": lambda loc: dist.StudentT(4.0, loc, 1.0),
    "binomial": lambda loc: dist.Binomial(5, logits=loc),
    "zero_inflated": lambda loc: dist.ZeroInflatedPoisson(loc.exp(), gate=torch.full_like(loc, 0.2)),
    "categorical": lambda loc: dist.Categorical(logits=torch.stack([loc, -loc, loc + 1], -1)),
    "mixture": lambda loc: dist.MixtureSameFamily(
        dist.Categorical(logits=torch.stack([loc, -loc], -1)), dist.Normal(torch.stack([loc, loc + 2], -1), 1.0)
    ),
}


@pytest.mark.parametrize("fn", LIKELIHOODS.values(), ids=LIKELIHOODS)
def test_every_support_has_a_value_to_put_in_place(fn):
    """With a finite density, so that no gradient is NaN."""
    loc = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    whole = fn(loc).sample().double()
    x = whole.masked_fill(torch.eye(4, 3).bool(), torch.nan)
    with pyro.poutine.trace() as trace, pyro.validation_enabled(False), LeaveOut(), pyro.plate("data", 4):
        pyro.sample("x", fn(loc).to_event(1), obs=x)
    site = trace.trace.nodes["x"]
    found = site["fn"].log_prob(site["value"])
    expected = fn(loc).log_prob(whole).masked_fill(x.isnan(), 0.0).sum(1)
    torch.testing.assert_close(found, expected)
    slopes = [torch.autograd.grad(total.sum(), loc, retain_graph=True)[0] for total in (found, expected)]
    torch.testing.assert_close(*slopes)


def test_whole_events_are_left_out_and_parts_of_them_refused():
    pair, x = Joint(), data(6, share=0.0)
    x[1], x[4] = 1.0, torch.nan
    given, z = values(2, len(x))
    found, _ = model_terms(pair, {"x": x}, given, 2)
    torch.testing.assert_close(found, pair.log_likelihood(z, x))
    assert check_missing(pair, pv.Split({"x": x})).blank == [4]
    x[5, 1] = torch.nan
    with pytest.raises(ContractError, match=r"site 'x' lacks a part .*datum 5, .*MultivariateNormal depend on each"):
        check_missing(pair, pv.Split({"x": x}))
    assert model_terms(pair, {"x": x}, given, 2)[0][:, 5].isnan().all(), "never a number that is no log-probability"


# --- what the guide sees ------------------------------------------------------------------------------------


def test_the_guide_sees_the_means_or_zeros_and_the_mask_if_it_asks():
    seen = []

    class Watched(Linear):
        def guide(self, x):
            seen.append(x)
            super().guide(x)

    pair, x = Watched(), data(7)
    pv.log_terms(pair, {"x": x})
    assert torch.equal(seen[-1], x.nan_to_num(0.0))
    keep_means(pair, {"x": torch.arange(5.0)})
    pv.log_terms(pair, {"x": x})
    assert torch.equal(seen[-1], torch.where(x.isnan(), torch.arange(5.0, dtype=torch.float64), x))
    assert FILL + "x" not in pair.state_dict() and FILL + "x" in dict(pair.named_buffers())


def test_the_mask_is_made_for_those_that_name_it_and_for_no_others():
    from pyro_vae.pair.pair import select_fields

    x = data(7)
    fields = select_fields(Asking(), {"x": x})
    assert list(fields) == ["x", "x_observed"] and torch.equal(fields["x_observed"], ~x.isnan())
    assert list(select_fields(Linear(), {"x": x})) == ["x"]
    with pytest.raises(DataError, match="x_observed is made from what x lacks"):
        check_missing(Asking(), pv.Split({"x": x, "x_observed": ~x.isnan()}))


def test_a_pair_that_does_not_declare_it_can_be_made_to_allow_it():
    pair, x = Undeclared(), data(7)
    allowing = marginalised(pair, ("x",))
    given, z = values(2, len(x))
    found, _ = model_terms(allowing, {"x": x}, given, 2)
    torch.testing.assert_close(found, pair.log_likelihood(z, x))
    assert type(allowing).__name__ == "Undeclared" and pair.missing == () and allowing.scale == pair.scale
    assert marginalised(Linear(), ("x",)).missing == ("x",) and dict(allowing.named_parameters())["pair.w"] is pair.w


# --- refused ------------------------------------------------------------------------------------------------


class Used(Linear):
    """The model uses x for more than what it observes."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.of(x) @ self.gain.T, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.loc(z), 0.7).to_event(1), obs=x)


class ThatGivesNaN(Used):
    def of(self, x):
        return x


class ThatHidesNaN(Used):
    def of(self, x):
        return (x > 0).to(x.dtype)


class ThatFillsNaN(Used):
    def of(self, x):
        return x.nan_to_num(0.0)


class ThatObservesTooMuch(Linear):
    """What is missing is observed as False."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(Q), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.loc(z)).to_event(1), obs=(x > 0).to(x.dtype))


class ThatFails(Linear):
    """A net that cannot take NaN."""

    def model(self, x):
        dist.Categorical(logits=x).sample()
        super().model(x)


class Autoregressive(Linear):
    """Each element follows the one before it."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(Q), 1.0).to_event(1))
            before = torch.cat([torch.zeros_like(x[..., :1]), x[..., :-1]], -1)
            pyro.sample("x", dist.Normal(self.loc(z) + 0.5 * before, 0.7).to_event(1), obs=x)


USES = {
    ThatGivesNaN: "site 'z'",
    ThatHidesNaN: "site 'z'",
    ThatFillsNaN: "site 'z'",
    ThatObservesTooMuch: "site 'x'",
    ThatFails: "the model fails",
    Autoregressive: "site 'x'",
}


@pytest.mark.parametrize("kind, words", USES.items())
def test_a_model_that_uses_what_is_missing_is_refused_by_name(kind, words):
    x = data(20)
    with pytest.raises(ContractError, match=rf"{words}.* 'x'"):
        pv.evaluate(kind(), x, progress=False)
    with pytest.raises(ContractError, match=words):
        pv.train(kind(), x, epochs=1, batch_size=6, progress=False)
    pv.evaluate(kind(), x.nan_to_num(0.1), progress=False)  # where nothing is missing there is nothing to refuse


def test_what_is_missing_in_later_data_alone_is_found_out():
    """The first of the data say nothing of it."""
    x = data(40, share=0.0)
    x[1], x[30, 3] = 1.0, torch.nan
    with pytest.raises(ContractError, match="site 'x' of the model depends on missing values of 'x'"):
        check_missing(Autoregressive(), pv.Split({"x": x}))
    x[30, 3], x[30, 4] = 1.0, torch.nan
    check_missing(Autoregressive(), pv.Split({"x": x}))  # nothing follows the last


def test_a_missing_value_where_nothing_allows_it_is_named():
    x = data(30, share=0.0)
    x[1], x[17, 2] = 1.0, torch.nan
    for use in (pv.evaluate, lambda pair, data, **how: pv.train(pair, data, epochs=1, batch_size=9, **how)):
        with pytest.raises(DataError, match=r"x\[17, 2\] is nan, .*Undeclared does not allow .*missing = \('x',\)"):
            use(Undeclared(), x, progress=False)
    two = {"x": data(30), "y": torch.zeros(30).index_fill(0, torch.tensor([4]), torch.nan)}

    class WithContext(Linear):
        def model(self, x, y):
            super().model(x)

        def guide(self, x, y):
            super().guide(x)

    with pytest.raises(DataError, match=r"y\[4\] is nan"):
        pv.evaluate(WithContext(), two, progress=False)
    with pytest.raises(DataError, match=r"x\[17, 2\] is nan"):
        pv.inference_data(Undeclared(), x, draws=2)
    with pytest.raises(ContractError, match=r"x\[17, 2\] is nan"):
        pv.testing.check_pair(Undeclared(), {"x": x})


def test_a_declaration_that_fits_nothing_is_one_line():
    class Misspelt(Linear):
        missing = ("y",)

    class Word(Linear):
        missing = "x"

    with pytest.raises(ContractError, match="missing names 'y', but Misspelt is given x"):
        pv.evaluate(Misspelt(), data(5), progress=False)
    with pytest.raises(ContractError, match=r"missing = 'x' must be a tuple .*missing = \('x',\)"):
        pv.evaluate(Word(), data(5), progress=False)


def test_the_support_of_what_is_there_is_still_checked():
    pair = pv.VAE((4,), hidden=(3,), missing="marginalise")
    x = torch.tensor([[0.0, 1.0, torch.nan, 1.0], [1.0, torch.nan, 0.3, 0.0]])
    with pytest.raises(DataError, match=r"x\[1\] holds 0.3: a Bernoulli likelihood needs 0 or 1"):
        check_support(pair, pv.Split({"x": x}))
    check_support(pair, pv.Split({"x": x[:1]}))


@pytest.mark.parametrize("kind", [*WAYS, Mixture])
def test_a_pair_that_allows_it_keeps_the_contract(kind):
    class Fitted(kind):
        """Whose guide gets a gradient for all of its parameters."""

    assert len(pv.testing.check_pair(Fitted(), {"x": data(12)})) > 5


# --- Pyro's obs_mask ----------------------------------------------------------------------------------------


class Partly(Linear):
    """Some data are not observed."""

    missing = ()

    def model(self, x, known):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(Q), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.loc(z), self.scale).to_event(1), obs=x, obs_mask=known)

    def guide(self, x, known):
        super().guide(x)


def partly(n=6, all_known=False):
    x = data(n, share=0.0)
    x[1] = 0.5
    return {"x": x, "known": torch.ones(n).bool() if all_known else torch.arange(n) % 3 > 0}


def test_an_unobserved_site_that_nothing_depends_on_is_left_out():
    pair, batch = Partly(), partly()
    given, z = values(3, 6)
    sites = run_model(pair, batch, given, 3)
    assert list(sites) == ["z", "x_observed"]
    expected = pair.log_likelihood(z, batch["x"]) * batch["known"]
    torch.testing.assert_close(model_terms(pair, batch, given, 3)[0], expected)
    result = pv.evaluate(pair, batch, "importance", 400, progress=False)
    exact = pair.log_marginal(batch["x"]) * batch["known"]
    assert ((result.log_likelihood - exact).abs() < 5 * result.monte_carlo_error + 1e-9).all()
    run = pv.train(Partly(), partly(40), epochs=2, batch_size=9, progress=False)
    assert run.history[-1]["valid_elbo"] < 0


class Followed(Partly):
    """Another site depends on the values."""

    def model(self, x, known):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(Q), 1.0).to_event(1))
            whole = pyro.sample("x", dist.Normal(self.loc(z), self.scale).to_event(1), obs=x, obs_mask=known)
            pyro.sample("sum", dist.Normal(whole.sum(-1), 1.0), obs=x.sum(-1))


class Counted(Partly):
    """A latent of two values, which another site depends on."""

    def model(self, x, known):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(Q), 1.0).to_event(1))
            flag = pyro.sample("flag", dist.Bernoulli(x.new_tensor(0.999)), obs=(x[:, 0] > 0).to(x), obs_mask=known)
            loc = self.loc(z) + flag.unsqueeze(-1)
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)


@pytest.mark.parametrize("all_known", [False, True], ids=["some_known", "all_known"])
@pytest.mark.parametrize("kind, site, other", [(Followed, "x_unobserved", "sum"), (Counted, "flag_unobserved", "x")])
def test_an_unobserved_site_that_others_depend_on_is_refused_by_name(kind, site, other, all_known):
    with pytest.raises(ContractError, match=f"site '{site}', which Pyro's obs_mask makes, .* site '{other}' depends"):
        pv.log_terms(kind(), partly(all_known=all_known))


def test_an_unobserved_site_that_the_guide_draws_is_a_latent_like_others():
    class Drawn(Followed):
        def guide(self, x, known):
            super().guide(x, known)
            with pyro.plate("data", len(x)), pyro.poutine.mask(mask=~known):
                pyro.sample("x_unobserved", dist.Normal(self.mean, 1.3).to_event(1))

    terms = pv.log_terms(Drawn(), partly(), 2)
    assert terms.log_weight.isfinite().all() and terms.log_weight.shape == (2, 6)

    class DrawnEverywhere(Followed):
        def guide(self, x, known):
            super().guide(x, known)
            with pyro.plate("data", len(x)):
                pyro.sample("x_unobserved", dist.Normal(self.mean, 1.3).to_event(1))

    with pytest.raises(ContractError, match="'x_unobserved' is masked in one of the two programs only"):
        pv.log_terms(DrawnEverywhere(), partly())


def test_values_that_are_not_observed_may_be_nan_where_that_is_declared():
    class Declared(Partly):
        missing = ("x",)

    batch = partly()
    hidden = {**batch, "x": batch["x"].masked_fill(~batch["known"].unsqueeze(1), torch.nan)}
    given, z = values(2, 6)
    pair = Declared()
    found = model_terms(pair, hidden, given, 2)[0]
    torch.testing.assert_close(found, pair.log_likelihood(z, batch["x"]) * batch["known"])
    found.sum().backward()
    assert pair.w.grad.isfinite().all()


def test_a_pair_without_missing_values_is_not_touched():
    """No messenger, no mask: its distributions are its own."""
    pair = Undeclared()
    site = observed_sites(pair, {"x": data(5, share=0.0).nan_to_num(0.0)})["x"]
    assert isinstance(site.fn.base_dist, torch.distributions.Normal) and site.given is site.raw


def test_an_objective_of_pyros_leaves_out_the_same():
    """TraceGraph_ELBO runs the programs itself."""
    for pair, batch in ((Linear(), {"x": data(7)}), (Partly(), partly())):
        losses = []
        for objective in (pv.objectives.TraceGraphELBO(), pv.objectives.TraceELBO()):
            torch.manual_seed(0)
            losses.append(objective(pair, batch, particles=1))
        torch.testing.assert_close(*losses)
