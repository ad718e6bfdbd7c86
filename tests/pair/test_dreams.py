"""Dreams: draws of p(x, z) as fields, whatever part of them a site observes; and what is no such draw."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs import bits
from references import Conditional, TwoLayers
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.errors import ContractError
from pyro_vae.pair.dreams import Dream, dream

STEPS, TINY = 3, 1e-6


class Observing(nn.Module):
    """z ~ N(0, 1); x_t is z + t, up to a rounding, as some program observes it."""

    missing: tuple[str, ...] = ()

    def __init__(self, observe):
        super().__init__()
        self.observe, self.unused = observe, nn.Parameter(torch.zeros(()))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            self.observe(x, z)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))


def near(loc: Tensor) -> dist.Normal:
    return dist.Normal(loc, TINY)


def whole(x, z):
    pyro.sample("x", near(z.unsqueeze(-1) + torch.arange(STEPS)).to_event(1), obs=x)


def step_by_step(x, z):
    for t in range(STEPS):
        pyro.sample(f"x_{t}", near(z + t), obs=x[:, t])


def each_from_the_last(x, z):
    last = pyro.sample("x_0", near(z), obs=x[..., 0])
    for t in range(1, STEPS):
        last = pyro.sample(f"x_{t}", near(last + 1), obs=x[..., t])


def backwards(x, z):
    for t in reversed(range(STEPS)):
        pyro.sample(f"x_{t}", near((z + t).unsqueeze(-1)).to_event(1), obs=x[:, t : t + 1])


def in_a_plate(x, z):
    with pyro.plate("steps", STEPS):
        pyro.sample("x", near(z + torch.arange(STEPS).unsqueeze(-1)), obs=x.T)


def with_a_deterministic_site(x, z):
    later = pyro.deterministic("later", z.unsqueeze(-1) + torch.arange(STEPS), event_dim=1)
    pyro.sample("x", near(later).to_event(1), obs=x)


def flattened(x, z):
    pyro.sample("x", near(z.unsqueeze(-1) + torch.arange(STEPS)).to_event(1), obs=x.unsqueeze(1).flatten(1))


WAYS = [whole, step_by_step, each_from_the_last, backwards, in_a_plate, with_a_deterministic_site, flattened]


def dreamt(observe, x: Tensor | None = None, missing: tuple[str, ...] = ()) -> Dream:
    pair = Observing(observe)
    pair.missing = missing
    return dream(pair, {"x": torch.randn(5, STEPS) if x is None else x}, "do without")


@pytest.mark.parametrize("observe", WAYS)
def test_what_is_drawn_stands_where_it_is_observed(observe):
    x = torch.randn(5, STEPS)
    found, kept = dreamt(observe, x), x.clone()
    expected = found.latents["z"][0].unsqueeze(1) + torch.arange(STEPS)
    assert torch.allclose(found.fields["x"], expected, atol=1e-4) and torch.equal(x, kept)
    assert found.latents["z"].std() > 0.1


def test_a_field_that_lies_otherwise_in_memory_is_no_matter():
    for x in (torch.randn(STEPS, 5).T, torch.randn(20, STEPS)[3::4], torch.randn(5, 1).expand(5, STEPS)):
        for observe in WAYS:
            found = dreamt(observe, x)
            assert torch.allclose(
                found.fields["x"], found.latents["z"][0].unsqueeze(1) + torch.arange(STEPS), atol=1e-4
            )


def test_what_no_site_observes_stays():
    def first(x, z):
        pyro.sample("x_0", near(z + x[:, 2]), obs=x[:, 0])

    x = torch.randn(5, STEPS)
    found = dreamt(first, x)
    assert torch.equal(found.fields["x"][:, 1:], x[:, 1:])
    assert torch.allclose(found.fields["x"][:, 0], found.latents["z"][0] + x[:, 2], atol=1e-4)


def test_gaps_stay_gaps():
    x = torch.randn(5, STEPS)
    x[0, 1] = x[3, 2] = torch.nan
    found = dreamt(step_by_step, x, missing=("x",)).fields["x"]
    assert torch.equal(found.isnan(), x.isnan())


def test_dreams_follow_the_model_and_keep_what_it_conditions_on():
    torch.manual_seed(0)
    pair = TwoLayers()
    found = dream(pair, {"picture": torch.zeros(40_000, 4).double()}, "do without")
    upper, lower, seen = found.latents["upper"][0], found.latents["lower"][0], found.fields["picture"]
    for pairs, expected in (
        ((seen, seen), pair.covariance()),
        ((upper, seen), pair.v.T @ pair.w.T),
        ((upper, lower), pair.v.T),
    ):
        assert torch.allclose(pairs[0].T @ pairs[1] / 40_000, expected.detach(), atol=0.03)
    conditional = Conditional()
    fields = {"target": torch.zeros(6, 4).double(), "context": torch.randn(6, 3).double()}
    assert torch.equal(dream(conditional, fields, "do without").fields["context"], fields["context"])


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_a_dream_has_the_type_of_its_field(dtype):
    def coin(x, z):
        logits = torch.stack([z, -z], -1)
        fn = dist.Categorical(logits=logits) if dtype == torch.int64 else dist.Bernoulli(logits=z)
        pyro.sample("x", fn, obs=x)

    found = dreamt(coin, torch.ones(50).to(dtype)).fields["x"]
    assert found.dtype == dtype and 0 < found.float().mean() < 1


@pytest.mark.parametrize("observe", [step_by_step, whole])
def test_random_numbers_go_on_as_they_would_when_a_pair_is_looked_at(observe):
    pair, x = Observing(observe), {"x": torch.randn(5, STEPS)}
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        found.append(dream(pair, x, "do without").fields["x"])
    assert torch.equal(*found)


def forced(x, z):
    pyro.sample("x_0", near(z), obs=x[:, 0])
    for t in range(1, STEPS):
        pyro.sample(f"x_{t}", near(x[:, t - 1] + 1), obs=x[:, t])


def twice(x, z):
    pyro.sample("x_0", near(z), obs=x[:, 0])
    pyro.sample("x_1", near(-z), obs=x[:, 0])


def by_a_function(x, z):
    pyro.sample("x", near(z), obs=x.sum(1))


def other_shape(x, z):
    pyro.sample("x", near(z.unsqueeze(-1)).to_event(1), obs=x)


def factored(x, z):
    whole(x, z)
    pyro.factor("bonus", z)


REFUSED = {
    forced: "site 'x_1' depends on data that the model observes in another way",
    twice: "'x_0' depends on data that the model observes in another way",
    by_a_function: "'x' observes no field as it is given, nor a part of one.*write obs=the field",
    other_shape: "'x' observes no field as it is given",
    factored: "'bonus' is a pyro.factor, so nothing can be drawn",
}


@pytest.mark.parametrize("observe", REFUSED)
def test_what_is_no_draw_of_the_model_is_refused_by_name(observe):
    with pytest.raises(ContractError, match=REFUSED[observe] + ".*do without"):
        dreamt(observe)


def test_a_vae_with_gaps_and_a_conditional_one_dream():
    x = bits(12)
    x[2, 0, 1, 1] = torch.nan
    vae = pv.VAE(x.shape[1:], 2, missing="marginalise", encoder_mask=True)
    assert pv.objectives.WakeSleep()(vae, {"x": x}).isfinite()
    fields = {"x": bits(12), "context": bits(12, (3,)), "mask": torch.ones(12, 1, 4, 4)}
    fields["mask"][:, :, :2] = 0.0
    cvae = pv.models.CVAE(x.shape[1:], (3,))
    found = dream(cvae, fields, "do without").fields
    assert torch.equal(found["x"][:, :, :2], fields["x"][:, :, :2]) and torch.equal(found["mask"], fields["mask"])
    assert not torch.equal(found["x"], fields["x"])
