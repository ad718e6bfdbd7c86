"""Topic models: how well words are predicted, and whether the words of a topic are found together."""

from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.distributions import Categorical, Multinomial

from pyro_vae.errors import ContractError, RunError, check_positive
from pyro_vae.evaluation.blocks import Block, Blocks
from pyro_vae.evaluation.evaluator import Progress
from pyro_vae.evaluation.importance import Importance
from pyro_vae.evaluation.result import Estimate
from pyro_vae.pair.particles import run_model
from pyro_vae.pair.sites import Site, has_mask, observed, unwrapped, values_of
from pyro_vae.pair.topics import top_words, topics_of
from pyro_vae.parts.words import BagOfWords, log_orders

BAGS = (BagOfWords, Multinomial)


class Topics(Importance):
    """Perplexity of the words of all documents, and of a pair with topics their most probable words and coherence.

    Beside the figures of `importance`, [n]: `words`, how many a document has, and `words_log_likelihood` (nats), the
    bound L_K on the log-probability of its words in one order: that of a bag of words less the log of the number of
    orders. The summary has the `perplexity` exp(-sum words_log_likelihood / sum words), at least the true one in
    expectation. Of a pair with a method `topic_words()` [topics, vocabulary] it has the `top_words` of each topic and
    their `coherence`: the mean over topics and pairs of top words of NPMI in the documents that are evaluated, from -1
    (never together) over 0 (independent) to 1 (always together) (Bouma 2009; Lau, Newman & Baldwin 2014).

    Args:
        top: how many words of a topic count as its top words.
        engine: as for `importance`.

    Raises:
        RunError: fewer than two top words.
        ContractError: the model observes something else than the words of documents, or leaves some of them out.
    """

    shareable = False

    def __init__(self, top: int = 10, engine: str = "auto"):
        super().__init__(engine)
        check_positive(RunError, top=top - 1)
        self.top = top

    def __call__(self, pair: nn.Module, blocks: Blocks, particles: int, progress: Progress) -> Estimate:
        topics = topics_of(pair)
        best = torch.empty(0, 0).long() if topics is None else topics.topk(min(self.top, topics.shape[1])).indices
        counts, orders, present = [], [], []
        for block in blocks:
            bags, given_order = words_of(block, 0 if topics is None else topics.shape[1])
            counts.append(bags.sum(1))
            orders.append(torch.zeros(block.size).double() if given_order else log_orders(bags))
            present.append(bags[:, best] > 0)
        found = super().__call__(pair, blocks, particles, progress)
        bound = found.per_datum["log_likelihood"]
        own = {"words": torch.cat(counts), "words_log_likelihood": bound - torch.cat(orders).to(bound)}
        summary = {}
        if topics is not None:
            coherence = npmi(torch.cat(present))
            told = [" ".join(words) for words in top_words(pair, topics, self.top)]
            summary = {"coherence": coherence.mean().item(), "coherence_of_each": coherence.tolist(), "top_words": told}
        return replace(found, per_datum=found.per_datum | own, summary=found.summary | summary)

    def summarise(self, found: Estimate, particles: int) -> Estimate:
        found = super().summarise(found, particles)
        rate = found.per_datum["words_log_likelihood"].double().sum() / found.per_datum["words"].sum()
        perplexity, coherence = (-rate).exp().item(), found.summary.get("coherence")
        lines = [f"perplexity {perplexity:.2f} of {int(found.per_datum['words'].sum())} words"]
        if coherence is not None:
            lines[0] += f", coherence (NPMI) {coherence:.3f}".replace("-", "−")
            lines += [f"topic {number}: {words}" for number, words in enumerate(found.summary["top_words"])]
        return replace(found, summary={"perplexity": perplexity} | found.summary, lines=lines)


def words_of(block: Block, vocabulary: int) -> tuple[Float[Tensor, "batch vocabulary"], bool]:
    """How often each word stands in each document of a block, and whether the words are observed one by one.

    Args:
        vocabulary: how many words there are, where the pair says so.

    Raises:
        ContractError: no site observes words, or a further one observes something else.
    """
    with torch.no_grad(), block.seeded():
        sites = observed(run_model(block.pair, block.batch(), values_of(block.guide)))
    for site in sites.values():
        known = isinstance(unwrapped(site.fn), (*BAGS, Categorical))
        if len(sites) > 1 or not known or has_mask(site):
            what = "leaves elements out" if has_mask(site) else f"has a {type(unwrapped(site.fn)).__name__}"
            raise ContractError(
                f"perplexity is of words alone, all of them, but of {len(sites)} observed sites {site.name!r} {what}; "
                "observe the counts of words under a Multinomial, or the words under a Categorical"
            )
    (site,) = sites.values() or (None,)
    if site is None:
        raise ContractError("the model observes nothing, so there are no words")
    return _bags(site, vocabulary)


def _bags(site: Site, vocabulary: int) -> tuple[Float[Tensor, "batch vocabulary"], bool]:
    value = site.value[0].cpu()
    if isinstance(unwrapped(site.fn), BAGS):
        return value.double(), False
    words = value.flatten(1).long()
    bags = torch.zeros(len(words), max(vocabulary, unwrapped(site.fn).probs.shape[-1])).double()
    return bags.scatter_add(1, words, torch.ones_like(words).double()), True


def npmi(present: Bool[Tensor, "documents topics top"]) -> Float[Tensor, " topics"]:
    """The mean over pairs of a topic's top words of log(p(i, j) / (p(i) p(j))) / -log p(i, j), where p counts the
    documents in which words are; -1 for words that are never together."""
    seen = present.double()
    joint = torch.einsum("nti,ntj->tij", seen, seen) / len(seen)
    each = joint.diagonal(dim1=1, dim2=2)
    log_joint = joint.log()
    value = (log_joint - each.unsqueeze(2).log() - each.unsqueeze(1).log()) / -log_joint
    value = torch.where(joint == 0, -1.0, torch.where(joint == 1, 1.0, value))
    above = torch.ones(value.shape[1:]).triu(1).bool()
    return value[:, above].mean(1)
