"""From a run to ArviZ: draws of the posterior, with latents of each datum, of all data, and enumerated ones."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from enumerated import Chain as EnumeratedChain
from global_pairs import LDA, PARALLEL, Decoder, PointDecoder, full, parameter, regression
from torch import nn

import pyro_vae as pv
from pyro_vae.arviz_adapter import arviz
from pyro_vae.errors import ContractError, RunError

DRAWS = 30


def trained(pair: nn.Module, fields: dict[str, torch.Tensor], batch_size: int = 4) -> pv.Run:
    return pv.train(pair, fields, epochs=1, lr=1e-9, batch_size=batch_size, valid=fields, progress=False)


def test_latents_of_all_data_have_no_datum():
    pair = Decoder()
    run = trained(pair, pair.data())
    found = run.posterior(draws=DRAWS, limit=5)
    assert found["posterior"]["weight"].dims[:2] == ("chain", "draw") and found["posterior"]["weight"].shape[1:] == (
        30,
        4,
        2,
    )
    assert found["posterior"]["z"].dims[:3] == ("chain", "draw", "datum") and found["posterior"]["z"].shape == (
        1,
        30,
        5,
        2,
    )
    assert found["prior"]["weight"].shape == (1, 30, 4, 2) and found["prior"]["z"].shape == (1, 30, 5, 2)
    for group in ("posterior_predictive", "prior_predictive"):
        assert found[group]["x"].dims[:3] == ("chain", "draw", "datum") and found[group]["x"].shape == (1, 30, 5, 4)
    assert found["log_likelihood"]["x"].dims == ("chain", "draw", "datum")
    assert found["observed_data"]["x"].dims[0] == "datum"
    assert np.array_equal(found["observed_data"]["x"].values, pair.data()["x"][:5].numpy())
    stats = found["sample_stats"]
    assert stats["log_weight"].shape == (1, 30, 5) and stats["log_weight_shared"].dims == ("chain", "draw")


def test_draws_belong_together():
    """log_likelihood and the weights are those of the draws beside them."""
    pair = Decoder()
    found = trained(pair, pair.data()).posterior(draws=DRAWS, limit=5)
    weight, z = (torch.tensor(found["posterior"][name].values)[0] for name in ("weight", "z"))
    x = pair.data()["x"][:5]
    expected = dist.Normal(torch.einsum("sde,sne->snd", weight, z), 1.0).log_prob(x).sum(-1)
    assert np.allclose(found["log_likelihood"]["x"].values[0], expected)
    with torch.no_grad():
        loc, log_scale = pair.encoder(x).chunk(2, -1)
        ratio = dist.Normal(0.0, 1.0).log_prob(z) - dist.Normal(loc, log_scale.exp()).log_prob(z)
        of_all = dist.Normal(0.0, 1.0).log_prob(weight) - dist.Normal(pair.loc, pair.log_scale.exp()).log_prob(weight)
    assert np.allclose(found["sample_stats"]["log_weight"].values[0], expected + ratio.sum(-1))
    assert np.allclose(found["sample_stats"]["log_weight_shared"].values[0], of_all.sum((-1, -2)))


def test_the_posterior_of_a_regression():
    pair, fields = regression()
    found = trained(pair, fields).posterior(fields, draws=2000)
    draws = torch.tensor(found["posterior"]["w"].values)[0]
    error = draws.std(0) / math.sqrt(2000)
    assert ((draws.mean(0) - pair.loc.detach()).abs() < 4 * error).all()
    predicted = torch.tensor(found["posterior_predictive"]["y"].values)[0]
    assert ((predicted.mean(0) - fields["x"] @ pair.loc.detach()).abs() < 4 * predicted.std(0) / math.sqrt(2000)).all()
    before = torch.tensor(found["prior_predictive"]["y"].values)[0]
    assert torch.allclose(before.var(0), fields["x"].square().sum(1) + 0.25, rtol=0.2)


def test_it_is_written_and_read(tmp_path):
    pair = PointDecoder()
    run = trained(pair, pair.data())
    found = pv.export(run, draws=5, out=tmp_path / "run.nc")
    read = arviz.from_netcdf(str(tmp_path / "run.nc"))
    assert np.array_equal(read["posterior"]["weight"].values, found["posterior"]["weight"].values)
    assert read["sample_stats"].attrs["point_estimates"] == "weight" and "log_weight_shared" not in read["sample_stats"]
    assert (found["posterior"]["weight"].values == pair.loc.detach().numpy()).all()
    with pytest.raises(RunError, match="draws must be at least 1"):
        run.posterior(draws=0)


class Clusters(nn.Module):
    """y ~ Categorical, x ~ N(centres[y], 1); who enumerates y is told by `guided`."""

    def __init__(self, guided: bool):
        super().__init__()
        self.guided, self.logits, self.shift = guided, parameter(3), nn.Parameter(full(0.0))
        self.centres = torch.tensor([-2.0, 0.0, 2.0]).double()

    def model(self, x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=self.logits), infer=PARALLEL)
            pyro.sample("x", dist.Normal(self.centres[y] + self.shift, 1.0), obs=x)

    def guide(self, x):
        if self.guided:
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Categorical(logits=self.posterior(x)), infer=PARALLEL)

    def posterior(self, x):
        return self.logits + dist.Normal(self.centres, 1.0).log_prob(x[:, None])


@pytest.mark.parametrize("guided", [True, False])
def test_enumerated_sites_are_drawn_from_their_posterior(guided):
    pair = Clusters(guided)
    x = torch.tensor([-1.0, 0.3, 2.5]).double()
    found = pv.inference_data(pair, {"x": x}, draws=1500)
    drawn = torch.tensor(found["posterior"]["y"].values)[0]
    shares = torch.stack([(drawn == k).double().mean(0) for k in range(3)], 1)
    expected = pair.posterior(x).softmax(1).detach()
    error = (expected * (1 - expected) / 1500).sqrt()
    assert ((shares - expected).abs() < 4.5 * error).all()
    predicted = torch.tensor(found["posterior_predictive"]["x"].values)[0]
    means = expected @ pair.centres
    assert ((predicted.mean(0) - means).abs() < 4 * predicted.std(0) / math.sqrt(1500)).all()
    marginal = (pair.logits.log_softmax(0) + dist.Normal(pair.centres, 1.0).log_prob(x[:, None])).logsumexp(1).detach()
    weight = torch.tensor(found["sample_stats"]["log_weight"].values)[0]
    assert torch.allclose(weight, marginal.expand_as(weight)), "q(y|x) is exact, or y is summed out"
    notes = found["sample_stats"].attrs
    if guided:
        beside = dist.Normal(pair.centres[drawn], 1.0).log_prob(x)
        assert (
            np.allclose(found["log_likelihood"]["x"].values[0], beside) and "summed_out_of_log_likelihood" not in notes
        )
    else:
        assert np.allclose(found["log_likelihood"]["x"].values[0], marginal.expand_as(weight))
        assert notes["summed_out_of_log_likelihood"] == "y"


def test_topics_of_all_documents_and_words_of_each():
    torch.manual_seed(0)
    pair = LDA()
    found = pv.inference_data(pair, pair.data(), draws=6, limit=5)
    assert found["posterior"]["topic_words"].shape == (1, 6, 3, 5)
    assert found["posterior"]["doc_topics"].shape == (1, 6, 5, 3)
    assert found["posterior"]["word_topics"].shape == (1, 6, 5, 4)
    assert found["log_likelihood"]["doc_words"].shape == (1, 6, 5)
    assert found["posterior_predictive"]["doc_words"].shape == (1, 6, 5, 4)


def test_states_of_a_chain():
    pair = EnumeratedChain()
    found = pv.inference_data(pair, pair.data(), draws=4)
    assert all(found["posterior"][name].shape[:2] == (1, 4) for name in found["posterior"].data_vars)
    assert len(found["log_likelihood"].data_vars) == 1 and len(found["observed_data"].data_vars) > 1


def test_a_point_mass_on_a_latent_of_the_data_is_refused():
    class Point(Decoder):
        def guide(self, x):
            self.weights()
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Delta(self.encoder(x)[:, :2], event_dim=1))

    with pytest.raises(ContractError, match="'z' is a point mass"):
        pv.inference_data(Point(), Point().data(), draws=2)
