"""Small data and pairs as a user would write them, for the tests of training, engine, runs and evaluation."""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from enumerated import sums_by_hand
from torch import Tensor, nn

from pyro_vae import VAE
from pyro_vae.data import Dataset, Split
from pyro_vae.pair.particles import run_guide
from pyro_vae.pair.terms import log_terms

SHAPE = (1, 4, 4)


def bits(n: int = 40, shape: tuple[int, ...] = SHAPE, seed: int = 0) -> Tensor:
    """x [n, *shape] in {0, 1}, with structure to learn: each datum leans on one of three patterns."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.rand(3, *shape, generator=generator)
    which = torch.randint(3, (n,), generator=generator)
    return torch.bernoulli(patterns[which], generator=generator)


def small_vae(seed: int = 0, **options: Any) -> VAE:
    """A VAE for `bits`, its weights fixed by the seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return VAE(SHAPE, **{"latent_dim": 2, "hidden": (8,), **options})


class Clusters(nn.Module):
    """A user's pair: no base class, a field of its own name, a discrete latent, so score-function gradients."""

    def __init__(self, dim: int = 4, clusters: int = 3):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(clusters))
        self.rates = nn.Parameter(torch.linspace(0.0, 2.0, clusters * dim).view(clusters, dim))
        self.encoder = nn.Linear(dim, clusters)

    def model(self, counts: Tensor) -> None:
        with pyro.plate("data", counts.shape[0], dim=-1):
            k = pyro.sample("k", dist.Categorical(logits=self.weights))
            pyro.sample("counts", dist.Poisson(F.softplus(self.rates)[k]).to_event(1), obs=counts)

    def guide(self, counts: Tensor) -> None:
        with pyro.plate("data", counts.shape[0], dim=-1):
            pyro.sample("k", dist.Categorical(logits=self.encoder(counts)))


class Hooked(VAE):
    """A VAE that calls `hook` before each run of its model in training."""

    hook: Any = staticmethod(lambda pair: None)

    def model(self, x: Tensor) -> None:
        if self.training:
            type(self).hook(self)
        super().model(x)


def hooked_vae(hook: Any, seed: int = 0) -> Hooked:
    """`small_vae` as a `Hooked` one, of a class of its own that bears the name VAE, so that a VAE resumes its run."""
    kind = type("VAE", (Hooked,), {"hook": staticmethod(hook)})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind(SHAPE, latent_dim=2, hidden=(8,))


def interrupting_vae(after: int, seed: int = 0) -> Hooked:
    """A VAE whose user presses Ctrl-C when the model has run `after` times in training."""
    runs = 0

    def hook(pair: nn.Module) -> None:
        nonlocal runs
        if runs == after:
            raise KeyboardInterrupt
        runs += 1

    return hooked_vae(hook, seed)


class Sharp(nn.Module):
    """A pair whose loss needs no draw: nothing that is observed depends on z, whose KL is |shift|^2 x^2 / 2."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.tensor([1.0, 0.1]))
        self.mean = nn.Parameter(torch.tensor(0.5))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.mean, 1.0).expand([len(x), 1]).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x * self.shift, 1.0).to_event(1))

    @staticmethod
    def data() -> Dataset:
        """Large and small x in turn, which two processes share out between them."""
        x = torch.tensor([3.0, 1.0]).repeat(12).unsqueeze(1)
        return Dataset("turns", *(Split({"x": x[:n]}) for n in (24, 4, 4)))


def counts(n: int = 40, dim: int = 4, seed: int = 0) -> Tensor:
    """Counts [n, dim] around one of three rates."""
    generator = torch.Generator().manual_seed(seed)
    rates = torch.tensor([0.5, 3.0, 8.0])[torch.randint(3, (n,), generator=generator)]
    return torch.poisson(rates[:, None].expand(n, dim).contiguous(), generator=generator)


def same_state(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules hold the same numbers, bit for bit."""
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def assert_terms_are_their_sums(pair: nn.Module, fields: dict[str, Tensor]) -> None:
    """Each of `log_terms`, at one draw in float64, is its sum written out."""
    torch.manual_seed(1)
    drawn = run_guide(pair, fields, summing=True)
    torch.manual_seed(1)
    terms = log_terms(pair, fields)
    for name, value in sums_by_hand(pair, fields, drawn)._asdict().items():
        assert torch.allclose(getattr(terms, name)[0], value, rtol=1e-9, atol=1e-9), name
