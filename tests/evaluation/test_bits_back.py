"""The coder: what is pushed is popped, at the cost of its probability; data come back at that of minus the ELBO."""

import math

import pytest
import torch
from pairs import SHAPE, Clusters, bits, counts, small_vae

import pyro_vae as pv
from pyro_vae.errors import ContractError, DataError
from pyro_vae.evaluation.bits_back import FIRST_WORDS, PRECISION, BitsBack, Stack


def test_a_stack_gives_back_what_was_pushed_at_the_cost_of_its_probability():
    masses = [2**25, 2**24, 2**23, 2**23]
    ends = [0, *torch.tensor(masses).cumsum(0).tolist()]
    assert ends[-1] == 2**PRECISION
    symbols = torch.randint(4, (5000,), generator=torch.Generator().manual_seed(0)).tolist()
    stack = Stack([7] * 3)
    before = stack.bits
    for symbol in symbols:
        stack.push(ends[symbol], masses[symbol])
    expected = sum(PRECISION - math.log2(masses[symbol]) for symbol in symbols)
    assert abs(stack.bits - before - expected) < 2
    assert [stack.pop(ends.__getitem__, 4) for _ in symbols] == symbols[::-1]
    assert stack.tail == [7] * 3 and stack.bits == before


def test_a_stack_without_bits_says_so():
    stack = Stack([])
    with pytest.raises(DataError, match="is empty"):
        for _ in range(10):
            stack.pop(lambda symbol: symbol << (PRECISION - 4), 16)


@pytest.mark.parametrize(
    "pair, x",
    [
        (lambda: small_vae(), lambda: bits(60)),
        (lambda: small_vae(likelihood="categorical"), lambda: 255 * bits(12)),
    ],
    ids=["bernoulli", "levels"],
)
def test_data_come_back_at_the_cost_of_minus_the_elbo(pair, x):
    pair, x = pair(), x()
    coder = BitsBack(pair)
    message = coder.compress(x, seed=3)
    assert torch.equal(coder.restore(message), x)
    assert message.initial_bits >= 32 * FIRST_WORDS
    draws = pv.log_terms(pair, {"x": x}, 400).log_weight / math.log(2)
    cost, error = -draws.mean(0).sum().item(), draws.var(0).sum().sqrt().item()
    assert abs(message.net_bits - cost) < 4 * error + 2
    assert error < 0.1 * cost


def test_a_message_of_another_seed_says_the_same():
    pair, x = small_vae(), bits(10)
    one, other = (BitsBack(pair).compress(x, seed) for seed in (0, 1))
    assert one.words != other.words and torch.equal(BitsBack(pair).restore(other), x)


@pytest.mark.parametrize(
    "pair, x, line",
    [
        (lambda: small_vae(likelihood="gaussian"), bits(3), "'x' is no discrete distribution"),
        (lambda: small_vae(posterior="full_covariance"), bits(3), "normal in model and guide, as 'z' is not"),
        (lambda: pv.models.HierarchicalVAE(SHAPE, (2, 2), (4, 4)), bits(3), "one latent, not of z_1, z_2"),
        (lambda: Clusters(), counts(3), "normal in model and guide, as 'k' is not"),
        (lambda: pv.models.CVAE(SHAPE, SHAPE), bits(3), "one field, not of x, context"),
    ],
)
def test_other_pairs_are_refused(pair, x, line):
    with pytest.raises(ContractError, match=line):
        BitsBack(pair()).compress(x)


def test_values_that_the_likelihood_does_not_have_are_refused():
    with pytest.raises(DataError, match="values that the likelihood does not have"):
        BitsBack(small_vae()).compress(0.5 * bits(3))
