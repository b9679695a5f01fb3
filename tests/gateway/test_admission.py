"""The bounded queue and the drain."""

import asyncio

import pytest

from onecard.engines.api import QueueFullError, ShuttingDownError
from onecard.gateway.admission import Admission

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "Hi"}]}


async def test_full_queue_is_503_with_retry_after(serve, node, metrics):
    client = await serve(max_queued_requests=2)
    gate = node.chat.hold(0)
    waiting = [asyncio.create_task(client.post(CHAT, BODY)) for _ in range(2)]
    while len(node.chat.streams) < 2:
        await asyncio.sleep(0.001)
    for path, body in ((CHAT, BODY), (CHAT, {**BODY, "stream": True}), ("/v1/embeddings", {"input": "a"})):
        reply = await client.post(path, body)
        assert (reply.status, reply.headers["Retry-After"]) == (503, "1")
        assert reply.error["type"] == "ServiceUnavailableError"
    assert metrics.rejections == [("talker", "queue_full")] * 2 + [("embedder", "queue_full")]
    gate.set()
    assert [(await reply).status for reply in waiting] == [200, 200]
    assert (await client.post(CHAT, BODY)).status == 200


async def test_requests_that_have_begun_do_not_count(serve, node):
    client = await serve(max_queued_requests=1)
    gate = node.chat.hold(1)
    waiting = []
    for stream in (True, False):
        waiting.append(asyncio.create_task(client.post(CHAT, {**BODY, "stream": stream})))
        while len(node.chat.streams) < len(waiting) or not node.chat.streams[-1].completion_tokens:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
    gate.set()
    assert [(await reply).status for reply in waiting] == [200, 200]


async def test_draining_is_503_with_retry_after(client, node, metrics):
    gate = node.chat.hold(1)
    running = asyncio.create_task(client.post(CHAT, BODY))
    while not node.chat.streams:
        await asyncio.sleep(0.001)
    node.begin_drain()
    reply = await client.post(CHAT, BODY)
    assert (reply.status, reply.headers["Retry-After"]) == (503, "5")
    assert (await client.post(CHAT, {**BODY, "model": "default"})).status == 503
    assert metrics.rejections == [("talker", "draining")] * 2
    assert (await client.get("/v1/models/default")).status == 200
    assert (await client.get("/health")).status == 503
    gate.set()
    assert (await running).status == 200


async def test_an_engine_that_shuts_down_counts_too(client, node, metrics):
    node.chat.refuses = lambda request: ShuttingDownError("going")
    reply = await client.post(CHAT, BODY)
    assert (reply.status, reply.headers["Retry-After"]) == (503, "5")
    assert metrics.rejections == [("talker", "draining")]


async def test_the_engines_own_queue_limit_counts_too(client, node, metrics):
    node.chat.refuses = lambda request: QueueFullError("full")
    assert (await client.post(CHAT, BODY)).status == 503
    assert metrics.rejections == [("talker", "queue_full")]


def test_places_are_given_back_once(metrics):
    admission = Admission(3, metrics)
    with admission.admit("m", 2) as ticket:
        assert admission.waiting == 2
        ticket.begun()
        ticket.begun()
        assert admission.waiting == 0
    assert admission.waiting == 0


def test_errors_give_places_back(metrics):
    admission = Admission(3, metrics)
    with pytest.raises(KeyError), admission.admit("m", 2):
        raise KeyError
    assert admission.waiting == 0


def test_an_idle_queue_takes_any_request(metrics):
    admission = Admission(3, metrics)
    with admission.admit("m", 10), pytest.raises(QueueFullError), admission.admit("m", 1):
        pass
