"""Blocks of data: each with random numbers of its own, presented alike at every pass, encoded once."""

import pytest
import torch
from pairs import Clusters, bits, counts, small_vae

import pyro_vae as pv
from pyro_vae.data import Split, as_split
from pyro_vae.evaluation import Blocks, evaluate_each
from pyro_vae.evaluation.elbo import ELBO
from pyro_vae.evaluation.importance import Importance
from pyro_vae.evaluation.reconstruction import Reconstruction


def noisy(size: int) -> Split:
    """Data that are presented with fresh noise at every reading."""
    return as_split(bits(size)).then(lambda batch: {"x": torch.bernoulli(0.5 + 0.4 * (batch["x"] - 0.5))})


def test_a_block_is_presented_alike_at_every_reading():
    first, second = Blocks(small_vae(), noisy(130), seed=3)
    assert torch.equal(first.batch()["x"], first.batch()["x"])
    assert not torch.equal(first.batch()["x"][:30], second.batch()["x"])
    other, _ = Blocks(small_vae(), noisy(130), seed=4)
    assert not torch.equal(first.batch()["x"], other.batch()["x"])
    assert [first.size, second.size] == [100, 30]


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_the_shares_of_all_processes_are_the_data(processes):
    split = noisy(330)
    whole = torch.cat([block.batch()["x"] for block in Blocks(small_vae(), split)])
    shares = [Blocks(small_vae(), split, rank=rank, processes=processes) for rank in range(processes)]
    assert torch.equal(torch.cat([block.batch()["x"] for blocks in shares for block in blocks]), whole)
    assert [share.size for share in shares] == [sum(block.size for block in share) for share in shares]
    assert sum(share.size for share in shares) == 330
    assert all(share.split.size == share.size for share in shares if len(share))


def test_several_evaluators_share_one_pass_through_the_encoder():
    pair, rows = small_vae(), []
    pair.encoder.register_forward_hook(lambda module, inputs, _: rows.append(len(inputs[0])))
    evaluators = {"elbo": ELBO(), "importance": Importance(), "reconstruction": Reconstruction()}
    together = list(evaluate_each(pair, bits(130), evaluators, 30, progress=False))
    assert [count for count in rows if count > 3] == [100, 30]  # two or three data tell what kind of pair it is
    for name, result in zip(evaluators, together, strict=True):
        alone = pv.evaluate(pair, bits(130), name, 30, progress=False)
        for figure, value in alone.estimate.per_datum.items():
            assert torch.equal(result.estimate.per_datum[figure], value), (name, figure)


def test_draws_of_a_block_follow_the_guide_with_one_site_or_several():
    (block,) = Blocks(small_vae(), as_split(bits(40)))
    with block.seeded(1):
        (site,) = block.draw(4000).values()
    assert site.value.shape == (4000, 40, 2)
    z = (site.value.mean(0) - site.fn.mean) / (site.fn.variance / 4000).sqrt()
    assert 0.8 < z.std() < 1.2 and z.abs().max() < 4.5
    assert block.draw(1)[site.name].value.shape == (1, 40, 2)
    (block,) = Blocks(Clusters(), as_split({"counts": counts(12)}))
    assert all(site.value.shape[:2] == (7, 12) for site in block.draw(7).values())
