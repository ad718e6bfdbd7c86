"""A hidden Markov model cuts a series into its regimes: the most probable path of states, beside the true one."""

import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from scipy.optimize import linear_sum_assignment

import pyro_vae as pv

EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 40
STATES, STEPS = 3, 60
LEVEL, NOISE = torch.tensor([-1.0, 0.0, 1.2]), torch.tensor([0.4, 0.8, 0.4])


def series(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x [n, 60] and the regime of each time slice, which changes with probability 0.04."""
    state, path = torch.randint(STATES, (n,)), []
    for _ in range(STEPS):
        state = torch.where(torch.rand(n) < 0.04, torch.randint(STATES, (n,)), state)
        path.append(state)
    states = torch.stack(path, 1)
    return LEVEL[states] + NOISE[states] * torch.randn(n, STEPS), states


if __name__ == "__main__":
    torch.manual_seed(0)
    x, _ = series(300)
    options = {"states": STATES, "likelihood": "gaussian_net"}
    how = {"batch_size": 100, "lr": 5e-3, "schedule": "cosine", "restarts": 3, "progress": False}
    run = pv.train("hmm", {"x": x}, EPOCHS, model_options=options, **how)

    new, true = series(100)
    whole = torch.full((len(new),), STEPS)
    codes = pv.encode(run, {"x": new, "length": whole})
    found = codes["state_most_probable"]
    counts = torch.zeros(STATES, STATES).index_put_((found, true), torch.ones(()), accumulate=True)
    order = torch.from_numpy(linear_sum_assignment(-counts.numpy())[1])
    by_level = (new[..., None] - LEVEL).abs().argmin(2)
    log_p = pv.evaluate(run.pair, new, "elbo", progress=False)
    print(f"log p of new series: {log_p.mean / STEPS:.3f} nats a time slice, exact")
    print(f"time slices in the right regime: {(order[found] == true).float().mean():.1%}")
    print(f"by the nearest level alone: {(by_level == true).float().mean():.1%}")

    figure = Figure(figsize=(9, 5), layout="constrained")
    panels = figure.subplots(6, 1, sharex=True, height_ratios=[4, 1] * 3)
    for row, (above, below) in enumerate(zip(panels[::2], panels[1::2], strict=True)):
        above.plot(torch.arange(STEPS) + 0.5, new[row], ".-", color="grey", markersize=3, linewidth=0.6)
        strips = torch.stack([true[row], order[found[row]]])
        how = {"cmap": "viridis", "vmin": 0, "vmax": STATES - 1, "interpolation": "nearest"}
        below.imshow(strips, aspect="auto", extent=(0, STEPS, 2, 0), **how)
        below.set_yticks([0.5, 1.5], ["true", "found"], fontsize="small")
        above.set(ylabel="x", xlim=(0, STEPS))
    panels[-1].set_xlabel("time slice")
    pv.plots.save(figure, Path("segmentation.png"))
