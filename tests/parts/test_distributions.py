"""Distributions of our own against torch's."""

import pyro.distributions as dist
import pytest
import torch

from pyro_vae.parts.distributions import NormalMixture, mixture


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize("batch", [(), (6,)])
def test_a_mixture_of_normals_has_torchs_log_density_and_gradients(batch, dtype, tolerance):
    """Narrow components too, whose squares are large."""
    torch.manual_seed(0)
    logits, loc, log_scale = torch.randn(4), 3 * torch.randn(4, 5), torch.randn(4, 5) - 3
    value = loc[torch.tensor([0, 1, 2, 3, 0, 1])] + 0.05 * torch.randn(6, 5)
    leaves = [x.to(dtype).requires_grad_() for x in (logits, loc, log_scale, value)]
    found = []
    for kind in (lambda first, fn: dist.MixtureSameFamily(dist.Categorical(logits=first), fn), mixture):
        fn = kind(leaves[0], dist.Normal(leaves[1], leaves[2].exp()).to_event(1)).expand(batch)
        log_prob = fn.log_prob(leaves[3])
        found.append([log_prob, *torch.autograd.grad(log_prob.sum(), leaves)])
    assert isinstance(fn, NormalMixture) and found[1][0].shape == (6,)
    for reference, ours in zip(*found, strict=True):
        assert (reference - ours).abs().max() <= tolerance * reference.abs().max()
    assert fn.log_prob(value[0].to(dtype)).shape == batch
