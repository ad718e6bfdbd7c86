"""The hidden Markov model: log p(x) is the forward algorithm's, its paths are Viterbi's and the posterior's, and it
learns what was planted."""

import itertools
import math

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

import pyro_vae as pv
from pyro_vae.command_line import main as cli
from pyro_vae.data.sets.planted_chains import law
from pyro_vae.errors import ContractError, DataError
from pyro_vae.models import hmm
from pyro_vae.models.hmm import MOST, HiddenMarkovModel
from pyro_vae.pair.generation import encode

QUIET = {"progress": False, "engine": "eager", "device": "cpu"}
LENGTHS = torch.tensor([5, 1, 3, 4, 5, 2])


def small(states: int = 3, likelihood: str = "bernoulli", seed: int = 0) -> HiddenMarkovModel:
    """In float64, its moves away from where they start."""
    torch.manual_seed(seed)
    pair = HiddenMarkovModel((5, 2), states, likelihood).double()
    pair.moves.set(torch.randn(states + 1, states).double())
    return pair


def data(likelihood: str = "bernoulli") -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6, 5, 2, generator=generator).double()
    x = (x > 0).double() if likelihood == "bernoulli" else x
    beyond = torch.arange(5) >= LENGTHS[:, None]
    return {"x": x.masked_fill(beyond.unsqueeze(2), 0.0), "length": LENGTHS}


def tables(pair: HiddenMarkovModel, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log p(first state), log p(next|state), and log p(x_t|state) [time, states] of one sequence."""
    with torch.no_grad():
        moves = pair.moves().log_softmax(1)
        every = torch.arange(pair.states)
        return moves[-1], moves[:-1], torch.stack([pair.emission(every).log_prob(row) for row in x])


def forward(pair: HiddenMarkovModel, x: Tensor) -> Tensor:
    """log p(x) of one sequence."""
    first, moves, seen = tables(pair, x)
    alpha = first + seen[0]
    for row in seen[1:]:
        alpha = torch.logsumexp(alpha[:, None] + moves, 0) + row
    return torch.logsumexp(alpha, 0)


def joint(pair: HiddenMarkovModel, x: Tensor) -> dict[tuple[int, ...], float]:
    """log p(x, path) of every path."""
    first, moves, seen = tables(pair, x)
    return {
        path: (
            first[path[0]]
            + sum(moves[a, b] for a, b in itertools.pairwise(path))
            + sum(seen[t, state] for t, state in enumerate(path))
        ).item()
        for path in itertools.product(range(pair.states), repeat=len(x))
    }


# --- log p, and the paths -----------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian_net", "gaussian_full"])
def test_log_p_is_that_of_the_forward_algorithm(likelihood):
    pair, given = small(likelihood=likelihood), data(likelihood)
    result = pv.evaluate(pair, given, "importance", progress=False)
    expected = torch.stack([forward(pair, x[:n]) for x, n in zip(given["x"], LENGTHS, strict=True)])
    assert result.kind == "exact" and torch.allclose(result.log_likelihood, expected, rtol=1e-9)
    assert result.per_time_slice == pytest.approx(expected.sum().item() / LENGTHS.sum().item(), rel=1e-9)


def test_without_lengths_all_sequences_are_whole():
    pair, x = small(), data()["x"]
    expected = torch.stack([forward(pair, row) for row in x])
    assert torch.allclose(pv.evaluate(pair, x, "elbo", progress=False).elbo, expected, rtol=1e-9)


def test_a_series_of_one_number_each():
    torch.manual_seed(0)
    pair, x = HiddenMarkovModel((7,), 2, "gaussian_learned").double(), torch.randn(4, 7).double()
    expected = torch.stack([forward(pair, row) for row in x])
    assert torch.allclose(pv.evaluate(pair, x, "elbo", progress=False).elbo, expected, rtol=1e-9)


def coded(pair: HiddenMarkovModel, given: dict[str, Tensor]) -> dict[str, Tensor]:
    return encode(pair, pv.Split(given))


def test_the_most_probable_path_is_the_best_of_all_paths():
    pair, given = small(), data()
    paths = coded(pair, given)["state_most_probable"]
    assert paths.shape == (6, 5)
    for x, n, path in zip(given["x"], LENGTHS, paths, strict=True):
        every = joint(pair, x[:n])
        assert tuple(path[:n].tolist()) == max(every, key=every.__getitem__)
        assert (path[n:] == -1).all()


def test_probabilities_of_the_states_are_those_over_all_paths():
    pair, given = small(), data()
    found = coded(pair, given)["state_probabilities"]
    assert found.shape == (6, 5, 3)
    for x, n, probabilities in zip(given["x"], LENGTHS, found, strict=True):
        every, total = joint(pair, x[:n]), forward(pair, x[:n]).item()
        expected = torch.zeros(int(n), 3).double()
        for path, log_joint in every.items():
            for t, state in enumerate(path):
                expected[t, state] += math.exp(log_joint - total)
        assert torch.allclose(probabilities[:n], expected, atol=1e-6) and probabilities[n:].isnan().all()


def test_drawn_paths_follow_their_posterior():
    """Of one sequence, again and again: each path as often as its posterior says, to 4.5 standard errors."""
    pair, one = small(states=2), {name: value[2:3] for name, value in data().items()}
    n = 20_000
    many = {name: value.expand(n, *value.shape[1:]) for name, value in one.items()}
    drawn = coded(pair, many | {"length": many["length"].clone()})["state_draw"][:, :3]
    every, total = joint(pair, one["x"][0, :3]), forward(pair, one["x"][0, :3]).item()
    for path, log_joint in every.items():
        probability = math.exp(log_joint - total)
        share = (drawn == torch.tensor(path)).all(1).double().mean().item()
        assert abs(share - probability) < 4.5 * math.sqrt(probability * (1 - probability) / n), path


def test_samples_follow_the_model():
    """The share of each first state, and of each move, in samples of sequences of five."""
    pair, given = small(states=2), data() | {"length": torch.full((6,), 5)}
    run = pv.train(pair, given, valid=given, epochs=1, batch_size=6, lr=1e-12, **QUIET)
    path = pv.sample(run, n=8000, data=given)["state"]
    assert path.shape == (8000, 5)
    with torch.no_grad():
        moves = pair.moves().softmax(1)
    for before, after, probabilities in [(None, path[:, 0], moves[-1])] + [
        (path[:, :-1] == state, path[:, 1:], moves[state]) for state in range(2)
    ]:
        chosen = after if before is None else after[before]
        error = (probabilities[1] * (1 - probabilities[1]) / len(chosen)).sqrt()
        assert abs(chosen.double().mean() - probabilities[1]) < 4.5 * error


# --- learning -----------------------------------------------------------------------------------------------


def truth() -> HiddenMarkovModel:
    """The model that planted chains follow."""
    first, moves, keys = law()
    pair = HiddenMarkovModel((24, 12), len(first))
    pair.moves.set(torch.cat([moves, first[None]]).log())
    pair.emission.table.set(torch.logit(keys).unsqueeze(1))
    return pair


@pytest.fixture(scope="module")
def chains():
    return pv.load_data("planted_chains", steps=12)


@pytest.fixture(scope="module")
def learned(chains):
    return pv.train("hmm", chains, epochs=20, batch_size=200, lr=1e-2, restarts=3, **QUIET)


def test_what_was_planted_is_learned(chains, learned):
    """On new data, to 0.02 nats a time slice."""
    best, found = (pv.evaluate(pair, chains, "elbo", progress=False) for pair in (truth(), learned.pair))
    assert best.kind == found.kind == "exact"
    assert best.per_time_slice - 0.02 < found.per_time_slice < best.per_time_slice + 0.02


def test_the_paths_are_those_that_were_planted(chains, learned):
    found, planted = pv.encode(learned)["state_most_probable"], chains.test["chord"]
    assert ((found == -1) == (planted == -1)).all()
    there = planted >= 0
    counts = torch.zeros(4, 4).index_put_((found[there], planted[there]), torch.ones(()), accumulate=True)
    right = counts.numpy()[linear_sum_assignment(-counts.numpy())].sum()
    assert right / there.sum() > 0.95


def test_more_starts_do_not_end_worse(chains, learned):
    (note,) = [note for note in learned.notes if "starts" in note]
    assert note.startswith("the best of 3 starts: validation loss ")


# --- bad input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [0, 6])
@pytest.mark.parametrize("use", ["train", "evaluate"])
def test_a_length_that_the_data_do_not_have_is_refused(use, wrong):
    given = data()
    given["length"] = given["length"].clone()
    given["length"][3] = wrong
    with pytest.raises(DataError, match=rf"^length\[3\] is {wrong}, but x has 5 time slices"):
        if use == "train":
            pv.train(small(), given, valid=data(), epochs=1, batch_size=3, **QUIET)
        else:
            pv.evaluate(small(), given, progress=False)


def test_more_states_than_can_be_summed_over_are_refused():
    with pytest.raises(ContractError, match=f"states must be at most {MOST}, not {MOST + 1}"):
        HiddenMarkovModel((5, 2), MOST + 1)
    with pytest.raises(ContractError, match="states must be at least 1, not 0"):
        HiddenMarkovModel((5, 2), 0)


@pytest.mark.parametrize("use, bytes_there", [("train", 2**28), ("evaluate", 2**26)])
def test_more_states_than_the_memory_holds_are_refused(use, bytes_there, monkeypatch):
    monkeypatch.setattr(hmm, "memory_of", lambda device: bytes_there)
    pair = HiddenMarkovModel((5, 2), 1000).double()
    with pytest.raises(
        ContractError, match=r"1000 states on sequences of 5 time slices take about .\.. GiB, but .* fewer"
    ):
        if use == "train":
            pv.train(pair, data(), valid=data(), epochs=1, batch_size=6, **QUIET)
        else:
            pv.evaluate(pair, data(), progress=False)


@pytest.mark.parametrize("options, words", [("--states 0", "states must be at least 1"), ("--states 9999", "at most")])
def test_the_command_line_says_so_in_one_line(options, words, capsys, tmp_path):
    assert cli.main(f"train hmm {options} --epochs 1 --quiet --out {tmp_path / 'run'}".split()) == 2
    said = capsys.readouterr().err.strip()
    assert words in said and "\n" not in said and not list(tmp_path.iterdir())
