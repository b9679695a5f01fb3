"""Two steps in flight on a device that computes late: nothing is read early, a step's trouble is its own."""

import asyncio
import random
from functools import partial
from typing import Any

import numpy as np
import pytest

from onecard.engines.api import EmbedRequest, EmbedResult, EngineFailedError
from onecard.engines.runtime.device_loop import DeviceLoop
from onecard.engines.runtime.fair_share import FairShare
from onecard.engines.runtime.inbox import Outbox

FULL = tuple(range(1, 17))
"""Two of these fill a step."""


@pytest.fixture
def late(make_bench: Any) -> Any:
    return make_bench(late=True)


async def ask(bench: Any, *inputs: tuple[int, ...], priority: int = 0) -> "asyncio.Task[EmbedResult]":
    task = asyncio.create_task(bench.engine.embed(EmbedRequest("r", inputs, priority=priority)))
    await asyncio.sleep(0)
    return task


def run_calls(bench: Any) -> None:
    calls, bench.loop.calls = bench.loop.calls, []
    for call in calls:
        call()


def expected(token_ids: tuple[int, ...]) -> list[float]:
    return [float(np.mean(token_ids)), (len(token_ids) - 1) / 2, 1.0, 0.0]


async def test_a_step_is_launched_before_the_last_one_is_read(late: Any) -> None:
    task = await ask(late, *[FULL] * 6)
    late.loop.step()
    assert (late.device.num_computed, late.core.num_running, late.core.num_waiting) == (0, 1, 4)
    late.loop.step()
    assert (late.device.num_computed, len(late.loop.in_flight)) == (1, 1)
    late.loop.run()
    np.testing.assert_allclose((await task).vectors, [expected(FULL)] * 6)


async def test_who_runs_is_told_before_anything_is_read(late: Any) -> None:
    """Once each, when their last text runs: the first has three, and takes turns with the others."""
    begun: list[str] = []
    tasks = []
    for name, inputs in (("a", [FULL] * 3), ("b", [FULL]), ("c", [FULL])):
        asked = late.engine.embed(EmbedRequest(name, tuple(inputs)), partial(begun.append, name))
        tasks.append(asyncio.create_task(asked))
        await asyncio.sleep(0)
    run_calls(late)
    told = []
    for _ in range(2):
        late.loop.launch()
        told.append(list(begun))
    assert (told, late.device.num_computed) == ([["b"], ["b", "c"]], 0)
    late.loop.run()
    assert begun == ["b", "c", "a"]
    assert [len((await task).vectors) for task in tasks] == [3, 1, 1]


async def test_what_is_in_flight_is_no_work_and_no_loss(late: Any) -> None:
    task = await ask(late, FULL, FULL)
    run_calls(late)
    assert late.core.has_work()
    late.loop.launch()
    assert not late.core.has_work()
    assert late.core.launch() is None
    late.core.idle()
    late.loop.collect()
    assert (await task).vectors.shape == (2, 4)
    assert late.core.num_running == 0


async def test_steps_are_collected_in_order(late: Any) -> None:
    await ask(late, *[FULL] * 4)
    run_calls(late)
    late.loop.launch()
    late.loop.launch()
    late.loop.in_flight.rotate()
    with pytest.raises(AssertionError, match="in order"):
        late.core.collect(late.loop.in_flight[0])


async def test_a_step_that_fails_late_takes_its_own_requests_only(late: Any) -> None:
    """The first request fills the first step and half of the second, which goes wrong."""
    late.device.poison = 66
    before = await ask(late, FULL)
    lost = await ask(late, FULL, FULL[:15], (66,), *[FULL] * 9)
    after = await ask(late, FULL, (5, 6), priority=1)
    late.loop.run()
    np.testing.assert_allclose((await before).vectors, [expected(FULL)])
    with pytest.raises(EngineFailedError, match="found out late"):
        await lost
    np.testing.assert_allclose((await after).vectors, [expected(FULL), expected((5, 6))])
    assert (late.core.num_waiting, late.core.num_running) == (0, 0)
    late.core.idle()
    again = await ask(late, (9,))
    late.loop.run()
    np.testing.assert_allclose((await again).vectors, [expected((9,))])


async def test_a_launch_that_fails_leaves_the_step_in_flight_alone(late: Any) -> None:
    late.model.poison = 66
    both = await ask(late, FULL, FULL, (66,))
    other = await ask(late, FULL, priority=1)
    third = await ask(late, FULL, FULL, priority=2)
    late.loop.step()
    assert len(late.loop.in_flight) == 1
    late.loop.run()
    with pytest.raises(EngineFailedError, match="poisoned"):
        await both
    with pytest.raises(EngineFailedError, match="poisoned"):
        await other
    np.testing.assert_allclose((await third).vectors, [expected(FULL)] * 2)
    assert late.stats.steps[0].prompt_tokens == 32, "the step in flight was collected"


async def test_both_steps_in_flight_may_fail(late: Any) -> None:
    late.device.poison = 66
    shared = await ask(late, *[(66, *FULL[1:])] * 4)
    later = await ask(late, FULL, priority=1)
    late.loop.run()
    with pytest.raises(EngineFailedError):
        await shared
    np.testing.assert_allclose((await later).vectors, [expected(FULL)])
    assert [stats.finish_reason for stats in late.stats.requests] == ["error", "stop"]


async def test_cancelled_in_flight(late: Any) -> None:
    gone = await ask(late, *[FULL] * 12)
    stays = await ask(late, (5, 6))
    late.loop.step()
    gone.cancel()
    await asyncio.sleep(0)
    late.loop.run()
    with pytest.raises(asyncio.CancelledError):
        await gone
    np.testing.assert_allclose((await stays).vectors, [expected((5, 6))])
    assert len(late.model.batches) <= 3
    late.core.idle()


async def test_random_requests_cancels_and_failures(late: Any) -> None:
    rng = random.Random(5)
    late.device.poison, late.model.poison = 98, 99
    asked: list[tuple[tuple[tuple[int, ...], ...], asyncio.Task[EmbedResult]]] = []
    for _ in range(300):
        ids = tuple(
            tuple(rng.randint(0, 99) if rng.random() < 0.05 else 3 for _ in range(rng.randint(1, 16)))
            for _ in range(rng.randint(1, 5))
        )
        asked.append((ids, await ask(late, *ids)))
        if rng.random() < 0.2:
            rng.choice(asked)[1].cancel()
        for _ in range(rng.randint(0, 2)):
            late.loop.step()
        await asyncio.sleep(0)
    late.loop.run()
    results = await asyncio.gather(*(task for _, task in asked), return_exceptions=True)
    outcomes = set()
    for (ids, _), result in zip(asked, results, strict=True):
        outcomes.add(type(result))
        if isinstance(result, EmbedResult):
            np.testing.assert_allclose(result.vectors, [expected(text) for text in ids], rtol=1e-6)
    assert outcomes == {EmbedResult, EngineFailedError, asyncio.CancelledError}
    assert (late.core.num_waiting, late.core.num_running, late.core.has_requests()) == (0, 0, False)
    assert not late.device.enqueued
    late.core.idle()


async def test_times_are_the_device_s(late: Any) -> None:
    task = await ask(late, *[FULL] * 4)
    late.loop.run()
    await task
    assert [(s.device_seconds, s.gap_seconds) for s in late.stats.steps] == [(3.0, 0.25)] * 2
    assert all(0 < s.host_seconds < 3 for s in late.stats.steps), "waiting is no work of the host's"


async def test_a_cpu_s_steps_are_computed_while_they_are_launched(bench: Any) -> None:
    task = await ask(bench, *[FULL] * 4)
    bench.loop.run()
    await task
    first, second = bench.stats.steps
    assert first.gap_seconds == 0
    assert second.gap_seconds > 0
    assert all(s.host_seconds > 0 and s.device_seconds > 0 for s in (first, second))


async def test_a_step_of_limited_time(late: Any) -> None:
    """Unlimited as long as no step was seen; then at least one text, however little time there is."""
    task = await ask(late, *[FULL] * 11)
    run_calls(late)
    for seconds in (1e-6, None, None, None, 1e-6, None):
        late.loop.in_flight.append(late.core.launch(seconds))
        late.loop.collect()
    assert [s.prompt_tokens for s in late.stats.steps] == [32, 32, 32, 32, 16, 32]
    assert (await task).vectors.shape == (11, 4)


async def test_on_the_device_loop_itself(late: Any) -> None:
    loop = DeviceLoop("card0", Outbox(asyncio.get_running_loop()), late.device, FairShare(0.1))
    loop.add_engine(late.core)
    late.loop.post = loop.post
    late.device.poison = 98
    loop.start()
    try:
        texts = [tuple(range(i % 7, i % 7 + 1 + i % 16)) for i in range(100)]
        tasks = [await ask(late, text, FULL, text) for text in texts]
        for text, task in zip(texts, tasks, strict=True):
            vectors = (await task).vectors
            np.testing.assert_allclose(vectors, [expected(text), expected(FULL), expected(text)], rtol=1e-6)
        with pytest.raises(EngineFailedError, match="found out late"):
            await (await ask(late, (98,)))
        while not loop.is_idle():
            await asyncio.sleep(0.001)
    finally:
        loop.stop()
    late.core.idle()
    assert late.core.num_running == 0
