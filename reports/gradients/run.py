"""The gradient estimators of the importance-weighted bound beside each other: mean, variance, signal-to-noise ratio.

python reports/gradients/run.py

writes README.md and its figures in about a minute. It takes the small models with exact gradients from tests/.
"""

import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import pyro_vae as pv

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1] / "tests")]
from machine import header, table  # noqa: E402
from references import (  # noqa: E402
    Clusters,
    NonReparameterisedNormal,
    Scalar,
    exact_gradients,
    gradient_draws,
    z_scores,
)

READING, COPIES = 0.7, 100_000
PARTICLES = (1, 2, 4, 8, 16, 32, 64)
ESTIMATORS = ("pathwise", "stl", "dreg", "vimco")
SHOWN = {"loc": "guide's mean", "weight": "decoder's weight"}
REPEATS = 200


def draws_of(estimator: str, particles: int) -> dict[str, Tensor]:
    """Independent draws [copies] of the gradient of minus L_K by each parameter of the small Gaussian model."""
    torch.manual_seed(0)
    options = {"normal": NonReparameterisedNormal} if estimator == "vimco" else {}
    return gradient_draws(pv.objectives.IWAE(estimator), Scalar(COPIES, **options), READING, particles)


def small_model() -> tuple[str, Figure]:
    """A table at K = 8, and variance and signal-to-noise ratio against K."""
    rows = []
    exact = exact_gradients(Scalar, READING, 8)
    for estimator in ESTIMATORS:
        draws = draws_of(estimator, 8)
        for name, what in SHOWN.items():
            mean, variance = draws[name].mean().item(), draws[name].var().item()
            score = z_scores(draws[name], exact[name]).item()
            error = (variance / COPIES) ** 0.5
            cells = [f"{exact[name].item():.4f}", f"{mean:.4f} ± {error:.4f}", f"{score:+.1f}", f"{variance:.3g}"]
            rows.append([estimator, what, *cells])
    figure = Figure(figsize=(8, 5), layout="constrained")
    for axes, (name, what) in zip(figure.subplots(2, 2).T, SHOWN.items(), strict=True):
        for estimator in ESTIMATORS:
            ks = [k for k in PARTICLES if not (estimator == "vimco" and k == 1)]
            found = [draws_of(estimator, k)[name] for k in ks]
            axes[0].loglog(ks, [draws.var().item() for draws in found], "o-", label=estimator)
            axes[1].loglog(ks, [(draws.mean().abs() / draws.std()).item() for draws in found], "o-", label=estimator)
        axes[0].set(title=f"gradient by the {what}", ylabel="variance of one draw")
        axes[1].set(xlabel="particles K", ylabel="signal-to-noise ratio")
    figure.axes[0].legend(frameon=False)
    columns = ["estimator", "gradient by the", "exact", "mean", "z-score", "variance of one draw"]
    return table(columns, rows), figure


def discrete_model() -> str:
    """VIMCO on the enumerable mixture at several K."""
    rows = []
    for particles in (2, 4, 8, 16):
        torch.manual_seed(0)
        draws = gradient_draws(pv.objectives.IWAE("vimco"), Clusters(COPIES), READING, particles)
        exact = exact_gradients(Clusters, READING, particles)
        for name in ("guide_logits", "centres"):
            largest = z_scores(draws[name], exact[name]).abs().max().item()
            variance = draws[name].var(0).sum().item()
            rows.append([particles, name, exact[name].numel(), f"{largest:.1f}", f"{variance:.3g}"])
    return table(["K", "gradient by", "elements", "largest z-score", "variance of one draw, summed"], rows)


def trained_vae() -> tuple[nn.Module, Tensor]:
    """A VAE after 100 epochs on the digits, and a batch of 100 of them."""
    data = pv.load_data("digits", binarize="static")
    torch.manual_seed(0)
    vae = pv.VAE(data.facts["data_shape"], latent_dim=8, hidden=(100,))
    pv.train(vae, data, epochs=100, engine="eager", device="cpu", progress=False)
    return vae.train(), data.test.take(slice(0, 100))["x"]


def summed_variance(vae: nn.Module, x: Tensor, estimator: str, particles: int) -> dict[str, float]:
    """Variance of one draw of the batch's gradient, summed over the parameters of each net."""
    nets = {"encoder": [*vae.encoder.parameters(), *vae.posterior.parameters()], "decoder": [*vae.decoder.parameters()]}
    torch.manual_seed(1)
    draws: dict[str, list[Tensor]] = {name: [] for name in nets}
    for _ in range(REPEATS):
        loss = pv.objectives.IWAE(estimator)(vae, {"x": x}, particles)
        gradients = torch.autograd.grad(loss, [p for net in nets.values() for p in net])
        first = len(nets["encoder"])
        for name, part in zip(nets, (gradients[:first], gradients[first:]), strict=True):
            draws[name].append(torch.cat([gradient.flatten() for gradient in part]))
    return {name: torch.stack(found).var(0).sum().item() for name, found in draws.items()}


def digits() -> tuple[str, Figure]:
    """The variance of a trained VAE's gradients, beside that of the pathwise estimator."""
    vae, x = trained_vae()
    found = {
        estimator: [summed_variance(vae, x, estimator, particles) for particles in PARTICLES]
        for estimator in ("pathwise", "stl", "dreg")
    }
    rows = []
    for i, particles in enumerate(PARTICLES):
        ratio = {name: found[name][i]["encoder"] / found["pathwise"][i]["encoder"] for name in ("stl", "dreg")}
        rows.append(
            [particles, f"{found['pathwise'][i]['encoder']:.3g}", f"{ratio['stl']:.2f}", f"{ratio['dreg']:.2f}"]
        )
    figure = Figure(figsize=(8, 3), layout="constrained")
    for axes, net in zip(figure.subplots(1, 2), ("encoder", "decoder"), strict=True):
        for estimator, variances in found.items():
            axes.loglog(PARTICLES, [variance[net] for variance in variances], "o-", label=estimator)
        axes.set(title=f"gradient by the {net}", xlabel="particles K", ylabel="variance, summed")
    figure.axes[0].legend(frameon=False)
    columns = ["K", "pathwise: variance", "stl / pathwise", "dreg / pathwise"]
    return table(columns, rows), figure


def main() -> None:
    head = header(
        "Gradient estimators of the importance-weighted bound", "python reports/gradients/run.py", "which needs no data"
    )
    gaussian, figure = small_model()
    pv.plots.save(figure, HERE / "small_model.png")
    vae, figure = digits()
    pv.plots.save(figure, HERE / "digits.png")
    text = f"""{head}
Objective `iwae` with `gradient=` pathwise (Burda, Grosse & Salakhutdinov 2016), stl (sticking the landing: Roeder, Wu &
Duvenaud 2017), dreg (doubly reparameterised: Tucker et al. 2019) and vimco (Mnih & Rezende 2016).

## Against exact gradients

One Gaussian latent, one Gaussian observation, K = 8; the exact gradient of -E[L_K] is by quadrature, each estimator's
mean over {COPIES:,} independent draws. `vimco` is given a guide without a path.

{gaussian}
![variance and signal-to-noise ratio](small_model.png)

For K > 1 `stl` is biased by the guide's parameters (Tucker et al. 2019), so that its signal is partly bias; the others'
z-scores are those of noise. With K the pathwise gradient of the guide drowns in noise (Rainforth et al. 2018), which is
what `dreg` mends. By the decoder all four take the same gradient, and their curves coincide.

A mixture with a discrete latent, which only `vimco` can take; exact gradients by enumeration:

{discrete_model()}
## A trained VAE

The bundled digits (64 pixels), 100 hidden units, 8 latents, after 100 epochs on the ELBO; the variance over {REPEATS}
draws of the gradient of a batch of 100, summed over the encoder's parameters.

{vae}
![variance](digits.png)
"""
    (HERE / "README.md").write_text(text)


if __name__ == "__main__":
    main()
