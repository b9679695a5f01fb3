"""The planned workspace against what the largest step really takes, as torch's profiler counts it."""

from collections.abc import Callable
from typing import Any

import pytest
from torch.profiler import ProfilerActivity, profile

from onecard.engines.oneshot.practice import OneShotPractice
from onecard.engines.paged.practice import PagedPractice
from onecard.engines.step.sizes import StepSize
from onecard.engines.step.warm_up import WarmUp

pytestmark = pytest.mark.weights


@pytest.fixture(scope="module")
def live(live_node: Callable[..., Any]) -> Any:
    with live_node(dtype="float32", max_model_len=512, max_num_batched_tokens=512, max_num_seqs=8) as node:
        yield node


def peak(work: Callable[[], None]) -> int:
    """Bytes held at most by what torch allocated during `work`."""
    work()  # what libraries take once isn't the step's
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    held = most = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def test_a_language_models_largest_step_fits_its_plan(live):
    core = live.node.engine("smollm2").core
    planned = live.node._cards[0].plan.model("smollm2").workspace_bytes
    warm_up = WarmUp(core, PagedPractice(core.scheduler, 49152, 512))
    measured = live.on_loop(live.node.engine("smollm2"), peak, warm_up.largest_step)
    live.on_loop(live.node.engine("smollm2"), core.rest)
    assert 0.3 * planned <= measured <= planned


def test_an_embedding_models_largest_step_fits_its_plan(live):
    engine = live.node.engine("minilm")
    planned = live.node._cards[0].plan.model("minilm").workspace_bytes
    warm_up = WarmUp(engine.core, OneShotPractice(engine.core, StepSize(2048, 64), 30522, 256, 384))
    measured = live.on_loop(engine, peak, warm_up.largest_step)
    assert 0.3 * planned <= measured <= planned


def test_warming_up_leaves_nothing_behind(live):
    engine = live.node.engine("smollm2")
    warm_up = WarmUp(engine.core, PagedPractice(engine.core.scheduler, 49152, 512))
    assert live.on_loop(engine, lambda: list(warm_up.usual_steps()))
    live.on_loop(engine, engine.core.rest)
    live.wait_idle()
    pool = live.node._cards[0].pool
    assert pool.owned("smollm2") == 0
    assert engine.core.num_finished == 0
    live.on_loop(engine, pool.check_integrity)
