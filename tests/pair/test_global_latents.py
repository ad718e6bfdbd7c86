"""Latents that all data share: what they must keep, and what a pair makes with them."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from global_pairs import LDA, PARALLEL, Decoder, Mixture, coins, full, parameter
from pyro import poutine
from torch import nn

import pyro_vae as pv
from pyro_vae.errors import ContractError
from pyro_vae.pair import generation
from pyro_vae.pair.global_latents import Held, draw_globals, held_at_a_draw, look_at_globals
from pyro_vae.pair.particles import FOLDED, LOOPED, OWN_DIM, ways
from pyro_vae.pair.sites import observed
from pyro_vae.pair.structure import structure_of
from pyro_vae.pair.terms import log_terms
from pyro_vae.testing import CHECKS, check_pair


class Sound(nn.Module):
    """A level of all data, and a latent of each; places at which the others break it."""

    def __init__(self):
        super().__init__()
        self.gain, self.scale = parameter(), nn.Parameter(full(0.5))

    def model(self, x):
        self.level(x)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(full(0.0), 1.0))
            self.observe(z, x)

    def level(self, x):
        self.value = pyro.sample("level", dist.Normal(full(0.0), 1.0))

    def observe(self, z, x):
        pyro.sample("x", dist.Normal(z, self.scale.exp()), obs=x)

    def guide(self, x):
        self.guess(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.gain * x, 1.0))

    def guess(self, x):
        pyro.sample("level", dist.Normal(self.gain, 1.0))


LINES = {}


def breach(line: str):
    def register(kind: type[nn.Module]) -> type[nn.Module]:
        LINES[kind] = line
        return kind

    return register


HELD = "no draw of it can be held for all data"


@breach(f"'level' .* in the guide it depends on the batch.*{HELD}")
class Amortised(Sound):
    def guess(self, x):
        pyro.sample("level", dist.Normal(self.gain * x.mean(), 1.0))


@breach(f"'level' .* in the guide it depends on the batch.*{HELD}")
class AmortisedPoint(Sound):
    def guess(self, x):
        pyro.sample("level", dist.Delta(self.gain * x.mean()))


@breach(f"'level' .* in the guide it depends on the batch.*{HELD}")
class OfItsSize(Sound):
    def guess(self, x):
        pyro.sample("level", dist.Normal(self.gain, 1.0 / len(x)))


@breach(f"'level' .* in the guide it depends.* on latents of the data.*{HELD}")
class AfterTheData(Sound):
    def guide(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(full(0.0), 1.0))
        pyro.sample("level", dist.Normal(z.mean(), 1.0))


@breach(f"'level' .* in the model it depends.* on latents of the data.*{HELD}")
class PriorOfTheData(Sound):
    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(full(0.0), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        pyro.sample("level", dist.Normal(z.mean(), 1.0))


@breach("'kind' is outside the data plate, where enumerating it ties all data together.*draw it in the guide")
class Enumerated(Sound):
    def level(self, x):
        pyro.sample("kind", dist.Categorical(full(0.5, 2)), infer=PARALLEL)
        super().level(x)


@breach("'z' is outside the data plate")
class InOnePlateOnly(Sound):
    def guide(self, x):
        self.guess(x)
        pyro.sample("z", dist.Normal(full(0.0, 1), 1.0).expand([len(x)]))


@breach("'seen' is outside the data plate")
class SeenOutside(Sound):
    def level(self, x):
        super().level(x)
        pyro.sample("seen", dist.Normal(full(0.0), 1.0), obs=full(0.3))


@breach("'level' of the model is scaled by 0.1")
class Scaled(Sound):
    def level(self, x):
        with poutine.scale(scale=0.1):
            super().level(x)


@breach("latent site 'level' is not in the guide")
class Lacking(Sound):
    def guess(self, x):
        pass


@breach("'level': the guide cannot draw all that the prior draws")
class HalfOfIt(Sound):
    def guess(self, x):
        pyro.sample("level", dist.LogNormal(self.gain, 1.0))


@breach("the guide's auxiliary site 'u' leaves the latents without a density")
class NoFunction(Sound):
    def guess(self, x):
        u = pyro.sample("u", dist.Normal(full(0.0, 2), 1.0).to_event(1), infer={"is_auxiliary": True})
        pyro.sample("level", dist.Delta(u.sum()))


def fields() -> dict[str, torch.Tensor]:
    return {"x": torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))}


@pytest.mark.parametrize("kind", LINES, ids=lambda kind: kind.__name__)
def test_what_cannot_be_held_is_named(kind):
    for evaluator in ("importance", "elbo"):
        with pytest.raises(ContractError, match=LINES[kind]) as caught:
            pv.evaluate(kind(), fields(), evaluator, progress=False)
        assert "\n" not in str(caught.value)


def test_a_prior_that_is_no_density_leaves_the_predictive_density():
    class Improper(Sound):
        def level(self, x):
            pyro.sample("level", dist.ImproperUniform(torch.distributions.constraints.real, (), ()))

    result = pv.evaluate(Improper(), fields(), "importance", 5, progress=False)
    assert result.log_predictive.isfinite().all() and result.data_set is None
    assert any("no bound" in line and "improper" in line for line in result.warnings)
    assert pv.evaluate(Improper(), fields(), "elbo", progress=False).data_set.quantity == "loss"


def test_a_latent_before_the_globals_in_the_guide_is_no_obstacle():
    class DataFirst(Sound):
        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.gain * x, 1.0))
            self.guess(x)

    assert pv.evaluate(DataFirst(), fields(), "importance", 5, progress=False).log_predictive.isfinite().all()


def test_a_discrete_latent_of_all_data_is_drawn():
    class Kind(Sound):
        def level(self, x):
            self.value = pyro.sample("level", dist.Bernoulli(full(0.3)))

        def observe(self, z, x):
            pyro.sample("x", dist.Normal(z + 2 * self.value, 1.0), obs=x)

        def guess(self, x):
            pyro.sample("level", dist.Bernoulli(full(0.5)))

    result = pv.evaluate(Kind(), fields(), "importance", 2000, progress=False, global_draws=40).data_set
    x = fields()["x"]
    each = [dist.Normal(2.0 * k, 2**0.5).log_prob(x).sum() + torch.tensor(p).log() for k, p in ((0, 0.7), (1, 0.3))]
    assert abs(result.nats - torch.stack(each).logsumexp(0)) < 4 * result.monte_carlo_error + 0.2


def test_the_data_plate_is_seen_where_the_guide_has_none():
    pair, data = coins(n=3)
    structure = structure_of(pair, data)
    assert structure.model.name == "throws" and structure.guide.name is None and structure.outside == {"rate"}


@pytest.mark.parametrize("kind", [Sound, Decoder, LDA, Mixture])
def test_what_is_left_has_terms_of_each_datum_at_once(kind):
    pair = kind()
    batch = pair.data() if hasattr(pair, "data") else fields()
    held = held_at_a_draw(pair, batch)
    assert ways(pair, batch).model == LOOPED and ways(held, batch).model in (OWN_DIM, FOLDED)
    assert not structure_of(held, batch).outside and look_at_globals(held, batch) is None
    terms = log_terms(held, batch, 3)
    assert terms.shared is None and terms.log_weight.shape == (3, len(batch["x"]))
    assert check_pair(pair, batch) == list(CHECKS)


def test_held_values_are_those_that_the_model_has():
    torch.manual_seed(0)
    pair = Decoder()
    batch = pair.data()
    draws = [draw_globals(pair, batch) for _ in range(2)]
    held = Held(pair, draws[0].values)
    for draw in draws:
        held.hold(draw.values)
        log_weight = log_terms(held, batch, 2000).log_weight
        bound, exact = log_weight.logsumexp(0) - math.log(2000), pair.log_marginal(batch["x"], draw.values["weight"])
        error = (2 * log_weight.logsumexp(0) - (2 * log_weight).logsumexp(0)).exp().rsqrt()
        assert ((bound - exact).abs() < 5 * error).all()


def test_encodings_of_all_batches_are_given_one_draw(monkeypatch):
    class Following(Sound):
        def guide(self, x):
            level = pyro.sample("level", dist.Normal(self.gain, 1.0))
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(level, 1.0).expand([len(x)]))

    monkeypatch.setattr(generation, "CHUNK", 2)
    codes = generation.encode(Following(), pv.Split(fields()))
    assert (codes["z_mean"] == codes["z_mean"][0]).all() and codes["level_mean"].shape == ()
    assert codes["level_scale"].item() == 1.0


def test_samples_have_one_draw_of_what_was_learnt():
    pair = Decoder()
    with torch.no_grad():
        pair.log_scale.fill_(-20.0)
    sites = generation.sample(pair, {"x": torch.zeros(5, 4).double()})
    assert torch.allclose(sites["weight"].raw, pair.loc) and sites["weight"].raw.shape == (4, 2)
    assert sites["z"].raw.shape == (5, 2) and observed(sites)["x"].raw.shape == (5, 4)
    from_prior = generation.sample_prior(pair, {"x": torch.zeros(5, 4).double()})
    assert not torch.allclose(from_prior["weight"].raw, pair.loc)


def test_a_reconstruction_has_one_draw_for_all():
    pair = Decoder()
    sites = generation.reconstruct(pair, pair.data())
    with torch.no_grad():
        means = pair.encoder(pair.data()["x"])[:, :2] @ pair.loc.T
    assert torch.allclose(sites["x"].fn.mean, means)
