"""Requests through the engine on a loop driven by hand: order, neighbours, errors, cancellation,
statistics.
"""

import asyncio
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onecard.engines.api import (
    ContextLengthError,
    EmbedRequest,
    EmbedResult,
    EngineFailedError,
    InvalidRequestError,
)
from onecard.engines.oneshot.heads.pool import Pooling
from onecard.engines.oneshot.sentence_config import SentenceConfig

MEAN_POSITION, MEAN_ID = 1, 0


def request(*inputs: str | tuple[int, ...], **fields: Any) -> EmbedRequest:
    return EmbedRequest("r", inputs, **fields)


async def start(bench: Any, *requests: EmbedRequest) -> list["asyncio.Task[EmbedResult]"]:
    tasks = [asyncio.create_task(bench.engine.embed(r)) for r in requests]
    await asyncio.sleep(0)
    return tasks


async def embed(bench: Any, *requests: EmbedRequest) -> list[EmbedResult | BaseException]:
    tasks = await start(bench, *requests)
    bench.loop.run()
    return await asyncio.gather(*tasks, return_exceptions=True)


def expected(token_ids: tuple[int, ...]) -> list[float]:
    return [float(np.mean(token_ids)), (len(token_ids) - 1) / 2, 1.0, 0.0]


async def test_vectors_come_in_the_order_of_the_inputs_over_several_steps(bench: Any) -> None:
    rng = random.Random(0)
    inputs = tuple(tuple(rng.randint(0, 99) for _ in range(rng.randint(1, 16))) for _ in range(30))
    tasks = await start(bench, request(*inputs))
    assert bench.loop.run() > 4
    result = await tasks[0]
    np.testing.assert_allclose(result.vectors, [expected(ids) for ids in inputs], rtol=1e-6)
    assert result.vectors.dtype == np.float32
    assert result.prompt_tokens == sum(map(len, inputs))


async def test_text_gets_its_special_tokens(bench: Any) -> None:
    plain, bare, mixed = await embed(
        bench,
        request("w0 w1"),
        request("w0 w1", add_special_tokens=False),
        request("w5", (7, 8), "w6"),
    )
    np.testing.assert_allclose(plain.vectors, [expected((1, 3, 4, 2))])
    np.testing.assert_allclose(bare.vectors, [expected((3, 4))])
    np.testing.assert_allclose(mixed.vectors, [expected((1, 8, 2)), expected((7, 8)), expected((1, 9, 2))])
    assert (plain.prompt_tokens, mixed.prompt_tokens) == (4, 8)


async def test_requests_share_a_step(bench: Any) -> None:
    await embed(bench, request((5,)), request((6, 6)), request((7, 7, 7)))
    (batch,) = bench.model.batches
    assert batch.cu_seqlens.tolist() == [0, 3, 5, 6], "the longest first"


@pytest.mark.parametrize(
    ("bad", "param"),
    [
        (request(), "input"),
        (request(()), "input"),
        (request("", add_special_tokens=False), "input"),
        (request((1, 100)), "input"),
        (request((-1,)), "input"),
        (request("x\ud83d"), None),
        (request("w1", truncate_prompt_tokens=0), "truncate_prompt_tokens"),
        (request("w1", truncate_prompt_tokens=17), "truncate_prompt_tokens"),
        (request("w1", truncate_prompt_tokens=-2), "truncate_prompt_tokens"),
        (request("w1", dimensions=2), "dimensions"),
        (request(("w1 " * 15).strip()), "input"),
        (request("w1", tuple(range(17))), "input"),
    ],
)
async def test_a_bad_input_fails_its_own_request_only(
    bench: Any, bad: EmbedRequest, param: str | None
) -> None:
    before, failed, after = await embed(bench, request((5, 5)), bad, request("w9"))
    assert isinstance(failed, InvalidRequestError)
    assert failed.param == param
    np.testing.assert_allclose(before.vectors, [expected((5, 5))])
    np.testing.assert_allclose(after.vectors, [expected((1, 12, 2))])
    assert not bench.core.has_requests()


async def test_too_long_an_input_is_named_with_its_numbers(bench: Any) -> None:
    (error,) = await embed(bench, request("w1", "w1 " * 20))
    assert isinstance(error, ContextLengthError)
    assert error.code == "context_length_exceeded"
    for part in ("16 tokens", "22 tokens", "input 1"):
        assert part in error.message == str(error)


async def test_truncation_keeps_the_closing_special_token(bench: Any) -> None:
    text = " ".join(f"w{i}" for i in range(20))
    longest, short, ids = await embed(
        bench,
        request(text, truncate_prompt_tokens=-1),
        request(text, truncate_prompt_tokens=4),
        request((4, 5, 6), truncate_prompt_tokens=2),
    )
    assert (longest.prompt_tokens, short.prompt_tokens, ids.prompt_tokens) == (16, 4, 2)
    np.testing.assert_allclose(short.vectors, [expected((1, 3, 4, 2))])
    np.testing.assert_allclose(ids.vectors, [expected((4, 5))])


async def test_dimensions_of_a_matryoshka_model(make_bench: Any) -> None:
    bench = make_bench(config=SentenceConfig(Path(), Pooling("mean", True), None, False, True, (2, 4)))
    full, cut, same, bad = await embed(
        bench, *(request((3, 4), dimensions=dimensions) for dimensions in (None, 2, 4, 3))
    )
    direction = full.vectors[:, :2] / np.linalg.norm(full.vectors[:, :2])
    np.testing.assert_allclose(cut.vectors, direction, rtol=1e-6)
    np.testing.assert_allclose(same.vectors, full.vectors)
    assert isinstance(bad, InvalidRequestError)
    assert "2, 4" in bad.message


@pytest.mark.parametrize("normalizes", [False, True])
@pytest.mark.parametrize("dimensions", [None, 2])
async def test_a_request_says_whether_its_vectors_are_of_length_one(
    make_bench: Any, normalizes: bool, dimensions: int | None
) -> None:
    bench = make_bench(config=SentenceConfig(Path(), Pooling("mean", normalizes), is_matryoshka=True))
    own, raw, unit = await embed(
        bench, *(request((3, 4), dimensions=dimensions, normalize=wish) for wish in (None, False, True))
    )
    pooled = np.array([expected((3, 4))[:dimensions]])
    np.testing.assert_allclose(raw.vectors, pooled, rtol=1e-6)
    np.testing.assert_allclose(unit.vectors, pooled / np.linalg.norm(pooled), rtol=1e-6)
    np.testing.assert_allclose(own.vectors, (unit if normalizes else raw).vectors)


async def test_a_model_may_take_no_token_ids_for_texts(make_bench: Any) -> None:
    """LangChain's default sends those of OpenAI's tokenizer: other words, and vectors that look all right."""
    text, ids, both = await embed(
        make_bench(takes_ids=False), request("w1"), request((3, 4)), request("w1", (3,))
    )
    assert isinstance(text, EmbedResult)
    for refused in (ids, both):
        assert isinstance(refused, InvalidRequestError)
        assert refused.param == "input"
        assert "check_embedding_ctx_length=False" in refused.message


async def test_ids_that_the_vocabulary_has_not_are_told_how_they_come_about(bench: Any) -> None:
    """Sooner or later a text of OpenAI's tokens has one of them: 100,000 against a model's 30,000."""
    taken, refused = await embed(bench, request((3, 4)), request("w1", (3, 100_255)))
    assert isinstance(taken, EmbedResult)
    assert isinstance(refused, InvalidRequestError)
    assert refused.param == "input"
    assert "100255" in refused.message
    assert "check_embedding_ctx_length=False" in refused.message


async def test_any_dimension_where_a_matryoshka_model_lists_none(make_bench: Any) -> None:
    bench = make_bench(config=SentenceConfig(Path(), Pooling("mean", False), is_matryoshka=True))
    cut, zero, large = await embed(bench, *(request((3,), dimensions=n) for n in (3, 0, 5)))
    assert cut.vectors.shape == (1, 3)
    assert isinstance(zero, InvalidRequestError)
    assert isinstance(large, InvalidRequestError)


async def test_a_step_that_raises_fails_its_own_requests_only(bench: Any) -> None:
    bench.model.poison = 66
    long = tuple(range(1, 17))
    lost, neighbour, later = await start(
        bench, request(long, long, long, (66,), long), request(long), request((5, 6))
    )
    await asyncio.sleep(0)
    bench.loop.run()
    with pytest.raises(EngineFailedError, match="poisoned"):
        await lost
    np.testing.assert_allclose((await neighbour).vectors, [expected(long)])
    np.testing.assert_allclose((await later).vectors, [expected((5, 6))])
    assert bench.core.num_waiting == 0
    assert [stats.finish_reason for stats in bench.stats.requests].count("error") == 1
    (again,) = await embed(bench, request((9,)))
    np.testing.assert_allclose(again.vectors, [expected((9,))])


@pytest.mark.parametrize("steps", [0, 1, 2])
async def test_cancelling_drops_what_has_not_run(bench: Any, steps: int) -> None:
    long = tuple(range(16))
    gone, stays = await start(bench, request(*[long] * 20), request((5, 6), priority=1))
    for _ in range(steps):
        bench.loop.step()
    gone.cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    done = len(bench.model.batches)
    assert done == steps
    bench.loop.run()
    assert len(bench.model.batches) == done + 1
    assert bench.model.batches[-1].input_ids.tolist() == [5, 6]
    np.testing.assert_allclose((await stays).vectors, [expected((5, 6))])
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert {stats.finish_reason for stats in bench.stats.requests} == {"abort", "stop"}
    assert not bench.core.has_requests()


async def test_random_cancellations_leave_nothing_behind(bench: Any) -> None:
    rng = random.Random(3)
    tasks: list[asyncio.Task[EmbedResult]] = []
    for turn in range(200):
        ids = tuple(
            tuple(rng.randint(0, 99) for _ in range(rng.randint(1, 16))) for _ in range(rng.randint(1, 5))
        )
        tasks += await start(bench, request(*ids, priority=turn % 3))
        if rng.random() < 0.5:
            rng.choice(tasks).cancel()
        if rng.random() < 0.7:
            bench.loop.step()
        await asyncio.sleep(0)
    bench.loop.run()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(r, EmbedResult | asyncio.CancelledError) for r in results)
    assert (bench.core.num_waiting, bench.core.num_running, bench.core.has_requests()) == (0, 0, False)
    bench.core.idle()


async def test_statistics(bench: Any) -> None:
    await embed(bench, request((1, 2, 3), (4,)), request((5, 6)))
    (step,) = bench.stats.steps
    assert (step.num_running, step.num_waiting, step.prompt_tokens) == (2, 0, 6)
    assert step.kv_usage is None, "an encoder keeps no KV cache"
    assert step.device_seconds > 0
    assert step.host_seconds > 0
    second, first = sorted(bench.stats.requests, key=lambda stats: stats.prompt_tokens)
    assert (first.prompt_tokens, second.prompt_tokens) == (4, 2)
    assert first.finish_reason == "stop"
    assert first.queue_seconds is not None
    assert 0 <= first.queue_seconds <= first.e2e_seconds
