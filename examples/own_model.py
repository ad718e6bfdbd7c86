"""A pair of your own, a topic model of word counts with its own site names, gets all that ours get."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

import pyro_vae as pv


class TopicModel(pv.Pair):
    """Logistic-normal topics of word counts: theta = softmax(eta), counts ~ Poisson(length * theta @ topics)."""

    def __init__(self, vocabulary: int, topics: int):
        super().__init__()
        self.topics = nn.Parameter(0.1 * torch.randn(topics, vocabulary))
        self.encoder = nn.Sequential(nn.Linear(vocabulary, 32), nn.ReLU(), nn.Linear(32, 2 * topics))

    def model(self, counts, length):
        with self.plate(counts.shape[0]):
            standard = counts.new_zeros(len(self.topics)), counts.new_ones(len(self.topics))
            eta = pyro.sample("eta", dist.Normal(*standard).to_event(1))
            words = eta.softmax(-1) @ self.topics.softmax(-1)
            pyro.sample("counts", dist.Poisson(length.unsqueeze(-1) * words).to_event(1), obs=counts)

    def guide(self, counts, length):
        with self.plate(counts.shape[0]):
            loc, log_scale = self.encoder(counts.log1p()).chunk(2, -1)
            pyro.sample("eta", dist.Normal(loc, log_scale.exp()).to_event(1))


def documents(n: int, vocabulary: int = 40, topics: int = 4) -> dict[str, torch.Tensor]:
    """Word counts from sparse random topics, and the lengths of the documents."""
    words = torch.distributions.Dirichlet(torch.full((vocabulary,), 0.1)).sample((topics,))
    mixture = torch.distributions.Dirichlet(torch.full((topics,), 0.3)).sample((n,))
    length = torch.full((n,), 100.0)
    return {"counts": torch.poisson(length.unsqueeze(-1) * mixture @ words), "length": length}


if __name__ == "__main__":
    torch.manual_seed(0)
    data = documents(1000)
    run = pv.train(TopicModel(40, 4), data, epochs=30, lr=1e-2, progress=False)
    for particles in (1, 50):
        result = pv.evaluate(run.pair, data, "importance", particles=particles, limit=200, progress=False)
        print(f"L_{particles}: {result.mean:.2f} ± {result.standard_error:.2f} nats per document")
