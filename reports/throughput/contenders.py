"""The ways to train one net that are held against each other: each is built once, and then runs epochs."""

import os
import tempfile
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from jax_peers import HAS_JAX, jax_epochs, numpyro_epochs
from measure import seconds_of
from peers import HAS_PYTHAE, LATENT, SHAPE, PlainVAE, pythae_vae
from PIL import Image
from pyro.infer import SVI, RenyiELBO, Trace_ELBO
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import ToTensor

import pyro_vae as pv
from pyro_vae.data.binarize import dynamic
from pyro_vae.engine.devices import launch
from pyro_vae.training.loop import Settings, Trainer

torch.backends.cudnn.allow_tf32 = False  # all compute in float32

RATE = 1e-3

TRAINING_IMAGES = 40_000

Epoch = Callable[[], float]
"""Trains on all images once, and gives images per second."""


class Case(NamedTuple):
    """A net, a batch size, an objective (several particles: the importance-weighted bound), and steps an epoch.

    With `trained` its weights were trained on MNIST, and its images are of MNIST; else both are random.
    """

    net: dict
    batch: int
    particles: int
    steps: int
    trained: bool = False

    def build(self) -> pv.VAE:
        torch.manual_seed(0)
        vae = pv.VAE(SHAPE, **{"latent_dim": LATENT, **self.net})
        if self.trained:
            vae.load_state_dict(trained_weights(tuple(self.net.items()), self.batch, self.particles))
        return vae

    def images(self, batches: int | None = None) -> Tensor:
        """Grey levels, uint8 [images, 28, 28]."""
        generator = torch.Generator().manual_seed(0)
        count = self.batch * (batches or self.steps)
        if self.trained:
            grey = pv.load_data("mnist", root=os.environ["PYRO_VAE_DATA"]).train["x"]
            return (255 * grey[torch.randperm(len(grey), generator=generator)[:count]]).round().byte().flatten(0, 1)
        return torch.randint(0, 256, (count, *SHAPE[1:]), dtype=torch.uint8, generator=generator)


BURDA_NET = {"hidden": (200, 200), "activation": "tanh"}
CASES = {
    "784-400-50, batch 128": Case({"hidden": (400,)}, 128, 1, 60),
    "burda net, batch 20": Case(BURDA_NET, 20, 1, 150),
    "burda net, batch 100": Case(BURDA_NET, 100, 1, 60),
    "conv net, batch 128": Case({"hidden": (128,), "net": "conv"}, 128, 1, 6),
    "burda net, K = 50, batch 20": Case(BURDA_NET, 20, 50, 20),
}


@cache
def trained_weights(net: tuple, batch: int, particles: int) -> dict[str, Any]:
    """Weights of a net after some thousands of images of MNIST."""
    torch.manual_seed(0)
    vae = pv.VAE(SHAPE, **{"latent_dim": LATENT, **dict(net)})
    data = pv.load_data("mnist", binarize="dynamic", root=os.environ["PYRO_VAE_DATA"])
    few = TRAINING_IMAGES if particles == 1 and "conv" not in dict(net).values() else TRAINING_IMAGES // 10
    objective = "trace_mean_field_elbo" if particles == 1 else "iwae"
    options = {"objective": objective, "particles": particles, "epochs": 1, "batch_size": batch, "progress": False}
    pv.train(vae, data.train.head(few), **options)
    return vae.state_dict()


def timed(images: Tensor, epoch: Callable[[], object]) -> Epoch:
    """Images per second of an epoch, to the end of what a GPU still has to do."""

    def run() -> None:
        epoch()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()

    return lambda: len(images) / seconds_of(run)


def plain_loss(case: Case, plain: PlainVAE) -> Callable[[Tensor], Tensor]:
    return plain.loss if case.particles == 1 else partial(plain.iwae_loss, particles=case.particles)


def by_hand(case: Case, images: Tensor, device: str, compiled: bool = False, fast_draw: bool = False) -> Epoch:
    """Fused Adam, data in memory, binarised at every presentation."""
    plain = PlainVAE(case.build()).to(device)
    optimizer = torch.optim.Adam(plain.parameters(), RATE, fused=True)
    loss_of = plain_loss(case, plain)
    loss_of = torch.compile(loss_of, dynamic=False) if compiled else loss_of
    grey = (images.float() / 255).unsqueeze(1).to(device)

    def draw(x: Tensor) -> Tensor:
        return torch.lt(torch.rand_like(x), x, out=torch.empty_like(x)) if fast_draw else torch.bernoulli(x)

    def epoch() -> float:
        losses = []
        for rows in torch.randperm(len(grey), device=device).split(case.batch):
            optimizer.zero_grad()
            loss = loss_of(draw(grey[rows]))
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses).mean().item()

    return timed(images, epoch)


def by_hand_captured(case: Case, images: Tensor, device: str) -> Epoch:
    """The same, a step captured as a CUDA graph, as torch's documentation writes it."""
    plain = PlainVAE(case.build()).to(device)
    optimizer = torch.optim.Adam(plain.parameters(), RATE, fused=True, capturable=True)
    loss_of = plain_loss(case, plain)
    grey = (images.float() / 255).unsqueeze(1).to(device)
    x = grey[: case.batch].clone()

    def work() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(torch.bernoulli(x))
        loss.backward()
        optimizer.step()
        return loss.detach()

    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = work()

    def epoch(kept: object = (plain, optimizer)) -> float:  # the graph writes into their memory
        losses = []
        for rows in torch.randperm(len(grey), device=device).split(case.batch):
            torch.index_select(grey, 0, rows, out=x)
            graph.replay()
            losses.append(loss.clone())
        return torch.stack(losses).mean().item()

    return timed(images, epoch)


class Pictures(Dataset):
    """A picture at a time through PIL and ToTensor, as torchvision's MNIST gives them."""

    def __init__(self, images: Tensor):
        self.images = images.numpy()
        self.transform = ToTensor()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index], mode="L")), 0


def tutorial(case: Case, images: Tensor, device: str) -> Epoch:
    """ToTensor, DataLoader, Adam as it comes, a loss by hand, its value read at every step."""
    plain = PlainVAE(case.build()).to(device)
    optimizer = torch.optim.Adam(plain.parameters(), RATE)
    loss_of = plain_loss(case, plain)
    loader = DataLoader(Pictures(images), case.batch, shuffle=True)

    def epoch() -> None:
        for x, _ in loader:
            optimizer.zero_grad()
            loss = loss_of(x.to(device))
            loss.backward()
            optimizer.step()
            loss.item()

    return timed(images, epoch)


class PyroExample(nn.Module):
    """The VAE of Pyro's examples: `pyro.module`, plates, targets as they are."""

    def __init__(self, vae: pv.VAE):
        super().__init__()
        self.encoder, self.heads, self.decoder = vae.encoder, vae.posterior.heads, vae.decoder
        self.name = f"example_{id(self)}"

    def model(self, x: Tensor) -> None:
        pyro.module(f"{self.name}_decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            zeros = x.new_zeros(x.shape[0], LATENT)
            z = pyro.sample("latent", dist.Normal(zeros, torch.ones_like(zeros)).to_event(1))
            logits = self.decoder(z).reshape(*z.shape[:-1], -1)
            pyro.sample("obs", dist.Bernoulli(logits=logits, validate_args=False).to_event(1), obs=x.flatten(1))

    def guide(self, x: Tensor) -> None:
        pyro.module(f"{self.name}_encoder", self.encoder)
        pyro.module(f"{self.name}_heads", self.heads)
        with pyro.plate("data", x.shape[0]):
            loc, log_scale = self.heads(self.encoder(x)).chunk(2, -1)
            pyro.sample("latent", dist.Normal(loc, log_scale.exp()).to_event(1))


def pyro_svi(case: Case, images: Tensor, device: str, loader: bool = True) -> Epoch:
    """`SVI` with `pyro.optim.Adam`; as in Pyro's example with a DataLoader, or with data in memory."""
    example = PyroExample(case.build()).to(device)
    elbo = Trace_ELBO() if case.particles == 1 else RenyiELBO(0, case.particles, vectorize_particles=True)
    svi = SVI(example.model, example.guide, pyro.optim.Adam({"lr": RATE}), elbo)
    batches = DataLoader(Pictures(images), case.batch, shuffle=True)
    grey = (images.float() / 255).unsqueeze(1).to(device)

    def epoch() -> None:
        if loader:
            for x, _ in batches:
                svi.step(x.to(device))
        else:
            for rows in torch.randperm(len(grey)).split(case.batch):
                svi.step(torch.bernoulli(grey[rows.to(device)]))

    return timed(images, epoch)


def pythae_trainer(case: Case, images: Tensor, device: str) -> Epoch:
    """An epoch of pythae's `BaseTrainer`, which reads its loss at every step."""
    from pythae.data.datasets import BaseDataset
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    model = pythae_vae(case.build(), SHAPE, LATENT, case.particles)
    with tempfile.TemporaryDirectory() as folder:
        config = BaseTrainerConfig(
            output_dir=folder,
            num_epochs=10**6,
            learning_rate=RATE,
            per_device_train_batch_size=case.batch,
            no_cuda=device == "cpu",
        )
        data = BaseDataset((images.float() / 255).unsqueeze(1), torch.zeros(len(images)))
        trainer = BaseTrainer(model, train_dataset=data, training_config=config)
        trainer.prepare_training()
    trainer.callback_handler.callbacks.clear()
    return timed(images, lambda: trainer.train_step(1))


def our_trainer(case: Case, images: Tensor, device: str, engine: str, precision: str = "32-true") -> Trainer:
    grey = pv.Dataset("grey", *[pv.Split({"x": (images.float() / 255).unsqueeze(1)})] * 3)
    objective = pv.objectives.TraceMeanFieldELBO() if case.particles == 1 else pv.objectives.IWAE()
    settings = Settings(10**6, case.batch, RATE, particles=case.particles, engine=engine, precision=precision)
    trainer = Trainer(launch(device, precision), case.build(), dynamic(grey, 0), objective, settings)
    chosen = trainer.ways[None].engine
    assert chosen.name == engine, chosen.reason
    return trainer


def ours(case: Case, images: Tensor, device: str, engine: str) -> Epoch:
    """The loop of `pv.train`, without validation."""
    trainer = our_trainer(case, images, device, engine)
    return timed(images, lambda: torch.stack(list(trainer.steps())).mean().item())


def in_jax(case: Case, images: Tensor, device: str, build: Callable[..., Callable[[], float]]) -> Epoch:
    return timed(images, build(case.build(), images, case.batch, case.particles, RATE))


Build = Callable[[Case, Tensor, str], Epoch]

CONTENDERS: dict[str, Build] = {
    "by hand, fused Adam": by_hand,
    "by hand, drawing as ours": partial(by_hand, fast_draw=True),
    "by hand, torch.compile": partial(by_hand, compiled=True),
    "Pyro SVI, DataLoader": pyro_svi,
    "Pyro SVI, data in memory": partial(pyro_svi, loader=False),
    "tutorial": tutorial,
    "pythae": pythae_trainer,
    "ours, eager": partial(ours, engine="eager"),
    "ours, compiled": partial(ours, engine="compiled"),
}
IN_JAX: dict[str, Build] = {
    "JAX, by hand": partial(in_jax, build=jax_epochs),
    "NumPyro": partial(in_jax, build=numpyro_epochs),
}
ON_A_GPU: dict[str, Build] = {"by hand, CUDA graph": by_hand_captured}


def contenders(device: str) -> dict[str, Build]:
    """Those that can be had here."""
    found = CONTENDERS | (ON_A_GPU if device == "cuda" else IN_JAX if HAS_JAX else {})
    return found if HAS_PYTHAE else {name: build for name, build in found.items() if name != "pythae"}
