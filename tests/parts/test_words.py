"""Bags of words against torch's multinomial."""

import pytest
import torch
from torch.distributions import Multinomial

from pyro_vae.parts.words import BagOfWords, Documents, log_orders

PROBS = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
COUNTS = torch.tensor([[3.0, 0.0, 2.0], [0.0, 4.0, 1.0]])


def test_a_bag_has_a_multinomials_log_probability_and_moments():
    bags, known = BagOfWords(PROBS, COUNTS.sum(-1)), Multinomial(5, PROBS)
    torch.testing.assert_close(bags.log_prob(COUNTS), known.log_prob(COUNTS))
    torch.testing.assert_close(bags.mean, known.mean)
    torch.testing.assert_close(bags.variance, known.variance)
    assert log_orders(COUNTS).exp().tolist() == pytest.approx([10.0, 5.0])


def test_each_document_has_its_own_number_of_words():
    torch.manual_seed(0)
    total = torch.tensor([7.0, 30.0])
    drawn = BagOfWords(PROBS, total).sample((4000,))
    assert torch.equal(drawn.sum(-1), total.expand(4000, 2)) and Documents().check(drawn).all()
    expected = BagOfWords(PROBS, total)
    z = (drawn.mean(0) - expected.mean) / (expected.variance / 4000).sqrt()
    assert z.abs().max() < 4.0


def test_a_bag_is_expanded_over_particles():
    bags = BagOfWords(PROBS, torch.tensor([5.0, 5.0])).expand(torch.Size([4, 2]))
    assert bags.batch_shape == (4, 2) and bags.event_shape == (3,)
    torch.testing.assert_close(bags.log_prob(COUNTS), Multinomial(5, PROBS).log_prob(COUNTS).expand(4, 2))


def test_words_that_cannot_stand_there_have_probability_zero_and_no_gradient_where_they_do_not_stand():
    probs = torch.tensor([0.0, 1.0]).requires_grad_()
    bags = BagOfWords(probs, torch.tensor(2.0))
    assert bags.log_prob(torch.tensor([1.0, 1.0])) == -torch.inf
    bags.log_prob(torch.tensor([0.0, 2.0])).backward()
    assert probs.grad.tolist() == [0.0, 2.0]


@pytest.mark.parametrize(
    "bag, valid", [([1.0, 2.0], True), ([0.0, 0.0], False), ([1.0, 0.5], False), ([-1.0, 2.0], False)]
)
def test_a_document_has_whole_counts_and_a_word(bag, valid):
    assert bool(Documents().check(torch.tensor(bag)).all()) == valid
