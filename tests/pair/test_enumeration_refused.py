"""What cannot be enumerated, or not so: one line that names the site, never a raw error or a wrong number."""

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from enumerated import PARALLEL, Chain, DrawnBeside, Given, GuideChain, Label, Mixture, Words, normal
from pyro import poutine
from torch import nn

import pyro_vae as pv
from pyro_vae import plugins
from pyro_vae.errors import UserError
from pyro_vae.pair.terms import log_terms

LINES = {}


class OneParameter(Given):
    shapes = {"noise": ()}


def breach(line: str):
    def register(kind: type[Given]) -> type[Given]:
        LINES[kind] = line
        return kind

    return register


def categorical(size: int, like: torch.Tensor) -> dist.Categorical:
    return dist.Categorical(logits=like.new_zeros(size))


@breach(r"site 'y_6' .*10,000,000 joint states.* more than 4,194,304; .*pyro\.markov")
class TooManyStates(OneParameter):
    """Sites that all depend on all before them."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            total = 0
            for i in range(9):
                logits = torch.zeros(10, dtype=x.dtype) + 0.1 * torch.as_tensor(total)[..., None]
                total = total + pyro.sample(f"y_{i}", dist.Categorical(logits=logits), infer=PARALLEL)
            pyro.sample("x", normal(0.1 * total.to(x)), obs=x)


@breach(r"y_\d+.*pyro\.markov")
class LongChain(OneParameter):
    """A chain that is not under `pyro.markov`."""

    width = (80,)

    def model(self, x):
        with pyro.plate("data", len(x)):
            y = torch.tensor(0)
            for t in range(x.shape[1]):
                logits = torch.eye(2, dtype=x.dtype)[y]
                y = pyro.sample(f"y_{t}", dist.Categorical(logits=logits), infer=PARALLEL)
                pyro.sample(f"x_{t}", normal(y.to(x)), obs=x[:, t])


@breach(r"site 'y' is marked to be enumerated, but a Poisson has infinitely many values")
class Unbounded(OneParameter):
    def model(self, x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Poisson(x.new_ones(())), infer=PARALLEL)
            pyro.sample("x", normal(y), obs=x)


@breach(r"site 'y' is marked to be enumerated, but a Normal ")
class Continuous(OneParameter):
    def model(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", normal(pyro.sample("y", normal(x.new_zeros(())), infer=PARALLEL)), obs=x)


@breach(r"site 'y' is marked to be enumerated, but .* cannot be listed")
class Bits(OneParameter):
    """Bits that are one event."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(x.new_full((3,), 0.5)).to_event(1), infer=PARALLEL)
            pyro.sample("x", normal(y.sum(-1)), obs=x)


@breach(r"site 'y' asks for num_samples")
class MonteCarlo(OneParameter):
    def model(self, x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", categorical(3, x), infer={"enumerate": "parallel", "num_samples": 5})
            pyro.sample("x", normal(y.to(x)), obs=x)


@breach(r"site '[xy]'.*plate 'data'")
class ForeignPlate(OneParameter):
    """A plate that the batch does not run along."""

    def model(self, x):
        with pyro.plate("data", 7):
            y = pyro.sample("y", categorical(3, x), infer=PARALLEL)
            pyro.sample("x", normal(y.to(x)), obs=x.repeat(2)[:7])


@breach(r"the plates 'rows' and 'columns' are both as long as the batch of .*data_plate = 'rows'")
class TwoPlates(OneParameter):
    def model(self, x):
        with pyro.plate("rows", len(x), dim=-2), pyro.plate("columns", len(x), dim=-1):
            y = pyro.sample("y", categorical(3, x), infer=PARALLEL)
            pyro.sample("x", normal(y.to(x)), obs=x[:, None] - x)


@breach(r"site 'y' is enumerated by the model and drawn by the guide")
class DrawnInGuide(Mixture):
    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("y", categorical(3, x))


@breach(r"'y'.* 3 values .* 2 ")
class FewerInGuide(Mixture):
    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("y", categorical(2, x), infer=PARALLEL)


@breach(r"'y'.* 3 values .* 4 |IndexError after site 'y'")
class MoreInGuide(Mixture):
    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("y", categorical(4, x), infer=PARALLEL)


@breach(r"the model raised RuntimeError with 'y' enumerated.* count dims from the right")
class BatchNet(OneParameter):
    """A net that takes [batch, features] only."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(5, 1).double()

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            y = pyro.sample("y", dist.OneHotCategorical(logits=x.new_zeros(3)), infer=PARALLEL)
            pyro.sample("x", normal(self.net(torch.cat([z, y], 1))[:, 0]), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))


@breach(r"the guide raised RuntimeError with 'y' enumerated.* count dims from the right")
class BatchNetOfGuide(Label):
    """A net of the guide that takes [batch, features] only."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2, 1).double()

    def guide(self, x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=x[:, None] * self.slopes), infer=PARALLEL)
            pyro.sample("z", normal(self.net(torch.stack([x, y.to(x)], 1))[:, 0]))


@breach(r"site 'y' is outside the data plate")
class Outside(OneParameter):
    def model(self, x):
        y = pyro.sample("y", categorical(3, x), infer=PARALLEL)
        with pyro.plate("data", len(x)):
            pyro.sample("x", normal(y.to(x), self.noise), obs=x)


@breach(r"'x'.*different scales|'x' of the model is scaled")
class Scales(Mixture):
    def model(self, x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=self.weights), infer=PARALLEL)
            with poutine.scale(scale=0.5):
                pyro.sample("x", normal(self.centres[y], self.noise), obs=x)


@breach(r"enumerated sites hang together across plates.*")
class Crossed(OneParameter):
    """A site of each row and one of each column, and observations that depend on both."""

    width = (2, 2)

    def model(self, x):
        with pyro.plate("data", len(x), dim=-3):
            rows, columns = pyro.plate("rows", 2, dim=-2), pyro.plate("columns", 2, dim=-1)
            with rows:
                a = pyro.sample("a", categorical(3, x), infer=PARALLEL)
            with columns:
                b = pyro.sample("b", categorical(3, x), infer=PARALLEL)
            with rows, columns:
                pyro.sample("x", normal((a + b).to(x)), obs=x)


@breach(r"site 'z' of the guide has another log-probability with 'y' enumerated")
class OutOfThePlate(Words):
    """A site outside a plate that depends on one enumerated inside it."""

    shapes = {"topics": (3,), "centres": (3,), "slopes": (3,)}

    def guide(self, x):
        with pyro.plate("documents", len(x)):
            with pyro.plate("words", x.shape[1]):
                y = pyro.sample("y", dist.Categorical(logits=x.T[..., None] * self.slopes), infer=PARALLEL)
            pyro.sample("z", normal(self.centres[y].sum(-2, keepdim=True)))


@pytest.mark.parametrize("case", LINES)
def test_a_breach_is_one_line_that_names_the_site(case):
    pair = case()
    for use in (
        lambda: log_terms(pair, pair.data()),
        lambda: pv.evaluate(pair, pair.data(), "importance", 4, progress=False),
        lambda: pv.train(pair, pair.data(), epochs=1, batch_size=3, progress=False, engine="eager", device="cpu"),
    ):
        with pytest.raises(UserError, match=LINES[case]) as problem:
            use()
        assert "\n" not in str(problem.value)


def test_the_pair_may_say_which_plate_is_the_datas():
    class Named(TwoPlates):
        data_plate = "rows"

    pair = Named()
    x = pair.data()["x"]
    differences = x[:, None] - x
    parts = torch.distributions.Normal(torch.arange(3).double()[:, None, None], 1.0).log_prob(differences)
    exact = (parts.logsumexp(0) - torch.tensor(3.0).log()).sum(1)
    assert torch.allclose(log_terms(pair, {"x": x}).log_weight[0], exact)


def test_a_net_that_takes_the_dim_of_an_enumeration_for_its_own_is_found():
    class Softmax(Label):
        """Normalises over dim 1, which is another one where y is enumerated."""

        def model(self, x):
            with pyro.plate("data", len(x)):
                y = pyro.sample("y", dist.Categorical(logits=self.weights))
                z = pyro.sample("z", normal(x.new_zeros(len(x))))
                h = torch.stack(torch.broadcast_tensors(z, self.centres[y]), -1)
                pyro.sample("x", normal(F.softmax(h, dim=1)[..., 0]), obs=x)

    pair = Softmax()
    with pytest.raises(UserError, match="site 'x' of the model has another log-probability with 'y' enumerated"):
        pv.evaluate(pair, pair.data(), "importance", 4, progress=False)


@pytest.mark.parametrize("gradient", ["pathwise", "stl", "dreg", "vimco"])
@pytest.mark.parametrize("name", ["iwae", "renyi"])
@pytest.mark.parametrize("case", [Label, GuideChain])
def test_a_guide_that_enumerates_has_no_bound_of_several_particles(case, name, gradient):
    pair = case()
    objective = plugins.build("objective", name, {"gradient": gradient})
    with pytest.raises(UserError, match=r"the guide enumerates 'y.*use trace_enum_elbo"):
        objective(pair, pair.data(), particles=3)


@pytest.mark.parametrize("case", [Mixture, Chain, DrawnBeside])
def test_trace_graph_elbo_takes_no_site_that_the_model_enumerates(case):
    pair = case()
    with pytest.raises(UserError, match=r"the model enumerates 'y.*use trace_enum_elbo"):
        plugins.build("objective", "trace_graph_elbo", {})(pair, pair.data())
