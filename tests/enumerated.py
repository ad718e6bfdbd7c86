"""Small pairs with enumerated sites, chains and plates inside the data's, and their sums by hand.

The sums never touch the library: a program runs once under Pyro's own handlers, each datum as often as the discrete
sites have joint values, and every row is given its values. Continuous latents stand at given values, or on a grid.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import config_enumerate
from pyro.ops.indexing import Vindex
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor, nn

N, K = 4, 3
PARALLEL = {"enumerate": "parallel"}
Fields = dict[str, Tensor]


class Given(nn.Module):
    """A pair whose parameters [*shape] are drawn at a seed, in float64; and its data."""

    shapes: Mapping[str, tuple[int, ...]] = {}
    width: tuple[int, ...] = ()
    data_dim = -1

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        for name, shape in self.shapes.items():
            value = torch.randn(shape, generator=generator, dtype=torch.float64)
            self.register_parameter(name, nn.Parameter(0.7 * value))

    def guide(self, x):
        pass

    def data(self) -> Fields:
        generator = torch.Generator().manual_seed(2)
        return {"x": torch.randn(N, *self.width, generator=generator, dtype=torch.float64)}


def normal(loc: Tensor, log_scale: Tensor | float = 0.0) -> dist.Normal:
    return dist.Normal(loc, torch.as_tensor(log_scale, dtype=loc.dtype).exp())


# --- one site and several -----------------------------------------------------------------------------------


class Mixture(Given):
    shapes = {"weights": (K,), "centres": (K,), "noise": ()}

    def model(self, x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=self.weights), infer=PARALLEL)
            pyro.sample("x", normal(self.centres[y], self.noise), obs=x)


class MixturePrior(Given):
    """The model alone enumerates, and the latent that the guide draws depends on it."""

    shapes = {"weights": (K,), "centres": (K,), "shifts": (K,), "noise": (), "slope": (), "bias": (), "width_q": ()}

    def model(self, x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=self.weights), infer=PARALLEL)
            z = pyro.sample("z", normal(self.centres[y]))
            pyro.sample("x", normal(z + self.shifts[y], self.noise), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", normal(self.slope * x + self.bias, 0.1 * self.width_q))


class Tree(Given):
    """Three sites of the model, each depending on those before it."""

    shapes = {"first": (K,), "second": (K, 2), "third": (K, 2, K), "centres": (2, K)}

    def model(self, x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Categorical(logits=self.first), infer=PARALLEL)
            b = pyro.sample("b", dist.Categorical(logits=self.second[a]), infer=PARALLEL)
            c = pyro.sample("c", dist.Categorical(logits=Vindex(self.third)[a, b]), infer=PARALLEL)
            pyro.sample("x", normal(Vindex(self.centres)[b, c]), obs=x)


@config_enumerate
def _kinds(self, x):
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.OneHotCategorical(logits=self.weights))
        b = pyro.sample("b", dist.Bernoulli(logits=a @ self.rates))
        c = pyro.sample("c", dist.Binomial(2, logits=b))
        pyro.sample("x", normal(a @ self.centres + b + c), obs=x)


class Kinds(Given):
    """A one-hot site, a bit and a count."""

    shapes = {"weights": (K,), "rates": (K,), "centres": (K,)}
    model = _kinds


class Label(Given):
    """The guide enumerates y and draws z given y."""

    shapes = {
        "weights": (K,),
        "centres": (K,),
        "slope": (),
        "noise": (),
        "logits": (K,),
        "slopes": (K,),
        "shifts": (K,),
    }

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", normal(x.new_zeros(len(x))))
            y = pyro.sample("y", dist.Categorical(logits=self.weights))
            pyro.sample("x", normal(self.centres[y] + self.slope * z, self.noise), obs=x)

    @config_enumerate
    def guide(self, x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=self.logits + 0.3 * x[:, None] * self.slopes))
            pyro.sample("z", normal(0.3 * x + self.shifts[y]))


class LabelPrior(Label):
    """The same with a prior of z given y."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=self.weights), infer=PARALLEL)
            z = pyro.sample("z", normal(self.centres[y]))
            pyro.sample("x", normal(self.slope * z, self.noise), obs=x)


class LabelAlone(Label):
    """The guide enumerates y, and z is drawn before it and without it."""

    @config_enumerate
    def guide(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", normal(0.3 * x + self.shifts[0]))
            pyro.sample("y", dist.Categorical(logits=self.logits + 0.3 * z[..., None] * self.slopes))


class Both(Given):
    """The guide enumerates a, the model b given a."""

    shapes = {"first": (K,), "second": (K, 2), "centres": (2,), "shifts": (K, 2), "logits": (K,), "moves": (K,)}

    def model(self, x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Categorical(logits=self.first))
            b = pyro.sample("b", dist.Categorical(logits=self.second[a]), infer=PARALLEL)
            z = pyro.sample("z", normal(self.centres[b]))
            pyro.sample("x", normal(z + Vindex(self.shifts)[a, b]), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Categorical(logits=self.logits.expand(len(x), K)), infer=PARALLEL)
            pyro.sample("z", normal(0.4 * x + self.moves[a]))


class TwoLabels(Given):
    """The guide enumerates two sites, and each of two latents depends on some of them."""

    shapes = {"first": (2,), "second": (2, K), "m1": (2,), "m2": (K,), "logits": (2, K), "s1": (2,), "s2": (2, K)}

    def model(self, x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Categorical(logits=self.first))
            b = pyro.sample("b", dist.Categorical(logits=self.second[a]))
            u = pyro.sample("u", normal(self.m1[a]))
            v = pyro.sample("v", normal(self.m2[b] + 0.3 * u))
            pyro.sample("x", normal(u + v, 0.3), obs=x)

    @config_enumerate
    def guide(self, x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Categorical(logits=x[:, None] * self.s1))
            u = pyro.sample("u", normal(0.3 * x + self.s1[a]))
            b = pyro.sample("b", dist.Categorical(logits=self.logits[a]))
            pyro.sample("v", normal(0.3 * x + 0.2 * u + Vindex(self.s2)[a, b]))


class Drawn(Given):
    """A discrete site that is drawn, given one that the guide enumerates."""

    shapes = {"first": (K,), "second": (K, 2), "centres": (K, 2), "logits": (K,), "slopes": (K,), "moves": (K, 2)}

    def model(self, x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=self.first))
            k = pyro.sample("k", dist.Categorical(logits=self.second[y]))
            pyro.sample("x", normal(Vindex(self.centres)[y, k]), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=self.logits + x[:, None] * self.slopes), infer=PARALLEL)
            pyro.sample("k", dist.Categorical(logits=self.moves[y]))


class DrawnFirst(Drawn):
    """A discrete site that is drawn, and one that the guide enumerates given it."""

    def guide(self, x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(logits=self.moves[0] + x[:, None] * self.moves[1]))
            pyro.sample("y", dist.Categorical(logits=self.logits + self.slopes * k[..., None]), infer=PARALLEL)


class DrawnBeside(Drawn):
    """A discrete site that is drawn, beside one that the model enumerates."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=self.first), infer=PARALLEL)
            k = pyro.sample("k", dist.Categorical(logits=self.second[y]))
            pyro.sample("x", normal(Vindex(self.centres)[y, k]), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(logits=self.moves[0] + x[:, None] * self.moves[1]))


# --- chains -------------------------------------------------------------------------------------------------


class Chain(Given):
    """A hidden Markov model of sequences of different lengths."""

    shapes = {"start": (K,), "steps": (K, K), "centres": (K,)}
    width = (4,)

    def model(self, x, length):
        with pyro.plate("data", len(x)):
            y = None
            for t in pyro.markov(range(x.shape[1])):
                with poutine.mask(mask=t < length):
                    logits = self.start if y is None else self.steps[y]
                    y = pyro.sample(f"y_{t}", dist.Categorical(logits=logits), infer=PARALLEL)
                    pyro.sample(f"x_{t}", normal(self.centres[y]), obs=x[:, t])

    def guide(self, x, length):
        pass

    def data(self):
        return super().data() | {"length": torch.tensor([4, 1, 3, 2])}


class SecondOrder(Given):
    """A chain whose states depend on the two before them."""

    shapes = {"steps": (K, K, K), "centres": (K,)}
    width = (4,)

    def model(self, x):
        with pyro.plate("data", len(x)):
            before = last = torch.zeros((), dtype=torch.long)
            for t in pyro.markov(range(x.shape[1]), history=2):
                y = pyro.sample(f"y_{t}", dist.Categorical(logits=Vindex(self.steps)[before, last]), infer=PARALLEL)
                pyro.sample(f"x_{t}", normal(self.centres[y]), obs=x[:, t])
                before, last = last, y


class TwoChains(Given):
    """Two chains, the second depending on the first; data at dim -2, tones at -1."""

    shapes = {"w_steps": (2, 2), "v_steps": (2, 2, 2), "rates": (2, 2, 2)}
    width = (3, 2)
    data_dim = -2

    def model(self, x):
        tones = pyro.plate("tones", x.shape[-1], dim=-1)
        with pyro.plate("sequences", len(x), dim=-2):
            w = v = torch.zeros((), dtype=torch.long)
            for t in pyro.markov(range(x.shape[1])):
                w = pyro.sample(f"w_{t}", dist.Categorical(logits=self.w_steps[w]), infer=PARALLEL)
                v = pyro.sample(f"v_{t}", dist.Categorical(logits=Vindex(self.v_steps)[w, v]), infer=PARALLEL)
                with tones as tone:
                    pyro.sample(f"x_{t}", normal(Vindex(self.rates)[w, v, tone]), obs=x[:, t])


class GuideChain(Given):
    """Both programs have a chain, and the guide enumerates it."""

    shapes = {"start": (K,), "steps": (K, K), "centres": (K,), "moves": (K, K), "slopes": (K,)}
    width = (3,)

    def model(self, x):
        with pyro.plate("data", len(x)):
            y = None
            for t in pyro.markov(range(x.shape[1])):
                y = pyro.sample(f"y_{t}", dist.Categorical(logits=self.start if y is None else self.steps[y]))
                pyro.sample(f"x_{t}", normal(self.centres[y]), obs=x[:, t])

    @config_enumerate
    def guide(self, x):
        with pyro.plate("data", len(x)):
            y = None
            for t in pyro.markov(range(x.shape[1])):
                logits = x[:, t, None] * self.slopes + (0.0 if y is None else self.moves[y])
                y = pyro.sample(f"y_{t}", dist.Categorical(logits=logits))


class Switching(Given):
    """A chain that is enumerated, with a latent of every step that the guide draws."""

    shapes = {"start": (K,), "steps": (K, K), "centres": (K,), "bias": ()}
    width = (2,)

    def model(self, x):
        with pyro.plate("data", len(x)):
            y = None
            for t in pyro.markov(range(x.shape[1])):
                logits = self.start if y is None else self.steps[y]
                y = pyro.sample(f"y_{t}", dist.Categorical(logits=logits), infer=PARALLEL)
                z = pyro.sample(f"z_{t}", normal(self.centres[y]))
                pyro.sample(f"x_{t}", normal(z), obs=x[:, t])

    def guide(self, x):
        with pyro.plate("data", len(x)):
            for t in range(x.shape[1]):
                pyro.sample(f"z_{t}", normal(0.4 * x[:, t] + self.bias))


# --- plates inside the plate of the data --------------------------------------------------------------------


class Words(Given):
    """A latent of a document, and a topic of each of its words; documents at dim -1, words at -2."""

    shapes = {"topics": (K,), "centres": (K,), "bias": ()}
    width = (3,)

    def model(self, x):
        with pyro.plate("documents", len(x)):
            z = pyro.sample("z", normal(x.new_zeros(len(x))))
            with pyro.plate("words", x.shape[1]):
                y = pyro.sample("y", dist.Categorical(logits=z[..., None] * self.topics), infer=PARALLEL)
                pyro.sample("x", normal(self.centres[y]), obs=x.T)

    def guide(self, x):
        with pyro.plate("documents", len(x)):
            pyro.sample("z", normal(0.3 * x.sum(1) + self.bias))


class WordsLast(Words):
    """The same with the words at dim -1 and the documents at -2."""

    data_dim = -2

    def model(self, x):
        with pyro.plate("documents", len(x), dim=-2):
            z = pyro.sample("z", normal(x.new_zeros(len(x), 1)))
            with pyro.plate("words", x.shape[1], dim=-1):
                y = pyro.sample("y", dist.Categorical(logits=z[..., None] * self.topics), infer=PARALLEL)
                pyro.sample("x", normal(self.centres[y]), obs=x)

    def guide(self, x):
        with pyro.plate("documents", len(x), dim=-2):
            pyro.sample("z", normal(0.3 * x.sum(1, keepdim=True) + self.bias))


class Document(Words):
    """A kind of the document and topics of its words, all of which the model enumerates."""

    shapes = {"kinds": (2,), "topics": (2, K), "centres": (K,)}

    def model(self, x):
        with pyro.plate("documents", len(x)):
            kind = pyro.sample("kind", dist.Categorical(logits=self.kinds), infer=PARALLEL)
            with pyro.plate("words", x.shape[1]):
                y = pyro.sample("y", dist.Categorical(logits=self.topics[kind]), infer=PARALLEL)
                pyro.sample("x", normal(self.centres[y]), obs=x.T)

    def guide(self, x):
        pass


class GuideWords(Words):
    """The guide enumerates the topic of each word."""

    shapes = {"topics": (K,), "centres": (K,), "bias": (), "slopes": (K,)}

    def guide(self, x):
        with pyro.plate("documents", len(x)):
            pyro.sample("z", normal(0.3 * x.sum(1) + self.bias))
            with pyro.plate("words", x.shape[1]):
                pyro.sample("y", dist.Categorical(logits=x.T[..., None] * self.slopes), infer=PARALLEL)


class Pixels(Given):
    """A plate inside the data's with latents and observations, nothing of it enumerated."""

    shapes = {"slope": (), "bias": ()}
    width = (2,)

    def plate(self, x):
        return pyro.plate("data", len(x), dim=-1)

    def model(self, x):
        with self.plate(x):
            with pyro.plate("pixels", x.shape[1], dim=-2):
                z = pyro.sample("z", normal(x.new_zeros(x.shape[1], len(x))))
                pyro.sample("x", normal(self.slope * z + self.bias), obs=x.T)

    def guide(self, x):
        with self.plate(x), pyro.plate("pixels", x.shape[1], dim=-2):
            pyro.sample("z", normal(0.3 * x.T))


class PixelsLast(Pixels):
    """The same with the data at dim -2 and the pixels at -1."""

    data_dim = -2

    def model(self, x):
        with pyro.plate("data", len(x), dim=-2), pyro.plate("pixels", x.shape[1], dim=-1):
            z = pyro.sample("z", normal(x.new_zeros(x.shape)))
            pyro.sample("x", normal(self.slope * z + self.bias), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-2), pyro.plate("pixels", x.shape[1], dim=-1):
            pyro.sample("z", normal(0.3 * x))


class SubsampledPixels(Pixels):
    """The same with a data plate that is subsampled."""

    def plate(self, x):
        return pyro.plate("data", 10**6, subsample_size=len(x), dim=-1)


class PixelLoop(Pixels):
    """The same as a Python loop."""

    def model(self, x):
        with self.plate(x):
            for i in pyro.plate("pixels", x.shape[1]):
                z = pyro.sample(f"z_{i}", normal(x.new_zeros(len(x))))
                pyro.sample(f"x_{i}", normal(self.slope * z + self.bias), obs=x[:, i])

    def guide(self, x):
        with self.plate(x):
            for i in pyro.plate("pixels", x.shape[1]):
                pyro.sample(f"z_{i}", normal(0.3 * x[:, i]))


class WordLoop(Words):
    """Words as a Python loop, each with a topic that the model enumerates."""

    def model(self, x):
        with pyro.plate("documents", len(x)):
            z = pyro.sample("z", normal(x.new_zeros(len(x))))
            for i in pyro.plate("words", x.shape[1]):
                y = pyro.sample(f"y_{i}", dist.Categorical(logits=z[..., None] * self.topics), infer=PARALLEL)
                pyro.sample(f"x_{i}", normal(self.centres[y]), obs=x[:, i])


# --- observed for some data ---------------------------------------------------------------------------------


class PartlyLabelled(Label):
    """Labels are known of some data; the guide enumerates the others."""

    def model(self, x, label, known):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", normal(x.new_zeros(len(x))))
            y = pyro.sample("y", dist.Categorical(logits=self.weights), obs=label, obs_mask=known)
            pyro.sample("x", normal(self.centres[y] + self.slope * z, self.noise), obs=x)

    def guide(self, x, label, known):
        with pyro.plate("data", len(x)):
            logits = self.logits + 0.3 * x[:, None] * self.slopes
            with poutine.mask(mask=~known):
                y = pyro.sample("y_unobserved", dist.Categorical(logits=logits), infer=PARALLEL)
            pyro.sample("z", normal(0.3 * x + self.shifts[torch.where(known, label, y)]))

    def data(self):
        return super().data() | {"label": torch.tensor([2, 0, 1, 1]), "known": torch.tensor([True, False, True, False])}


class PartlyHidden(PartlyLabelled):
    """Labels are known of some data; the model enumerates the others. (Pyro drops `infer` beside `obs_mask`.)"""

    @config_enumerate
    def model(self, x, label, known):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", normal(x.new_zeros(len(x))))
            y = pyro.sample("y", dist.Categorical(logits=self.weights), obs=label, obs_mask=known)
            pyro.sample("x", normal(self.centres[y] + self.slope * z, self.noise), obs=x)

    def guide(self, x, label, known):
        with pyro.plate("data", len(x)):
            pyro.sample("z", normal(0.3 * x + self.shifts[0]))


IN_MODEL = (Mixture, MixturePrior, Tree, Kinds, Chain, SecondOrder, TwoChains, Switching, Document, PartlyHidden)
IN_MODEL += (Words, WordsLast, WordLoop, DrawnBeside)
IN_GUIDE = (Label, LabelPrior, LabelAlone, Both, TwoLabels, GuideChain, GuideWords, PartlyLabelled, Drawn, DrawnFirst)
NOWHERE = (Pixels, PixelsLast, SubsampledPixels, PixelLoop)
SUMMED_OUT = (Mixture, Tree, Kinds, Chain, SecondOrder, TwoChains, Document)
"""Those without a latent that is drawn."""
SCORED = (Drawn, DrawnFirst, DrawnBeside)
"""Those with a latent that is drawn and has no path."""


# --- their sums by hand -------------------------------------------------------------------------------------


class Sums(NamedTuple):
    """Of each datum, in nats, as design and docs define them."""

    log_likelihood: Float[Tensor, " n"]
    log_prior: Float[Tensor, " n"]
    log_guide: Float[Tensor, " n"]
    log_weight: Float[Tensor, " n"]


def sites_of(program: Callable[..., Any], fields: Fields, given: Mapping[str, Tensor] | None = None) -> dict[str, dict]:
    """The sample statements of a program by name."""
    with poutine.trace() as tracer, poutine.condition(data=dict(given or {})):
        program(**fields)
    return {
        name: node
        for name, node in tracer.trace.nodes.items()
        if node["type"] == "sample" and not isinstance(node["fn"], _Subsample)
        if not node["infer"].get("_deterministic")
    }


def latents_of(pair: nn.Module, fields: Fields) -> tuple[dict[str, dict], dict[str, dict]]:
    """The latents of guide and model."""
    guide = sites_of(pair.guide, fields)
    given = {name: node["value"] for name, node in guide.items()}
    model = sites_of(pair.model, fields, given)
    return guide, {name: node for name, node in model.items() if name in guide or not node["is_observed"]}


class Joint:
    """All joint values of some discrete sites, each for every datum: rows [values x data]."""

    def __init__(self, pair: nn.Module, fields: Fields, sites: Mapping[str, dict]):
        self.sites, self.n, self.data_dim = sites, len(fields["x"]), getattr(pair, "data_dim", -1)
        self.supports = {name: self._support(node) for name, node in sites.items()}
        inner = {name: math.prod(self.inner(node)) for name, node in sites.items()}
        each = [itertools.product(range(len(s)), repeat=inner[name]) for name, s in self.supports.items()]
        self.index = list(itertools.product(*each))
        self.fields = {name: torch.cat([value] * len(self.index)) for name, value in fields.items()}

    def _support(self, node: dict) -> Tensor:
        values = node["fn"].enumerate_support(expand=False)
        return values.reshape(len(values), *node["fn"].event_shape)

    def inner(self, node: dict) -> list[int]:
        """The sizes of a datum's own plates."""
        shape = list(node["fn"].batch_shape)
        del shape[self.data_dim]
        return shape

    def as_program(self, node: dict, rows: Tensor) -> Tensor:
        """A value [rows, ...] with the dims of a program."""
        event = list(node["fn"].event_shape)
        value = rows.reshape(len(rows), *self.inner(node), *event)
        return value.movedim(0, len(node["fn"].batch_shape) + self.data_dim)

    def values(self) -> dict[str, Tensor]:
        """The value of each discrete site in every row."""
        found = {}
        for place, (name, node) in enumerate(self.sites.items()):
            chosen = self.supports[name][torch.tensor([index[place] for index in self.index])]
            found[name] = self.as_program(node, chosen.repeat_interleave(self.n, 0))
        return found

    def terms(self, program: Callable[..., Any], given: Mapping[str, Tensor]) -> tuple[dict, dict]:
        """The log-probability [values, n] of each site, without its mask and with it."""
        plain, masked = {}, {}
        for name, node in sites_of(program, self.fields, given).items():
            term = node["fn"].log_prob(node["value"])
            for found, kept in ((plain, term), (masked, scale_and_mask(term, mask=node["mask"]))):
                kept = kept.movedim(self.data_dim, 0)
                found[name] = kept.reshape(len(self.index), self.n, -1).sum(-1)
        return plain, masked


def sums_by_hand(pair: Given, fields: Fields, drawn: Mapping[str, Any], particle: int = 0) -> Sums:
    """The terms of a pair at the draws of its guide, recorded by the library with all values of what it enumerates."""
    guide, model = latents_of(pair, fields)
    of_guide = [name for name, node in guide.items() if node["infer"].get("enumerate")]
    hidden = [name for name, node in model.items() if name not in guide and node["infer"].get("enumerate")]
    joint = Joint(pair, fields, {**{n: guide[n] for n in of_guide}, **{n: model[n] for n in hidden}})
    given = joint.values()
    for name, node in guide.items():
        if name not in of_guide:
            given[name] = joint.as_program(node, _at(drawn, name, particle, joint, of_guide))
    p_plain, p = joint.terms(pair.model, given)
    q_plain, q = joint.terms(pair.guide, given)
    states = len(Joint(pair, fields, {name: guide[name] for name in of_guide}).index)
    zero = torch.zeros(len(joint.index), joint.n, dtype=torch.float64)

    def by_state(terms) -> Tensor:
        return sum(terms, zero).reshape(states, -1, joint.n)

    first = (slice(None), 0)  # what does not depend on the values of the model's sites
    names, observed = [n for n in p if n in model], [n for n in p if n not in model]
    prior = by_state([p_plain[n] if n in hidden else p[n] for n in names])
    log_prior = prior.logsumexp(1)
    log_likelihood = (prior + by_state([p[n] for n in observed])).logsumexp(1) - log_prior
    log_guide = by_state(q.values())[first]
    probability = by_state([q_plain[n] for n in of_guide])[first].exp()
    whole = by_state([p_plain[n] if n in (*hidden, *of_guide) else p[n] for n in p])
    weight = whole - by_state([q[n] for n in q if n not in of_guide])
    means = [(probability * term).sum(0) for term in (log_likelihood, log_prior, log_guide)]
    return Sums(*means, weight.flatten(0, 1).logsumexp(0))


def _at(drawn: Mapping[str, Any], name: str, particle: int, joint: Joint, of_guide: list[str]) -> Tensor:
    """The draw of a site [rows, ...] at the values of what the guide enumerates."""
    site, by_number = drawn[name], {drawn[n].enumerated: n for n in of_guide}
    lead = site.raw.shape[: site.raw.dim() - len(site.event_shape)]
    dims = [n for d, n in sorted(site.dims.items()) if -d <= len(lead) and lead[d] > 1]
    places = [of_guide.index(by_number[number]) for number in dims]
    value = site.value[particle]
    return torch.cat([value[(slice(None), *[index[place][0] for place in places])] for index in joint.index])


def log_marginal(pair: nn.Module, fields: Fields, reach: float = 9.0, points: int = 61) -> Float[Tensor, " n"]:
    """log p(x) of each datum: discrete latents summed, continuous ones, which are real, by the trapezoidal rule."""
    _, model = latents_of(pair, fields)
    discrete = {name: node for name, node in model.items() if node["fn"].has_enumerate_support}
    places = {name: node for name, node in model.items() if name not in discrete}
    widths = [math.prod((*Joint(pair, fields, {}).inner(n), *n["fn"].event_shape)) for n in places.values()]
    dims, dtype = sum(widths), next(iter(pair.parameters())).dtype
    nodes = torch.tensor(list(itertools.product(range(points), repeat=dims)), dtype=dtype)
    nodes, step = (nodes / (points - 1) - 0.5) * 2 * reach, 2 * reach / (points - 1)
    rows = torch.arange(len(fields["x"])).repeat(len(nodes))
    joint = Joint(pair, {name: value[rows] for name, value in fields.items()}, discrete)
    given, start = joint.values(), 0
    at = nodes.repeat_interleave(len(fields["x"]), 0).repeat(len(joint.index), 1)
    for width, (name, node) in zip(widths, places.items(), strict=True):
        given[name] = joint.as_program(node, at[:, start : start + width])
        start += width
    plain, masked = joint.terms(pair.model, given)
    total = sum([plain[name] if name in model else masked[name] for name in plain])
    return total.reshape(len(joint.index) * len(nodes), -1).logsumexp(0) + dims * math.log(step)
