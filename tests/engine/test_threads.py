"""One thread at a time: a second one is told so, and what torch is set to is as it was."""

import threading

import pytest
import torch
from pairs import bits, hooked_vae, small_vae

import pyro_vae as pv
from pyro_vae.errors import RunError

QUIET = {"epochs": 2, "batch_size": 16, "progress": False}


def settings() -> tuple:
    return (
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.distributions.Distribution._validate_args,
    )


def in_another_thread(call) -> BaseException | None:
    """What a call raises in a thread of its own."""
    raised = []

    def run():
        try:
            call()
        except BaseException as problem:
            raised.append(problem)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return raised[0] if raised else None


CALLS = {
    "train": lambda: pv.train(small_vae(), bits(), **QUIET),
    "evaluate": lambda: pv.evaluate(small_vae(), bits(), progress=False),
    "check": lambda: pv.check(small_vae(), bits()),
    "impute": lambda: pv.impute(small_vae(), bits()),
    "inference_data": lambda: pv.inference_data(small_vae(), bits(), draws=2, limit=2),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_second_thread_is_refused_in_one_line_and_the_first_goes_on(call):
    refused, before = [], settings()

    def hook(pair):
        if not refused:
            refused.append(in_another_thread(call))

    run = pv.train(hooked_vae(hook), bits(), **QUIET)
    (problem,) = refused
    assert isinstance(problem, RunError) and "one thread at a time; wait for it" in str(problem)
    assert "\n" not in str(problem) and settings() == before
    alone = pv.train(hooked_vae(lambda pair: None), bits(), **QUIET)
    assert run.history[-1]["valid_loss"] == alone.history[-1]["valid_loss"]


def test_threads_that_take_turns_are_served():
    assert in_another_thread(CALLS["train"]) is None and in_another_thread(CALLS["evaluate"]) is None
    CALLS["train"]()


def test_a_callback_may_evaluate_and_results_may_be_read_one_by_one():
    pair, seen = small_vae(), []
    pv.train(pair, bits(), on_epoch=lambda row: seen.append(pv.evaluate(pair, bits(), progress=False).n), **QUIET)
    assert seen == [40, 40]
    from pyro_vae.evaluation import evaluate_each

    each = evaluate_each(pair, bits(), {"elbo": pv.evaluators.ELBO(), "again": pv.evaluators.ELBO()}, progress=False)
    next(each)
    assert in_another_thread(CALLS["evaluate"]) is None, "nothing is computed until the next one is asked for"
    assert next(each).evaluator == "again"
