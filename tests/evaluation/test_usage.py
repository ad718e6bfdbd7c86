"""The evaluator `usage` on values that were counted by hand."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs import Clusters, bits, counts, small_vae
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.errors import ContractError


class Told(nn.Module):
    """Two discrete latents that the guide reads off the data: `kind` of two elements, in a plate, and `sign`."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))

    def model(self, x: Tensor) -> None:
        with pyro.plate("parts", 2, dim=-2), pyro.plate("data", len(x), dim=-1):
            pyro.sample("kind", dist.Categorical(torch.ones(5)))
        with pyro.plate("data", len(x), dim=-1):
            sign = pyro.sample("sign", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(sign.unsqueeze(-1) + self.shift, 1.0).expand([len(x), 3]).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("parts", 2, dim=-2), pyro.plate("data", len(x), dim=-1):
            pyro.sample("kind", dist.Delta(x[:, :2].T.long()))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("sign", dist.Delta(x[:, 2]))


def test_shares_are_counted_over_all_data_and_elements():
    x = torch.tensor([[0, 0, 1.0], [0, 3, 1.0], [3, 4, 1.0], [0, 0, 0.0]])
    result = pv.evaluate(Told(), x, "usage", progress=False)
    kind = -(torch.tensor([5, 2, 1]).double() / 8).log()  # of the values 0, 3 and 4
    sign = -(torch.tensor([3, 1]).double() / 4).log()
    rows = [[kind[0], kind[0], sign[0]], [kind[0], kind[1], sign[0]], [kind[1], kind[2], sign[0]]]
    expected = torch.tensor([*rows, [kind[0], kind[0], sign[1]]]).double().mean(1)
    assert torch.allclose(result.surprisal, expected, atol=1e-6)
    entry = result.entry()
    assert entry["used"] == {"kind": 3, "sign": 2} and entry["quantity"] == "surprisal" and entry["kind"] is None
    entropy = (kind.neg().exp() * kind).sum().item()
    assert entry["perplexity"]["kind"] == pytest.approx(math.exp(entropy))


def test_draws_of_a_guide_that_is_sure_of_nothing_use_all_values_alike():
    pair = Clusters()
    nn.init.zeros_(pair.encoder.weight)
    nn.init.zeros_(pair.encoder.bias)
    result = pv.evaluate(pair, {"counts": counts(200)}, "usage", particles=50, progress=False)
    assert result.entry()["perplexity"]["k"] == pytest.approx(3.0, abs=1e-3)


def test_a_guide_without_discrete_draws_is_refused():
    with pytest.raises(ContractError, match="draws no discrete latent"):
        pv.evaluate(small_vae(), bits(), "usage", progress=False)
