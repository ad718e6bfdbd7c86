"""Gradients past bits, in a world so small that every code, and every picture, can be summed over."""

from collections.abc import Callable
from itertools import product

import torch
from machine import table
from matplotlib.figure import Figure
from pyro import poutine
from references import expected_bound
from torch import Tensor, nn

import pyro_vae as pv

SIDE, LAYERS = 3, (4, 2)
DATA, COPIES, REPEATS, SETTLED, SHOWN = 8, 50, 200, 30, 8
PARTICLES = (2, 4, 8, 16, 32)
ESTIMATORS: dict[str, tuple[Callable[[], pv.objectives.Objective], str]] = {
    "score function": (lambda: pv.objectives.TraceELBO(), "ELBO"),
    "score function, baseline": (lambda: pv.objectives.TraceGraphELBO(), "ELBO"),
    "VIMCO": (lambda: pv.objectives.IWAE("vimco"), "L_K"),
    "wake-sleep": (lambda: pv.objectives.WakeSleep(), "KL(p(z given x), q) at dreams"),
    "reweighted, awake": (lambda: pv.objectives.ReweightedWakeSleep(1.0), "KL(p(z given x), q) at the data"),
}
"""What makes each objective, and what its guide's gradient is meant to be that of."""


def every(bits: int) -> Tensor:
    """All words of so many bits."""
    return torch.tensor(list(product((0.0, 1.0), repeat=bits)), dtype=torch.float64)


def bars(n: int) -> Tensor:
    """Pictures [n, 9] of horizontal and vertical bars."""
    rows, columns = torch.rand(n, SIDE, 1) < 0.3, torch.rand(n, 1, SIDE) < 0.3
    return (rows | columns).flatten(1).float()


def small_net() -> tuple[nn.Module, Tensor]:
    """A sigmoid belief net after some epochs on the bars, and some of them."""
    torch.manual_seed(0)
    x = bars(400)
    net = pv.models.SigmoidBeliefNet((SIDE**2,), LAYERS, data_mean=x.mean(0))
    how = {"engine": "eager", "device": "cpu", "progress": False}
    pv.train(net, x, 30, 20, 1e-2, "reweighted_wake_sleep", particles=5, **how)
    return net.double().train(), x[:DATA].double()


def log_probs(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """log p(x, z) and log q(z|x) of every code, [codes, n], under plain Pyro."""
    codes = every(sum(LAYERS)).repeat_interleave(len(x), 0)
    values = {f"z_{i}": code for i, code in enumerate(codes.split(LAYERS, 1), start=1)}
    found = []
    for program in (net.model, net.guide):
        trace = poutine.trace(poutine.condition(program, values)).get_trace(x.repeat(2 ** sum(LAYERS), 1))
        trace.compute_log_prob()
        sites = [node["log_prob"] for node in trace.nodes.values() if node["type"] == "sample" and node["is_observed"]]
        found.append(sum(sites).reshape(-1, len(x)))
    return found[0], found[1]


def of_guide(goal: str, net: nn.Module, x: Tensor, particles: int) -> Tensor:
    """What a guide is meant to minimise, exactly."""
    log_joint, log_guide = log_probs(net, x)
    if goal == "ELBO":
        return -(log_guide.exp() * (log_joint - log_guide)).sum(0).mean()
    if goal == "L_K":
        both = zip(log_guide.T, (log_joint - log_guide).T, strict=True)
        return -torch.stack([expected_bound(mass, weight, particles) for mass, weight in both]).mean()
    if goal == "KL(p(z given x), q) at the data":
        return -(log_joint.softmax(0).detach() * log_guide).sum(0).mean()
    log_joint, log_guide = log_probs(net, every(SIDE**2))
    return -(log_joint.exp().detach() * log_guide).sum()


def parameters_of(net: nn.Module) -> dict[str, list[nn.Parameter]]:
    return {"model": [net.top, *net.down.parameters(), *net.decoder.parameters()], "guide": list(net.up.parameters())}


def flat(loss: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, parameters)])


def bias_and_noise(draws: Tensor, exact: Tensor) -> dict[str, float]:
    """Of one draw of a batch's gradient, from means of COPIES of them [repeats, size], as shares of the exact one:
    |mean - exact|, what chance leaves of that, and the root of the variances' sum."""
    size, variance = exact.norm(), COPIES * draws.var(0).sum()
    chance = (variance / (COPIES * len(draws))).sqrt()
    shares = {"bias": (draws.mean(0) - exact).norm(), "chance": chance, "noise": variance.sqrt()}
    return {name: (value / size).item() for name, value in shares.items()}


def measured(net: nn.Module, x: Tensor, name: str, particles: int) -> dict[str, dict[str, float]]:
    """Bias and noise of an estimator by the parameters of the model, whose goal is log p(x), and of the guide."""
    torch.manual_seed(1)
    make, goal = ESTIMATORS[name]
    objective, nets, batch = make(), parameters_of(net), {"x": x.repeat(COPIES, 1)}
    goals = {"model": -log_probs(net, x)[0].logsumexp(0).mean(), "guide": of_guide(goal, net, x, particles)}
    settled = SETTLED if isinstance(objective, pv.objectives.TraceGraphELBO) else 0
    both = nets["model"] + nets["guide"]
    draws = torch.stack([flat(objective(net, batch, particles), both) for _ in range(settled + REPEATS)])[settled:]
    width = sum(parameter.numel() for parameter in nets["model"])
    parts = {"model": draws[:, :width], "guide": draws[:, width:]}
    return {part: bias_and_noise(parts[part], flat(goals[part], nets[part])) for part in nets}


def bits() -> tuple[str, Figure]:
    """A table at some particles, and bias and noise against them."""
    net, x = small_net()
    found = {name: [measured(net, x, name, particles) for particles in PARTICLES] for name in ESTIMATORS}
    rows = []
    for name, (_, goal) in ESTIMATORS.items():
        model, guide = found[name][PARTICLES.index(SHOWN)].values()
        bias = [f"{part['bias']:.3f} ± {part['chance']:.3f}" for part in (model, guide)]
        rows.append([name, bias[0], f"{model['noise']:.2g}", goal, bias[1], f"{guide['noise']:.2g}"])
    figure = Figure(figsize=(8, 6), layout="constrained")
    panels = product(("model", "guide"), ("bias", "noise"))
    for axes, (part, what) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        for place, (name, at) in enumerate(found.items()):
            axes.loglog(PARTICLES, [each[part][what] for each in at], "o-", color=f"C{place}", label=name)
            if what == "bias":
                axes.loglog(PARTICLES, [each[part]["chance"] for each in at], ":", color=f"C{place}")
        axes.set_xscale("log", base=2)
        axes.set(title=f"{what}, by the {part}", xlabel="particles K", ylabel="share of the exact gradient")
    figure.axes[1].legend(frameon=False, fontsize="small")
    head = ["estimator", "model: bias", "noise", "goal of the guide", "guide: bias", "noise"]
    return table(head, rows), figure


def section() -> tuple[str, Figure]:
    """The words of the report, and the figure."""
    found, figure = bits()
    text = f"""## Past bits

A sigmoid belief net of {LAYERS[0]} and {LAYERS[1]} bits, on pictures of bars of {SIDE} by {SIDE} pixels, after 30
epochs: few enough to sum over all codes and all pictures. {COPIES * REPEATS:,} gradients of a batch of {DATA}, each
with K draws of the guide for each datum. Bias, and noise (the root of the summed variance of one gradient), are shares
of the length of the exact gradient: by the model, that of log p(x); by the guide, that of what the estimator is meant
to minimise, which is not the same for all. At K = {SHOWN}, with what chance leaves of the bias:

{found}
![bias and noise against particles](discrete.png)

Dotted: what chance leaves of the bias. By the model, the gradient of the ELBO (score function, wake-sleep) stays away
from that of log p(x) however many draws there are, and that of L_K (VIMCO, reweighted) comes near it. By the guide, the
score function and VIMCO are unbiased, but VIMCO's signal falls with K faster than its noise. Awake, reweighted
wake-sleep has a bias that falls with K; dreams have none, and their noise does not depend on K.
"""
    return text, figure
