"""Topic models: a document is a bag of words, each of which is of a topic (Blei, Ng & Jordan 2003)."""

import math
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pyro_vae.errors import ContractError, DataError
from pyro_vae.pair.pair import PLATE, Pair
from pyro_vae.parts import build
from pyro_vae.parts.words import BagOfWords

Bags = Float[Tensor, "documents vocabulary"]
Shares = Float[Tensor, "... topics"]

STEPS = 30
"""Steps of the fixed point by which LDA's guide finds the topics of a document."""

SPREAD = 0.1
"""How far LDA's topics are from each other at first, as a standard deviation of log-probabilities."""

TYPICAL = 100
"""How many words a document has that is drawn, where the training data do not tell."""


class TopicModel(Pair):
    """What topic models have in common: x [n, vocabulary] counts words, and their number in a document is given.

    Attributes:
        vocabulary: the words in the order of x, or None.
    """

    data_plate = PLATE
    default_data = "planted_topics"

    def __init__(
        self,
        data_shape: Sequence[int],
        topics: int,
        vocabulary: Sequence[str] | None,
        log_library: Sequence[float] | None,
    ):
        super().__init__()
        if len(data_shape) != 1:
            raise DataError(f"a topic model needs x [n, vocabulary] of counts; one datum has shape {list(data_shape)}")
        build.check_sizes(topics=[topics], data_shape=data_shape)
        if vocabulary is not None and len(vocabulary) != data_shape[0]:
            raise DataError(f"the vocabulary has {len(vocabulary)} words, but x counts {data_shape[0]}")
        self.vocabulary = None if vocabulary is None else tuple(map(str, vocabulary))
        self.topics = topics
        typical = TYPICAL if log_library is None else max(1, round(math.exp(log_library[0])))
        self.register_buffer("typical", torch.tensor(float(typical)))

    def topic_words(self) -> Float[Tensor, "topics vocabulary"]:
        """p(word | topic), as it is estimated."""
        raise NotImplementedError

    def bag(self, probs: Float[Tensor, "... vocabulary"], x: Bags) -> BagOfWords:
        """p(x | the number of its words); of a bag without words, which stands for one to be drawn, as many as a
        training document has."""
        total = x.sum(-1)
        return BagOfWords(probs, torch.where(total > 0, total, self.typical))


class LDA(TopicModel):
    """Latent Dirichlet allocation: a document's shares of topics are Dirichlet, and so are a topic's words.

    The topic of each word is summed out exactly: given its shares theta, a document is a bag of words from theta @
    topic_words. Topics are latents outside the plate of the data, of which the guide has a point estimate. The guide
    has no net: q(theta|x) is the Dirichlet of variational EM, found by its fixed point at these topics (Blei, Ng &
    Jordan 2003, figure 6), through which no gradient goes; how sharp it is is learned.

    Args:
        data_shape: [vocabulary]; the data set's own on the command line.
        topics: how many topics there are.
        topic_prior: concentration of a document's shares; 1/topics where None.
        word_prior: how many times each word counts in each topic beside the data; 1/topics where None. The prior of a
            topic's words is a Dirichlet of concentration 1 + word_prior, whose mode is the mean that word_prior as a
            concentration has, which scikit-learn gives.
        vocabulary: the words; the data set's own on the command line.
        log_library: mean and standard deviation of the log of the numbers of words of the training data.
        data_mean: mean of the training data [vocabulary]; where given, topics start around it.

    Raises:
        DataError: data that are no bags of words, or another number of words than the vocabulary has.
        ContractError: a size or a concentration that is not positive.
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        topics: int = 10,
        topic_prior: float | None = None,
        word_prior: float | None = None,
        vocabulary: Sequence[str] | None = None,
        log_library: Sequence[float] | None = None,
        data_mean: Float[Tensor, " vocabulary"] | None = None,
    ):
        super().__init__(data_shape, topics, vocabulary, log_library)
        topic_prior = 1 / topics if topic_prior is None else topic_prior
        word_prior = 1 / topics if word_prior is None else word_prior
        build.check_scales(topic_prior=topic_prior, word_prior=word_prior)
        self.register_buffer("topic_prior", torch.full((topics,), float(topic_prior)))
        self.register_buffer("word_prior", torch.full(tuple(data_shape), 1 + float(word_prior)))
        start = torch.ones(tuple(data_shape)) if data_mean is None else data_mean + data_mean.mean().clamp(min=1e-6)
        self.log_words = nn.Parameter(start.log() + SPREAD * torch.randn(topics, *data_shape))
        self.log_sharpness = nn.Parameter(torch.zeros(()))

    def topic_words(self) -> Float[Tensor, "topics vocabulary"]:
        return self.log_words.softmax(-1)

    def model(self, x: Bags) -> None:
        with pyro.plate("topics", self.topics, dim=-1):
            words = pyro.sample("topic_words", dist.Dirichlet(self.word_prior))
        with self.plate(x.shape[0]):
            shares = pyro.sample("doc_topics", dist.Dirichlet(self.topic_prior))
            pyro.sample("x", self.bag(shares @ words, x), obs=x)

    def guide(self, x: Bags) -> None:
        with pyro.plate("topics", self.topics, dim=-1):
            words = pyro.sample("topic_words", dist.Delta(self.topic_words(), event_dim=1))
        counted = self.words_of_topics(x, words)
        with self.plate(x.shape[0]):
            pyro.sample("doc_topics", dist.Dirichlet(self.topic_prior + self.log_sharpness.exp() * counted))

    @torch.no_grad()
    def words_of_topics(self, x: Bags, words: Float[Tensor, "topics vocabulary"]) -> Shares:
        """How many words of each document are of each topic, by variational EM."""
        tiny = torch.finfo(words.dtype).tiny
        counted = self.topic_prior.new_ones(*x.shape[:-1], self.topics)
        for _ in range(STEPS):
            log_shares = torch.digamma(self.topic_prior + counted)
            shares = (log_shares - log_shares.amax(-1, keepdim=True)).exp()
            counted = shares * ((x / (shares @ words).clamp(min=tiny)) @ words.T)
        return counted


class ProdLDA(TopicModel):
    """ProdLDA (Srivastava & Sutton 2017), as Pyro's tutorial has it: a document's words have a product of its topics'
    distributions, not a mixture, and an encoder says its shares, the softmax of the latent `logtheta`.

    Args:
        data_shape: [vocabulary]; the data set's own on the command line.
        topics: how many topics there are.
        hidden: width of the encoder's two layers.
        dropout: which share of the encoder's features, and of the shares of topics, is left out in training.
        vocabulary: the words; the data set's own on the command line.
        log_library: mean and standard deviation of the log of the numbers of words of the training data.

    Raises:
        DataError: data that are no bags of words, or another number of words than the vocabulary has.
        ContractError: a size that is not positive, or a dropout outside [0, 1).
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        topics: int = 10,
        hidden: int = 100,
        dropout: float = 0.2,
        vocabulary: Sequence[str] | None = None,
        log_library: Sequence[float] | None = None,
    ):
        super().__init__(data_shape, topics, vocabulary, log_library)
        build.check_sizes(hidden=[hidden])
        if not 0 <= dropout < 1:
            raise ContractError(f"dropout must be at least 0 and below 1, not {dropout}")
        size = data_shape[0]
        self.drop = nn.Dropout(dropout)
        self.encoder = nn.Sequential(nn.Linear(size, hidden), nn.Softplus(), nn.Linear(hidden, hidden), nn.Softplus())
        self.to_loc, self.to_log_variance = (
            nn.Sequential(nn.Linear(hidden, topics, bias=False), nn.BatchNorm1d(topics, affine=False)) for _ in range(2)
        )
        self.decoder = nn.Sequential(nn.Linear(topics, size, bias=False), nn.BatchNorm1d(size, affine=False))

    def topic_words(self) -> Float[Tensor, "topics vocabulary"]:
        weights, norm = self.decoder[0].weight.T, self.decoder[1]
        return F.batch_norm(weights, norm.running_mean, norm.running_var, eps=norm.eps).softmax(-1)

    def model(self, x: Bags) -> None:
        with self.plate(x.shape[0]):
            prior = dist.Normal(self.typical.new_zeros(self.topics), self.typical.new_ones(self.topics)).to_event(1)
            shares = self.drop(pyro.sample("logtheta", prior).softmax(-1))
            pyro.sample("x", self.bag(self.decoder(shares).softmax(-1), x), obs=x)

    def guide(self, x: Bags) -> None:
        features = self.drop(self.encoder(x.to(self.typical.dtype)))
        scale = (0.5 * self.to_log_variance(features)).exp()
        with self.plate(x.shape[0]):
            pyro.sample("logtheta", dist.Normal(self.to_loc(features), scale).to_event(1))
