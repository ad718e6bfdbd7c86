"""Sequences that are filled up: the terms of each are those of it by itself, and what counts the rest is found."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from sequence_pairs import Chain, Deep, sequences

import pyro_vae as pv
from pyro_vae.data import Split
from pyro_vae.errors import ContractError, DataError
from pyro_vae.pair.particles import run_guide, run_guide_at, run_model
from pyro_vae.pair.sequences import check_sequences, cut_fields
from pyro_vae.pair.sites import values_of
from pyro_vae.pair.terms import log_terms, reduce_sites, reduce_to_elbo
from pyro_vae.testing import check_pair


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def some() -> dict[str, torch.Tensor]:
    return sequences([2, 1, 3, 2, 3], steps=4)


class InEvents(Deep):
    """The same in two sites, whose time is an event dim, with the mask inside the distribution."""

    def within(self, x, length):
        return (torch.arange(x.shape[1]) < length[:, None]).unsqueeze(-1)

    def model(self, x, length):
        with pyro.plate("data", len(x), dim=-1):
            mask = self.within(x, length)
            fn = dist.Normal(0.0, 1.0).expand([*x.shape[:2], 2]).mask(mask)
            z = pyro.sample("z", fn.to_event(2))
            pyro.sample("x", dist.Bernoulli(logits=self.emit(z)).mask(mask).to_event(2), obs=x)

    def guide(self, x, length):
        with pyro.plate("data", len(x), dim=-1):
            loc = self.combine(torch.cat([torch.zeros(*x.shape[:2], 2), self.encoded(x, length)], -1))[..., :2]
            pyro.sample("z", dist.Normal(loc, 1.0).mask(self.within(x, length)).to_event(2))


class InPlate(InEvents):
    """The same with the time as a plate of each datum."""

    def model(self, x, length):
        with pyro.plate("data", len(x), dim=-2), pyro.plate("time", x.shape[1], dim=-1):
            with poutine.mask(mask=self.within(x, length)[..., 0]):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", self.likelihood(z), obs=x)

    def guide(self, x, length):
        loc = self.combine(torch.cat([torch.zeros(*x.shape[:2], 2), self.encoded(x, length)], -1))[..., :2]
        with pyro.plate("data", len(x), dim=-2), pyro.plate("time", x.shape[1], dim=-1):
            with poutine.mask(mask=self.within(x, length)[..., 0]):
                pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


# --- values -------------------------------------------------------------------------------------------------


def test_the_log_likelihood_of_a_chain_is_that_of_each_sequence_by_itself():
    pair, data = Chain().double(), some()
    expected = [pair.log_likelihood(x[:n]) for x, n in zip(data["x"], data["length"], strict=True)]
    for fields in (data, cut_fields(pair, data)):
        assert torch.allclose(log_terms(pair, fields).log_weight[0], torch.stack(expected), atol=1e-12)


@pytest.mark.parametrize("steps", [4, 3])
def test_the_terms_of_a_deep_markov_model_are_those_of_each_sequence_by_itself(steps):
    """At the same draws, and with them the ELBO, whose rate is in closed form where the prior is settled."""
    pair, data = Deep().double(), some()
    fields = {"x": data["x"][:, :steps], "length": data["length"]}
    guide = run_guide(pair, fields)
    values = values_of(guide)
    model = run_model(pair, fields, values)
    terms = reduce_sites(model, guide, 1, 5)
    drawn = torch.stack([values[f"z_{t}"][0] for t in range(steps)], 1)
    for row, (x, n) in enumerate(zip(data["x"], data["length"], strict=True)):
        expected = torch.stack(pair.terms_of_one(x[:n], drawn[row, :n]))
        assert torch.allclose(torch.stack(terms[:3])[:, 0, row], expected, atol=1e-12)
        alone = {"x": x[None, :n], "length": n[None]}
        there = {f"z_{t}": values[f"z_{t}"][:, row : row + 1] for t in range(n)}
        elbo = reduce_to_elbo(run_model(pair, alone, there), run_guide_at(pair, alone, there), 1, 1)
        whole = reduce_to_elbo(model, guide, 1, 5)
        assert torch.allclose(elbo.kl[0, 0], whole.kl[0, row]), "closed form"
        assert torch.allclose(elbo.log_likelihood[0, 0], whole.log_likelihood[0, row])


def test_fields_along_time_are_cut_and_others_are_not():
    class Taking(Deep):
        def model(self, x, length, mask, label):
            pass

        def guide(self, x, length, mask, label):
            pass

    data = sequences([2, 3], steps=8) | {"mask": torch.ones(2, 8), "label": torch.ones(2, 7), "other": torch.ones(2)}
    cut = cut_fields(Taking(), data)
    assert {name: list(field.shape) for name, field in cut.items()} == {
        "x": [2, 4, 2],
        "length": [2],
        "mask": [2, 4],
        "label": [2, 7],
    }
    assert cut_fields(pv.VAE((8, 2)), data)["x"].shape[1] == 8, "a pair that takes no length"


# --- what counts beyond a length ----------------------------------------------------------------------------

RIGHT = {"chain": Chain, "deep": Deep, "events": InEvents, "plate": InPlate}


@pytest.mark.parametrize("make", RIGHT.values(), ids=RIGHT)
def test_a_pair_that_masks_passes(make):
    check_sequences(make().double(), Split(some()))


def test_a_pair_of_sequences_keeps_the_whole_contract():
    check_pair(Deep().double(), some())


def unmasked(kind):
    class Unmasked(kind):
        def within(self, x, length):
            return torch.ones(*x.shape[:2], 1, dtype=torch.bool)

    return Unmasked()


class Elsewhere(Deep):
    """Its latents are masked, and what it observes is not."""

    def model(self, x, length):
        with pyro.plate("data", len(x), dim=-1):
            z = x.new_zeros(len(x), self.dim)
            for t in range(x.shape[1]):
                with poutine.mask(mask=t < length):
                    z = pyro.sample(f"z_{t}", self.prior(z))
                pyro.sample(f"x_{t}", self.likelihood(z), obs=x[:, t])


WRONG = {
    "chain": (lambda: Chain(masked=False), "site 'x_1' of the model"),
    "latents": (lambda: Deep(masked=()), "site 'x_1' of the model"),
    "guide": (lambda: Deep(masked=("model",)), "site 'z_1' of the guide"),
    "model": (lambda: Deep(masked=("guide",)), "site 'x_1' of the model"),
    "observed": (Elsewhere, "site 'x_1' of the model"),
    "encoder": (lambda: Deep(reads_beyond=True), "site 'z_0' of the guide"),
    "events": (lambda: unmasked(InEvents), "site 'x' of the model"),
    "plate": (lambda: unmasked(InPlate), "site 'x' of the model"),
}


@pytest.mark.parametrize("make, site", WRONG.values(), ids=WRONG)
def test_a_pair_that_counts_what_lies_beyond_is_refused(make, site):
    pair = make().double()
    for check in (lambda: check_sequences(pair, Split(some())), lambda: pv.evaluate(pair, some(), progress=False)):
        with pytest.raises(ContractError, match=rf"^{site} counts, .* mask it with poutine.mask\(mask=t < length\)"):
            check()
    with pytest.raises(ContractError, match="poutine.mask|masked in one of the two programs only"):
        check_pair(pair, some())


class LongPrior(Deep):
    """Latents alone are left unmasked, and nothing reads x: what the padding holds makes no difference."""

    def model(self, x, length):
        with pyro.plate("data", len(x), dim=-1):
            for t in range(x.shape[1]):
                z = pyro.sample(f"z_{t}", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                with poutine.mask(mask=t < length):
                    pyro.sample(f"x_{t}", self.likelihood(z), obs=x[:, t])

    def guide(self, x, length):
        with pyro.plate("data", len(x), dim=-1):
            for t in range(x.shape[1]):
                pyro.sample(f"z_{t}", dist.Normal(torch.ones(2), 1.0).to_event(1))


@pytest.mark.parametrize("lengths", [[2, 2, 4], [3, 4, 4], [1, 4]])
def test_sites_that_longer_arrays_alone_have_count_nothing(lengths):
    full = sequences(lengths, steps=4)
    check_sequences(Deep().double(), Split(full))
    with pytest.raises(ContractError, match=f"site 'z_{min(lengths)}' of the guide"):
        check_sequences(LongPrior().double(), Split(full))


# --- lengths that the data do not have ----------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, -1, 5, 1.5])
def test_a_wrong_length_names_its_row(length):
    wrong = some()
    wrong["length"] = wrong["length"].double() if isinstance(length, float) else wrong["length"]
    wrong["length"][3] = length
    with pytest.raises(DataError, match=rf"^length\[3\] is {length}, but x has 4 time slices"):
        pv.evaluate(Deep().double(), wrong, progress=False)
    with pytest.raises(ContractError, match=rf"length\[3\] is {length}"):
        check_pair(Deep().double(), wrong)


def test_lengths_that_are_no_row_of_numbers_are_refused():
    wrong = some()
    with pytest.raises(DataError, match=r"length has shape \[5, 1\]"):
        check_sequences(Deep().double(), Split(wrong | {"length": wrong["length"][:, None]}))


class NoLength(pv.Pair):
    def __init__(self):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(2))

    def model(self, x):
        with self.plate(len(x)):
            pyro.sample("x", dist.Bernoulli(logits=self.bias).expand([len(x), *x.shape[1:]]).to_event(2), obs=x)

    def guide(self, x):
        pass


class Masked(NoLength):
    def model(self, x, mask):
        with self.plate(len(x)):
            fn = dist.Bernoulli(logits=self.bias).expand([len(x), *x.shape[1:]]).mask(mask[..., None])
            pyro.sample("x", fn.to_event(2), obs=x)

    def guide(self, x, mask):
        pass


def test_sequences_of_different_lengths_need_a_length_or_a_mask():
    data = some()
    with pytest.raises(ContractError, match=r"sequences have 1 to 3 time slices, but NoLength takes neither"):
        pv.evaluate(NoLength(), data, progress=False)
    with pytest.raises(ContractError, match="takes neither 'length' nor 'mask'"):
        pv.train(NoLength(), data, epochs=1, batch_size=2, progress=False)
    mask = torch.arange(4) < data["length"][:, None]
    assert pv.evaluate(Masked(), data | {"mask": mask}, progress=False).per_time_slice is None
    assert pv.evaluate(NoLength(), sequences([2, 2], steps=2), progress=False).n == 2
    other = {"x": data["x"], "length": torch.tensor([0, 80, 30, 2, 7])}
    assert pv.evaluate(NoLength(), other, progress=False).n == 5, "a field of something else"
