"""What every objective answers, and functions as objectives."""

import pytest
import torch
from pairs import bits, small_vae
from torch import nn

import pyro_vae as pv
from pyro_vae import plugins
from pyro_vae.objectives.elbo import TraceELBO
from pyro_vae.objectives.importance_weighted import IWAE, Renyi
from pyro_vae.objectives.objective import Objective, as_objective
from pyro_vae.pair.terms import log_terms


def plain(pair, batch, particles=1, beta=1.0, data_size=None):
    return -log_terms(pair, batch, particles).log_likelihood.mean()


class Remembering(nn.Module):
    """A callable that says all that an objective can say, and counts."""

    traceable = True

    def __init__(self, weight=2.0):
        super().__init__()
        self.weight = weight
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, pair, batch, particles=1, beta=1.0, data_size=None):
        self.calls += 1
        return self.weight * plain(pair, batch, particles, beta, data_size)


@pytest.mark.parametrize("name", plugins.names("objective"))
def test_every_registered_objective_is_one(name):
    objective = plugins.load("objective", name)()
    assert isinstance(objective, Objective) and as_objective(objective) is objective
    loss = objective(small_vae(), {"x": bits(6)}, particles=2)
    assert loss.shape == () and loss.requires_grad
    objective.load_state_dict(objective.state_dict())


def test_a_function_is_an_objective_of_its_name():
    objective = as_objective(plain)
    assert objective.identity() == {"objective": "plain"}
    assert not objective.traceable and objective.module is None and objective.state_dict() == {}
    objective.load_state_dict({})
    pair, batch = small_vae(), {"x": bits(6)}
    torch.manual_seed(1)
    expected = plain(pair, batch, 3)
    torch.manual_seed(1)
    assert torch.equal(objective(pair, batch, particles=3), expected)


def test_what_a_callable_says_of_itself_is_taken_over():
    objective, other = as_objective(Remembering()), as_objective(Remembering(3.0))
    assert objective.traceable and objective.module is objective.function
    assert objective.identity() == {"objective": "Remembering", "weight": 2.0}
    objective(small_vae(), {"x": bits(6)})
    other.load_state_dict(objective.state_dict())
    assert other.function.calls == 1


@pytest.mark.parametrize(
    "objective, known",
    [
        (TraceELBO("score"), {"objective": "TraceELBO", "gradient": "score"}),
        (IWAE("dreg"), {"objective": "IWAE", "gradient": "dreg"}),
        (Renyi(0.3), {"objective": "Renyi", "alpha": 0.3, "gradient": "pathwise"}),
    ],
)
def test_an_objective_is_told_from_others_by_its_name_and_options(objective, known):
    assert objective.identity() == known


def test_a_callable_with_a_state_is_trained_compiled_and_resumed(graphs, tmp_path):
    options = {"batch_size": 16, "progress": False, "engine": "compiled", "out": tmp_path}
    first = Remembering()
    steps = 2 * pv.train(small_vae(), bits(40), epochs=2, objective=first, **options).data.train.num_batches(16)
    assert first.calls == steps
    second = Remembering()
    run = pv.train(small_vae(), bits(40), epochs=3, objective=second, resume=True, **options)
    assert run.engine == "compiled" and second.calls == steps * 3 // 2
