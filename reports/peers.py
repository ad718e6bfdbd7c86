"""What a user might write, or use, in place of this library: the same nets by hand in torch, and in pythae."""

import math
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pyro_vae as pv

SHAPE, LATENT = (1, 28, 28), 50
HAS_PYTHAE = find_spec("pythae") is not None


class PlainVAE(nn.Module):
    """A Bernoulli VAE as one writes it by hand, on the nets of a `pv.VAE`, which it shares."""

    def __init__(self, vae: pv.VAE):
        super().__init__()
        self.encoder, self.heads, self.decoder = vae.encoder, vae.posterior.heads, vae.decoder

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        loc, log_scale = self.heads(self.encoder(x)).chunk(2, -1)
        return loc, log_scale

    def loss(self, x: Tensor) -> Tensor:
        """Minus the ELBO, nats per datum, one draw, the KL in closed form."""
        loc, log_scale = self.encode(x)
        scale = log_scale.exp()
        logits = self.decoder(loc + scale * torch.randn_like(loc))
        cross_entropy = F.binary_cross_entropy_with_logits(logits.view_as(x), x, reduction="sum")
        kl = (0.5 * (loc.square() + scale.square() - 1) - log_scale).sum()
        return (cross_entropy + kl) / len(x)

    def iwae_loss(self, x: Tensor, particles: int) -> Tensor:
        """Minus L_K, nats per datum."""
        loc, log_scale = self.encode(x)
        return (math.log(particles) - self.log_weight(x, loc, log_scale, particles).logsumexp(0)).mean()

    def log_weight(self, x: Tensor, loc: Tensor, log_scale: Tensor, particles: int) -> Tensor:
        """log p(x, z) - log q(z|x) at fresh draws, [particles, batch]."""
        noise = torch.randn(particles, *loc.shape, device=loc.device)
        z = loc + log_scale.exp() * noise
        logits = self.decoder(z).flatten(2)
        target = x.flatten(1).expand_as(logits)
        log_likelihood = -F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(-1)
        return log_likelihood + (0.5 * (noise.square() - z.square()) + log_scale).sum(-1)

    @torch.inference_mode()
    def log_likelihood(self, x: Tensor, particles: int, chunk: int, block: int = 100) -> Tensor:
        """L_K of each datum, nats: encode once, stream log-sum-exp in float64 over chunks of particles."""
        bounds = []
        for part in x.split(block):
            loc, log_scale = self.encode(part)
            total = torch.full((len(part),), -math.inf, dtype=torch.float64)
            for first in range(0, particles, chunk):
                weights = self.log_weight(part, loc, log_scale, min(chunk, particles - first))
                total = torch.logaddexp(total, weights.double().logsumexp(0))
            bounds.append(total - math.log(particles))
        return torch.cat(bounds)


def pythae_vae(vae: pv.VAE, data_shape: tuple[int, ...], latent_dim: int, particles: int = 1) -> Any:
    """pythae's VAE (its IWAE for several particles) on the nets of a `pv.VAE`, which it shares."""
    from pythae.models import IWAE, VAE, IWAEConfig, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    plain = PlainVAE(vae)

    class Encoder(BaseEncoder):
        def __init__(self):
            super().__init__()
            self.nets = nn.ModuleList([plain.encoder, plain.heads])

        def forward(self, x: Tensor) -> Any:
            loc, log_scale = self.nets[1](self.nets[0](x)).chunk(2, -1)
            return ModelOutput(embedding=loc, log_covariance=2 * log_scale)

    class Decoder(BaseDecoder):
        def __init__(self):
            super().__init__()
            self.net = plain.decoder

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=self.net(z).sigmoid().view(-1, *data_shape))

    sizes = {"input_dim": data_shape, "latent_dim": latent_dim, "reconstruction_loss": "bce"}
    if particles > 1:
        return IWAE(IWAEConfig(**sizes, number_samples=particles), Encoder(), Decoder())
    return VAE(VAEConfig(**sizes), Encoder(), Decoder())
