"""Pictures of sequences: a panel for each, empty beyond its end, and its states below it."""

import numpy as np
import pytest
import torch
from sequence_pairs import Chain, Deep, sequences

import pyro_vae as pv
from pyro_vae import plots
from pyro_vae.pair.generation import encode
from pyro_vae.reporting.report import write_report

LENGTHS = [4, 1, 3, 2]


def wide(pair: type = Chain, width: int = 5):
    """A pair of sequences of five numbers a slice, and data for it."""
    return pair(width=width), sequences(LENGTHS, width=width)


def rolls(figure) -> list[np.ma.MaskedArray]:
    """What is drawn in the panels, [elements, time]."""
    return [axes.images[0].get_array() for axes in figure.axes if axes.images]


def test_reconstructions_are_beside_their_data_and_end_with_them():
    pair, data = wide()
    figure = plots.reconstructions(pair, pv.Split(data), n=4)
    panels = rolls(figure)
    assert len(panels) == 8 and [axes.get_title() for axes in figure.axes[:2]] == ["data", "reconstruction"]
    for row, length in enumerate(LENGTHS):
        seen, rebuilt = panels[2 * row], panels[2 * row + 1]
        assert np.array_equal(seen[:, :length], data["x"][row, :length].T)
        for panel in (seen, rebuilt):
            assert panel.mask[:, length:].all() and not panel.mask[:, :length].any()


@pytest.mark.parametrize("make", [Chain, Deep])
def test_samples_have_the_lengths_of_the_data(make):
    pair, data = wide(make)
    panels = rolls(plots.samples(pair, data))
    assert len(panels) == 12
    assert [int((~panel.mask).any(0).sum()) for panel in panels] == 3 * LENGTHS


def test_few_numbers_a_slice_are_curves():
    values = torch.randn(3, 20, 2)
    figure = plots.piano_rolls(values, columns=1)
    assert [len(axes.lines) for axes in figure.axes] == [2, 2, 2] and not rolls(figure)
    assert np.allclose(figure.axes[1].lines[0].get_ydata(), values[1, :, 0])


def test_state_paths_are_below_their_sequences():
    pair, data = wide()
    figure = plots.state_paths(pair, pv.Split(data), n=4)
    sequence, states = figure.axes[::2], figure.axes[1::2]
    assert len(sequence) == len(states) == 4
    codes = encode(pair, pv.Split(data))["z_most_probable"]
    for row, (axes, length) in enumerate(zip(states, LENGTHS, strict=True)):
        strips = axes.images[0].get_array()
        assert strips.shape == (2, 4) and strips.mask[:, length:].all()
        assert strips[0, :length].tolist() == codes[row, :length].tolist()
        assert [label.get_text() for label in axes.get_yticklabels()] == ["most probable", "a draw"]


def test_only_states_that_are_summed_out_have_paths():
    assert plots.state_paths(Deep(), pv.Split(sequences(LENGTHS))) is None
    assert plots.state_paths(pv.VAE((2,), hidden=(3,)), pv.Split({"x": torch.ones(4, 2)})) is None


@pytest.mark.slow
def test_a_report_shows_rolls_and_paths(tmp_path):
    how = {"engine": "eager", "device": "cpu", "progress": False}
    run = pv.train("hmm", epochs=1, batch_size=400, out=tmp_path / "run", data_options={"steps": 6}, **how)
    text = write_report(run).read_text()
    for name in ("reconstructions", "samples", "state_paths"):
        assert f"figures/{name}.png" in text and (tmp_path / "run" / "figures" / f"{name}.png").stat().st_size > 1000
    pv.sample(run, n=4, out=tmp_path / "samples.png")
    pv.reconstruct(run, n=2, out=tmp_path / "rolls.png")
    assert (tmp_path / "samples.png").stat().st_size > 1000 and (tmp_path / "rolls.png").stat().st_size > 1000
