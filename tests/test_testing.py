"""`check_pair` passes sound pairs and says in words what is wrong with the others."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs import Clusters, bits, counts, small_vae
from torch import nn

import pyro_vae as pv
from pyro_vae.errors import ContractError
from pyro_vae.testing import CHECKS, check_pair


class Sound(pv.Pair):
    """One latent, one observation, and seams at which the others break it."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(3, 4), nn.Linear(2, 3)

    def z_prior(self, x):
        return dist.Normal(x.new_zeros(2), 1.0).to_event(1)

    def likelihood(self, z):
        return dist.Normal(self.decoder(z), 1.0).to_event(1)

    def posterior(self, x):
        loc, log_scale = self.encoder(x).chunk(2, -1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)

    def model(self, x):
        with self.plate(x.shape[0]):
            z = pyro.sample("z", self.z_prior(x))
            pyro.sample("x", self.likelihood(z), obs=x)

    def guide(self, x):
        with self.plate(x.shape[0]):
            pyro.sample("z", self.posterior(x))


class OutsideThePlate(Sound):
    def model(self, x):
        shift = pyro.sample("shift", dist.Normal(x.new_zeros(()), 1.0))
        with self.plate(x.shape[0]):
            z = pyro.sample("z", self.z_prior(x))
            pyro.sample("x", dist.Normal(self.decoder(z) + shift, 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.sample("shift", dist.Normal(x.new_zeros(()), 1.0))
        super().guide(x)


class Broadcast(Sound):
    def likelihood(self, z):
        return dist.Normal(self.decoder(z).sum(-1, keepdim=True), 1.0)


class Unused(Sound):
    def __init__(self):
        super().__init__()
        self.spare = nn.Parameter(torch.zeros(3))


class GuideLacks(Sound):
    def guide(self, x):
        with self.plate(x.shape[0]):
            pyro.sample("y", self.posterior(x))


class GuideHasMore(Sound):
    def guide(self, x):
        super().guide(x)
        with self.plate(x.shape[0]):
            pyro.sample("more", dist.Normal(x.new_zeros(len(x)), 1.0))


class OtherSupport(Sound):
    def z_prior(self, x):
        return dist.HalfNormal(x.new_ones(2)).to_event(1)


class OtherField(Sound):
    def model(self, picture):
        super().model(picture)

    def guide(self, picture):
        super().guide(picture)


class OtherFields(Sound):
    def guide(self, x, label):
        super().guide(x)


class Mixing(Sound):
    def posterior(self, x):
        return super().posterior(x - x.mean(0))


class Writing(Sound):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def model(self, x):
        self.calls += 1
        super().model(x)


class NotFinite(Sound):
    def posterior(self, x):
        return dist.Normal(self.encoder(x)[..., :2], (0 * self.encoder(x)[..., 2:]).log()).to_event(1)


class Bits(Sound):
    def likelihood(self, z):
        return dist.Bernoulli(logits=self.decoder(z)).to_event(1)


class Watching(Sound):
    def model(self, x):
        with self.plate(x.shape[0]):
            pyro.sample("z", self.z_prior(x))
            self.decoder(x[:, :2])


BROKEN = {
    Broadcast: "site 'x': a value of shape .* does not give one log-probability for each of the 6 data",
    Unused: "every parameter gets a gradient: parameter 'spare' gets no gradient",
    GuideLacks: "latent site 'z' is not in the guide",
    GuideHasMore: "the guide samples 'more', which the model lacks",
    OtherSupport: "for all data: site 'z'",
    OtherField: "needs the field 'picture'; the data have x",
    OtherFields: r"model takes \['x'\] but guide takes \['x', 'label'\]",
    Mixing: r"log q\(z\|x\) of a datum depends on the other data",
    Writing: "evaluation changed 'calls'",
    NotFinite: "not finite",
    Bits: "x.* holds .*: a Bernoulli likelihood needs 0 or 1",
    Watching: "the model observes nothing",
}


def batch() -> dict[str, torch.Tensor]:
    return {"x": torch.randn(6, 3, generator=torch.Generator().manual_seed(0))}


@pytest.mark.parametrize(
    "pair, fields",
    [
        (Sound(), batch()),
        (OutsideThePlate(), batch()),
        (small_vae(), {"x": bits(5)}),
        (Clusters(), {"counts": counts(7)}),
    ],
)
def test_sound_pairs_pass_every_check_and_are_left_as_they_were(pair, fields):
    state, rng = {name: value.clone() for name, value in pair.state_dict().items()}, torch.get_rng_state()
    assert check_pair(pair, fields) == list(CHECKS)
    assert torch.equal(torch.get_rng_state(), rng) and len(pyro.get_param_store()) == 0
    assert all(torch.equal(value, state[name]) for name, value in pair.state_dict().items())
    assert all(parameter.grad is None for parameter in pair.parameters())


def test_programs_that_know_their_net_by_name_are_sound():
    """Functions of a net outside of them, as attributes of a module."""
    pair, vae = nn.Module(), small_vae()
    pair.net, pair.model, pair.guide = vae, lambda x: vae.model(x), lambda x: vae.guide(x)
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    assert check_pair(pair, {"x": bits(5)}) == list(CHECKS)
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    assert all(parameter.grad is None for parameter in vae.parameters())


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
def test_what_is_wrong_is_said_in_words(kind):
    torch.manual_seed(0)
    with pytest.raises(ContractError, match=BROKEN[kind]) as caught:
        check_pair(kind(), batch())
    assert str(caught.value).startswith(f"{kind.__name__} fails ") and "\n" not in str(caught.value)


def test_all_failures_are_told_at_once():
    class Both(Unused, Writing):
        pass

    with pytest.raises(ContractError, match=r"fails 2 of 11 checks: \(1\) .*'spare'.*; \(2\) .*'calls'"):
        check_pair(Both(), batch())


def test_one_datum_is_too_few():
    with pytest.raises(ContractError, match="at least two data"):
        check_pair(Sound(), {"x": torch.zeros(1, 3)})


def test_a_batch_norm_is_judged_as_it_evaluates():
    pair = small_vae()
    pair.encoder.layers.append(nn.BatchNorm1d(8))
    assert check_pair(pair, {"x": bits(8)}) == list(CHECKS)


def test_a_batch_norm_without_running_statistics_is_named():
    pair = small_vae()
    pair.decoder.layers.append(nn.BatchNorm1d(8, track_running_stats=False))
    for refused in (lambda: check_pair(pair, {"x": bits(8)}), lambda: pv.evaluate(pair, bits(8), progress=False)):
        with pytest.raises(ContractError, match="depends on the other data.*BatchNorm without running statistics"):
            refused()
