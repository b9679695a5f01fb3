"""No request may hold the event loop: whatever it is made of, others are answered meanwhile.

The bound here is far above what a quiet machine shows (a few ms), and far below what each of these took.
"""

import asyncio
import gc
import threading
import time
from contextlib import asynccontextmanager

import numpy as np
import orjson
import pytest

from onecard.engines.api import EmbedResult
from onecard.gateway.context import GATEWAY
from onecard.gateway.http import body
from onecard.gateway.metrics import Metrics
from onecard.gateway.metrics.event_loop import watch_lag
from onecard.gateway.routes.completions import LONG_PROMPT, CompletionFrames

BOUND = 0.15
TICK = 0.002
CHAT = "/v1/chat/completions"
USER = b'{"role":"user","content":"a"}'
HEAD = b'{"messages":[' + USER + b"],"
MANY = 62_000


@asynccontextmanager
async def worst_lag():
    """Seconds of this process's own work in which the loop didn't come round: a busy machine adds none, nor
    does what earlier tests have left for the garbage collector to look through (`serve` sees to its own)."""
    lags = [0.0]
    gc.collect()
    gc.freeze()

    async def watch():
        while True:
            asked, worked = time.perf_counter(), time.process_time()
            await asyncio.sleep(TICK)
            late = time.perf_counter() - asked - TICK
            lags[0] = max(lags[0], min(late, time.process_time() - worked))

    watching = asyncio.create_task(watch())
    await asyncio.sleep(0.01)
    try:
        yield lags
        await asyncio.sleep(0.01)
    finally:
        watching.cancel()
        gc.unfreeze()


async def post(client, path, data):
    return await client.request("POST", path, data=data, headers={"Content-Type": "application/json"})


def listed(item, count):
    return b"[" + b",".join([item] * count) + b"]"


BODIES = {
    "mistakes": b'{"messages":' + listed(b"{}", MANY) + b"}",
    "messages": b'{"messages":' + listed(USER, MANY // 3) + b"}",
    "parts": b'{"messages":[{"role":"user","content":' + listed(b'"a"', 1_000_000) + b"}]}",
    "tools that are none": HEAD + b'"tools":' + listed(b"1", 1_000_000) + b"}",
    "tools": HEAD + b'"tools":' + listed(b'{"function":{"name":"f"}}', MANY // 4) + b"}",
    "lists": HEAD + b'"x":' + listed(b"[]", 10_000_000) + b"}",
    "numbers": HEAD + b'"x":' + listed(b"12345", 5_000_000) + b"}",
    "brackets": HEAD + b'"x":' + b"[" * (30 << 20) + b"}",
    "members": HEAD + b'"x":{' + b",".join(b'"%d":1' % i for i in range(MANY)) + b"}}",
}


@pytest.mark.parametrize("name", BODIES)
async def test_no_body_holds_the_others_up(client, name):
    async with worst_lag() as lags:
        reply = await post(client, CHAT, BODIES[name])
    assert reply.status in (200, 400)
    assert lags[0] < BOUND


async def test_arguments_of_many_calls_are_bounded_together(client, node):
    arguments = orjson.dumps("[" + "[]," * 30_000 + "1]")
    call = b'{"function":{"name":"f","arguments":' + arguments + b"}}"
    said = b'{"role":"assistant","tool_calls":' + listed(call, 3) + b"}"
    async with worst_lag() as lags:
        reply = await post(client, CHAT, b'{"messages":[' + said + b"]}")
    assert (reply.status, reply.error["param"]) == (400, "messages")
    assert lags[0] < BOUND


@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_large_embeddings_are_written_beside_the_others(client, node, monkeypatch, encoding):
    vectors = np.random.default_rng(0).standard_normal((2048, 1024)).astype(np.float32)

    async def embed(request, on_begun=None):
        return EmbedResult(vectors, 1)

    monkeypatch.setattr(node.embed, "embed", embed)
    async with (
        worst_lag() as lags,
        client.session.post(
            client.url + "/v1/embeddings", json={"input": "a", "encoding_format": encoding}
        ) as answer,
    ):
        body = await answer.read()
    rows = orjson.loads(body)["data"]
    assert [row["index"] for row in rows] == list(range(2048))
    if encoding == "float":
        assert np.array_equal(np.array([row["embedding"] for row in rows], np.float32), vectors)
    assert lags[0] < BOUND


def test_answers_with_many_log_probabilities_are_written_off_the_loop_one_by_one(monkeypatch):
    threads = []
    whole = body._json

    def noted(answer):
        threads.append(threading.current_thread())
        return whole(answer)

    monkeypatch.setattr(body, "_json", noted)
    answers = ({"index": i} for i in range(3))
    made = asyncio.run(body.large_json_response(1 << 20, lambda: {"choices": body.json_list(answers)}))
    assert orjson.loads(made.body) == {"choices": [{"index": 0}, {"index": 1}, {"index": 2}]}
    assert len(threads) == 4
    assert threading.main_thread() not in threads


@pytest.mark.parametrize(("num_tokens", "beside"), [(LONG_PROMPT, False), (LONG_PROMPT + 1, True)])
async def test_a_long_prompt_s_log_probabilities_are_streamed_from_beside_the_loop(
    client, monkeypatch, num_tokens, beside
):
    threads = []
    render = CompletionFrames.render

    def noted(frames, batch):
        threads.append(threading.current_thread() is not threading.main_thread())
        return render(frames, batch)

    monkeypatch.setattr(CompletionFrames, "render", noted)
    asked = {"prompt": [72] * num_tokens, "echo": True, "logprobs": 1, "max_tokens": 3}
    chunks = await client.events("/v1/completions", asked)
    assert chunks[0]["choices"][0]["text"].startswith("H" * num_tokens)
    assert threads[0] == beside
    assert not any(threads[1:]), "what follows is a few tokens"


def test_a_stall_is_seen_in_the_metrics():
    async def stalled():
        metrics = Metrics([])
        watch = asyncio.create_task(watch_lag(metrics.event_loop_lag, interval=0.01))
        await asyncio.sleep(0.02)
        time.sleep(0.3)
        await asyncio.sleep(0.02)
        watch.cancel()
        return metrics.render().decode().splitlines()

    lines = asyncio.run(stalled())
    [total] = [line for line in lines if line.startswith("onecard_event_loop_lag_seconds_sum")]
    [below] = [line for line in lines if line.startswith('onecard_event_loop_lag_seconds_bucket{le="0.25"}')]
    [count] = [line for line in lines if line.startswith("onecard_event_loop_lag_seconds_count")]
    assert float(total.split()[1]) > 0.25
    assert float(count.split()[1]) - float(below.split()[1]) == 1


async def test_a_server_measures_its_own_lag(client, metrics):
    async with asyncio.timeout(2):
        while not metrics.lags:
            await asyncio.sleep(0.01)


async def test_the_metrics_page_of_many_models_is_written_beside_the_others(client, monkeypatch):
    many = Metrics([f"model-{i}" for i in range(64)])
    monkeypatch.setattr(client.app[GATEWAY], "metrics", many)
    async with worst_lag() as lags:
        reply = await client.get("/metrics")
    assert 'model_name="model-63"' in reply.text
    assert lags[0] < BOUND
