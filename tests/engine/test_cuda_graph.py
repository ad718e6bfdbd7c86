"""What surrounds the capture of a step, with a capture that only remembers."""

import pytest
import torch

from pyro_vae.engine import cuda_graph
from pyro_vae.engine.cuda_graph import WARM_UP, CapturedStep


@pytest.fixture
def events(monkeypatch):
    """In place of CUDA: `beside` runs at once; a capture runs nothing, and its replay the work."""
    seen = []

    def beside(work):
        seen.append("beside")
        return work()

    def capture(work):
        seen.append("capture")
        result = torch.zeros(())

        def replay():
            seen.append("replay")
            return result.copy_(work())

        return replay

    monkeypatch.setattr(cuda_graph, "beside", beside)
    monkeypatch.setattr(cuda_graph, "capture", capture)
    return seen


def test_a_step_is_captured_once_and_replayed_on_the_batch_at_hand(events):
    total = torch.zeros(())

    def work(batch):
        total.add_(batch["x"].sum())
        return total

    step, losses = CapturedStep(work), []
    for i in range(WARM_UP + 3):
        losses.append(step({"x": torch.full((4,), float(i))}))
    assert events == ["beside"] * WARM_UP + ["capture"] + ["replay"] * 3
    expected = torch.arange(WARM_UP + 3.0).mul(4).cumsum(0)
    assert torch.equal(torch.stack(losses[WARM_UP:]), expected[WARM_UP:]), (
        "each loss is kept, not the last one's memory"
    )


def test_a_ragged_batch_takes_the_ordinary_way(events):
    sizes = []
    step = CapturedStep(lambda batch: sizes.append(len(batch["x"])) or torch.zeros(()))
    for size in (4, 4, 2, 4, 4, 3, 4):
        step({"x": torch.zeros(size)})
    assert sizes == [4, 4, 2, 4, 4, 3, 4]
    assert events == ["beside"] * WARM_UP + ["capture", "replay", "replay"]
