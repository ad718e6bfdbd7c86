"""The JSB chorales: polyphonic music, from a file."""

from pyro_vae.data.dataset import Dataset
from pyro_vae.data.files.assemble import SPLITS, assemble
from pyro_vae.data.files.read import read_file
from pyro_vae.errors import DataError
from pyro_vae.files import at_home

KEYS = 88


def jsb(seed: int = 0, *, file: str) -> Dataset:
    """Sequences: binary x [n, time, 88] (which keys are down), `length` [n]; 229 for training, 76 and 77.

    Args:
        seed: not used; the splits are fixed.
        file: a .npz file with arrays "train_x", "valid_x" and "test_x" [n, time, 88] of uint8 0 and 1, zeros after the
            end, and "train_length" and so on, [n].

    Raises:
        DataError: no such file, or one that holds something else.

    Source: Boulanger-Lewandowski, Bengio & Vincent, "Modeling temporal dependencies in high-dimensional sequences"
    (2012), in the split of Pyro's deep Markov model.
    """
    path = at_home(file)
    arrays, named = read_file(path), {}
    for name in SPLITS:
        x, length = arrays.get(f"{name}_x"), arrays.get(f"{name}_length")
        if x is None or length is None or x.ndim != 3 or x.shape[2] != KEYS or x.max(initial=0) > 1:
            raise DataError(f"{path}: needs arrays S_x [n, time, {KEYS}] of 0 and 1 and S_length, S train, valid, test")
        named |= {f"x_{name}": x, f"length_{name}": length}
    return assemble("jsb", named, seed, levels=1)
