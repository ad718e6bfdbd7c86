"""The fixed binarisation of MNIST, from a file."""

from pyro_vae.data.dataset import Dataset
from pyro_vae.data.files.assemble import SPLITS, assemble
from pyro_vae.data.files.read import read_file
from pyro_vae.errors import DataError
from pyro_vae.files import at_home

SIDE = 28


def static_mnist(seed: int = 0, *, file: str) -> Dataset:
    """Binary x [n, 1, 28, 28]; 50,000 for training, 10,000 for validation and 10,000 for the test.

    Args:
        seed: not used; the splits and the binarisation are fixed.
        file: a .npz file with arrays "train", "valid" and "test" [n, 784] of uint8 0 and 1.

    Raises:
        DataError: no such file, or one that holds something else.

    Source: Larochelle & Murray, "The neural autoregressive distribution estimator" (2011).
    """
    path = at_home(file)
    arrays = read_file(path)
    for name in SPLITS:
        images = arrays.get(name)
        if images is None or images.shape[1:] not in {(SIDE**2,), (SIDE, SIDE)} or images.max(initial=0) > 1:
            raise DataError(f"{path}: needs arrays train, valid and test [n, {SIDE**2}] of 0 and 1")
    images = {name: arrays[name].reshape(-1, 1, SIDE, SIDE) for name in SPLITS}
    return assemble("static_mnist", images, seed, levels=1)
