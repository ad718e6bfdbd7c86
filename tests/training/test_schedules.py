"""Learning rates and KL weights as functions of progress."""

import math

import pytest
import torch

import pyro_vae as pv
from pyro_vae.errors import UnknownName
from pyro_vae.training.schedules import SCHEDULES, burda_steps, constant, cosine, ramp


def test_constant_is_one():
    assert {constant(p) for p in (0.0, 0.5, 1.0)} == {1.0}


def test_cosine_falls_from_one_to_nothing_and_stays_there():
    assert cosine(0.0) == 1.0 and cosine(0.5) == pytest.approx(0.5) and cosine(1.0) == pytest.approx(0.0)
    assert cosine(0.25) == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert cosine(1.5) == pytest.approx(0.0)


def test_burdas_steps_hold_each_rate_for_three_times_as_long_as_the_last():
    """3^i epochs at 10^(-i/7), i = 0..7: 3,280 epochs in all (Burda et al. 2016, section 5)."""
    rates = [burda_steps(epoch / 3280) for epoch in range(3280)]
    expected = [10 ** (-i / 7) for i in range(8) for _ in range(3**i)]
    assert len(expected) == 3280 and rates == pytest.approx(expected)
    assert burda_steps(1.0) == pytest.approx(0.1)


@pytest.mark.parametrize("name", SCHEDULES)
def test_no_schedule_leaves_the_unit_interval_or_rises(name):
    values = [SCHEDULES[name](p / 100) for p in range(101)]
    assert all(0.0 <= v <= 1.0 for v in values) and values == sorted(values, reverse=True)
    assert values[0] == 1.0


def test_an_old_name_trains_as_the_new_one_and_is_told():
    def trained(schedule: str) -> torch.Tensor:
        torch.manual_seed(0)
        pair = pv.VAE((3,), hidden=(4,))
        pv.train(pair, torch.ones(20, 3), 3, 9, schedule=schedule, engine="eager", progress=False)
        return torch.cat([p.flatten() for p in pair.parameters()])

    with pytest.warns(FutureWarning, match="the schedule 'iwae' is now called 'burda_steps'") as told:
        old = trained("iwae")
    assert told[0].filename == __file__
    assert torch.equal(old, trained("burda_steps")) and not torch.equal(old, trained("constant"))


def test_an_unknown_schedule_lists_the_nearest_first():
    with pytest.raises(UnknownName, match="unknown schedule 'cosin'; known: cosine"):
        pv.train(pv.VAE((3,), hidden=(4,)), torch.ones(20, 3), 1, 9, schedule="cosin", progress=False)


def test_a_ramp_is_linear_and_ends_at_one():
    assert [ramp(step, 4) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert ramp(0, 0) == 1.0 and ramp(0, 1) == 1.0
