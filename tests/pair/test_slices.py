"""Sites of the time slices of a sequence are one, in codes, samples and pictures, whoever wrote the pair."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from sequence_pairs import Chain, Deep, sequences
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.pair import generation
from pyro_vae.pair.slices import numbered, over_time, without_padding

LENGTHS = [4, 1, 3, 2]
QUIET = {"progress": False, "engine": "eager", "device": "cpu", "epochs": 1, "batch_size": 4}


@pytest.mark.parametrize(
    "names, found",
    {
        "z_0 z_1 z_2 y": {"z": ["z_0", "z_1", "z_2"]},
        "z_2 z_1 obs_x_1 obs_x_2": {"z": ["z_1", "z_2"], "obs_x": ["obs_x_1", "obs_x_2"]},
        "z_0 z_2": {},
        "z_2 z_3": {},
        "z_0": {},
        "z z_a": {},
        "z_9 z_10 z_8 " + " ".join(f"z_{t}" for t in range(8)): {"z": [f"z_{t}" for t in range(11)]},
    }.items(),
)
def test_which_names_are_numbered(names, found):
    assert numbered(names.split()) == found


def test_sites_of_all_time_slices_are_one_and_end_with_the_length():
    fields = sequences(LENGTHS)
    values = {f"z_{t}": torch.full((4, 2), float(t)) for t in range(4)} | {
        f"k_{t}": torch.full((4,), t) for t in range(4)
    }
    found = over_time(values | {"other": torch.ones(4)}, fields)
    assert list(found) == ["other", "z", "k"]
    for row, length in enumerate(LENGTHS):
        assert found["z"][row, :length, 1].tolist() == list(range(length)) and found["z"][row, length:].isnan().all()
        assert found["k"][row].tolist() == [*range(length), *[-1] * (4 - length)]


def test_other_numbered_sites_stay_as_they_are():
    """Two layers of a hierarchy of data of two numbers are no time slices; nor is what has another shape in each."""
    fields = {"x": torch.ones(4, 2)}
    layers = {"z_1": torch.ones(4, 3), "z_2": torch.ones(4, 3)}
    assert over_time(layers, fields) == layers
    uneven, two = {"z_0": torch.ones(4, 3), "z_1": torch.ones(4, 2)}, {"z_0": torch.ones(4, 3), "z_1": torch.ones(4, 3)}
    assert over_time(uneven, fields) == uneven and over_time(two, {"x": torch.ones(4, 3)}) == two
    assert list(over_time(two, fields)) == ["z"]


def test_padding_is_what_lies_beyond_the_length():
    fields = sequences(LENGTHS)
    beyond = torch.arange(4) >= fields["length"][:, None]
    assert torch.equal(without_padding(fields["x"], fields).isnan().all(2), beyond)
    assert without_padding(torch.ones(4, 3), fields).isfinite().all()
    assert without_padding(fields["x"], {"x": fields["x"]}) is fields["x"]


class Tones(nn.Module):
    """As Pyro's hmm.py has it: sequences at dim -2, and at -1 a plate of the tones of a time slice, from 1 on."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.moves = nn.Parameter(torch.randn(3, 3, generator=generator))
        self.rates = nn.Parameter(torch.randn(3, 2, generator=generator))

    def model(self, x: Tensor, length: Tensor) -> None:
        tones = pyro.plate("tones", x.shape[-1], dim=-1)
        with pyro.plate("sequences", len(x), dim=-2):
            state = 0
            for t in pyro.markov(range(1, x.shape[1] + 1)):
                with pyro.poutine.mask(mask=(t <= length).unsqueeze(-1)):
                    fn = dist.Categorical(logits=self.moves[state])
                    state = pyro.sample(f"s_{t}", fn, infer={"enumerate": "parallel"})
                    with tones:
                        rates = self.rates[state.squeeze(-1)]
                        pyro.sample(f"y_{t}", dist.Bernoulli(logits=rates), obs=x[:, t - 1])

    def guide(self, x: Tensor, length: Tensor) -> None:
        pass


@pytest.mark.parametrize("make, state", [(Chain, "z"), (Tones, "s")])
def test_paths_and_pictures_of_pairs_that_others_write(make, state):
    pair, given = make(), sequences(LENGTHS)
    codes = generation.encode(pair, pv.Split(given))
    beyond = torch.arange(4) >= given["length"][:, None]
    for word in ("most_probable", "draw"):
        path = codes[f"{state}_{word}"].reshape(4, 4)
        assert torch.equal(path == -1, beyond)
    probabilities = codes[f"{state}_probabilities"]
    assert torch.allclose(probabilities[~beyond].reshape(-1, 3).sum(1), torch.ones(sum(LENGTHS)))
    assert torch.equal(generation.picture_site(generation.reconstruct(pair, given)).seen[0], given["x"])


def test_codes_of_a_deep_pair_are_along_time():
    codes = generation.encode(Deep(), pv.Split(sequences(LENGTHS)))
    assert set(codes) == {"z_mean", "z_scale"} and codes["z_mean"].shape == (4, 4, 2)


def test_squared_error_counts_no_padding():
    """The mean over what is within the length, whatever the model says beyond it."""
    pair, given = Chain(), sequences(LENGTHS)
    found = pv.evaluate(pair, given, "reconstruction", progress=False).squared_error
    means = generation.center(generation.picture_site(generation.reconstruct(pair, given)))
    expected = [(means[row, :n] - given["x"][row, :n]).square().mean() for row, n in enumerate(LENGTHS)]
    assert torch.allclose(found.float(), torch.stack(expected), rtol=1e-5)
