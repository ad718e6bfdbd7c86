"""Planted chains: they follow the law that they say they follow."""

import pytest
import torch

from pyro_vae import load_data
from pyro_vae.data.sets.planted_chains import law
from pyro_vae.errors import DataError


def every(**options):
    data = load_data("planted_chains", **options)
    batches = [split.take(slice(None)) for split in data.splits.values()]
    return data, {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def test_their_shapes_and_where_they_end():
    data, batch = every(sequences=200, steps=9)
    assert [split.size for split in data.splits.values()] == [160, 20, 20] and data.facts["data_shape"] == (9, 12)
    beyond = torch.arange(9) >= batch["length"][:, None]
    assert not batch["x"][beyond].any() and (batch["chord"][beyond] == -1).all() and (batch["chord"] >= -1).all()
    assert batch["length"].min() == 3 and batch["length"].max() == 9
    assert set(batch["x"].unique().tolist()) == {0.0, 1.0}


def test_the_law_is_one_of_probabilities():
    first, moves, keys = law()
    assert torch.allclose(first.sum(), torch.ones(())) and torch.allclose(moves.sum(1), torch.ones(4))
    assert keys.shape == (4, 12) and ((keys > 0) & (keys < 1)).all()


def test_keys_and_moves_follow_the_law():
    """To 4.5 standard errors."""
    _, batch = every(sequences=3000)
    first, moves, keys = law()
    x, chord = batch["x"], batch["chord"]
    for number in range(4):
        here = chord == number
        error = (keys[number] * (1 - keys[number]) / here.sum()).sqrt()
        assert ((x[here].mean(0) - keys[number]).abs() < 4.5 * error).all()
        followed = chord[:, 1:][here[:, :-1] & (chord[:, 1:] >= 0)]
        shares = torch.bincount(followed, minlength=4) / len(followed)
        assert (
            (shares - moves[number]).abs() < 4.5 * (moves[number] * (1 - moves[number]) / len(followed)).sqrt()
        ).all()


def test_a_seed_draws_them_anew():
    one, two, other = (every(sequences=20, seed=seed)[1]["x"] for seed in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, other)


@pytest.mark.parametrize("options", [{"sequences": 0}, {"steps": 0}])
def test_none_are_refused(options):
    with pytest.raises(DataError, match="must be at least 1, not 0"):
        load_data("planted_chains", **options)
