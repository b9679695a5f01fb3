"""Steps that find no memory are tried again smaller and lose nobody; who is beyond help fails alone."""

import asyncio
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from onecard.engines.api import EmbedRequest, EmbedResult, EngineFailedError
from onecard.engines.layers.forward_batch import EncodeBatch
from onecard.engines.oneshot.queue import Entry, Queued, TokenBudgetQueue

FULL = tuple(range(1, 17))
"""Two of these fill a step."""


class ScarceModel:
    """Wraps a bench's model: no memory for steps that `too_much` says are too much."""

    def __init__(self, model: Any, too_much: Callable[[EncodeBatch], bool]):
        self.model, self.too_much = model, too_much
        self.tried: list[int] = []

    def __call__(self, batch: EncodeBatch) -> torch.Tensor:
        tokens = int((batch.input_ids != 0).sum())  # without filler
        self.tried.append(tokens)
        hidden = self.model(batch)
        if self.too_much(batch):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return hidden


@pytest.fixture(params=[False, True], ids=["cpu", "late"])
def bench(request: pytest.FixtureRequest, make_bench: Any) -> Any:
    return make_bench(late=request.param)


def make_scarce(bench: Any, too_much: Callable[[EncodeBatch], bool]) -> ScarceModel:
    bench.core.model = ScarceModel(bench.model, too_much)
    return bench.core.model


def more_than(tokens: int) -> Callable[[EncodeBatch], bool]:
    return lambda batch: int((batch.input_ids != 0).sum()) > tokens


async def ask(bench: Any, *inputs: tuple[int, ...], priority: int = 0) -> "asyncio.Task[EmbedResult]":
    task = asyncio.create_task(bench.engine.embed(EmbedRequest("r", inputs, priority=priority)))
    await asyncio.sleep(0)
    return task


def expected(*texts: tuple[int, ...]) -> list[list[float]]:
    return [[float(np.mean(text)), (len(text) - 1) / 2, 1.0, 0.0] for text in texts]


def run(bench: Any) -> None:
    """As the device loop: a launch that comes to nothing is tried again as long as there is work."""
    for _ in range(1000):
        if not bench.loop.step() and not bench.core.has_work():
            return
    raise AssertionError("it doesn't come to an end")


async def test_texts_go_back_in_line_and_run_in_smaller_steps(bench: Any) -> None:
    scarce = make_scarce(bench, more_than(16))
    first = await ask(bench, *[FULL] * 3)
    second = await ask(bench, (5, 6), (7,), priority=1)
    run(bench)
    np.testing.assert_allclose((await first).vectors, expected(FULL, FULL, FULL))
    np.testing.assert_allclose((await second).vectors, expected((5, 6), (7,)))
    assert scarce.tried[:2] == [32, 16]
    assert [s.finish_reason for s in bench.stats.requests] == ["stop", "stop"]
    bench.core.idle()


async def test_a_text_that_fits_in_no_step_fails_its_own_request(bench: Any) -> None:
    make_scarce(bench, lambda batch: bool((batch.input_ids == 66).any()))
    before = await ask(bench, (1, 2))
    lost = await ask(bench, (3,), (66, 4), (5,))
    after = await ask(bench, (6, 7), FULL)
    run(bench)
    with pytest.raises(EngineFailedError, match="out of memory"):
        await lost
    np.testing.assert_allclose((await before).vectors, expected((1, 2)))
    np.testing.assert_allclose((await after).vectors, expected((6, 7), FULL))
    assert (bench.core.num_waiting, bench.core.num_running) == (0, 0)
    bench.core.idle()


async def test_a_single_text_gets_a_second_try(bench: Any) -> None:
    faults = [True, False]
    make_scarce(bench, lambda _: faults.pop(0))
    task = await ask(bench, (5, 6))
    run(bench)
    np.testing.assert_allclose((await task).vectors, expected((5, 6)))
    assert not faults


@pytest.mark.parametrize("leaves", [False, True], ids=["fails", "leaves"])
async def test_whoever_comes_after_one_without_memory_gets_a_second_try_too(bench: Any, leaves: bool) -> None:
    faults = [True, True, False] if leaves else [True, True, True, False]
    make_scarce(bench, lambda _: faults.pop(0))
    first = await ask(bench, (5, 6))
    if leaves:
        bench.loop.step()
        first.cancel()
        await asyncio.sleep(0)
    else:
        run(bench)
    second = await ask(bench, (7, 8))
    run(bench)
    with pytest.raises(asyncio.CancelledError if leaves else EngineFailedError):
        await first
    np.testing.assert_allclose((await second).vectors, expected((7, 8)))
    assert not faults


async def test_with_memory_again_steps_are_as_large_as_before(bench: Any) -> None:
    make_scarce(bench, more_than(16))
    task = await ask(bench, *[FULL] * 2)
    run(bench)
    await task
    scarce = make_scarce(bench, lambda _: False)
    task = await ask(bench, *[FULL] * 30)
    run(bench)
    await task
    assert scarce.tried[0] == 16
    assert 32 in scarce.tried


async def test_cancelled_between_two_tries(bench: Any) -> None:
    make_scarce(bench, more_than(16))
    gone, stays = await ask(bench, FULL), await ask(bench, FULL)
    bench.loop.step()
    gone.cancel()
    await asyncio.sleep(0)
    run(bench)
    with pytest.raises(asyncio.CancelledError):
        await gone
    np.testing.assert_allclose((await stays).vectors, expected(FULL))
    bench.core.idle()


async def test_giving_up_fails_everyone_and_takes_late_ones_too(bench: Any) -> None:
    tasks = [await ask(bench, *[FULL] * 5) for _ in range(3)]
    bench.loop.step()
    bench.loop.hand_out(bench.core.give_up(RuntimeError("beyond help")))
    tasks.append(await ask(bench, FULL))
    for call in bench.loop.calls:
        call()
    bench.loop.calls.clear()
    assert bench.core.has_work()
    bench.loop.hand_out(bench.core.give_up(RuntimeError("beyond help")))
    while getattr(bench.loop, "in_flight", None):
        bench.loop.collect()
    for task in tasks:
        with pytest.raises(EngineFailedError, match="out of service"):
            await task
    assert not bench.core.has_work()
    bench.core.idle()
    again = await ask(bench, (1, 2))
    run(bench)
    np.testing.assert_allclose((await again).vectors, expected((1, 2)))


async def test_random_requests_shortages_and_cancels(bench: Any) -> None:
    rng = random.Random(7)
    make_scarce(bench, lambda _: rng.random() < 0.3)
    asked = []
    for _ in range(200):
        texts = [
            tuple(rng.randint(1, 99) for _ in range(rng.randint(1, 16))) for _ in range(rng.randint(1, 5))
        ]
        asked.append((texts, await ask(bench, *texts, priority=rng.randint(0, 2))))
        if rng.random() < 0.1:
            rng.choice(asked)[1].cancel()
        for _ in range(rng.randint(0, 3)):
            bench.loop.step()
        await asyncio.sleep(0)
    run(bench)
    results = await asyncio.gather(*(task for _, task in asked), return_exceptions=True)
    answered = 0
    for (texts, _), result in zip(asked, results, strict=True):
        assert isinstance(result, (EmbedResult, EngineFailedError, asyncio.CancelledError))
        if isinstance(result, EmbedResult):
            answered += 1
            np.testing.assert_allclose(result.vectors, expected(*texts), rtol=1e-6)
    assert answered > 50
    assert (bench.core.num_waiting, bench.core.num_running) == (0, 0)
    bench.core.idle()


@given(data=st.data())
def test_texts_that_are_put_back_come_out_as_if_they_had_never_left(data: st.DataObject) -> None:
    requests = data.draw(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4)), min_size=1, max_size=6))
    queue, twin = TokenBudgetQueue(6, 4), TokenBudgetQueue(6, 4)
    pairs = []
    for priority, count in requests:
        pair = Queued(priority), Queued(priority)
        pairs.append(pair)
        queue.add(pair[0], [[0] * 2] * count)
        twin.add(pair[1], [[0] * 2] * count)
    names = {id(queued): i for i, pair in enumerate(pairs) for queued in pair}

    def seen(entries: list[Entry]) -> list[tuple[int, int]]:
        return [(names[id(entry.queued)], entry.index) for entry in entries]

    while len(twin):
        taken = queue.take()
        for queued, other in pairs:
            if data.draw(st.integers(0, 9)) == 0:
                queue.cancel(queued)
                twin.cancel(other)
        queue.put_back(taken)
        assert len(queue) == len(twin)
        assert seen(queue.take(3)) == seen(twin.take(3))
    assert len(queue) == 0
    assert all(queued.waiting == 0 for pair in pairs for queued in pair)
