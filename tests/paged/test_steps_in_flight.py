"""Steps launched before the last one is read, and decodes replayed from static buffers.

On a CPU, with a clock that claims to be a card's, and graphs that run their work again.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from onecard.engines.api import GenerateRequest, SamplingParams, TokenChunk
from onecard.engines.runtime.step_clock import HostStepClock

PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):",
    "Once upon a time, in a land far away,",
    "1, 2, 3, 4,",
    "Dear Sir or Madam,",
)
SAMPLING = (
    SamplingParams(temperature=0.0, max_tokens=24),
    SamplingParams(temperature=1.0, seed=7, max_tokens=24),
    SamplingParams(temperature=0.0, max_tokens=24, presence_penalty=1.5, repetition_penalty=1.2),
    SamplingParams(temperature=0.0, max_tokens=30, stop=("6",)),
    SamplingParams(temperature=0.9, seed=5, top_k=40, n=2, max_tokens=12, logprobs=2),
)


class LateClock(HostStepClock):
    asynchronous = True


class Replay:
    """Graphs whose replay does the work again: it must find all it needs in its static buffers."""

    def __init__(self) -> None:
        self.captured = 0
        self.replayed = 0

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        work()
        self.captured += 1

        def replay() -> None:
            self.replayed += 1
            work()

        return replay


@pytest.fixture(scope="module")
def overlapped(live_node: Callable[..., Any]) -> Callable[..., Any]:
    """As `live_node`, on a card that computes behind the host's back."""

    @contextmanager
    def open_node(graphs: Replay | None, **arguments: Any) -> Iterator[Any]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("onecard.engines.node.factory.step_clock", lambda device: LateClock())
            patch.setattr("onecard.engines.node.factory.graph_backend", lambda device: graphs)
            with live_node(dtype="float32", max_model_len=512, **arguments) as node:
                yield node

    return open_node


async def answer(engine: Any, prompt: str, sampling: SamplingParams) -> list[tuple[str, list[int], Any]]:
    stream = await engine.generate(GenerateRequest("r", prompt, sampling))
    chunks: list[TokenChunk] = [chunk async for chunk in stream]
    answers = []
    for index in range(sampling.n):
        mine = [chunk for chunk in chunks if chunk.index == index]
        text = "".join(chunk.text for chunk in mine)
        answers.append((text, [t for c in mine for t in c.token_ids], mine[-1].finish_reason))
    return answers


async def all_at_once(engine: Any, repeats: int = 1) -> list[Any]:
    jobs = [(p, s) for _ in range(repeats) for p, s in zip(PROMPTS, SAMPLING, strict=True)]
    return await asyncio.gather(*(answer(engine, prompt, sampling) for prompt, sampling in jobs))


@pytest.fixture(scope="module")
def expected(demo_node: Any) -> list[Any]:
    """Each alone, in steps that don't overlap."""
    engine = demo_node.node.engine("smollm2")
    return [demo_node.call(answer(engine, p, s)) for p, s in zip(PROMPTS, SAMPLING, strict=True)]


def test_overlapped_steps_give_the_same_answers(overlapped, expected):
    with overlapped(None) as node:
        engine = node.node.engine("smollm2")
        assert node.call(all_at_once(engine)) == expected
        check_all_free(node, engine)


def test_graphs_give_the_same_answers_as_eager_steps(overlapped, expected):
    graphs = Replay()
    with overlapped(graphs, max_num_seqs=8) as node:
        engine = node.node.engine("smollm2")
        assert graphs.captured == 4  # 1, 2, 4 and 8 sequences
        assert node.call(all_at_once(engine)) == expected
        assert graphs.replayed > 20
        check_all_free(node, engine)


def test_preemption_under_steps_in_flight_loses_and_repeats_nothing(overlapped, expected):
    with overlapped(Replay(), max_num_seqs=32, memory=900 << 20) as node:
        engine = node.node.engine("smollm2")
        pool = engine.core.scheduler.kv.pool
        held = node.on_loop(engine, pool.get_new_blocks, pool.max_blocks - 24)
        assert held is not None
        got = node.call(all_at_once(engine, repeats=3))
        assert got == expected * 3
        assert sum(stats.preemptions for stats in node.stats.requests) > 0
        node.on_loop(engine, pool.free, held)
        check_all_free(node, engine)


def test_clients_that_leave_under_a_step_in_flight_free_their_blocks(overlapped):
    with overlapped(Replay()) as node:
        engine = node.node.engine("smollm2")

        async def leave_soon(i: int) -> None:
            stream = await engine.generate(
                GenerateRequest("r", PROMPTS[i % 5], SamplingParams(temperature=0.0, max_tokens=200))
            )
            async for _ in stream:
                if (i := i - 1) < 0:
                    break
            stream.abort()

        async def all_leave() -> None:
            await asyncio.gather(*(leave_soon(i) for i in range(12)))

        node.call(all_leave())
        check_all_free(node, engine)


def check_all_free(node: Any, engine: Any) -> None:
    node.wait_idle()
    pool = engine.core.scheduler.kv.pool
    assert pool.num_used_blocks == 0
    assert not engine.core.scheduler.has_work()
    assert not engine.core._rows._new_blocks
    node.on_loop(engine, pool.check_integrity)
