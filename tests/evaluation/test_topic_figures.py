"""Perplexity and coherence, of our topic models and of pairs as Pyro's documentation writes them."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.data.sets.planted_topics import bars
from pyro_vae.errors import ContractError, RunError
from pyro_vae.evaluation.topics import npmi
from pyro_vae.pair.global_latents import held_at_a_draw
from pyro_vae.parts.words import log_orders

LENGTH, WORDS, TOPICS = 6, 5, 2
TOKENS = torch.randint(WORDS, (8, LENGTH), generator=torch.Generator().manual_seed(0))
BAGS = nn.functional.one_hot(TOKENS, WORDS).sum(1).float()
QUIET = {"progress": False}


def lda(words: torch.Tensor, **options: float) -> pv.models.LDA:
    pair = pv.models.LDA((words.shape[1],), topics=len(words), **options)
    pair.log_words.data = words.log()
    return pair


class TokenLDA(nn.Module):
    """Pyro's lda.py: each word is observed, its topic enumerated."""

    data_plate = "documents"

    def __init__(self, ours: pv.models.LDA):
        super().__init__()
        self.ours = ours

    def model(self, x):
        with pyro.plate("documents", len(x)):
            shares = pyro.sample("doc_topics", dist.Dirichlet(self.ours.topic_prior))
            with pyro.plate("words", x.shape[1]):
                topic = pyro.sample("topic", dist.Categorical(shares), infer={"enumerate": "parallel"})
                pyro.sample("x", dist.Categorical(self.ours.topic_words()[topic]), obs=x.T)

    def guide(self, x):
        bags = nn.functional.one_hot(x, WORDS).sum(1).float()
        with pyro.plate("documents", len(x)):
            counted = self.ours.words_of_topics(bags, self.ours.topic_words())
            pyro.sample("doc_topics", dist.Dirichlet(self.ours.topic_prior + counted))


class Multinomials(nn.Module):
    """One distribution of words for all documents, of one length, under Pyro's Multinomial; the model has no latent."""

    def __init__(self, probs):
        super().__init__()
        self.probs = nn.Parameter(probs)

    def model(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Multinomial(LENGTH, self.probs), obs=x)

    def guide(self, x):
        pass


def random_topics() -> torch.Tensor:
    return torch.randn(TOPICS, WORDS, generator=torch.Generator().manual_seed(1)).softmax(-1)


def test_the_topic_of_each_word_is_summed_out_as_the_enumeration_of_pyros_lda_does():
    """At the same draws of the shares, a bag's log-likelihood is that of its words one by one, and of their orders."""
    ours = lda(random_topics())
    terms = []
    for pair, x in ((held_at_a_draw(ours, {"x": BAGS}), BAGS), (TokenLDA(ours), TOKENS)):
        torch.manual_seed(3)
        terms.append(pv.log_terms(pair, {"x": x}, 50))
    bags, tokens = terms
    torch.testing.assert_close(bags.log_prior, tokens.log_prior)
    torch.testing.assert_close(bags.log_likelihood - log_orders(BAGS), tokens.log_likelihood, rtol=1e-5, atol=1e-5)


def test_words_one_by_one_and_in_bags_have_one_perplexity():
    ours = lda(random_topics())
    runs = ((ours, BAGS), (TokenLDA(ours), TOKENS))
    bags, tokens = (pv.evaluate(pair, x, "topics", 4000, engine="eager", **QUIET) for pair, x in runs)
    assert bags.estimate.summary["perplexity"] == pytest.approx(tokens.estimate.summary["perplexity"], rel=0.01)
    assert torch.equal(bags.words, tokens.words) and tokens.words.tolist() == [LENGTH] * len(TOKENS)


def test_perplexity_of_even_topics_is_the_number_of_words():
    """With a prior that leaves the posterior nothing to say, so that the guide is near it."""
    even = lda(torch.full((TOPICS, WORDS), 1 / WORDS), topic_prior=100.0)
    result = pv.evaluate(even, BAGS, "topics", 500, engine="eager", **QUIET)
    assert result.estimate.summary["perplexity"] == pytest.approx(WORDS, rel=2e-3)


def test_perplexity_under_pyros_multinomial_has_a_closed_form():
    probs = torch.tensor([0.1, 0.2, 0.3, 0.25, 0.15])
    result = pv.evaluate(Multinomials(probs), BAGS, "topics", **QUIET)
    expected = math.exp(-(BAGS @ probs.log()).sum().item() / BAGS.sum().item())
    assert result.estimate.summary["perplexity"] == pytest.approx(expected, rel=1e-5)
    assert "coherence" not in result.estimate.summary and len(result.estimate.lines) == 1


def test_coherence_is_npmi_of_documents():
    """Two words that are always together, two that never are, and two that are independent."""
    together, apart = np.array([1, 1, 0, 0]), np.array([0, 0, 1, 1])
    present = np.stack([[together, together], [together, apart], [together, np.array([1, 0, 1, 0])]], 0)
    found = npmi(torch.from_numpy(present.transpose(2, 0, 1)).bool())
    assert found.tolist() == pytest.approx([1.0, -1.0, 0.0])
    everywhere = torch.ones(4, 1, 2).bool()
    assert npmi(everywhere).item() == 1.0


def test_the_words_of_planted_topics_are_together_and_of_mixed_ones_less():
    data = pv.load_data("planted_topics", documents=1200)
    planted = bars() * 0.99 + 0.01 / 25
    mixed = planted[:, torch.randperm(25, generator=torch.Generator().manual_seed(0))]
    found = [
        pv.evaluate(lda(p), data, "topics", top=5, split="train", **QUIET).estimate.summary for p in (planted, mixed)
    ]
    assert found[0]["coherence"] > 0.1 > found[1]["coherence"]
    assert found[0]["perplexity"] < found[1]["perplexity"]


def test_top_words_are_named():
    pair = lda(random_topics())
    assert all(
        set(words.split()) <= set("01234")
        for words in pv.evaluate(pair, BAGS, "topics", **QUIET).estimate.summary["top_words"]
    )
    pair.vocabulary = ("ball", "goal", "vote", "tax", "law")
    summary = pv.evaluate(pair, BAGS, "topics", top=2, **QUIET).estimate.summary
    best = pair.topic_words().topk(2).indices
    assert summary["top_words"] == [" ".join(pair.vocabulary[i] for i in row) for row in best]


def test_what_observes_no_words_is_refused():
    with pytest.raises(ContractError, match="'x' has a Poisson"):
        pv.evaluate(pv.VAE((WORDS,), hidden=(4,), likelihood="poisson"), BAGS, "topics", **QUIET)
    with pytest.raises(RunError, match="top"):
        pv.evaluate(lda(random_topics()), BAGS, "topics", top=1, **QUIET)
