"""Sequences of linear dynamics, whose log p(x) the Kalman filter gives."""

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

STEPS, DECAY, NOISE, SEEN = 10, 0.9, 0.5, 0.5
LOADING = (1.0, -0.7)


def draw(n: int, seed: int) -> Tensor:
    """x_t = c z_t + e_t, z_t = a z_t-1 + u_t, [n, steps, 2]."""
    generator = torch.Generator().manual_seed(seed)
    z, rows = torch.zeros(n), []
    for _ in range(STEPS):
        z = DECAY * z + NOISE * torch.randn(n, generator=generator)
        rows.append(z.unsqueeze(1) * torch.tensor(LOADING) + SEEN * torch.randn(n, 2, generator=generator))
    return torch.stack(rows, 1)


def kalman(x: Tensor) -> Tensor:
    """log p(x) [n], by the filter: each x_t is normal given those before."""
    x, loading = x.double(), torch.tensor(LOADING).double()
    mean, variance, total = torch.zeros(len(x)).double(), 0.0, torch.zeros(len(x)).double()
    for t in range(x.shape[1]):
        mean, variance = DECAY * mean, DECAY**2 * variance + NOISE**2
        covariance = variance * loading[:, None] * loading + SEEN**2 * torch.eye(2).double()
        off = x[:, t] - mean.unsqueeze(1) * loading
        total += MultivariateNormal(torch.zeros(2).double(), covariance).log_prob(off)
        gain = variance * torch.linalg.solve(covariance, loading)
        mean, variance = mean + off @ gain, variance * (1 - (gain @ loading).item())
    return total
