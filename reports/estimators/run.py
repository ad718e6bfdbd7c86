"""Estimators that lectures compare: of the ELBO's gradient, and of p(x).

python reports/estimators/run.py

writes README.md and its figures in about three minutes. It takes small models with exact figures from tests/.
"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import pyro_vae as pv

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1] / "tests")]
from discrete import section  # noqa: E402
from machine import header, table  # noqa: E402
from references import (  # noqa: E402
    PPCA,
    Scalar,
    exact_gradients,
    gaussian_log_density,
    gradient_draws,
    linear_vae,
    ppca_optimum,
    z_scores,
)

READING, COPIES, SETTLED = 2.0, 50_000, 30
PARTICLES, REPEATS, BATCH = (1, 2, 4, 8, 16, 32), 100, 100
GRADIENTS = {
    "score function": lambda: pv.objectives.TraceELBO("score"),
    "score function, baseline": lambda: pv.objectives.TraceGraphELBO("score"),
    "pathwise": lambda: pv.objectives.TraceELBO(),
}
SGVB = {
    "sampled KL": lambda: pv.objectives.TraceELBO(),
    "analytic KL": lambda: pv.objectives.TraceMeanFieldELBO(),
}
EPOCHS, SEEDS, DRAWS = 40, 3, (1, 2, 5, 10)
DIMS, POINTS = 10, (1, 10, 100, 1000, 10_000)

Make = Callable[[], pv.objectives.Objective]


def steps_to_settle(objective: pv.objectives.Objective) -> int:
    """How many steps a baseline needs before it is one."""
    return SETTLED if isinstance(objective, pv.objectives.TraceGraphELBO) else 0


def small_draws(make: Make, particles: int) -> dict[str, Tensor]:
    """Independent draws [copies] of the gradient of the small model; a baseline has settled before."""
    torch.manual_seed(0)
    objective, pair = make(), Scalar(COPIES)
    for _ in range(steps_to_settle(objective)):
        gradient_draws(objective, pair, READING, particles)
    return gradient_draws(objective, pair, READING, particles)


def small_model() -> tuple[str, Figure]:
    """Mean and variance of one draw by the guide's two parameters."""
    exact = exact_gradients(Scalar, READING, alpha=1.0)
    found = {name: [small_draws(make, particles) for particles in PARTICLES] for name, make in GRADIENTS.items()}
    rows = []
    for name, draws in found.items():
        for parameter in ("loc", "log_scale"):
            first = draws[0][parameter]
            numbers = exact[parameter], first.mean(), z_scores(first, exact[parameter]), first.var()
            rows.append([name, parameter, *(f"{number.item():.3g}" for number in numbers)])
    figure = Figure(figsize=(8, 3), layout="constrained")
    for axes, parameter in zip(figure.subplots(1, 2), ("loc", "log_scale"), strict=True):
        for name, draws in found.items():
            axes.loglog(PARTICLES, [each[parameter].var().item() for each in draws], "o-", label=name)
        axes.set(title=f"gradient by the guide's {parameter}", xlabel="particles", ylabel="variance")
    figure.axes[0].legend(frameon=False)
    return table(["estimator", "gradient by", "exact", "mean of one draw", "z-score", "variance"], rows), figure


def vae_on_digits(epochs: int) -> tuple[nn.Module, pv.Dataset]:
    """A VAE with 8 latents after so many epochs on the binarised digits."""
    data = pv.load_data("digits", binarize="static")
    torch.manual_seed(0)
    vae = pv.VAE(data.facts["data_shape"], latent_dim=8, hidden=(100,), data_mean=data.facts["data_mean"])
    if epochs:
        pv.train(vae, data, epochs, engine="eager", device="cpu", progress=False)
    return vae.train(), data


def variances(vae: nn.Module, batches: Callable[[], Tensor], make: Make, particles: int) -> dict[str, float]:
    """Variance of one draw of the encoder's gradient, summed over its parameters, and of the loss."""
    torch.manual_seed(1)
    parameters = [*vae.encoder.parameters(), *vae.posterior.parameters()]
    objective, gradients, losses = make(), [], []
    settled = steps_to_settle(objective)
    for step in range(settled + REPEATS):
        loss = objective(vae, {"x": batches()}, particles)
        found = torch.autograd.grad(loss, parameters)
        if step >= settled:
            losses.append(loss.detach())
            gradients.append(torch.cat([gradient.flatten() for gradient in found]))
    return {"gradient": torch.stack(gradients).var(0).sum().item(), "loss": torch.stack(losses).var().item()}


def of_a_vae(vae: nn.Module, x: Tensor) -> tuple[str, Figure]:
    """The three gradients of one batch of a trained VAE against the particles."""
    found = {
        name: [variances(vae, lambda: x, make, particles)["gradient"] for particles in PARTICLES]
        for name, make in GRADIENTS.items()
    }
    rows = [[particles, *(f"{found[name][i]:.3g}" for name in found)] for i, particles in enumerate(PARTICLES)]
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    for name, values in found.items():
        axes.loglog(PARTICLES, values, "o-", label=name)
    axes.set(xlabel="particles", ylabel="variance of the encoder's gradient, summed")
    axes.legend(frameon=False)
    return table(["particles", *found], rows), figure


def sgvb(pairs: Mapping[str, nn.Module], x: Tensor) -> str:
    """The two estimators of Kingma & Welling, on a batch, with one draw."""
    rows = []
    for when, vae in pairs.items():
        for name, make in SGVB.items():
            found = variances(vae, lambda: x, make, 1)
            rows.append([when, name, f"{found['loss']:.3g}", f"{found['gradient']:.3g}"])
    return table(["VAE", "estimator", "variance of the loss", "variance of the encoder's gradient"], rows)


def batches_and_draws(vae: nn.Module, data: pv.Dataset) -> str:
    """The variance of the gradient over random batches of M data with L draws."""
    whole, rows = data.train["x"], []
    for size in (20, 100, 500):

        def batch(size: int = size) -> Tensor:
            return whole[torch.randint(len(whole), (size,))]

        found = [variances(vae, batch, SGVB["analytic KL"], draws)["gradient"] for draws in DRAWS]
        rows.append([size, *(f"{value:.3g}" for value in found)])
    return table(["M", *(f"L = {draws}" for draws in DRAWS)], rows)


def training() -> tuple[str, Figure]:
    """Validation ELBO by epoch for several L, over seeds."""
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes, rows = figure.subplots(), []
    for draws in DRAWS:
        histories = []
        for seed in range(SEEDS):
            vae, data = vae_on_digits(0)
            how = {"batch_size": BATCH, "engine": "eager", "device": "cpu", "progress": False}
            histories.append(pv.train(vae, data, EPOCHS, particles=draws, seed=seed, **how).history)
        curves = torch.tensor([[row["valid_elbo"] for row in history] for history in histories])
        axes.plot(range(1, EPOCHS + 1), curves.mean(0), label=f"L = {draws}")
        rows.append([draws, f"{curves[:, -1].mean():.2f} ± {curves[:, -1].std():.2f}"])
    axes.set(xlabel="epoch", ylabel="validation ELBO, nats")
    axes.legend(frameon=False)
    return table(["L", f"validation ELBO after {EPOCHS} epochs"], rows), figure


def marginal(data: pv.Dataset) -> tuple[str, Figure]:
    """log p(x) of a linear VAE, which is known, by draws from the prior and from the guide."""
    train, x = data.train["x"].flatten(1).double(), data.test["x"].flatten(1).double()[:50]
    solution: PPCA = ppca_optimum(train, DIMS).rotated(0.6)
    exact = gaussian_log_density(x, solution.mean, solution.covariance)
    vae, rows, found = linear_vae(solution), [], {"prior": [], "importance": []}
    for draws in POINTS:
        for name, errors in found.items():
            result = pv.evaluate(vae, x, name, particles=draws, progress=False)
            errors.append((result.log_likelihood - exact).abs().mean().item())
        rows.append([f"{draws:,}", *(f"{errors[-1]:.3g}" for errors in found.values())])
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    for name, errors in found.items():
        axes.loglog(POINTS, errors, "o-", label=f"draws from the {'prior' if name == 'prior' else 'guide, weighted'}")
    axes.set(xlabel="draws", ylabel="|error of log p(x)|, nats")
    axes.legend(frameon=False)
    return table(["draws", "from the prior", "from the guide, weighted"], rows), figure


def main() -> None:
    command = "python reports/estimators/run.py"
    head = header("Estimators of the ELBO's gradient and of p(x)", command, "which needs no data")
    vae, data = vae_on_digits(100)
    x = data.test["x"][:BATCH]
    gaussian, figure = small_model()
    pv.plots.save(figure, HERE / "small_model.png")
    digits, figure = of_a_vae(vae, x)
    pv.plots.save(figure, HERE / "digits.png")
    trained, figure = training()
    pv.plots.save(figure, HERE / "training.png")
    points, figure = marginal(data)
    pv.plots.save(figure, HERE / "marginal.png")
    past_bits, figure = section()
    pv.plots.save(figure, HERE / "discrete.png")
    text = f"""{head}
The VAE has 8 latents and 100 hidden units, on the bundled digits (64 pixels), after 100 epochs unless said otherwise. A
variance is that over {REPEATS} draws of the gradient of a batch of {BATCH}, summed over the encoder's parameters.

## Score function against path

`trace_elbo` with `gradient="score"` takes the score function at every site; `trace_graph_elbo` with
`gradient="score"` adds a baseline, the decaying average of each datum's cost (Mnih & Gregor 2014), here after {SETTLED}
steps on the same data.

One Gaussian latent, one Gaussian observation, where the exact gradient is known; {COPIES:,} independent draws of one
particle:

{gaussian}
![variance against particles](small_model.png)

The VAE:

{digits}
![variance against particles](digits.png)

## The KL from draws, or in closed form

The two estimators of Kingma & Welling (2014, eq. 6 and 7): `trace_elbo` and `trace_mean_field_elbo`, both pathwise.

{sgvb({"at its start": vae_on_digits(0)[0], "trained": vae}, x)}
Where the guide is near the posterior, log p(x, z) - log q(z|x) is nearly the same at every z: with the sampled KL the
loss then varies less, and its gradient more.

## One draw and a batch of 100, or more draws

The variance of the gradient over random batches of M data with L draws for each (analytic KL):

{batches_and_draws(vae, data)}
Along a row the cost of the decoder grows with L, down a column all of the cost grows with M. More draws leave the
variance between data, which a larger batch takes down as well. Training with batches of {BATCH} ({SEEDS} seeds):

{trained}
![validation ELBO by epoch](training.png)

## p(x) by draws from the prior, or from the guide

A linear VAE with {DIMS} latents, whose log p(x) is known, and whose diagonal guide is not the exact posterior; the mean
error over 50 digits, in nats:

{points}
![error against draws](marginal.png)

{past_bits}"""
    (HERE / "README.md").write_text(text)


if __name__ == "__main__":
    main()
