"""The pairs of Pyro's tutorials and examples, written as there: fields in, nets for [batch, ...], one plate.

Each is small enough for an exact log p(x): its own nets, applied to [rows, ...], are integrated over z on a grid, its
discrete latents summed, its Gaussian chain filtered. Beside model and guide each has `data()`, `exact(**fields)` [n],
and `by_hand(values, **fields)`: log-likelihood, log-prior and log-guide [rows] at values and fields of [rows, ...].
"""

import functools
import math
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import pytest
import torch
import torch.nn.functional as F
from exact import Chain, gaussian_log_prob, integrate, normal_log_prob, reasons_to_doubt
from pyro import poutine
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import pyro_vae as pv
from pyro_vae.errors import UserError

N = 7
Fields = dict[str, Tensor]


def bernoulli_log_prob(x: Tensor, logits: Tensor) -> Tensor:
    """Of all elements of a datum: [rows]."""
    return -F.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1).sum(1)


def standard_normal_log_prob(z: Tensor) -> Tensor:
    return normal_log_prob(z, 0.0, 1.0).sum(-1)


# --- vae.py -------------------------------------------------------------------------------------------------


class Encoder(nn.Module):
    def __init__(self, inputs: int, z_dim: int, hidden: int = 8):
        super().__init__()
        self.fc1, self.fc21, self.fc22 = nn.Linear(inputs, hidden), nn.Linear(hidden, z_dim), nn.Linear(hidden, z_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = F.softplus(self.fc1(x.reshape(x.shape[0], -1)))
        return self.fc21(hidden), torch.exp(0.3 * self.fc22(hidden))


class Decoder(nn.Module):
    def __init__(self, z_dim: int, outputs: int, hidden: int = 8):
        super().__init__()
        self.fc1, self.fc21 = nn.Linear(z_dim, hidden), nn.Linear(hidden, outputs)

    def forward(self, z: Tensor) -> Tensor:
        hidden = F.softplus(self.fc1(z.view(z.shape[0], -1)))
        return self.fc21(2 * hidden)


class ConvDecoder(nn.Module):
    def __init__(self, z_dim: int):
        super().__init__()
        self.fc, self.up = nn.Linear(z_dim, 32), nn.ConvTranspose2d(8, 1, 4, stride=2, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        return self.up(2 * torch.tanh(self.fc(z)).view(-1, 8, 2, 2))


class VAE(nn.Module):
    """The tutorial's: `pyro.module` in both programs, the prior spelled out for every datum."""

    def __init__(self):
        super().__init__()
        self.z_dim = 2
        self.encoder, self.decoder = Encoder(16, self.z_dim), Decoder(self.z_dim, 16)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z_loc = x.new_zeros(torch.Size((x.shape[0], self.z_dim)))
            z_scale = x.new_ones(torch.Size((x.shape[0], self.z_dim)))
            z = pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))
            logits = self.decoder(z)
            pyro.sample("obs", dist.Bernoulli(logits=logits).to_event(1), obs=x.reshape(-1, 16))
            return logits

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            z_loc, z_scale = self.encoder(x)
            pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))

    def data(self) -> Fields:
        return {"x": torch.bernoulli(torch.full((N, 4, 4), 0.4))}

    def exact(self, x):
        return integrate(lambda z, rows: bernoulli_log_prob(x[rows].flatten(1), self.decoder(z)), len(x), 2)

    def by_hand(self, values, x):
        z, (loc, scale) = values["latent"], self.encoder(x)
        likelihood = bernoulli_log_prob(x.flatten(1), self.decoder(z))
        return likelihood, standard_normal_log_prob(z), normal_log_prob(z, loc, scale).sum(-1)


class ConvVAE(VAE):
    def __init__(self):
        super().__init__()
        self.decoder = ConvDecoder(self.z_dim)

    def model(self, x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("latent", dist.Normal(torch.zeros(2).to(x), torch.ones(2).to(x)).to_event(1))
            pyro.sample("obs", dist.Bernoulli(logits=self.decoder(z)).to_event(3), obs=x)

    def data(self) -> Fields:
        return {"x": torch.bernoulli(torch.full((N, 1, 4, 4), 0.4))}

    def exact(self, x):
        return integrate(lambda z, rows: bernoulli_log_prob(x[rows], self.decoder(z)), len(x), 2)

    def by_hand(self, values, x):
        z, (loc, scale) = values["latent"], self.encoder(x)
        likelihood = bernoulli_log_prob(x, self.decoder(z))
        return likelihood, standard_normal_log_prob(z), normal_log_prob(z, loc, scale).sum(-1)


# --- ss_vae_M2.py -------------------------------------------------------------------------------------------


class SSVAE(nn.Module):
    """The label is observed where a batch has it, else a latent of the guide."""

    def __init__(self):
        super().__init__()
        self.z_dim, self.output_size = 2, 3
        self.decoder = Decoder(self.z_dim + self.output_size, 16)
        self.encoder_y = nn.Sequential(nn.Linear(16, 3), nn.Softmax(dim=1))
        self.encoder_z = Encoder(16 + self.output_size, self.z_dim)

    def model(self, xs, ys=None):
        batch_size = xs.size(0)
        with pyro.plate("data", batch_size):
            prior_loc, prior_scale = xs.new_zeros([batch_size, self.z_dim]), xs.new_ones([batch_size, self.z_dim])
            zs = pyro.sample("z", dist.Normal(prior_loc, prior_scale).to_event(1))
            alpha_prior = xs.new_ones([batch_size, self.output_size]) / (1.0 * self.output_size)
            ys = pyro.sample("y", dist.OneHotCategorical(alpha_prior), obs=ys)
            logits = self.decoder(torch.cat([zs, ys], -1))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=xs)

    def guide(self, xs, ys=None):
        with pyro.plate("data", xs.size(0)):
            if ys is None:
                ys = pyro.sample("y", dist.OneHotCategorical(self.encoder_y(xs)))
            loc, scale = self.encoder_z(torch.cat([xs, ys], -1))
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    def data(self) -> Fields:
        return {"xs": torch.bernoulli(torch.full((N, 16), 0.4))}

    def exact(self, xs, ys=None):
        def given(y: Tensor) -> Tensor:
            def log_likelihood(z, rows):
                return bernoulli_log_prob(xs[rows], self.decoder(torch.cat([z, y.to(z)[rows]], -1)))

            return integrate(log_likelihood, len(xs), 2) - math.log(3)

        each = [given(torch.eye(3)[k].expand(len(xs), 3)) for k in range(3)]
        return torch.logsumexp(torch.stack(each), 0) if ys is None else given(ys)

    def by_hand(self, values, xs, ys=None):
        z, y = values["z"], values.get("y", ys)
        label_prior = torch.full((len(xs),), -math.log(3))
        likelihood = bernoulli_log_prob(xs, self.decoder(torch.cat([z, y], -1)))
        loc, scale = self.encoder_z(torch.cat([xs, y], -1))
        guide = normal_log_prob(z, loc, scale).sum(-1)
        if ys is not None:
            return likelihood + label_prior, standard_normal_log_prob(z), guide
        label = (self.encoder_y(xs) * y).sum(-1).log()
        return likelihood, standard_normal_log_prob(z) + label_prior, guide + label


class LabelledSSVAE(SSVAE):
    """The same pair on data that have the label."""

    def data(self) -> Fields:
        return {**super().data(), "ys": torch.eye(3)[torch.arange(N) % 3]}


# --- prodlda.ipynb ------------------------------------------------------------------------------------------


class LDADecoder(nn.Module):
    def __init__(self, vocabulary: int, topics: int):
        super().__init__()
        self.beta = nn.Linear(topics, vocabulary, bias=False)
        self.bn = nn.BatchNorm1d(vocabulary, affine=False)
        self.drop = nn.Dropout(0.2)

    def forward(self, theta: Tensor) -> Tensor:
        return F.softmax(self.bn(self.beta(self.drop(theta))), dim=1)


class ProdLDA(nn.Module):
    """A logistic normal prior; documents of differing lengths."""

    def __init__(self, vocabulary: int = 6, topics: int = 2):
        super().__init__()
        self.topics = topics
        self.encoder, self.decoder = Encoder(vocabulary, topics), LDADecoder(vocabulary, topics)
        self.decoder.bn.running_mean.copy_(0.3 * torch.randn(vocabulary))
        self.decoder.bn.running_var.copy_(0.2 + 0.3 * torch.rand(vocabulary))

    def model(self, docs):
        pyro.module("decoder", self.decoder)
        with pyro.plate("documents", docs.shape[0]):
            loc, scale = docs.new_zeros((docs.shape[0], self.topics)), docs.new_ones((docs.shape[0], self.topics))
            logtheta = pyro.sample("logtheta", dist.Normal(loc, scale).to_event(1))
            count_param = self.decoder(F.softmax(logtheta, -1))
            total_count = int(docs.sum(-1).max())
            pyro.sample("obs", dist.Multinomial(total_count, count_param), obs=docs)

    def guide(self, docs):
        pyro.module("encoder", self.encoder)
        with pyro.plate("documents", docs.shape[0]):
            loc, scale = self.encoder(docs)
            pyro.sample("logtheta", dist.Normal(loc, scale).to_event(1))

    def data(self) -> Fields:
        return {"docs": torch.poisson(torch.linspace(0.3, 2.0, N).unsqueeze(-1).expand(N, 6).contiguous())}

    def log_likelihood(self, docs: Tensor, logtheta: Tensor) -> Tensor:
        words = self.decoder(F.softmax(logtheta, -1)).log()
        return torch.lgamma(docs.sum(-1) + 1) - torch.lgamma(docs + 1).sum(-1) + (docs * words).sum(-1)

    def exact(self, docs):
        return integrate(lambda z, rows: self.log_likelihood(docs[rows], z), len(docs), 2)

    def by_hand(self, values, docs):
        z, (loc, scale) = values["logtheta"], self.encoder(docs)
        return self.log_likelihood(docs, z), standard_normal_log_prob(z), normal_log_prob(z, loc, scale).sum(-1)


# --- dmm.py -------------------------------------------------------------------------------------------------


class GatedTransition(nn.Module):
    def __init__(self, z_dim: int):
        super().__init__()
        self.gate, self.proposed = nn.Linear(z_dim, z_dim), nn.Linear(z_dim, z_dim)
        self.mean, self.sig = nn.Linear(z_dim, z_dim, bias=False), nn.Linear(z_dim, z_dim)
        with torch.no_grad():
            self.gate.weight.zero_()
            self.gate.bias.fill_(-60.0)
            self.sig.weight.zero_()
            self.sig.bias.fill_(0.4)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        gate, proposed = torch.sigmoid(self.gate(z)), self.proposed(z)
        return (1 - gate) * self.mean(z) + gate * proposed, F.softplus(self.sig(F.relu(proposed)))


class Combiner(nn.Module):
    def __init__(self, z_dim: int, rnn_dim: int):
        super().__init__()
        self.from_z = nn.Linear(z_dim, rnn_dim)
        self.loc, self.scale = nn.Linear(rnn_dim, z_dim), nn.Linear(rnn_dim, z_dim)

    def forward(self, z: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        combined = 0.5 * (torch.tanh(self.from_z(z)) + h)
        return self.loc(combined), 0.6 + F.softplus(self.scale(combined))


class DMM(nn.Module):
    """The deep Markov model with its gate shut, so that it is linear and Gaussian: sequences of 1 to 3 steps."""

    def __init__(self, kind: str = "gru", masking: str = "method"):
        super().__init__()
        self.masking = masking
        self.trans, self.combiner = GatedTransition(2), Combiner(2, 4)
        self.emitter, self.log_noise = nn.Linear(2, 3), nn.Parameter(torch.tensor([0.1, 0.0, -0.1]))
        self.rnn = {"gru": nn.GRU, "rnn": nn.RNN}[kind](3, 4, batch_first=True)
        self.h_0, self.z_0 = nn.Parameter(torch.zeros(1, 1, 4)), nn.Parameter(torch.zeros(2))
        self.z_q_0 = nn.Parameter(torch.zeros(2))

    def step(self, name: str, fn: dist.Distribution, seen: Tensor, obs: Tensor | None = None) -> Tensor:
        """One site of one step, for the sequences [n] that have it."""
        if self.masking == "method":
            return pyro.sample(name, fn.mask(seen.unsqueeze(-1)).to_event(1), obs=obs)
        with poutine.mask(mask=seen):
            return pyro.sample(name, fn.to_event(1), obs=obs)

    def model(self, mini_batch, mini_batch_mask, mini_batch_seq_lengths, annealing_factor=None):
        pyro.module("dmm", self)
        annealing_factor = 1.0 if annealing_factor is None else annealing_factor
        z_prev = self.z_0.expand(mini_batch.size(0), self.z_0.size(0))
        with pyro.plate("z_minibatch", len(mini_batch)):
            for t in range(1, mini_batch.size(1) + 1):
                z_loc, z_scale = self.trans(z_prev)
                with poutine.scale(scale=annealing_factor):
                    z_t = self.step(f"z_{t}", dist.Normal(z_loc, z_scale), mini_batch_mask[:, t - 1])
                emission = dist.Normal(self.emitter(z_t), self.log_noise.exp())
                self.step(f"obs_x_{t}", emission, mini_batch_mask[:, t - 1], obs=mini_batch[:, t - 1, :])
                z_prev = z_t

    def encode(self, mini_batch: Tensor, lengths: Tensor) -> Tensor:
        h_0 = self.h_0.expand(1, mini_batch.size(0), self.rnn.hidden_size).contiguous()
        packed = pack_padded_sequence(mini_batch, lengths.cpu(), batch_first=True, enforce_sorted=False)
        output, _ = self.rnn(packed, h_0)
        return pad_packed_sequence(output, batch_first=True, total_length=mini_batch.size(1))[0]

    def guide(self, mini_batch, mini_batch_mask, mini_batch_seq_lengths, annealing_factor=None):
        pyro.module("dmm", self)
        annealing_factor = 1.0 if annealing_factor is None else annealing_factor
        rnn_output = self.encode(mini_batch, mini_batch_seq_lengths)
        z_prev = self.z_q_0.expand(mini_batch.size(0), self.z_q_0.size(0))
        with pyro.plate("z_minibatch", len(mini_batch)):
            for t in range(1, mini_batch.size(1) + 1):
                z_loc, z_scale = self.combiner(z_prev, rnn_output[:, t - 1, :])
                with poutine.scale(scale=annealing_factor):
                    z_prev = self.step(f"z_{t}", dist.Normal(z_loc, z_scale), mini_batch_mask[:, t - 1])

    def data(self) -> Fields:
        lengths = torch.tensor([3, 1, 2, 3, 2, 1, 3])
        mask = torch.arange(3) < lengths.unsqueeze(-1)
        x = torch.randn(N, 3, 3) * mask.unsqueeze(-1)
        return {"mini_batch": x, "mini_batch_mask": mask, "mini_batch_seq_lengths": lengths}

    def exact(self, mini_batch, mini_batch_mask, mini_batch_seq_lengths):
        with torch.no_grad():
            chain = Chain(
                transition=self.trans.mean.weight.double(),
                noise=F.softplus(self.trans.sig.bias.double()).square(),
                emission=self.emitter.weight.double(),
                bias=self.emitter.bias.double(),
                emission_noise=self.log_noise.double().exp().square(),
            )
            rows = zip(mini_batch.double(), mini_batch_seq_lengths.tolist(), strict=True)
            return torch.stack([chain.log_marginal(x, length) for x, length in rows])

    def by_hand(self, values, mini_batch, mini_batch_mask, mini_batch_seq_lengths):
        output = self.encode(mini_batch, mini_batch_seq_lengths)
        sums = [torch.zeros(len(mini_batch)) for _ in range(3)]
        p_prev, q_prev = self.z_0.expand(len(mini_batch), 2), self.z_q_0.expand(len(mini_batch), 2)
        for t in range(3):
            z, keep = values[f"z_{t + 1}"], mini_batch_mask[:, t].to(mini_batch.dtype)
            emitted = normal_log_prob(mini_batch[:, t], self.emitter(z), self.log_noise.exp()).sum(-1)
            prior = normal_log_prob(z, *self.trans(p_prev)).sum(-1)
            guide = normal_log_prob(z, *self.combiner(q_prev, output[:, t])).sum(-1)
            sums = [total + keep * term for total, term in zip(sums, (emitted, prior, guide), strict=True)]
            p_prev = q_prev = z
        return tuple(sums)


# --- cvae/ --------------------------------------------------------------------------------------------------


class CVAE(nn.Module):
    """p(z | context) from a prior net; missing pixels of a picture are not generated."""

    def __init__(self):
        super().__init__()
        self.prior_net, self.recognition_net = Encoder(5, 2), Encoder(5 + 8, 2)
        self.generation_net = Decoder(2 + 5, 8)

    def model(self, x, context):
        pyro.module("generation_net", self)
        with pyro.plate("data", x.shape[0]):
            prior_loc, prior_scale = self.prior_net(context)
            z = pyro.sample("z", dist.Normal(prior_loc, prior_scale).to_event(1))
            logits = self.generation_net(torch.cat([z, context], dim=1))
            pyro.sample("y", dist.Bernoulli(logits=logits, validate_args=False).to_event(1), obs=x)

    def guide(self, x, context):
        with pyro.plate("data", x.shape[0]):
            loc, scale = self.recognition_net(torch.cat([x, context], dim=1))
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    def data(self) -> Fields:
        return {"x": torch.bernoulli(torch.full((N, 8), 0.4)), "context": torch.randn(N, 5)}

    def exact(self, x, context):
        def log_likelihood(noise, rows):
            loc, scale = self.prior_net(context[rows])
            z = loc + scale * noise
            return bernoulli_log_prob(x[rows], self.generation_net(torch.cat([z, context[rows]], 1)))

        return integrate(log_likelihood, len(x), 2)

    def by_hand(self, values, x, context):
        z = values["z"]
        likelihood = bernoulli_log_prob(x, self.generation_net(torch.cat([z, context], 1)))
        loc, scale = self.recognition_net(torch.cat([x, context], 1))
        return likelihood, normal_log_prob(z, *self.prior_net(context)).sum(-1), normal_log_prob(z, loc, scale).sum(-1)


# --- flows --------------------------------------------------------------------------------------------------


class ZukoToPyro(dist.TorchDistribution):
    """As in zuko's and Pyro's documentation: a wrapper without `support`, whose cache knows a draw by its identity."""

    def __init__(self, fn: torch.distributions.Distribution):
        self.dist = fn
        self.cache = {}

    @property
    def has_rsample(self):
        return self.dist.has_rsample

    @property
    def event_shape(self):
        return self.dist.event_shape

    @property
    def batch_shape(self):
        return self.dist.batch_shape

    def __call__(self, shape=()):
        x, self.cache[x] = self.rsample_and_log_prob(shape)
        return x

    def rsample_and_log_prob(self, shape):
        x = self.dist.rsample(shape)
        return x, self.dist.log_prob(x)

    def log_prob(self, x):
        return self.cache[x] if x in self.cache else self.dist.log_prob(x)

    def expand(self, *args, **kwargs):
        return ZukoToPyro(self.dist.expand(*args, **kwargs))


FLOWS = {
    "planar": lambda: T.Planar(2),
    "radial": lambda: T.Radial(2),
    "iaf": lambda: T.affine_autoregressive(2, hidden_dims=[8]),
    "spline": lambda: T.Spline(2, count_bins=4, bound=4.0),
    "coupling": lambda: T.affine_coupling(2, hidden_dims=[8]),
    "zuko": lambda: nn.Linear(2, 2),
}


class FlowGuide(VAE):
    """The VAE under a guide of a normalising flow."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind, self.flow = kind, FLOWS[kind]()
        with torch.no_grad():
            for parameter in self.flow.parameters():
                parameter.mul_(0.3)
            if kind == "spline":
                self.flow.unnormalized_derivatives.fill_(math.log(math.e - 1))

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            z_loc, z_scale = self.encoder(x)
            if self.kind == "zuko":
                stretch = 1 + self.flow.weight.diagonal().abs()
                transform = torch.distributions.AffineTransform(self.flow.bias, stretch, event_dim=1)
                base = torch.distributions.Independent(torch.distributions.Normal(z_loc, z_scale), 1)
                fn = ZukoToPyro(torch.distributions.TransformedDistribution(base, [transform]))
            else:
                fn = dist.TransformedDistribution(dist.Normal(z_loc, z_scale).to_event(1), [self.flow])
            pyro.sample("latent", fn)

    def by_hand(self, values, x):
        """The guide's density needs the base's draw where a flow has no inverse: left out."""
        likelihood, prior, _ = super().by_hand(values, x)
        return likelihood, prior, None


# --- all of them --------------------------------------------------------------------------------------------

PAIRS = {
    "vae": VAE,
    "conv vae": ConvVAE,
    "ss-vae": SSVAE,
    "ss-vae with labels": LabelledSSVAE,
    "prodlda": ProdLDA,
    "dmm": DMM,
    "dmm with an rnn and poutine.mask": lambda: DMM("rnn", "poutine"),
    "cvae": CVAE,
    **{f"{kind} guide": functools.partial(FlowGuide, kind) for kind in FLOWS},
}


def made(name: str) -> SimpleNamespace:
    """A pair under eval() in float32, and its fields."""
    torch.manual_seed(0)
    pair = PAIRS[name]().eval()
    return SimpleNamespace(pair=pair, fields=pair.data())


def exact_value(pair: nn.Module, fields: Fields) -> Tensor:
    """log p(x) [n] in float64."""
    wide = {name: v.double() if v.is_floating_point() else v for name, v in fields.items()}
    pair.double()
    try:
        with torch.no_grad():
            return pair.exact(**wide)
    finally:
        pair.float()


@pytest.mark.parametrize("name", PAIRS)
def test_bounds_are_right(name):
    it = made(name)
    assert not reasons_to_doubt(it.pair, it.fields, exact_value(it.pair, it.fields))


class Watch:
    """Keeps what a guide was given and what it drew, each time that it runs."""

    def __init__(self, pair: nn.Module):
        self.runs: list[tuple[Fields, Fields]] = []
        guide = pair.guide

        @functools.wraps(guide)
        def watched(*args, **fields):
            trace = poutine.trace(lambda: guide(*args, **fields)).get_trace()
            drawn = {name: trace.nodes[name]["value"] for name in trace.stochastic_nodes}
            drawn = {name: value for name, value in drawn.items() if value.is_floating_point()}
            self.runs.append(({name: v for name, v in fields.items() if isinstance(v, Tensor)}, drawn))

        pair.guide = watched


def by_particle(pair: nn.Module, data: Fields, run: tuple[Fields, Fields], particles: int) -> list[Tensor | None]:
    """What the pair's log-probabilities are by hand, each [particles, n], however particles and data were laid out."""
    fields, values = run
    n = len(next(iter(data.values())))
    rows = {}
    particle_first = True
    for name, whole in data.items():
        given = fields[name].reshape(-1, *whole.shape[1:])
        if len(given) == n:
            given = whole.repeat(particles, *[1] * (whole.dim() - 1))
        elif not torch.equal(given, whole.repeat(particles, *[1] * (whole.dim() - 1))):
            particle_first = False
        rows[name] = given
    flat = {}
    for name, value in values.items():
        event = value.shape[-1:]
        assert value.numel() == particles * n * event.numel(), "another run of the guide"
        flat[name] = value.reshape(-1, *event)
    with torch.no_grad():
        terms = pair.by_hand(flat, **rows)
    lay = (lambda t: t.view(particles, n)) if particle_first else (lambda t: t.view(n, particles).T)
    return [None if term is None else lay(term) for term in terms]


@pytest.mark.parametrize("particles", [1, 3, N])
@pytest.mark.parametrize("name", PAIRS)
def test_terms_are_the_log_probabilities_at_the_draws(name, particles):
    it = made(name)
    watch = Watch(it.pair)
    with torch.no_grad():
        terms = pv.log_terms(it.pair, it.fields, particles)
    found = []
    for run in watch.runs:
        try:
            by_hand = by_particle(it.pair, it.fields, run, particles)
        except AssertionError:
            continue
        pairs = zip(by_hand, terms[:3], strict=True)
        found.append(all(one is None or torch.allclose(one, other, atol=2e-4, rtol=1e-4) for one, other in pairs))
    assert any(found), "at no draws of the guide"


@pytest.mark.parametrize("objective", ["trace_elbo", "trace_mean_field_elbo", "iwae"])
@pytest.mark.parametrize("name", PAIRS)
def test_they_train_on_several_particles(name, objective):
    """An objective that needs pathwise gradients may refuse a discrete latent, with the name of one that does not."""
    it = made(name)
    fields = {field: value.repeat(4, *[1] * (value.dim() - 1)) for field, value in it.fields.items()}
    before = {key: value.clone() for key, value in it.pair.state_dict().items()}
    options = {"epochs": 2, "batch_size": 10, "particles": 3, "progress": False, "engine": "eager"}
    try:
        run = pv.train(it.pair.train(), fields, objective=objective, **options)
    except UserError as refusal:
        alternatives = {"iwae": "vimco", "trace_mean_field_elbo": "trace_elbo"}
        assert name == "ss-vae" and alternatives[objective] in str(refusal)
        return
    assert all(math.isfinite(row["loss"]) and math.isfinite(row["valid_loss"]) for row in run.history)
    assert math.isfinite(run.history[-1]["valid_elbo"]), "they have densities"
    assert any(not torch.equal(value, before[key]) for key, value in it.pair.state_dict().items())


# --- what else people write ---------------------------------------------------------------------------------


class Simple(nn.Module):
    """z ~ N(0, 1), x ~ N(z + what is given, 1), with or without a parameter."""

    def __init__(self, parameter: bool = True):
        super().__init__()
        if parameter:
            self.bias = nn.Parameter(torch.tensor(0.5))
        else:
            self.bias = torch.tensor(0.5)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + self.bias, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x - self.bias) / 2, 0.9))

    def exact(self, x: Tensor) -> Tensor:
        return normal_log_prob(x.detach().double(), 0.5, math.sqrt(2))


def readings(n: int = N) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(2))


def test_a_single_bernoulli_latent_at_two_particles():
    """Also where the closed form of the KL reads a mask of the prior's probabilities."""

    class Coin(nn.Module):
        def __init__(self):
            super().__init__()
            self.p = nn.Parameter(torch.tensor(0.3))

        def model(self, x):
            with pyro.plate("data", len(x)):
                side = pyro.sample("side", dist.Bernoulli(self.p))
                pyro.sample("x", dist.Normal(side, 1.0), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("side", dist.Bernoulli(logits=x - 1.0))

    x, pair = readings(), Coin()
    wide = x.double()
    logs = [math.log(p) + normal_log_prob(wide, side, 1.0) for side, p in ((0.0, 0.7), (1.0, 0.3))]
    assert pv.evaluate(pair, x, evaluator="elbo", particles=2, progress=False).headline.shape == (N,)
    assert not reasons_to_doubt(pair, {"x": x}, torch.logaddexp(*logs))


def test_a_bool_field_is_handed_over_as_it_is():
    class Treated(Simple):
        def model(self, x, mask):
            assert mask.dtype == torch.bool
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                with poutine.mask(mask=~mask):
                    pyro.sample("x", dist.Normal(z + self.bias, 1.0), obs=x)

        def guide(self, x, mask):
            with pyro.plate("data", len(x)):
                loc = torch.where(~mask, (x - self.bias) / 2, torch.zeros_like(x))
                pyro.sample("z", dist.Normal(loc, torch.where(mask, 1.1, 0.9)))

    x, mask, pair = readings(), torch.arange(N) % 3 == 1, Treated()
    marginal = torch.where(mask, torch.zeros(N).double(), pair.exact(x))
    assert not reasons_to_doubt(pair, {"x": x, "mask": mask}, marginal)


def test_fields_keep_their_precision_and_integers_stay_integers():
    class Indexed(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(3, 1).double()

        def model(self, x, kind):
            assert x.dtype == torch.float64 and kind.dtype == torch.int64
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(()), x.new_ones(())))
                pyro.sample("x", dist.Normal(z + self.table(kind)[..., 0], x.new_ones(())), obs=x)

        def guide(self, x, kind):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal((x - self.table(kind)[..., 0]) / 2, 0.9 * x.new_ones(())))

    torch.manual_seed(0)
    x, kind, pair = readings().double(), torch.arange(N) % 3, Indexed()
    marginal = normal_log_prob(x - pair.table.weight.detach()[kind, 0], 0.0, math.sqrt(2))
    assert not reasons_to_doubt(pair, {"x": x, "kind": kind}, marginal, floor=1e-4)


def test_a_pair_without_parameters_is_evaluated_and_not_trained():
    x, pair = readings(40), Simple(parameter=False)
    assert not reasons_to_doubt(pair, {"x": x}, pair.exact(x))
    with pytest.raises(UserError, match="parameter"):
        pv.train(pair, x, epochs=1, batch_size=10, progress=False, engine="eager")


def test_data_that_require_a_gradient_are_data():
    x, pair = readings(40).requires_grad_(), Simple()
    assert not reasons_to_doubt(pair, {"x": x}, pair.exact(x))
    run = pv.train(pair, x, epochs=1, batch_size=10, progress=False, engine="eager")
    assert math.isfinite(run.history[-1]["loss"]) and x.grad is None


@pytest.mark.parametrize("kind", ["scalar", "declared", "declared later", "undeclared", "outside", "in the guide"])
def test_deterministic_sites_count_for_nothing(kind):
    """Whether a value's event dims are declared does not matter where the value has no density of its own."""

    class Traced(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([1.0, -0.5, 0.3]))

        def model(self, x):
            if kind == "outside":
                pyro.deterministic("weight", self.weight, event_dim=1)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                mean = z.unsqueeze(-1) * self.weight
                if kind == "scalar":
                    pyro.deterministic("twice", 2 * z)
                if kind in ("declared", "undeclared"):
                    mean = pyro.deterministic("mean", mean, event_dim=1 if kind == "declared" else None)
                pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)
                if kind == "declared later":
                    pyro.deterministic("outer", mean.unsqueeze(-1) * mean.unsqueeze(-2), event_dim=2)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                loc = (x * self.weight).sum(-1) / (1 + self.weight.square().sum())
                if kind == "in the guide":
                    loc = pyro.deterministic("loc", loc)
                pyro.sample("z", dist.Normal(loc, 0.8))

    torch.manual_seed(0)
    x, pair = torch.randn(5, 3), Traced()
    w = pair.weight.detach().double()
    covariance = torch.outer(w, w) + torch.eye(3).double()
    marginal = torch.stack([gaussian_log_prob(row, torch.zeros(3).double(), covariance) for row in x.double()])
    try:
        doubts = reasons_to_doubt(pair, {"x": x}, marginal)
    except UserError as refusal:
        assert kind == "undeclared" and "'mean'" in str(refusal), refusal
    else:
        assert not doubts


def test_a_last_batch_of_one_datum_under_batch_norm_works_or_is_one_clear_line():
    """36 data are left to train on: five batches of seven, and one datum."""
    it = made("prodlda")
    docs = torch.poisson(torch.full((40, 6), 1.5), generator=torch.Generator().manual_seed(0))
    try:
        run = pv.train(it.pair.train(), {"docs": docs}, epochs=1, batch_size=7, progress=False, engine="eager")
    except UserError as refusal:
        assert "\n" not in str(refusal)
    else:
        assert math.isfinite(run.history[-1]["loss"])


def test_documents_of_differing_lengths_under_one_multinomial():
    """Its total is the longest document's, as in the tutorial; an empty document has log p(x) = 0."""

    class Documents(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Linear(1, 4)

        def model(self, docs):
            with pyro.plate("documents", len(docs)):
                z = pyro.sample("z", dist.Normal(docs.new_zeros(1), 1.0).to_event(1))
                fn = dist.Multinomial(int(docs.sum(-1).max()), logits=self.words(z))
                pyro.sample("docs", fn, obs=docs)

        def guide(self, docs):
            with pyro.plate("documents", len(docs)):
                pyro.sample("z", dist.Normal(docs.new_zeros(1), 1.0).to_event(1))

    torch.manual_seed(0)
    pair = Documents()
    docs = torch.tensor([[1.0, 0, 0, 0], [3, 2, 0, 1], [0, 0, 7, 2], [0, 0, 0, 0], [1, 1, 1, 1]])
    weight, bias = pair.words.weight.detach().double(), pair.words.bias.detach().double()

    def log_likelihood(z, rows):
        seen, words = docs.double()[rows], torch.log_softmax(z @ weight.T + bias, -1)
        return torch.lgamma(seen.sum(-1) + 1) - torch.lgamma(seen + 1).sum(-1) + (seen * words).sum(-1)

    marginal = integrate(log_likelihood, len(docs), 1)
    assert abs(marginal[3]) < 1e-9
    assert not reasons_to_doubt(pair, {"docs": docs}, marginal)
