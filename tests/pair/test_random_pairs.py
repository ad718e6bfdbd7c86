"""Random small pairs, as people write them: each is evaluated right or refused in one line, none is silently wrong.

A pair is drawn as a specification: its latents, how its nets are written (broadcasting, or for [batch, ...] only), its
guide, its masks, its fields. The exact log p(x) of each datum is computed in float64 from the pair's own nets, applied
to [rows, ...]: as a Gaussian marginal where all is linear, by quadrature elsewhere,
discrete latents enumerated. Some are hidden Markov models, whose exact value is a sum over all sequences of states.
"""

import copy
import math
from collections import Counter
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import pytest
import random_chains
import torch
import torch.nn.functional as F
from enumerated import PARALLEL
from exact import FLOOR, NOT_JUDGED, gaussian_log_prob, normal_nodes, reasons_to_doubt, subsets
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pyro import poutine
from random_chains import ChainSpec, draw_chain
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.errors import UserError

DISCRETE = {"categorical": 3, "onehot": 3, "bernoulli": 2, "bernoullis": 4}
"""Kinds of discrete latents, with the number of their values."""

BREACHES = ("outside", "scale", "factor", "delta", "relaxed", "auxiliary", "latent mask", "missing", "event")


@dataclass(frozen=True)
class Latent:
    kind: str
    shape: tuple[int, ...] = ()
    nested: bool = False
    flow: str | None = None

    @property
    def discrete(self) -> bool:
        return self.kind in DISCRETE

    @property
    def listed(self) -> bool:
        """Whether it can be enumerated."""
        return self.discrete and self.kind != "bernoullis"

    @property
    def width(self) -> int:
        """Features that a net gets of it."""
        return {"categorical": 3, "onehot": 3, "bernoulli": 1, "bernoullis": 2}.get(self.kind, math.prod(self.shape))


@dataclass(frozen=True)
class Spec:
    seed: int
    n: int
    linear: bool
    latents: tuple[Latent, ...]
    x_shape: tuple[int, ...]
    likelihood: str
    batch_only: bool
    net: str
    chain: bool
    bottom_up: bool
    context: str | None
    mask: str | None
    plate: str
    subsample: bool
    full_prior: bool
    float64: bool
    breach: str | None = None
    enumerated: str | None = None
    """Which program enumerates the discrete latents, as far as they can be listed: "model", "guide" or neither."""
    inner: bool = False
    """Whether the first dim of x is a plate inside the data's."""

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64 if self.float64 else torch.float32


@st.composite
def specs(draw) -> Spec | ChainSpec:
    """A specification whose log p(x) is known: linear and Gaussian given its discrete latents, or with at most two
    continuous dims. All choices come from one seeded source, so that examples differ in everything."""
    source = draw(st.randoms(use_true_random=True))
    if source.random() < 0.15:
        return draw_chain(source)
    one_of, flip = source.choice, lambda: source.random() < 0.5
    breach = one_of(BREACHES) if source.random() < 0.2 else None
    linear, batch_only = flip(), flip()
    discrete = [Latent(one_of(sorted(DISCRETE))) for _ in range(source.randint(0, 1 if linear else 2))]
    if breach == "relaxed":
        discrete = [Latent("onehot")]
    continuous, dims = [], 0
    for _ in range(source.randint(0 if discrete else 1, 3 - len(discrete))):
        shape = one_of([(), (1,), (2,), (3,), (2, 2), (2, 1)] if linear else [(), (1,), (2,), (1, 2)])
        if not linear and dims + math.prod(shape) > 2:
            continue
        dims += math.prod(shape)
        kind = "lognormal" if not linear and source.random() < 0.3 else "normal"
        flows = [None, "affine", *(["iaf", "spline", "planar", "coupling"] if shape in ((2,), (3,)) else [])]
        continuous.append(Latent(kind, shape, flip(), one_of(flows) if kind == "normal" else None))
    if breach in ("delta", "factor") and not continuous:
        continuous = [Latent("normal", (2,))]
    x_shape = one_of([(2,), (3,), (5,), (2, 2)] if breach == "event" else [(), (2,), (5,), (2, 2)])
    mask = None if breach in ("scale", "event") else one_of([None, None, None, "poutine", "method", "elements"])
    plain = not (breach or batch_only)
    return Spec(
        seed=source.randint(0, 10**6),
        n=one_of([1, 2, 3, 5, 6]),
        linear=linear,
        latents=(*discrete, *continuous),
        x_shape=x_shape,
        likelihood="normal" if linear else one_of(["normal", "bernoulli", "categorical", "poisson"]),
        batch_only=batch_only,
        net=one_of(["plain", "mm", "batchnorm", "softmax"] if batch_only else ["plain", "matmul"]),
        chain=flip(),
        bottom_up=flip(),
        context=one_of([None, None, "context", "label"]),
        mask=mask,
        plate=one_of(["data", "batch", "n", "_rows"]),
        subsample=source.random() < 0.2,
        full_prior=flip(),
        float64=flip(),
        breach=breach,
        enumerated=one_of([None, "model", "guide"]) if plain and discrete else None,
        inner=bool(plain and x_shape and mask != "elements" and flip()),
    )


class RandomPair(nn.Module):
    """The pair of a specification. Its nets take and give [rows, ...] where `batch_only`."""

    def __init__(self, spec: Spec):
        super().__init__()
        self.spec = spec
        given = {"context": 2, "label": 1, None: 0}[spec.context]
        size, seen = math.prod(spec.x_shape), 0
        self.priors, self.encoders, self.chains, self.flows = (nn.ModuleList() for _ in range(4))
        for latent in spec.latents:
            wide = latent.width
            self.priors.append(Values(loc=torch.randn(wide) * 0.4, scale=torch.rand(wide) * 0.4 + 0.8))
            self.encoders.append(small(nn.Linear(size + given, wide)))
            self.chains.append(small(nn.Linear(seen, wide)) if seen and spec.chain else nn.Identity())
            self.flows.append(flow_of(latent))
            seen += wide
        self.noise = nn.Parameter(torch.rand(max(size, 1)) * 0.4 + 0.9)
        outputs = size * (3 if spec.likelihood == "categorical" else 1)
        inputs = seen + given
        if spec.linear:
            self.hidden, hidden = nn.Identity(), inputs
        else:
            hidden = 4
            self.hidden = nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh())
        self.norm = nn.BatchNorm1d(hidden, affine=spec.linear)
        self.norm.running_mean.copy_(torch.randn(hidden) * 0.5)
        self.norm.running_var.copy_(torch.rand(hidden) + 1.0)
        self.weight = nn.Parameter(torch.randn(hidden, outputs) * 0.6 / math.sqrt(hidden))
        self.bias = nn.Parameter(torch.randn(outputs) * 0.3)
        self.shape = nn.Unflatten(1, (*spec.x_shape, 3) if spec.likelihood == "categorical" else spec.x_shape or (1,))

    # --- nets ---

    def features(self, latent: Latent, value: Tensor) -> Tensor:
        """[..., width]"""
        if latent.kind == "categorical":
            return F.one_hot(value.long(), 3).to(self.weight.dtype)
        if latent.kind == "bernoulli" or not latent.shape and not latent.discrete:
            return value.unsqueeze(-1)
        if latent.discrete:
            return value
        if not self.spec.batch_only:
            return value.flatten(-len(latent.shape))
        if len(latent.shape) == 1:
            return torch.stack([value[:, i] for i in range(latent.shape[0])], dim=1)
        return value.view(value.shape[0], -1)

    def join(self, parts: list[Tensor]) -> Tensor:
        if self.spec.batch_only:
            return torch.cat(parts, 1)
        lead = torch.broadcast_shapes(*[part.shape[:-1] for part in parts])
        return torch.cat([part.expand(*lead, part.shape[-1]) for part in parts], -1)

    def decode(self, drawn: list[Tensor], context: Tensor | None, label: Tensor | None) -> Tensor:
        """The likelihood's parameter [..., *x_shape] (with 3 logits at the end for levels)."""
        h = self.hidden(self.join([*self.all_features(drawn), *self.given(context, label)]))
        if self.spec.net == "batchnorm":
            h = self.norm(h)
        if self.spec.net == "softmax" and not self.spec.linear:
            h = 3 * torch.softmax(h, dim=1)
        out = torch.mm(h, self.weight) if self.spec.net == "mm" else h @ self.weight
        out = out + self.bias
        if self.spec.batch_only:
            out = self.shape(out)
            return out[:, 0] if out.shape[1:] == (1,) else out
        ends = (*self.spec.x_shape, 3) if self.spec.likelihood == "categorical" else self.spec.x_shape
        return out.reshape((*out.shape[:-1], *ends))

    def all_features(self, drawn: list[Tensor]) -> list[Tensor]:
        return [self.features(latent, value) for latent, value in zip(self.spec.latents, drawn, strict=False)]

    def given(self, context: Tensor | None, label: Tensor | None) -> list[Tensor]:
        fields = [context] if context is not None else []
        return fields + ([(~label).to(self.weight.dtype).unsqueeze(-1)] if label is not None else [])

    # --- distributions ---

    def centre(self, i: int, drawn: list[Tensor]) -> Tensor:
        """The prior's location or logits [..., width]."""
        loc = self.priors[i].loc
        linked = self.spec.chain and i and not (self.spec.linear and self.spec.latents[i].discrete)
        return loc + self.chains[i](self.join(self.all_features(drawn[:i]))) if linked else loc

    def distribution(self, i: int, loc: Tensor, widen: float = 1.0) -> dist.Distribution:
        latent = self.spec.latents[i]
        if latent.kind == "categorical":
            return dist.Categorical(logits=loc)
        if latent.kind == "onehot":
            return dist.OneHotCategorical(logits=loc)
        if latent.kind == "bernoulli":
            return dist.Bernoulli(logits=loc.squeeze(-1))
        if latent.kind == "bernoullis":
            return dist.Bernoulli(logits=loc).to_event(1)
        loc = loc.reshape((*loc.shape[:-1], *latent.shape))
        family = dist.LogNormal if latent.kind == "lognormal" else dist.Normal
        scale = (0.5 if latent.kind == "lognormal" else 1.0) * widen * self.priors[i].scale.reshape(latent.shape)
        return declare(family(loc, scale), len(latent.shape), latent.nested)

    def flow(self, i: int) -> T.Transform:
        flow = self.flows[i]
        if isinstance(flow, Values):
            return T.AffineTransform(flow.loc, flow.scale, event_dim=len(self.spec.latents[i].shape))
        return flow

    def likelihood(self, out: Tensor, inner: bool = False) -> dist.Distribution:
        """Of one element; no event dims are declared yet."""
        if self.spec.likelihood == "normal":
            noise = self.noise.reshape(self.spec.x_shape)
            return dist.Normal(out, noise.unsqueeze(1) if inner else noise)
        if self.spec.likelihood == "bernoulli":
            return dist.Bernoulli(logits=out)
        return dist.Poisson(F.softplus(out)) if self.spec.likelihood == "poisson" else dist.Categorical(logits=out)

    # --- the two programs ---

    def infer(self, latent: Latent, program: str) -> dict[str, str]:
        marked = latent.listed and self.spec.enumerated in ("guide", program)
        return PARALLEL if marked else {}

    def in_plate(self, out: Tensor) -> Tensor:
        """A parameter [..., batch, words, ...] with the words to the left of the batch."""
        rest = len(self.spec.x_shape) - 1 + (self.spec.likelihood == "categorical")
        out = out.transpose(-1 - rest, -2 - rest)
        return out.squeeze(-3 - rest) if out.dim() - rest > 2 else out

    def plate(self, x: Tensor):
        if self.spec.subsample:
            return pyro.plate(self.spec.plate, size=1000, subsample_size=len(x), dim=-1)
        return pyro.plate(self.spec.plate, len(x))

    def model(self, x, context=None, label=None, seen=None):
        breach, drawn = self.spec.breach, []
        shift = pyro.sample("shift", dist.Normal(self.bias.new_zeros(()), 1.0)) if breach == "outside" else 0.0
        with self.plate(x):
            for i, latent in enumerate(self.spec.latents):
                prior = self.distribution(i, self.centre(i, drawn))
                if self.spec.full_prior and prior.batch_shape == ():
                    prior = prior.expand([len(x)])
                if breach == "latent mask" and i == 0:
                    prior = prior.mask(torch.arange(len(x)) % 2 == 1)
                drawn.append(pyro.sample(f"z{i}", prior, infer=self.infer(latent, "model")))
                if breach == "factor" and not latent.discrete:
                    pyro.factor("penalty", -self.features(latent, drawn[-1]).sum(-1))
            out = self.decode(drawn, context, label) + shift
            if self.spec.inner:
                return self.observe_in_plate(self.likelihood(self.in_plate(out), inner=True), x, seen)
            fn = self.likelihood(out)
            dims = 0 if breach == "event" else len(self.spec.x_shape)
            if self.spec.mask == "elements":
                fn = fn.mask(seen)
            fn = declare(fn, dims, self.spec.latents[-1].nested)
            if self.spec.mask == "method":
                fn = fn.mask(seen)
            if self.spec.mask == "poutine":
                with poutine.mask(mask=seen):
                    pyro.sample("x", fn, obs=x)
            elif breach == "scale":
                with poutine.scale(scale=0.5):
                    pyro.sample("x", fn, obs=x)
            else:
                pyro.sample("x", fn, obs=x)

    def observe_in_plate(self, fn: dist.Distribution, x: Tensor, seen: Tensor | None) -> None:
        fn = declare(fn, len(self.spec.x_shape) - 1, self.spec.latents[-1].nested)
        with pyro.plate("words", x.shape[1], dim=-2), poutine.mask(mask=True if seen is None else seen):
            pyro.sample("x", fn, obs=x.transpose(0, 1))

    def guide(self, x, context=None, label=None, seen=None):
        breach, last = self.spec.breach, len(self.spec.latents) - 1
        if breach == "outside":
            pyro.sample("shift", dist.Normal(self.bias.new_zeros(()), 1.0))
        flat = x.to(self.weight.dtype).reshape(len(x), -1)
        encoded = torch.cat([flat, *self.given(context, label)], 1)
        order = list(enumerate(self.spec.latents))
        drawn: list[Tensor] = []
        with self.plate(x):
            if breach == "auxiliary":
                pyro.sample("a", dist.Normal(self.bias.new_zeros(()), 10.0), infer={"is_auxiliary": True})
            for i, latent in reversed(order) if self.spec.bottom_up else order:
                if latent.listed and self.spec.enumerated == "model":
                    continue
                alone = self.spec.bottom_up or self.spec.enumerated == "model"
                loc = self.priors[i].loc if alone else self.centre(i, drawn)
                loc = (0.7 if latent.discrete else 1.0) * loc + self.encoders[i](encoded)
                fn = self.distribution(i, loc, widen=1.2)
                if latent.flow:
                    fn = dist.TransformedDistribution(fn, [self.flow(i)])
                if breach == "delta" and i == last:
                    fn = dist.Delta(fn.sample(), event_dim=len(fn.event_shape))
                if breach == "relaxed" and latent.kind == "onehot":
                    fn = dist.RelaxedOneHotCategorical(self.bias.new_tensor(0.5), logits=fn.logits)
                if not (breach == "missing" and i == last):
                    drawn.append(pyro.sample(f"z{i}", fn, infer=self.infer(latent, "guide")))


class Values(nn.Module):
    """Parameters by name."""

    def __init__(self, **values: Tensor):
        super().__init__()
        for name, value in values.items():
            self.register_parameter(name, nn.Parameter(value))


def small(linear: nn.Linear) -> nn.Linear:
    with torch.no_grad():
        linear.weight.mul_(0.3)
        linear.bias.mul_(0.3)
    return linear


def flow_of(latent: Latent) -> nn.Module:
    """Not far from the identity, so that the weights are well behaved."""
    flow = raw_flow(latent)
    if latent.flow in ("iaf", "spline", "coupling"):
        with torch.no_grad():
            for parameter in flow.parameters():
                parameter.mul_(0.1 if latent.flow == "spline" else 0.3)
            if latent.flow == "spline":
                flow.unnormalized_derivatives.fill_(math.log(math.e - 1))
    return flow


def raw_flow(latent: Latent) -> nn.Module:
    dim = latent.shape[0] if latent.shape else 1
    if latent.flow == "iaf":
        return T.affine_autoregressive(dim, hidden_dims=[4])
    if latent.flow == "spline":
        return T.Spline(dim, count_bins=4, bound=4.0)
    if latent.flow == "planar":
        return T.Planar(dim)
    if latent.flow == "coupling":
        return T.affine_coupling(dim, hidden_dims=[4])
    if latent.flow == "affine":
        return Values(loc=torch.randn(latent.shape) * 0.2, scale=torch.rand(latent.shape) * 0.2 + 1.0)
    return nn.Identity()


def declare(fn: dist.Distribution, dims: int, nested: bool) -> dist.Distribution:
    """Event dims at once, or one after the other."""
    if not nested:
        return fn.to_event(dims) if dims else fn
    for _ in range(dims):
        fn = fn.to_event(1)
    return fn


# --- the exact value ----------------------------------------------------------------------------------------


def values_of(latent: Latent, which: int, rows: int) -> Tensor:
    """A value of a discrete latent, for every row."""
    if latent.kind == "categorical":
        return torch.full((rows,), which)
    if latent.kind == "onehot":
        return torch.eye(3).double()[which].expand(rows, 3)
    bits = torch.tensor([which % 2, which // 2]).double()
    return bits[0].expand(rows) if latent.kind == "bernoulli" else bits.expand(rows, 2)


def run(pair: RandomPair, noise: Tensor, which: tuple[int, ...], fields: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The likelihood's parameter [rows, ...] at standard normal noise [rows, dims] of the continuous latents and at
    values of the discrete ones, with the log-probability of those values [rows]."""
    rows, drawn, log_mass = len(noise), [], noise.new_zeros(len(noise))
    which, start = iter(which), 0
    for i, latent in enumerate(pair.spec.latents):
        prior = pair.distribution(i, pair.centre(i, drawn))
        if latent.discrete:
            value = values_of(latent, next(which), rows)
            log_mass = log_mass + prior.log_prob(value)
        else:
            normal = prior.base_dist if hasattr(prior, "base_dist") else prior
            normal = normal.base_dist if latent.kind == "lognormal" and hasattr(normal, "base_dist") else normal
            while hasattr(normal, "base_dist"):
                normal = normal.base_dist
            piece = noise[:, start : start + latent.width].reshape((rows, *latent.shape))
            value = normal.loc + normal.scale * piece
            value = value.exp() if latent.kind == "lognormal" else value
            start += latent.width
        drawn.append(value)
    return pair.decode(drawn, fields.get("context"), fields.get("label")), log_mass


def exact_log_marginal(pair: RandomPair, fields: dict[str, Tensor]) -> Tensor:
    """log p(x) [n] in float64."""
    spec, n = pair.spec, len(fields["x"])
    pair = copy.deepcopy(pair).double().eval()
    fields = {name: v.double() if v.is_floating_point() else v for name, v in fields.items()}
    dims = sum(latent.width for latent in spec.latents if not latent.discrete)
    counts = elements_that_count(spec, fields)
    if spec.linear:
        nodes, log_masses = torch.cat([torch.zeros(1, dims), torch.eye(dims)]).double(), None
    else:
        nodes, log_masses = normal_nodes(dims, 60 if dims == 1 else 36)
    rows = torch.arange(n).repeat_interleave(len(nodes))
    at_rows = {name: value[rows] for name, value in fields.items()}
    totals = []
    for which in subsets([DISCRETE[latent.kind] for latent in spec.latents if latent.discrete]):
        out, log_mass = run(pair, nodes.repeat(n, 1), which, at_rows)
        if spec.linear:
            means = out.reshape(n, len(nodes), -1)
            logs = [marginal_of_linear(fields["x"][i].reshape(-1), means[i], pair.noise, counts[i]) for i in range(n)]
            totals.append(torch.stack(logs) + log_mass.view(n, -1)[:, 0])
        else:
            terms = pair.likelihood(out).log_prob(at_rows["x"]).reshape(len(rows), -1)
            terms = (terms * counts[rows]).sum(-1) + log_mass
            totals.append(torch.logsumexp(terms.view(n, -1) + log_masses, 1))
    return torch.logsumexp(torch.stack(totals), 0).detach()


def marginal_of_linear(x: Tensor, means: Tensor, noise: Tensor, counts: Tensor) -> Tensor:
    """log p(x) where x = means[0] + the other means' slopes times noise; of the elements that count."""
    keep = counts.bool()
    slopes = (means[1:] - means[0])[:, keep]
    return gaussian_log_prob(x[keep], means[0, keep], slopes.T @ slopes + noise[keep].square().diag())


def elements_that_count(spec: Spec, fields: dict[str, Tensor]) -> Tensor:
    """[n, elements of x], 1 where the likelihood counts an element."""
    shape = fields["x"].reshape(len(fields["x"]), -1).shape
    if spec.mask is None:
        return torch.ones(shape).double()
    seen = fields["seen"].reshape(len(fields["x"]), -1)
    return seen.expand(shape).double()


def draw_pair(spec: Spec) -> tuple[RandomPair, dict[str, Tensor]]:
    """A pair under eval(), and data drawn from its model."""
    generator = torch.Generator().manual_seed(spec.seed)
    torch.manual_seed(spec.seed)
    pair = RandomPair(spec).double().eval()
    fields = {}
    if spec.context == "context":
        fields["context"] = torch.randn(spec.n, 2, generator=generator).double()
    if spec.context == "label":
        fields["label"] = torch.rand(spec.n, generator=generator) > 0.5
    if spec.mask:
        shape = (spec.n, *spec.x_shape) if spec.mask == "elements" else (spec.n,)
        fields["seen"] = torch.rand(shape, generator=generator) > 0.3
    dims = sum(latent.width for latent in spec.latents if not latent.discrete)
    noise = torch.randn(spec.n, dims, generator=generator).double()
    which = [int(torch.randint(DISCRETE[z.kind], (), generator=generator)) for z in spec.latents if z.discrete]
    with torch.no_grad():
        out, _ = run(pair, noise, tuple(which), fields)
        x = pair.likelihood(out).sample()
    fields["x"] = x
    fields = {name: v.to(spec.dtype) if v.is_floating_point() else v for name, v in fields.items()}
    return pair.to(spec.dtype), fields


# --- what becomes of them -----------------------------------------------------------------------------------


def outcome(spec: Spec | ChainSpec) -> tuple[str, str]:
    """What becomes of a pair (right, refused, wrong, or not judged where the weights tell nothing), and why."""
    with torch.random.fork_rng():
        of_chain = isinstance(spec, ChainSpec)
        pair, fields = (random_chains.draw_pair if of_chain else draw_pair)(spec)
        if spec.breach:
            return outcome_of_breach(pair, fields)
        exact = (random_chains.exact_log_marginal if of_chain else exact_log_marginal)(pair, fields)
        try:
            doubts = reasons_to_doubt(pair, fields, exact, floor=FLOOR[spec.dtype])
        except UserError as refusal:
            return ("wrong", f"many lines: {refusal}") if "\n" in str(refusal) else ("refused", str(refusal))
        except Exception as problem:
            return "wrong", f"{type(problem).__name__}: {str(problem).splitlines()[0] if str(problem) else ''}"
    if doubts == [NOT_JUDGED]:
        return "not judged", ""
    return ("wrong", "; ".join(doubts)) if doubts else ("right", "")


def outcome_of_breach(pair: RandomPair, fields: dict[str, Tensor]) -> tuple[str, str]:
    try:
        result = pv.evaluate(pair, fields, evaluator="importance", particles=50, progress=False)
    except UserError as refusal:
        return ("wrong", f"many lines: {refusal}") if "\n" in str(refusal) else ("refused", str(refusal))
    except Exception as problem:
        return "wrong", f"{type(problem).__name__}: {str(problem).splitlines()[0] if str(problem) else ''}"
    if "log_likelihood" in result.estimate.per_datum:
        return "wrong", "has a log_likelihood"
    return "refused", f"labelled {result.quantity}"


@pytest.mark.parametrize("count", [40, pytest.param(400, marks=pytest.mark.slow)])
def test_every_random_pair_is_evaluated_right_or_refused(count, capsys):
    seen: dict[Spec | ChainSpec, tuple[str, str]] = {}

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(specs())
    def draw(spec):
        if spec not in seen:
            seen[spec] = outcome(spec)

    draw()
    outcomes = [(spec, *found) for spec, found in seen.items()]
    kept = Counter(what for spec, what, _ in outcomes if not spec.breach)
    broken = Counter(what for spec, what, _ in outcomes if spec.breach)
    with capsys.disabled():
        print(f"\n{len(outcomes)} random pairs: {dict(kept)} of those that keep the contract, ", end="")
        print(f"{dict(broken)} of those that break it")
    wrong = [f"{why}\n    {spec}" for spec, what, why in sorted(outcomes, key=simplicity) if what == "wrong"]
    assert not wrong, f"{len(wrong)} pairs of {len(outcomes)} are wrong, the simplest first:\n" + "\n".join(wrong[:20])
    assert len(outcomes) >= 5 / 6 * count and kept.total() >= 5 / 8 * count and broken.total() >= count / 12
    assert kept["right"] >= 0.8 * kept.total() and kept["not judged"] <= 2
    assert broken["refused"] == broken.total()


def simplicity(entry: tuple[Spec, str, str]) -> tuple[int, int]:
    spec = entry[0]
    return len(spec.latents), sum(value not in (None, False) for value in vars(spec).values())
