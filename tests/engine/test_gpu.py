"""On a GPU: the captured step is the eager one, runs resume, evaluators are exact, and every verb works there."""

import copy

import numpy as np
import pytest
import torch
from pairs import Clusters, bits, counts, same_state, small_vae
from references import data_with_axes, gaussian_log_density, linear_vae, ppca_optimum

import pyro_vae as pv
from pyro_vae.command_line import main as cli
from pyro_vae.engine import cuda_graph
from pyro_vae.engine.devices import TOLERANCES, launch
from pyro_vae.errors import RunError
from pyro_vae.training.optimizers import OPTIMIZERS

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")

OPTIONS = {"epochs": 4, "batch_size": 16, "lr": 3e-3, "device": DEVICE, "progress": False}
"""Batches of 16 and a last one of 4."""


@pytest.fixture
def captures(monkeypatch):
    """The captures that have been."""
    made, capture = [], cuda_graph.capture

    def watched(work):
        made.append(work)
        return capture(work)

    monkeypatch.setattr(cuda_graph, "capture", watched)
    return made


def cvae():
    torch.manual_seed(0)
    return pv.models.CVAE((1, 4, 4), (3,), latent_dim=2, hidden=(8,))


def pictures_in_context() -> dict:
    return {"x": bits(100), "context": torch.randn(100, 3, generator=torch.Generator().manual_seed(1))}


def both_ways(pair, data, **options):
    """The run by captured and compiled steps, and the run by eager ones."""
    options = OPTIONS | options
    return [pv.train(copy.deepcopy(pair), data, engine=engine, **options) for engine in ("compiled", "eager")]


def check_same(compiled, eager, rel: float = 1e-4, weights: float = 1e-3):
    """The same losses and bounds, relatively, and the same weights, absolutely."""
    assert compiled.engine == "compiled", compiled.notes
    for ours, reference in zip(compiled.history, eager.history, strict=True):
        for key in ("loss", "valid_elbo", "valid_rate"):
            assert ours[key] == pytest.approx(reference[key], rel=rel, abs=rel), (key, ours["epoch"])
    for (name, value), reference in zip(compiled.pair.named_parameters(), eager.pair.parameters(), strict=True):
        assert value.is_cuda == (DEVICE == "cuda")
        assert torch.allclose(value, reference, atol=weights), (name, (value - reference).abs().max())


IWAE = pv.objectives.IWAE
RATES = {"schedule": "cosine", "lr_warmup": 1, "kl_warmup": 3}
SETTINGS = {
    "mean_field": (small_vae, lambda: bits(100), {"clip": 1.0, "ema": 0.9, **RATES}, True),
    "trace_elbo": (small_vae, lambda: bits(100), {"objective": "trace_elbo", "clip": 1.0}, True),
    "pathwise": (small_vae, lambda: bits(100), {"objective": IWAE(), "particles": 5, **RATES}, True),
    "dreg": (small_vae, lambda: bits(100), {"objective": IWAE(gradient="dreg"), "particles": 5, "ema": 0.9}, True),
    "vimco": (Clusters, lambda: {"counts": counts(100)}, {"objective": IWAE(gradient="vimco"), "particles": 5}, None),
    "discrete": (Clusters, lambda: {"counts": counts(100)}, {"objective": "trace_elbo", "clip": 1.0}, None),
    "cvae": (cvae, pictures_in_context, {"ema": 0.9, **RATES}, True),
    "accumulate": (small_vae, lambda: bits(100), {"accumulate": 2, "clip": 1.0, **RATES}, False),
    "sgd": (small_vae, lambda: bits(100), {"optimizer": "sgd", "optimizer_options": {"momentum": 0.9}}, False),
}
"""Pair, data, options, and whether the step is captured; None: where the sampler of discrete sites reads no value."""


@pytest.mark.parametrize("make, data, options, captured", SETTINGS.values(), ids=SETTINGS)
def test_captured_steps_are_the_eager_ones(make, data, options, captured, captures, graphs):
    compiled, eager = both_ways(make(), data(), **options)
    check_same(compiled, eager)
    if captured is not None:
        assert len(captures) == captured, compiled.notes


@pytest.mark.parametrize("name", ["mean_field", "dreg", "vimco", "cvae"])
def test_captured_steps_of_compiled_graphs_are_the_eager_ones(name, captures):
    make, data, options, captured = SETTINGS[name]
    compiled, eager = both_ways(make(), data(), **options)
    check_same(compiled, eager)
    if captured is not None:
        assert len(captures) == captured, compiled.notes


@pytest.mark.parametrize("precision", ["bf16-mixed", "tf32"])
def test_a_captured_step_in_a_lower_precision_is_near_the_eager_one(precision, captures):
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    compiled, eager = both_ways(small_vae(hidden=(64,)), bits(100), precision=precision, lr=1e-3)
    check_same(compiled, eager, rel=TOLERANCES[precision], weights=2e-2)
    assert len(captures) == 1, compiled.notes
    assert before == (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)


def test_a_convolution_is_computed_in_float32(captures):
    torch.manual_seed(0)
    pair = pv.VAE((1, 8, 8), latent_dim=2, hidden=(16,), net="conv")
    compiled, eager = both_ways(pair, bits(100, (1, 8, 8)), epochs=2, lr=1e-3)
    check_same(compiled, eager)
    assert len(captures) == 1, compiled.notes


def test_a_step_that_reads_a_value_is_found_before_it_is_captured():
    x = torch.ones(3, device=DEVICE)
    assert cuda_graph.reads_a_value(lambda: x.sum().item())
    assert not cuda_graph.reads_a_value(lambda: x.sum())
    assert torch.cuda.get_sync_debug_mode() == 0
    with pytest.raises(RunError, match="engine=eager"):
        raise_in_capture()


def raise_in_capture():
    def work():
        raise RuntimeError("no such kernel")

    cuda_graph.capture(work)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_takes_its_steps(name, graphs):
    """Captured where it can be, and then as the steps that are launched one by one."""
    try:
        compiled, eager = both_ways(small_vae(), bits(100), optimizer=name, epochs=2, lr=1e-3)
    except RunError as problem:
        assert "refuses" in str(problem) or "cannot be used" in str(problem)
        return
    check_same(compiled, eager)


@pytest.mark.parametrize("engine", ["compiled", "eager"])
def test_a_resumed_run_is_the_uninterrupted_one(engine, tmp_path, graphs):
    options = OPTIONS | {"epochs": 5, "engine": engine, "clip": 1.0, "ema": 0.9, **RATES}
    whole = pv.train(small_vae(), bits(100), **options)
    pv.train(small_vae(), bits(100), out=tmp_path, on_epoch=lambda row: row["epoch"] == 2, **options)
    resumed = pv.train(small_vae(seed=9), bits(100), out=tmp_path, resume=True, **options)
    assert [row["loss"] for row in whole.history] == pytest.approx([row["loss"] for row in resumed.history], rel=1e-5)
    for value, reference in zip(resumed.pair.parameters(), whole.pair.parameters(), strict=True):
        assert torch.allclose(value, reference, atol=1e-5)


@pytest.mark.parametrize("first, then", [(DEVICE, "cpu"), ("cpu", DEVICE)])
def test_a_run_moves_to_another_device(first, then, tmp_path, graphs):
    options = OPTIONS | {"epochs": 4, "engine": "compiled"}
    stop = {"on_epoch": lambda row: row["epoch"] == 2}
    cut = pv.train(small_vae(), bits(100), out=tmp_path, **(options | {"device": first, **stop}))
    assert len(cut.history) == 2
    run = pv.train(small_vae(seed=9), bits(100), out=tmp_path, resume=True, **(options | {"device": then}))
    assert len(run.history) == 4 and np.isfinite(run.history[-1]["loss"])
    assert next(run.pair.parameters()).device.type == then
    on_each = [
        pv.evaluate(run, bits(100, seed=5), "importance", 500, progress=False, device=device)
        for device in ("cpu", DEVICE)
    ]
    apart = on_each[0].log_likelihood - on_each[1].log_likelihood
    error = sum(result.monte_carlo_error.square() for result in on_each).sqrt()
    assert (apart.abs() < 6 * error + 1e-3).all()


def test_devices_are_numbered():
    assert launch(f"{DEVICE}:0").device == torch.device(DEVICE, 0)
    with pytest.raises(RunError, match="numbered from 0"):
        launch(f"{DEVICE}:99")


@pytest.fixture(scope="module")
def linear():
    """A linear VAE on the GPU with a correlated posterior and its diagonal guide, its data, their exact log p(x), and
    the KL of the guide from the posterior."""
    x = data_with_axes(150, 5)
    solution = ppca_optimum(x, 2).rotated(0.5)
    exact = gaussian_log_density(x, solution.mean, solution.covariance)
    precision = solution.inner / solution.variance
    gap = 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision))  # both have the same mean
    return linear_vae(solution).to(DEVICE), x, exact, gap.item()


def found(linear, evaluator, particles, **options):
    return pv.evaluate(linear[0], linear[1], evaluator, particles, progress=False, **options)


@pytest.mark.parametrize("evaluator, particles", [("importance", 2000), ("prior", 20_000)])
@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_weights_give_the_exact_likelihood(linear, evaluator, particles, engine):
    result = found(linear, evaluator, particles, engine=engine)
    assert result.estimate.summary["engine"].startswith(engine)
    judged = result.ess > 100
    z = ((result.log_likelihood - linear[2]).abs() - 1e-4) / result.monte_carlo_error
    assert judged.double().mean() > 0.5 and z[judged].max() < 6


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_compiled_evaluator_is_the_eager_one(linear, dtype):
    vae = copy.deepcopy(linear[0]).to(dtype)
    results = [
        pv.evaluate(vae, linear[1].to(dtype), "importance", 500, progress=False, engine=engine)
        for engine in ("eager", "compiled")
    ]
    eager, compiled = (result.log_likelihood for result in results)
    assert torch.allclose(eager, compiled, rtol=1e-9 if dtype == torch.float64 else 1e-5)


def test_annealing_gives_the_exact_likelihood(linear):
    result = found(linear, "ais", 16, distributions=100, bidirectional=True)
    apart = (result.log_likelihood - linear[2]).mean().item()
    assert abs(apart) < 0.02
    bounds = result.estimate.summary["bidirectional"]
    assert abs(bounds["gap"]) < 5 * bounds["gap_standard_error"] + 0.05


def test_the_elbo_is_below_by_the_kl_of_the_posterior(linear):
    result = found(linear, "elbo", 2000)
    assert result.mean == pytest.approx(linear[2].mean().item() - linear[3], abs=0.01)


def test_the_gaps_are_those_of_the_guides_family(linear):
    result = found(linear, "gaps", 500, steps=100)
    gaps = result.estimate.per_datum
    assert gaps["inference_gap"].mean().item() == pytest.approx(linear[3], abs=0.03)
    assert abs(gaps["amortisation_gap"].mean().item()) < 0.03


def test_what_the_latents_carry_and_reconstructions_are_those_of_the_cpu(linear):
    on_cpu = (copy.deepcopy(linear[0]).cpu(), *linear[1:])
    here, there = found(linear, "latent", 20), found(on_cpu, "latent", 20)
    assert torch.allclose(here.estimate.per_datum["rate"], there.estimate.per_datum["rate"])
    apart = here.estimate.per_datum["mutual_information"] - there.estimate.per_datum["mutual_information"]
    assert abs(apart.mean().item()) < 0.1 and "traversals" in here.estimate.figures
    here, there = found(linear, "reconstruction", 1), found(on_cpu, "reconstruction", 1)
    assert torch.allclose(here.headline, there.headline)


def test_every_verb_works_on_the_gpu(tmp_path):
    """A run of the command line on digits; whatever reads it, here and on the CPU, finds the same."""
    out = tmp_path / "run"
    train = f"train --epochs 2 --hidden 16 --quiet --device {DEVICE} --engine compiled --out {out}"
    assert cli.main(train.split()) in (0, None)
    assert (out / "report.md").exists()
    for line in (
        f"evaluate {out} --with importance,elbo --particles 50 --limit 120 --device {DEVICE} --quiet",
        f"evaluate {out} --with importance --particles 50 --limit 120 --device cpu --quiet",
        f"sample {out} --device {DEVICE} --out {tmp_path / 'sample.png'}",
        f"reconstruct {out} --device {DEVICE} --out {tmp_path / 'reconstructions.png'}",
        f"encode {out} --device {DEVICE} --out {tmp_path / 'codes.npz'}",
        f"export {out} --device {DEVICE} --limit 5 --draws 30 --out {tmp_path / 'run.nc'}",
    ):
        assert cli.main(line.split()) in (0, None), line
    assert {path.name for path in tmp_path.iterdir()} >= {"sample.png", "reconstructions.png", "codes.npz", "run.nc"}
    here, there = pv.encode(out, device=DEVICE), pv.encode(out, device="cpu")
    for name, value in here.items():
        assert torch.allclose(value, there[name], atol=1e-4), name
    run = pv.load_run(out)
    kept = copy.deepcopy(run.pair)
    assert pv.sample(run, n=5, device=DEVICE)["x"].shape[0] == 5
    assert same_state(run.pair.cpu(), kept)
