"""The demo's two models on one card, behind one node."""

import asyncio
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from onecard.engines.api import (
    EmbedRequest,
    EngineFailedError,
    GenerateRequest,
    ModelNotFoundError,
    SamplingParams,
    ShuttingDownError,
)

pytestmark = pytest.mark.weights


@pytest.fixture(scope="module")
def live(live_node) -> Iterator:
    with live_node(dtype="auto", max_model_len=1024, memory=900 << 20) as node:
        yield node


async def complete(engine, prompt: str, **params) -> str:
    sampling = SamplingParams(**{"temperature": 0.0, "max_tokens": 12, **params})
    stream = await engine.generate(GenerateRequest("r", prompt, sampling))
    return "".join([chunk.text async for chunk in stream])


def test_both_models_answer_and_aliases_reach_them(live):
    llm, encoder = live.node.engine("default"), live.node.engine("minilm")
    assert llm is live.node.engine("smollm2")
    assert [info.name for info in live.node.models()] == ["smollm2", "minilm"]

    async def both():
        return await asyncio.gather(
            complete(llm, "The capital of France is"),
            encoder.embed(EmbedRequest("e", ("hello", "bonjour"))),
        )

    text, vectors = live.call(both())
    assert "Paris" in text
    assert vectors.vectors.shape == (2, 384)
    assert np.allclose(np.linalg.norm(vectors.vectors, axis=1), 1, atol=1e-5)


def test_the_thread_that_loaded_is_gone(live):
    """Its OpenMP team would halve the speed of the device loop's."""
    names = [thread.name for thread in threading.enumerate()]
    assert not any(name.startswith("loader") for name in names)
    assert {"device-loop-card0", "card-watch-card0"} <= set(names)


def test_an_unknown_model_is_named_with_the_known_ones(live):
    with pytest.raises(ModelNotFoundError, match=r"`gpt-9` does not exist.*smollm2, default, minilm"):
        live.node.engine("gpt-9")


def test_the_card_is_looked_at(live):
    deadline = time.monotonic() + 10
    while (health := live.node.status().cards[0].health) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert health.source == "psutil"
    assert 0 < health.own_bytes < health.total_bytes


def test_the_status_is_the_plan_and_the_ledger(live):
    status = live.node.status()
    (card,) = status.cards
    assert card.pages_total * card.page_bytes == card.arena_bytes < card.budget_bytes == 900 << 20
    llm = next(m for m in status.models if m.kind == "llm")
    homes = [live.node._cards[0].pool.home(m.name) for m in status.models]
    for model, home in zip(status.models, homes, strict=True):
        assert (len(home) - 1) * card.page_bytes < model.weight_bytes <= len(home) * card.page_bytes
    held = card.pages_total - card.pages_free - sum(map(len, homes))
    assert llm.kv_bytes_owned == held * card.page_bytes


def test_weights_that_are_not_packed_lie_in_the_models_home(live):
    card = live.node._cards[0]
    model = live.node.engine("minilm").core.model
    pages = [
        (tensor.data_ptr() - card.arena.tensor.data_ptr()) / card.arena.page_bytes
        for tensor in model.parameters()
    ]
    home = card.plan.model("minilm").home
    assert len(pages) > 20
    assert all(home.start <= page < home.stop for page in pages)


def test_planned_weight_bytes_are_what_loading_took(live):
    plan = live.node._cards[0].plan
    for model in live.node.status().models:
        assert model.weight_bytes == plan.model(model.name).weight_bytes


def test_a_step_that_raises_fails_its_requests_and_the_engine_goes_on(live, monkeypatch):
    engine = live.node.engine("smollm2")
    core = engine.core
    before = live.call(complete(engine, "Once upon a time"))
    run, calls = core._runner.launch, []

    def broken(schedule):
        calls.append(len(schedule.items))
        if len(calls) == 3:
            raise RuntimeError("injected")
        return run(schedule)

    monkeypatch.setattr(core._runner, "launch", broken)

    async def two() -> list:
        return await asyncio.gather(
            complete(engine, "Once upon a time"), complete(engine, "In the year 2050"), return_exceptions=True
        )

    results = live.call(two())
    assert all(isinstance(result, EngineFailedError) for result in results)
    monkeypatch.setattr(core._runner, "launch", run)
    assert live.call(complete(engine, "Once upon a time")) == before
    live.call(live.node.drained())
    pool = core.scheduler.kv.pool
    pool.check_integrity()
    assert pool.num_used_blocks == 0


def test_an_aborted_stream_ends_and_frees_its_blocks(live):
    engine = live.node.engine("smollm2")

    async def leave_early() -> int:
        sampling = SamplingParams(temperature=0.0, max_tokens=500, ignore_eos=True)
        stream = await engine.generate(GenerateRequest("r", "Once upon", sampling))
        async for _ in stream:
            break
        stream.abort()
        stream.abort()
        assert [chunk async for chunk in stream][5:] == []
        await live.node.drained()
        return engine.core.scheduler.kv.pool.num_used_blocks

    assert live.call(leave_early()) == 0


def test_draining_refuses_new_requests_and_ends_when_the_running_ones_do(live_node):
    with live_node(dtype="auto", max_model_len=256, memory=720 << 20) as own:
        engine = own.node.engine("smollm2")

        async def drain() -> str:
            running = asyncio.create_task(complete(engine, "One, two,", max_tokens=30, ignore_eos=True))
            await asyncio.sleep(0.1)
            own.node.begin_drain()
            with pytest.raises(ShuttingDownError):
                own.node.engine("smollm2")
            await own.node.drained()
            return await asyncio.wait_for(running, 1)

        assert own.call(drain())
        assert own.node.status().state == "draining"


def test_an_idle_card_recounts_its_pages(live):
    for card in live.node._cards:
        assert card.loop._on_idle == card.pool.check_integrity
