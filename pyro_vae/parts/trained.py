"""The parts of a VAE that was trained before, for a model that stands on it or starts at it."""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from pyro_vae.errors import UnfitPair


class Trained(NamedTuple):
    """A VAE's likelihood, encoder, posterior and decoder, and the size of its latent."""

    likelihood: nn.Module
    encoder: nn.Module
    posterior: nn.Module
    decoder: nn.Module
    latent_dim: int


def parts_of(vae: nn.Module, parameter: str, data_shape: Sequence[int]) -> Trained:
    """Copies, on the CPU, of the parts of a VAE that was handed to a model's constructor as `parameter`.

    Raises:
        UnfitPair: it is no VAE of data of this shape.
    """
    vae = copy.deepcopy(vae).cpu()
    try:
        parts = [getattr(vae, name) for name in Trained._fields[:4]]
        likelihood, encoder, posterior, decoder = parts
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            latent = posterior(encoder(likelihood.encoder_input(torch.zeros(1, *data_shape))))
            decoder(latent.sample())
    except (AttributeError, RuntimeError) as problem:
        raise UnfitPair(
            parameter,
            f"a {type(vae).__name__} that is no VAE of data of shape {list(data_shape)}; train one on the same data "
            "(pyro-vae train vae) and give the folder of its run, or in Python its pair",
        ) from problem
    return Trained(*parts, latent.event_shape[0])
