"""Data: named sets and files, their splits, how they are scaled and binarised, and batches of them."""

from pyro_vae.data.dataset import Dataset, as_split, choose_split, log_library
from pyro_vae.data.load import load_data
from pyro_vae.data.split import Split

__all__ = ["Dataset", "Split", "as_split", "choose_split", "load_data", "log_library"]
