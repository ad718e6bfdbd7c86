"""Values of the kinds that parameters declare, and what is none."""

import math
from datetime import date

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pairs import bits, small_vae

import pyro_vae as pv
from pyro_vae.errors import RunError, UserError
from pyro_vae.kinds import LARGEST, checked, needs, read

RIGHT = [
    (int, "1e3", 1000),
    (int, " 7 ", 7),
    (int, 3.0, 3),
    (int, np.int64(4), 4),
    (int, torch.tensor(5), 5),
    (int, str(LARGEST), LARGEST),
    (float, "1e-3", 1e-3),
    (float, 2, 2.0),
    (float, np.float32(0.5), 0.5),
    (bool, "yes", True),
    (bool, np.bool_(False), False),
    (int | None, "none", None),
    (float | None, None, None),
    (list[int], "[8, 4]", [8, 4]),
    (list[int], [], []),
    (list[str], "a,b", ["a", "b"]),
]


@pytest.mark.parametrize("kind, value, found", RIGHT)
def test_a_value_is_read_as_its_kind(kind, value, found):
    assert read(kind, value) == found and type(read(kind, value)) is type(found)


WRONG = [1.5, "1.5", math.nan, "nan", math.inf, "-inf", True, None, "", "ten", LARGEST + 1, "9" * 5000, 10**30, 1e30]
WRONG += [[1], {"a": 1}, date(2024, 1, 1), object(), 1j, b"1", torch.zeros(2), np.zeros(3)]


@pytest.mark.parametrize("value", WRONG, ids=lambda value: repr(value)[:20])
def test_what_is_no_whole_number_is_refused(value):
    with pytest.raises(ValueError):
        read(int, value)
    assert len(needs("n", int, value)) < 150


@pytest.mark.parametrize("value", [math.nan, "nan", "inf", -math.inf, "1e999", True, None, "fast", [1.0], 10**400])
def test_what_is_no_finite_number_is_refused(value):
    with pytest.raises(ValueError):
        read(float, value)


@given(st.one_of(st.text(), st.integers(), st.floats(), st.none(), st.lists(st.text()), st.dates(), st.binary()))
def test_anything_at_all_is_read_or_refused(value):
    for kind in (int, float, bool, str, int | None, list[int], list[float]):
        try:
            read(kind, value)
        except ValueError:
            assert "\n" not in needs("n", kind, value)


@given(st.integers(-LARGEST, LARGEST), st.floats(allow_nan=False, allow_infinity=False))
def test_what_is_written_is_read_back(whole, number):
    assert read(int, str(whole)) == whole and read(float, repr(number)) == number


def test_a_checked_function_gets_plain_numbers_and_keeps_its_signature():
    @checked
    def function(a: int, b: float = 1, *, c: bool = False, d: str = "x", e: int | None = None) -> tuple:
        """A docstring."""
        return a, b, c, d, e

    assert function(np.int64(2), b=3, c=np.bool_(True), d=4) == (2, 3.0, True, 4, None)
    assert function.__doc__ == "A docstring."
    with pytest.raises(RunError, match="^e needs a whole number or none, not 1.5$"):
        function(1, e=1.5)
    with pytest.raises(TypeError):
        function()


NUMBERS = {
    "epochs": [1.5, math.nan, "many", True, 10**30, -1, 0],
    "batch_size": [1.5, None, [16], 10**30, -3],
    "lr": [math.nan, math.inf, "fast", None],
    "particles": [0.5, math.nan, 10**30],
    "beta": [math.nan, math.inf],
    "ema": [math.nan, "much"],
    "free_bits": [math.nan],
    "clip": [math.nan, math.inf],
    "seed": [1.5, 10**30, None, "x"],
    "patience": [1.5, math.nan],
    "kl_warmup": [0.5],
    "lr_warmup": [math.nan],
    "accumulate": [1.5],
    "restarts": [1.5, 10**9],
    "progress": ["perhaps", None],
    "relaxed": [math.nan],
    "device": ["xpu", "meta", "cuda:99", "cpu:1", "hpu", "privateuseone", 3],
}


@pytest.mark.parametrize("name, value", [(name, value) for name, values in NUMBERS.items() for value in values])
def test_training_takes_no_number_of_another_kind(name, value, tmp_path):
    options = {"epochs": 1, "batch_size": 16, "progress": False, "out": tmp_path / "run", name: value}
    with pytest.raises(UserError) as caught:
        pv.train(small_vae(), bits(), **options)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_numbers_of_numpy_are_settings_like_others(tmp_path):
    """Which config.yaml can hold, too."""
    options = {"epochs": np.int64(1), "batch_size": np.int32(16), "lr": np.float32(0.01), "seed": torch.tensor(3)}
    run = pv.train("vae", bits(), out=tmp_path / "run", progress=False, model_options={"hidden": [4]}, **options)
    assert pv.load_run(run.out).config["training"]["seed"] == 3
