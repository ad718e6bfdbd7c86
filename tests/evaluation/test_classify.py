"""The evaluator `classify`: probabilities by hand, clusters matched by trying all ways, pairs as users write them."""

from itertools import permutations

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from enumerated import PARALLEL, GuideWords, Mixture, PartlyLabelled, TwoLabels
from pairs import bits, small_vae
from pyro.infer import config_enumerate
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.data.labels import HIDDEN
from pyro_vae.errors import ContractError, DataError, UnknownName
from pyro_vae.evaluation.classify import confusion_counts, matching
from pyro_vae.pair.labels import unlabelled

N, K = 150, 3


class Told(nn.Module):
    """The guide reads the logits of y off the data, and a label of its own is observed where the data have one."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.OneHotCategorical(x.new_ones(K) / K), obs=y)
            pyro.sample("x", dist.Normal(y + self.shift, 1.0).to_event(1), obs=x)

    @config_enumerate
    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            if y is None:
                pyro.sample("y", dist.OneHotCategorical(logits=x + self.shift))


class Coin(nn.Module):
    """A Bernoulli that the model alone enumerates, beside a latent that is drawn: p(heads|x, z) depends on the draw."""

    def __init__(self):
        super().__init__()
        self.heads = nn.Parameter(torch.tensor(0.5))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            heads = pyro.sample("heads", dist.Bernoulli(logits=self.heads), infer=PARALLEL)
            pyro.sample("x", dist.Normal(2 * heads + z, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.3 * x, 0.8))


def data(seed: int = 0) -> tuple[Tensor, Tensor]:
    """x [N, K] that leans towards its label [N]."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(K, (N,), generator=generator)
    return torch.randn(N, K, generator=generator) + 2 * F.one_hot(label, K), label


def classified(pair: nn.Module, fields: dict[str, Tensor], particles: int = 1, **options):
    return pv.evaluate(pair, fields, "classify", particles, progress=False, **options)


@pytest.mark.parametrize("field", ["truth", "label", "y"])
def test_errors_are_counted_by_hand_and_the_pair_is_shown_no_label(field):
    x, label = data()
    result = classified(Told(), {"x": x, field: F.one_hot(label, K).float() if field == "y" else label})
    assert torch.allclose(result.probabilities, x.softmax(1).double(), atol=1e-6)
    assert torch.equal(result.guess, x.argmax(1)) and torch.equal(result.label, label)
    wrong = (x.argmax(1) != label).double()
    assert (
        torch.equal(result.error, wrong) and result.mean == pytest.approx(wrong.mean().item()) and 0 < result.mean < 0.3
    )
    entry = result.entry()
    assert entry["unit"] == "of the data" and entry["accuracy"] == pytest.approx(1 - result.mean)
    assert entry["kind"] is None and "label_of_cluster" not in entry, "the pair takes y, so its values have names"


def test_the_truth_goes_before_a_label_that_is_partly_hidden():
    x, label = data()
    shown = torch.where(torch.arange(N) % 2 == 0, label, HIDDEN)
    assert torch.equal(classified(Told(), {"x": x, "label": shown, "truth": label}).label, label)


def test_clusters_are_matched_so_that_as_many_as_can_be_are_right():
    """By trying all permutations, and where there are more clusters than labels, or fewer."""
    generator = torch.Generator().manual_seed(1)
    for labels, values in ((4, 4), (2, 4), (4, 2)):
        label = torch.randint(labels, (60,), generator=generator)
        guess = torch.randint(values, (60,), generator=generator)
        match = matching(confusion_counts(label, guess, values))
        assert match.shape == (values,) and (match >= 0).sum() == min(labels, values)
        names = [*range(labels), *[-1] * max(0, values - labels)]
        best = max((torch.tensor(p)[guess] == label).sum() for p in permutations(names, values))
        assert (match[guess] == label).sum() == best


def test_a_mixture_has_exact_posteriors_and_its_components_are_matched():
    pair = Mixture()
    x = torch.randn(60, dtype=torch.float64)
    with torch.no_grad():
        normals = dist.Normal(pair.centres, pair.noise.exp()).log_prob(x.unsqueeze(1))
        posterior = (pair.weights.log_softmax(0) + normals).softmax(1)
    best = posterior.argmax(1)
    label = torch.tensor([2, 0, 1])[best]
    result = classified(pair, {"x": x, "label": label})
    assert torch.allclose(result.probabilities, posterior, atol=1e-9)
    assert result.mean == 0 and result.entry()["clusters_used"] == len(best.unique())
    for value in best.unique().tolist():
        assert result.entry()["label_of_cluster"][value] == [2, 0, 1][value]


def test_a_posterior_given_draws_is_averaged_over_them():
    pair, x = Coin(), torch.linspace(-3, 5, 20)
    result = classified(pair, {"x": x, "label": (x > 1).long()}, particles=300)
    z = 0.3 * x + 0.8 * torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0))
    odds = pair.heads.detach() + dist.Normal(2 + z, 1.0).log_prob(x) - dist.Normal(z, 1.0).log_prob(x)
    assert (result.probabilities[:, 1] - odds.sigmoid().mean(0)).abs().max() < 0.1


def test_labels_that_are_observed_for_some_data_are_found_under_pyros_name():
    class Hidden(PartlyLabelled):
        """The same, whose hidden labels are -1."""

        def model(self, x, label):
            super().model(x, label.clamp(min=0), label != HIDDEN)

        def guide(self, x, label):
            super().guide(x, label.clamp(min=0), label != HIDDEN)

    pair = Hidden()
    given = pair.data()
    fields = {"x": given["x"], "label": given["label"], "truth": torch.tensor([2, 0, 1, 1])}
    result = classified(pair, fields)
    expected = (pair.logits + 0.3 * fields["x"][:, None] * pair.slopes).softmax(1)
    assert torch.allclose(result.probabilities, expected.detach(), atol=1e-9)


def test_of_several_sites_one_is_named():
    pair = TwoLabels()
    fields = pair.data() | {"truth": torch.tensor([0, 1, 0, 1])}
    with pytest.raises(ContractError, match="each of which could be the label; say which: site="):
        classified(TwoUnnamed(), {"x": torch.randn(N), "label": torch.zeros(N).long()})
    found = classified(TwoUnnamed(), {"x": torch.randn(N), "label": torch.zeros(N).long()}, site="b")
    assert found.probabilities.shape == (N, 4)
    with pytest.raises(UnknownName, match="unknown enumerated site of a datum 'c'"):
        classified(TwoUnnamed(), {"x": torch.randn(N), "label": torch.zeros(N).long()}, site="c")
    assert classified(pair, fields, site=min(pair_sites(pair))).probabilities.shape[0] == 4


class TwoUnnamed(nn.Module):
    """Two sites that could both be clusters."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(2)), nn.Parameter(torch.randn(4))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Categorical(logits=self.a), infer=PARALLEL)
            b = pyro.sample("b", dist.Categorical(logits=self.b), infer=PARALLEL)
            pyro.sample("x", dist.Normal(self.a[a] + self.b[b], 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        pass


def pair_sites(pair: nn.Module) -> list[str]:
    from pyro_vae.pair.labels import label_sites

    return list(label_sites(pair, pair.data()))


@pytest.mark.parametrize(
    "pair, fields, problem, message",
    [
        (Told(), {"x": data()[0]}, DataError, "the data have no labels to compare with: no field truth, label, y"),
        (Told(), {"x": data()[0], "label": torch.arange(N) % 4}, DataError, "a label of these data is 3, but site 'y'"),
        (Told(), {"x": data()[0], "label": torch.arange(N) % 4 - 1}, DataError, r"label\[0\] is -1, a hidden label"),
        (small_vae(), {"x": bits(), "label": torch.zeros(40).long()}, ContractError, "enumerates no site of which"),
        (GuideWords(), GuideWords().data() | {"truth": torch.zeros(4).long()}, ContractError, "enumerates no site"),
    ],
)
def test_what_cannot_be_compared_is_one_line(pair, fields, problem, message):
    with pytest.raises(problem, match=message):
        classified(pair, fields)


def test_a_label_that_a_pair_needs_as_indicators_cannot_be_hidden():
    class Needs(Told):
        def model(self, x, y):
            super().model(x, y)

        def guide(self, x, y):
            super().guide(x, y)

    with pytest.raises(ContractError, match=r"needs the field 'y' of shape \[3\], so it cannot be hidden"):
        unlabelled(Needs(), {"x": data()[0], "y": torch.eye(K)[data()[1]]})


def test_its_picture_counts_every_datum():
    x, label = data()
    figure = classified(Told(), {"x": x, "label": label}).estimate.figures["confusion"]
    (axes,) = figure.axes
    assert sum(int(text.get_text()) for text in axes.texts) == N and axes.get_ylabel() == "true label"
    assert len(axes.texts) == int((confusion_counts(label, x.argmax(1), K) > 0).sum())


def test_figures_depend_on_the_seed_alone():
    pair, x = Coin(), torch.linspace(-3, 5, 120)
    fields = {"x": x, "label": (x > 1).long()}
    one, other = (classified(pair, fields, 3, seed=4) for _ in range(2))
    assert torch.equal(one.probabilities, other.probabilities)
    assert not torch.equal(one.probabilities, classified(pair, fields, 3, seed=5).probabilities)
