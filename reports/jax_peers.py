"""The same nets in JAX, as someone who wants speed writes them: by hand with optax, and in NumPyro.

Whole epochs are one jitted `fori_loop`, as in NumPyro's own VAE example; the state is donated, the images are on the
device and binarised at every presentation. The weights start from those of a `pv.VAE`.
"""

import math
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from measure import seconds_of
from torch import Tensor, nn

import pyro_vae as pv

HAS_JAX = all(find_spec(name) for name in ("jax", "optax", "numpyro"))

if HAS_JAX:
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    import optax
    from jax import lax, random
    from numpyro.infer import SVI, RenyiELBO, TraceMeanField_ELBO

Net = Callable[[Any, Any], Any]
"""(its weights, a batch) -> a batch."""

Step = Callable[[Any, Any, Any], tuple[Any, Any]]
"""(state, binary batch, key) -> (state, loss)."""

CHUNKS = (5, 10, 25)
"""Particles that the program of a bound holds at a time; each is tried, the fastest is taken."""

CONV_LAYOUT = ("NCHW", "OIHW", "NCHW")


def array(tensor: Tensor) -> "jax.Array":
    return jnp.asarray(tensor.detach().numpy())


def layer_in_jax(layer: nn.Module) -> tuple[Any, Net]:
    """Weights and function of one layer."""
    weights = {name: array(value) for name, value in layer.named_parameters()}
    if isinstance(layer, nn.Linear):
        return weights, lambda w, x: x @ w["weight"].T + w["bias"]
    if isinstance(layer, nn.ConvTranspose2d):
        # the transpose of a convolution: strides become holes in its input, and its kernel is turned round
        (size, _), (pad, _), (more, _) = layer.kernel_size, layer.padding, layer.output_padding
        padding = [(size - 1 - pad, size - 1 - pad + more)] * 2
        weights["weight"] = jnp.flip(weights["weight"].transpose(1, 0, 2, 3), (2, 3))
        run = partial(lax.conv_general_dilated, window_strides=(1, 1), padding=padding, lhs_dilation=layer.stride)
        return weights, lambda w, x: run(x, w["weight"], dimension_numbers=CONV_LAYOUT) + w["bias"][:, None, None]
    if isinstance(layer, nn.Conv2d):
        run = partial(lax.conv_general_dilated, window_strides=layer.stride, padding=[(p, p) for p in layer.padding])
        return weights, lambda w, x: run(x, w["weight"], dimension_numbers=CONV_LAYOUT) + w["bias"][:, None, None]
    function = {nn.ReLU: jax.nn.relu, nn.Tanh: jnp.tanh}[type(layer)]
    return {}, lambda w, x: function(x)


def chain(layers: list[tuple[Any, Net]]) -> tuple[list[Any], Net]:
    functions = [function for _, function in layers]

    def run(weights: list[Any], x: Any) -> Any:
        for w, function in zip(weights, functions, strict=True):
            x = function(w, x)
        return x

    return [weights for weights, _ in layers], run


def nets_in_jax(vae: pv.VAE) -> tuple[dict[str, Any], Net, Net]:
    """Weights, the encoder [batch, pixels] -> [batch, 2 latent], and the decoder [batch, latent] -> [batch, pixels]."""
    reshape = lambda *shape: ({}, lambda w, x: x.reshape(len(x), *shape))  # noqa: E731
    into = [layer_in_jax(layer) for layer in vae.encoder.layers]
    out_of = [layer_in_jax(layer) for layer in vae.decoder.layers]
    if hasattr(vae.decoder, "start"):
        first = next(layer for layer in vae.decoder.layers if isinstance(layer, nn.ConvTranspose2d))
        side = math.isqrt(vae.decoder.start.out_features // first.in_channels)
        into = [reshape(1, 28, 28), *into, reshape(-1)]
        out_of = [layer_in_jax(vae.decoder.start), reshape(first.in_channels, side, side), *out_of, reshape(-1)]
    else:
        out_of = [*out_of, layer_in_jax(vae.decoder.out)]
    encoder, encode = chain([*into, layer_in_jax(vae.posterior.heads)])
    decoder, decode = chain(out_of)
    return {"encoder": encoder, "decoder": decoder}, encode, decode


def log_weight(encode: Net, decode: Net, weights: Any, x: Any, key: Any, particles: int) -> Any:
    """log p(x, z) - log q(z|x) at fresh draws, [particles, batch]."""
    loc, log_scale = jnp.split(encode(weights["encoder"], x), 2, -1)
    noise = random.normal(key, (particles, *loc.shape))
    z = loc + jnp.exp(log_scale) * noise
    logits = decode(weights["decoder"], z.reshape(-1, z.shape[-1])).reshape(*z.shape[:-1], -1)
    log_likelihood = (x * logits - jax.nn.softplus(logits)).sum(-1)
    return log_likelihood + (0.5 * (noise**2 - z**2) + log_scale).sum(-1)


def loss_by_hand(encode: Net, decode: Net, particles: int) -> Callable[[Any, Any, Any], Any]:
    """Minus the ELBO with the KL in closed form, or minus L_K where there are several particles; nats per datum."""

    def elbo(weights: Any, x: Any, key: Any) -> Any:
        loc, log_scale = jnp.split(encode(weights["encoder"], x), 2, -1)
        scale = jnp.exp(log_scale)
        logits = decode(weights["decoder"], loc + scale * random.normal(key, loc.shape))
        cross_entropy = (jax.nn.softplus(logits) - x * logits).sum()
        return (cross_entropy + (0.5 * (loc**2 + scale**2 - 1) - log_scale).sum()) / len(x)

    def iwae(weights: Any, x: Any, key: Any) -> Any:
        terms = log_weight(encode, decode, weights, x, key, particles)
        return (math.log(particles) - jax.nn.logsumexp(terms, 0)).mean()

    return elbo if particles == 1 else iwae


def epochs_of(step: Step, images: Tensor, batch: int, state: Any) -> Callable[[], float]:
    """Runs an epoch of steps as one program, and gives the mean loss."""
    grey = array(images.float().flatten(1) / 255)
    steps = len(grey) // batch

    @partial(jax.jit, donate_argnums=0)
    def epoch(state: Any, key: Any) -> tuple[Any, Any, Any]:
        key, shuffled = random.split(key)
        order = random.permutation(shuffled, len(grey))

        def body(number: Any, carry: Any) -> Any:
            state, total = carry
            drawn, used = random.split(random.fold_in(key, number))
            rows = lax.dynamic_slice_in_dim(order, number * batch, batch)
            x = random.bernoulli(drawn, grey[rows]).astype(jnp.float32)
            state, loss = step(state, x, used)
            return state, total + loss

        state, total = lax.fori_loop(0, steps, body, (state, jnp.zeros(())))
        return state, random.fold_in(key, steps), total / steps

    kept = [state, random.PRNGKey(0)]

    def run() -> float:
        kept[0], kept[1], loss = epoch(*kept)
        return loss.item()

    return run


def jax_epochs(vae: pv.VAE, images: Tensor, batch: int, particles: int, rate: float) -> Callable[[], float]:
    """By hand, with optax's Adam."""
    weights, encode, decode = nets_in_jax(vae)
    loss_of = jax.value_and_grad(loss_by_hand(encode, decode, particles))
    adam = optax.adam(rate)

    def step(state: Any, x: Any, key: Any) -> tuple[Any, Any]:
        weights, moments = state
        loss, gradients = loss_of(weights, x, key)
        updates, moments = adam.update(gradients, moments)
        return (optax.apply_updates(weights, updates), moments), loss

    return epochs_of(step, images, batch, (weights, adam.init(weights)))


def numpyro_epochs(vae: pv.VAE, images: Tensor, batch: int, particles: int, rate: float) -> Callable[[], float]:
    """NumPyro's `SVI` with its Adam; its `TraceMeanField_ELBO`, or its `RenyiELBO` of order 0."""
    weights, encode, decode = nets_in_jax(vae)

    def model(x: Any) -> None:
        net = numpyro.module("decoder", ((lambda key, shape: (shape, weights["decoder"])), decode), (1, 50))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(50), 1.0).to_event(1))
            logits = net(z.reshape(-1, 50)).reshape(*z.shape[:-1], -1)
            numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x: Any) -> None:
        net = numpyro.module("encoder", ((lambda key, shape: (shape, weights["encoder"])), encode), (1, 784))
        loc, log_scale = jnp.split(net(x), 2, -1)
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))

    objective = TraceMeanField_ELBO() if particles == 1 else RenyiELBO(alpha=0, num_particles=particles)
    svi = SVI(model, guide, numpyro.optim.Adam(rate), objective)
    state = svi.init(random.PRNGKey(0), jnp.zeros((batch, 784)))
    return epochs_of(lambda state, x, key: svi.update(state, x), images, batch, state)


def jax_samples(vae: pv.VAE, images: Tensor, particles: int, chunk: int, block: int = 100) -> Callable[[], Tensor]:
    """Computes L_K of each image, nats: encode once, log-sum-exp over chunks of particles, one program a block."""
    weights, encode, decode = nets_in_jax(vae)
    x = array(images.flatten(1))

    @jax.jit
    def bound(weights: Any, x: Any, key: Any) -> Any:
        def body(number: Any, total: Any) -> Any:
            terms = log_weight(encode, decode, weights, x, random.fold_in(key, number), chunk)
            return jnp.logaddexp(total, jax.nn.logsumexp(terms, 0))

        total = lax.fori_loop(0, particles // chunk, body, jnp.full(len(x), -jnp.inf))
        return total - math.log(particles)

    def run() -> Tensor:
        parts = [bound(weights, x[n : n + block], random.PRNGKey(n)) for n in range(0, len(x), block)]
        return torch.from_numpy(jax.device_get(jnp.concatenate(parts)).copy())

    return run


def jax_rate(particles: int, images: Tensor, vae: pv.VAE) -> Callable[[], float]:
    """Samples per second of L_K; what is compiled was compiled before."""

    def rate_of(chunk: int) -> Callable[[], float]:
        run = jax_samples(vae, images, particles, chunk)
        run()
        return lambda: len(images) * particles / seconds_of(run)

    return max(map(rate_of, CHUNKS), key=lambda rate: rate())
