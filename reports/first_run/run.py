"""The first run on MNIST: the `blog` preset for 50 epochs, beside the same net trained the way tutorials train it.

python reports/first_run/run.py            (PYRO_VAE_DATA names the folder that holds MNIST/)
"""

import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from torchvision.datasets import MNIST
from torchvision.transforms import ToTensor

import pyro_vae as pv

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from machine import header, table  # noqa: E402

EPOCHS, BATCH, LR, ROUNDS = 50, 128, 3e-4, 3


def settings(root: str) -> dict[str, Any]:
    """`pyro-vae train blog --data mnist --epochs 50 --batch_size 128 --lr 3e-4`, in Python."""
    data = {"data": "mnist", "data_options": {"binarize": "dynamic", "root": root, "valid": 10_000}}
    return {"pair": "blog", **data, "epochs": EPOCHS, "batch_size": BATCH, "lr": LR}


def plain_epoch(root: str, vae: torch.nn.Module, svi: SVI) -> float:
    """Seconds of one epoch with ToTensor, DataLoader and SVI, on the 50,000 images that ours trains on."""
    images = torch.utils.data.Subset(MNIST(root, train=True, transform=ToTensor()), range(50_000))
    loader = torch.utils.data.DataLoader(images, batch_size=BATCH, shuffle=True)
    began = time.perf_counter()
    for x, _ in loader:
        svi.step(torch.bernoulli(x))
    return time.perf_counter() - began


def our_epoch(vae: torch.nn.Module, data: pv.Dataset) -> float:
    """Seconds of one epoch of `pv.train` on the same images."""
    run = pv.train(vae, data, epochs=2, batch_size=BATCH, lr=LR, engine="eager", progress=False)
    return run.history[-1]["seconds"]


def ours_of(data: pv.Dataset) -> pv.VAE:
    """The `blog` preset with the same initial weights each time."""
    torch.manual_seed(0)
    return pv.models.blog(data.facts["data_shape"], data_mean=data.facts["data_mean"])


def timings(root: str) -> tuple[list[float], list[float]]:
    """Interleaved seconds per epoch: ours (validation included) and the plain script's."""
    data = pv.load_data("mnist", binarize="dynamic", root=root)
    ours, plain = [], []
    vae, tutorial = ours_of(data), ours_of(data)
    svi = SVI(tutorial.model, tutorial.guide, pyro.optim.Adam({"lr": LR}), Trace_ELBO())
    for _ in range(ROUNDS):
        ours.append(our_epoch(vae, data))
        plain.append(plain_epoch(root, tutorial, svi))
    return ours, plain


def main() -> None:
    root = os.environ.get("PYRO_VAE_DATA")
    if not root:
        sys.exit("PYRO_VAE_DATA is not set; it names the folder that holds MNIST/")
    torch.manual_seed(0)
    ours, plain = timings(root)
    folder = Path("runs") / "first_run"
    results = pv.train(**settings(root), out=folder, overwrite=True).results
    for picture in sorted((folder / "figures").glob("*.png")):
        (HERE / picture.name).write_bytes(picture.read_bytes())
    pv.plots.save(pv.plots.loss_curves(pv.load_run(folder).history), HERE / "loss.png")
    history = pv.load_run(folder).history
    training = sum(row["seconds"] for row in history)
    ratio = statistics.median(p / o for p, o in zip(plain, ours, strict=True))
    text = header("The first run: the `blog` preset on MNIST", "python reports/first_run/run.py")
    text += f"""
784-256-64-32-2 with ELU, {EPOCHS} epochs, batch {BATCH}, Adam {LR}, dynamically binarised, 50,000 training images.
The same run from the command line:
`pyro-vae train blog --data mnist --root $PYRO_VAE_DATA --epochs {EPOCHS} --batch_size {BATCH} --lr {LR}`.

## On the 10,000 test images

{
        table(
            ["evaluator", "quantity", "mean ± s.e., nats per image"],
            [[r.evaluator, r.quantity, f"{r.mean:.2f} ± {r.standard_error:.2f}"] for r in results],
        )
    }
## Seconds per epoch, {ROUNDS} interleaved rounds in one process

{
        table(
            ["", "rounds", "median"],
            [
                [
                    "ours (`pv.train`, eager; validation included)",
                    ", ".join(f"{s:.2f}" for s in ours),
                    f"{statistics.median(ours):.2f}",
                ],
                [
                    "plain script (`ToTensor`, `DataLoader`, `pyro.infer.SVI`)",
                    ", ".join(f"{s:.2f}" for s in plain),
                    f"{statistics.median(plain):.2f}",
                ],
                ["plain / ours", "", f"{ratio:.1f}"],
            ],
        )
    }
All {EPOCHS} epochs took {training:.0f} s.

## Pictures

Loss per epoch, training and validation:
![loss](loss.png)

The images over a grid of quantiles of the prior:
![manifold](manifold.png)

Posterior means of test images, by label:
![posterior means](posterior_means.png)

Test images and their reconstructions:
![reconstructions](reconstructions.png)

Samples from the prior:
![samples](samples.png)
"""
    (HERE / "README.md").write_text(text)


if __name__ == "__main__":
    main()
