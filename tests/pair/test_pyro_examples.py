"""Pyro's examples and tutorials that enumerate, and those that go through time, in the fewest lines.

Parameters are `torch.nn.Parameter`s, and the data come as fields, the batch first; else each is written as there. Where
log p(x) is known, by sums and the trapezoidal rule, it is held against it.
"""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from enumerated import PARALLEL, Fields, log_marginal
from exact import reasons_to_doubt
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.ops.indexing import Vindex
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.pair.terms import log_terms

N, FLOOR = 6, 1e-3


def mlp(*sizes: int) -> nn.Sequential:
    layers = [layer for a, b in zip(sizes, sizes[1:], strict=False) for layer in (nn.Linear(a, b), nn.Softplus())]
    return nn.Sequential(*layers[:-1])


def side_by_side(*parts: Tensor) -> Tensor:
    """Concatenated over features; an enumerated one has dims of its own to the left."""
    lead = torch.broadcast_shapes(*[part.shape[:-1] for part in parts])
    return torch.cat([part.expand(*lead, part.shape[-1]) for part in parts], -1)


def table(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


# --- gmm.ipynb, examples/vae/ss_vae_M2.py -------------------------------------------------------------------


class GMM(nn.Module):
    def __init__(self):
        super().__init__()
        self.weights, self.locs, self.log_scale = table(3), table(3), table(1)

    @config_enumerate
    def model(self, x):
        with pyro.plate("data", len(x)):
            assignment = pyro.sample("assignment", dist.Categorical(logits=self.weights))
            pyro.sample("obs", dist.Normal(self.locs[assignment], self.log_scale.exp()), obs=x)

    def guide(self, x):
        pass

    def data(self) -> Fields:
        return {"x": torch.randn(N)}


class SSVAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.decoder, self.encoder_y, self.encoder_z = mlp(2 + 3, 8, 5), mlp(5, 8, 3), mlp(5 + 3, 8, 4)

    def model(self, x, y=None):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
            y = pyro.sample("y", dist.OneHotCategorical(x.new_full((len(x), 3), 1 / 3)), obs=y)
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(side_by_side(z, y))).to_event(1), obs=x)

    @config_enumerate
    def guide(self, x, y=None):
        with pyro.plate("data", len(x)):
            if y is None:
                y = pyro.sample("y", dist.OneHotCategorical(logits=self.encoder_y(x)))
            loc, log_scale = self.encoder_z(side_by_side(x, y)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    def data(self) -> Fields:
        return {"x": torch.bernoulli(torch.full((N, 5), 0.4))}


# --- examples/hmm.py ----------------------------------------------------------------------------------------


class HMM(nn.Module):
    """Model 1; those after it differ in one step."""

    data_dim, states = -2, 4

    def __init__(self):
        super().__init__()
        self.probs_x, self.probs_y = table(self.states, self.states), table(self.states, 2)

    def model(self, x, length):
        tones = pyro.plate("tones", x.shape[-1], dim=-1)
        with pyro.plate("sequences", len(x), dim=-2):
            state = self.start()
            for t in pyro.markov(range(x.shape[1])):
                with poutine.mask(mask=(t < length).unsqueeze(-1)):
                    state = self.step(t, state, tones, x[:, t])

    def guide(self, x, length):
        pass

    def start(self):
        return 0

    def step(self, t, x, tones, seen):
        x = pyro.sample(f"x_{t}", dist.Categorical(logits=self.probs_x[x]), infer=PARALLEL)
        with tones:
            pyro.sample(f"y_{t}", dist.Bernoulli(logits=self.probs_y[x.squeeze(-1)]), obs=seen)
        return x

    def data(self) -> Fields:
        length = torch.tensor([3, 1, 2, 3, 2, 3])
        return {"x": torch.bernoulli(torch.full((N, 3, 2), 0.5)), "length": length}


class ARHMM(HMM):
    """Model 2."""

    def __init__(self):
        super().__init__()
        self.probs_y = table(self.states, 2, 2)

    def start(self):
        return 0, 0

    def step(self, t, state, tones, seen):
        x, y = state
        x = pyro.sample(f"x_{t}", dist.Categorical(logits=self.probs_x[x]), infer=PARALLEL)
        with tones as tone:
            y = pyro.sample(f"y_{t}", dist.Bernoulli(logits=self.probs_y[x, y, tone]), obs=seen).long()
        return x, y


class FactorialHMM(HMM):
    """Model 3."""

    states = 2

    def __init__(self):
        super().__init__()
        self.probs_w, self.probs_y = table(2, 2), table(2, 2, 2)

    def start(self):
        return torch.tensor(0), torch.tensor(0)

    def prior(self, w: Tensor, x: Tensor) -> Tensor:
        return self.probs_x[x]

    def step(self, t, state, tones, seen):
        w, x = state
        w = pyro.sample(f"w_{t}", dist.Categorical(logits=self.probs_w[w]), infer=PARALLEL)
        x = pyro.sample(f"x_{t}", dist.Categorical(logits=self.prior(w, x)), infer=PARALLEL)
        with tones as tone:
            pyro.sample(f"y_{t}", dist.Bernoulli(logits=self.probs_y[w, x, tone]), obs=seen)
        return w, x


class DynamicBayesNet(FactorialHMM):
    """Model 4."""

    def __init__(self):
        super().__init__()
        self.probs_x = table(2, 2, 2)

    def prior(self, w: Tensor, x: Tensor) -> Tensor:
        return Vindex(self.probs_x)[w, x]


# --- examples/lda.py, prodlda.ipynb -------------------------------------------------------------------------


class LDA(nn.Module):
    """The guide's Delta is a Dirichlet here, which has a density."""

    def __init__(self):
        super().__init__()
        self.weights, self.words, self.predictor = table(2), table(2, 5), mlp(5, 8, 2)

    def model(self, x):
        with pyro.plate("documents", len(x)):
            topics = pyro.sample("doc_topics", dist.Dirichlet(self.weights.exp() + 0.5))
            with pyro.plate("words", x.shape[1]):
                topic = pyro.sample("word_topics", dist.Categorical(topics), infer=PARALLEL)
                pyro.sample("doc_words", dist.Categorical(logits=self.words[topic]), obs=x.T)

    def guide(self, x):
        with pyro.plate("documents", len(x)):
            counts = F.one_hot(x, 5).sum(1).to(self.words.dtype)
            pyro.sample("doc_topics", self.posterior(self.predictor(counts)))

    def posterior(self, h: Tensor) -> dist.Distribution:
        return dist.Dirichlet(F.softplus(h) + 0.5)

    def data(self) -> Fields:
        return {"x": torch.randint(5, (N, 4))}

    def exact(self, x: Tensor, points: int = 20_000) -> Tensor:
        first = (torch.arange(points).double() + 0.5) / points
        topics = torch.stack([first, 1 - first], -1)
        words = (topics @ self.words.double().softmax(1)).log()
        prior = dist.Dirichlet(self.weights.double().exp() + 0.5).log_prob(topics)
        return torch.logsumexp(prior + words[:, x].sum(-1).T, 1) - math.log(points)


class PointLDA(LDA):
    """As it is there."""

    def posterior(self, h):
        return dist.Delta(h.softmax(-1), event_dim=1)


class ProdLDA(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.drop, self.to_loc, self.to_scale = mlp(5, 8, 8), nn.Dropout(0.2), *mlps(8, 2)
        self.norms = nn.ModuleList(nn.BatchNorm1d(size, affine=False) for size in (2, 2, 5))
        self.beta = nn.Linear(2, 5, bias=False)

    def model(self, x):
        with pyro.plate("documents", len(x)):
            loc = x.new_zeros(len(x), 2)
            theta = F.softmax(pyro.sample("logtheta", dist.Normal(loc, torch.ones_like(loc)).to_event(1)), -1)
            words = F.softmax(self.norms[2](self.beta(self.drop(theta))), dim=1)
            pyro.sample("obs", dist.Multinomial(int(x.sum(-1).max()), words), obs=x)

    def guide(self, x):
        with pyro.plate("documents", len(x)):
            h = self.drop(F.softplus(self.encoder(x)))
            loc, log_variance = self.norms[0](self.to_loc(h)), self.norms[1](self.to_scale(h))
            pyro.sample("logtheta", dist.Normal(loc, (0.5 * log_variance).exp()).to_event(1))

    def data(self) -> Fields:
        return {"x": torch.randint(4, (N, 5)).float()}


def mlps(inputs: int, outputs: int) -> tuple[nn.Linear, nn.Linear]:
    return nn.Linear(inputs, outputs), nn.Linear(inputs, outputs)


# --- examples/dmm.py ----------------------------------------------------------------------------------------


class DMM(nn.Module):
    def __init__(self):
        super().__init__()
        self.emitter, self.gate, self.proposal = mlp(1, 8, 3), mlp(1, 8, 1), mlp(1, 8, 1)
        self.loc, self.scale = mlps(1, 1)
        self.combine, self.loc_q, self.scale_q = nn.Linear(1, 8), *mlps(8, 1)
        self.rnn = nn.RNN(3, 8, nonlinearity="relu", batch_first=True)
        self.z_0, self.z_q_0, self.h_0 = table(1), table(1), table(1, 1, 8)

    def transition(self, z: Tensor) -> dist.Distribution:
        gate, proposal = torch.sigmoid(self.gate(z)), self.proposal(z)
        loc = (1 - gate) * self.loc(z) + gate * proposal
        return dist.Normal(loc, F.softplus(self.scale(F.relu(proposal))))

    def model(self, x, length):
        z = self.z_0.expand(len(x), 1)
        with pyro.plate("z_minibatch", len(x)):
            for t in pyro.markov(range(x.shape[1])):
                seen = (t < length)[:, None]
                z = pyro.sample(f"z_{t}", self.transition(z).mask(seen).to_event(1))
                fn = dist.Bernoulli(logits=self.emitter(z)).mask(seen).to_event(1)
                pyro.sample(f"obs_x_{t}", fn, obs=x[:, t])

    def guide(self, x, length):
        h, _ = self.rnn(reversed_each(x, length), self.h_0.expand(1, len(x), 8).contiguous())
        h, z = reversed_each(h, length), self.z_q_0.expand(len(x), 1)
        with pyro.plate("z_minibatch", len(x)):
            for t in pyro.markov(range(x.shape[1])):
                both = 0.5 * (torch.tanh(self.combine(z)) + h[:, t])
                fn = dist.Normal(self.loc_q(both), F.softplus(self.scale_q(both)))
                z = pyro.sample(f"z_{t}", fn.mask((t < length)[:, None]).to_event(1))

    def data(self) -> Fields:
        return {"x": torch.bernoulli(torch.full((N, 2, 3), 0.5)), "length": torch.tensor([2, 1, 2, 2, 1, 2])}

    def exact(self, x, length):
        each = [{"x": x[i : i + 1, :n], "length": length[i : i + 1]} for i, n in enumerate(length)]
        return torch.cat([log_marginal(self, fields) for fields in each]).double()


def reversed_each(x: Tensor, length: Tensor) -> Tensor:
    """Each sequence [time, ...] of a batch from its end to its beginning."""
    time = torch.arange(x.shape[1])
    places = torch.where(time < length[:, None], length[:, None] - 1 - time, time)
    return x.gather(1, places[..., None].expand_as(x))


# --- examples/scanvi ----------------------------------------------------------------------------------------


class Normed(nn.Sequential):
    """A net with batch normalisation, which wants [rows, features]; gives two halves."""

    def __init__(self, *sizes: int):
        hidden, out = nn.Linear(*sizes[:2]), nn.Linear(sizes[1], 2 * sizes[2])
        super().__init__(hidden, nn.BatchNorm1d(sizes[1]), nn.ReLU(), out, nn.BatchNorm1d(2 * sizes[2]))

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(h.reshape(-1, h.shape[-1])).reshape(*h.shape[:-1], -1).chunk(2, -1)


class SCANVI(nn.Module):
    def __init__(self):
        super().__init__()
        self.z2_decoder, self.x_decoder, self.z2l_encoder = Normed(2 + 3, 6, 2), Normed(2, 6, 5), Normed(5, 6, 3)
        self.classifier, self.z1_encoder = mlp(2, 6, 3), Normed(2 + 3, 6, 2)
        self.log_theta = nn.Parameter(torch.full((5,), 1.0))

    def model(self, x, y=None):
        theta = self.log_theta.exp()
        with pyro.plate("batch", len(x)):
            z1 = pyro.sample("z1", dist.Normal(0, x.new_ones(2)).to_event(1))
            y = pyro.sample("y", dist.OneHotCategorical(logits=x.new_zeros(3)), obs=y)
            loc, scale = self.z2_decoder(side_by_side(z1, y))
            z2 = pyro.sample("z2", dist.Normal(loc, F.softplus(scale)).to_event(1))
            size = pyro.sample("l", dist.LogNormal(2.0, x.new_ones(1)).to_event(1))
            gate_logits, mu = self.x_decoder(z2)
            logits = (size * mu.softmax(-1) + 5e-3).log() - (theta + 5e-3).log()
            fn = dist.ZeroInflatedNegativeBinomial(gate_logits=gate_logits, total_count=theta, logits=logits)
            pyro.sample("x", fn.to_event(1), obs=x)

    @config_enumerate
    def guide(self, x, y=None):
        with pyro.plate("batch", len(x)):
            loc, scale = self.z2l_encoder(torch.log1p(x))
            pyro.sample("l", dist.LogNormal(loc[..., 2:] + 2.0, F.softplus(scale[..., 2:])).to_event(1))
            z2 = pyro.sample("z2", dist.Normal(loc[..., :2], F.softplus(scale[..., :2])).to_event(1))
            if y is None:
                y = pyro.sample("y", dist.OneHotCategorical(logits=self.classifier(z2)))
            else:
                log_q = dist.OneHotCategorical(logits=self.classifier(z2)).log_prob(y)
                pyro.factor("classification_loss", -0.1 * log_q, has_rsample=False)
            loc, scale = self.z1_encoder(side_by_side(z2, y))
            pyro.sample("z1", dist.Normal(loc, F.softplus(scale)).to_event(1))

    def data(self) -> Fields:
        return {"x": torch.poisson(torch.rand(N, 5) * 6)}


EXAMPLES = (GMM, SSVAE, HMM, ARHMM, FactorialHMM, DynamicBayesNet, LDA, ProdLDA, DMM, SCANVI)


def made(example: type[nn.Module]) -> tuple[nn.Module, Fields]:
    torch.manual_seed(0)
    pair = example()
    return pair, pair.data()


def exact_of(pair: nn.Module, fields: Fields) -> Tensor | None:
    """log p(x), where it is known."""
    if isinstance(pair, SCANVI):
        return None
    with torch.no_grad():
        return pair.exact(**fields) if hasattr(pair, "exact") else log_marginal(pair.eval(), fields).double()


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_is_trained_and_its_bounds_are_in_order(example):
    pair, fields = made(example)
    run = pv.train(pair, fields, epochs=2, batch_size=5, engine="eager", progress=False)
    assert all(math.isfinite(row["loss"]) for row in run.history)
    figures = {
        name: pv.evaluate(pair, fields, evaluator=name, particles=300, progress=False)
        for name in ("elbo", "importance")
    }
    elbo, bound = figures["elbo"].headline, figures["importance"].log_likelihood
    assert (elbo - bound).mean() < 0.1
    exact = exact_of(pair, fields)
    if exact is None:
        return
    if figures["importance"].kind == "exact":
        assert figures["elbo"].kind == "exact"
        assert torch.allclose(bound.double(), exact, atol=1e-4) and torch.allclose(elbo.double(), exact, atol=1e-4)
    else:
        assert reasons_to_doubt(pair, fields, exact, particles=1000, floor=FLOOR) == []


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_keeps_the_contract(example):
    assert len(pv.testing.check_pair(*made(example))) == 11


def test_labels_that_are_there_are_observed():
    pair, fields = made(SSVAE)
    labelled = fields | {"y": torch.eye(3)[torch.arange(N) % 3]}
    assert reasons_to_doubt(pair, labelled, exact_of(pair, labelled), particles=1000, floor=FLOOR) == []
    unlabelled = log_terms(pair, fields)
    assert unlabelled.weight is not None and log_terms(pair, labelled).weight is None


def test_a_guide_may_have_a_loss_of_its_own_where_labels_are_there():
    pair, fields = made(SCANVI)
    labelled = fields | {"y": torch.eye(3)[torch.arange(N) % 3]}
    assert len(pv.testing.check_pair(pair, labelled)) == 11


def test_a_point_mass_on_the_topics_of_a_document_is_a_loss():
    pair, fields = made(PointLDA)
    run = pv.train(pair, fields, epochs=2, batch_size=5, engine="eager", progress=False)
    assert all(math.isfinite(row["loss"]) for row in run.history)
    result = pv.evaluate(pair, fields, progress=False)
    assert result.quantity == "loss" and "point mass" in result.warnings[0]
