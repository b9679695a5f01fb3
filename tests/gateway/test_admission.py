"""The bounded queues and the drain."""

import asyncio
import json

import pytest

from onecard.engines.api import ModelUnavailableError, QueueFullError, ShuttingDownError, TokenChunk
from onecard.engines.paged.stream import TokenStream
from onecard.gateway.admission import Admission
from onecard.gateway.context import GATEWAY
from onecard.registry.spec import ServerSpec

CHAT, TEXT, EMBED = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
BODY = {"messages": [{"role": "user", "content": "Hi"}]}


async def test_full_queue_is_503_with_retry_after(serve, node, metrics):
    client = await serve(max_queued_requests=2)
    gate = node.chat.hold(0)
    waiting = [asyncio.create_task(client.post(CHAT, BODY)) for _ in range(2)]
    while len(node.chat.streams) < 2:
        await asyncio.sleep(0.001)
    for path, body in (
        (CHAT, BODY),
        (CHAT, {**BODY, "stream": True, "model": "default"}),
        (TEXT, {"prompt": ["a"]}),
    ):
        reply = await client.post(path, body)
        assert (reply.status, reply.headers["Retry-After"]) == (503, "1")
        assert reply.error["type"] == "ServiceUnavailableError"
        assert "waiting for the model `talker` and the limit is 2." in reply.error["message"]
    assert metrics.rejections == [("talker", "queue_full")] * 3
    gate.set()
    assert [(await reply).status for reply in waiting] == [200, 200]
    assert (await client.post(CHAT, BODY)).status == 200


async def test_a_flood_of_one_model_refuses_nobody_who_asks_another(serve, node, metrics, second_talker):
    client = await serve(max_queued_requests=2)
    node.embed.gate, gate = asyncio.Event(), node.chat.hold(0)
    flood = [asyncio.create_task(client.post(EMBED, {"input": "a"})) for _ in range(2)]
    flood += [asyncio.create_task(client.post(CHAT, {**BODY, "model": "talker"})) for _ in range(2)]
    async with asyncio.timeout(1):
        while len(node.embed.requests) < 2 or len(node.chat.streams) < 2:
            await asyncio.sleep(0.001)
    assert (await client.post(CHAT, {**BODY, "model": "second"})).status == 200
    assert (await client.post(EMBED, {"input": "a"})).status == 503
    assert (await client.post(CHAT, {**BODY, "model": "talker"})).status == 503
    assert metrics.rejections == [("embedder", "queue_full"), ("talker", "queue_full")]
    node.embed.gate.set()
    gate.set()
    assert [(await reply).status for reply in flood] == [200] * 4


async def test_embeddings_that_run_do_not_count(serve, node):
    client = await serve(max_queued_requests=1)
    node.embed.running = asyncio.Event()
    running = []
    for i in range(3):
        running.append(asyncio.create_task(client.post(EMBED, {"input": ["a", "b"]})))
        while len(node.embed.requests) <= i and not running[i].done():
            await asyncio.sleep(0.001)
    node.embed.running.set()
    assert [(await reply).status for reply in running] == [200] * 3


RERANK, PAIRS = "/rerank", {"query": "a", "documents": ["b", "c"]}


async def test_rerankings_have_a_queue_of_their_own(serve, judge, metrics):
    client = await serve(max_queued_requests=2)
    judge.gate = asyncio.Event()
    waiting = [asyncio.create_task(client.post(RERANK, PAIRS)) for _ in range(2)]
    while len(judge.requests) < 2:
        await asyncio.sleep(0.001)
    for path in (RERANK, "/v1/rerank"):
        reply = await client.post(path, PAIRS)
        assert (reply.status, reply.headers["Retry-After"]) == (503, "1")
        assert "waiting for the model `judge` and the limit is 2." in reply.error["message"]
    assert (await client.post(EMBED, {"input": "a"})).status == 200
    assert metrics.rejections == [("judge", "queue_full")] * 2
    judge.gate.set()
    assert [(await reply).status for reply in waiting] == [200, 200]


async def test_rerankings_that_run_do_not_count(serve, judge):
    client = await serve(max_queued_requests=1)
    judge.running = asyncio.Event()
    running = []
    for i in range(3):
        running.append(asyncio.create_task(client.post(RERANK, PAIRS)))
        while len(judge.requests) <= i and not running[i].done():
            await asyncio.sleep(0.001)
    judge.running.set()
    assert [(await reply).status for reply in running] == [200] * 3


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


async def test_a_model_that_cant_serve_is_no_full_queue(client, node, metrics):
    node.chat.refuses = lambda request: ModelUnavailableError("failed")
    assert (await client.post(CHAT, BODY)).status == 503
    assert metrics.rejections == [("talker", "unavailable")]


def test_places_are_given_back_once(metrics):
    admission = Admission(3, metrics)
    with admission.admit("m", 2) as ticket, admission.admit("m"), admission.admit("other"):
        assert admission.waiting == {"m": 3, "other": 1}
        ticket.begun()
        ticket.begun()
        assert admission.waiting == {"m": 1, "other": 1}
    assert dict(admission.waiting) == {}


def test_a_request_of_thousands_takes_a_quarter_of_the_places_and_keeps_nobody_out(metrics):
    admission = Admission(512, metrics)
    with admission.admit("m", 2048) as huge:
        assert admission.waiting == {"m": 128}
        with admission.admit("m", 300), admission.admit("m"):
            assert admission.waiting == {"m": 257}
        for _ in range(1920):
            huge.begun()
        assert admission.waiting == {"m": 128}, "as many still wait"
        huge.begun()
        assert admission.waiting == {"m": 127}
    assert dict(admission.waiting) == {}


def test_errors_give_places_back(metrics):
    admission = Admission(3, metrics)
    with pytest.raises(KeyError), admission.admit("m", 2):
        raise KeyError
    assert dict(admission.waiting) == {}


def test_an_idle_queue_takes_any_request(metrics):
    admission = Admission(3, metrics)
    with admission.admit("m", 10), pytest.raises(QueueFullError), admission.admit("m", 1):
        pass


def test_a_limit_that_changes_holds_at_once(metrics):
    admission = Admission(1, metrics)
    with admission.admit("m"):
        with pytest.raises(QueueFullError), admission.admit("m"):
            pass
        admission.limit = 2
        with admission.admit("m"):
            admission.limit = 1
            with pytest.raises(QueueFullError), admission.admit("m"):
                pass
        admission.limit = 2
        with admission.admit("m"):
            pass


@pytest.mark.parametrize("step", [0, 1])
async def test_what_is_cut_off_gets_an_answer_at_once(client, node, metrics, step):
    node.chat.hold(step)
    node.embed.running = asyncio.Event()
    plain = asyncio.create_task(client.post(CHAT, BODY))
    embedding = asyncio.create_task(client.post("/v1/embeddings", {"input": "a"}))
    stream = asyncio.create_task(client.request("POST", CHAT, json={**BODY, "stream": True}))
    while len(node.chat.streams) < 2 or not node.embed.requests:
        await asyncio.sleep(0.001)
    while step and not all(stream.completion_tokens for stream in node.chat.streams):
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.01)
    node.begin_drain()
    client.app[GATEWAY].admission.cut_off()
    async with asyncio.timeout(1):
        replies = [await plain, await embedding, await stream]
    for reply in replies[: 3 - step]:
        assert (reply.status, reply.headers["Retry-After"]) == (503, "5")
        assert reply.error["message"].startswith("The request was stopped by the server")
    if step:
        *_, frame, done = replies[2].text.split("\n\n")[:-1]
        assert json.loads(frame.removeprefix("data: "))["error"]["type"] == "ServiceUnavailableError"
        assert (replies[2].status, done) == (200, "data: [DONE]")
    assert all(stream.aborted.is_set() for stream in node.chat.streams)
    assert sorted(metrics.rejections) == [("embedder", "draining"), *[("talker", "draining")] * 2]
    assert not client.app[GATEWAY].admission.running


async def test_a_body_that_is_on_its_way_is_cut_off_with_an_answer(client):
    headers = {"Content-Type": "application/json"}
    arriving = asyncio.create_task(client.request("POST", CHAT, data=endless(), headers=headers))
    while not client.app[GATEWAY].admission.running:
        await asyncio.sleep(0.001)
    client.app[GATEWAY].admission.cut_off()
    async with asyncio.timeout(1):
        assert (await arriving).status == 503


async def endless():
    while True:
        yield b" "
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("streamed", [True, False])
async def test_each_prompt_of_a_request_holds_its_place_until_it_begins(serve, node, streamed):
    """Not only until the first of them does."""
    client = await serve(max_queued_requests=3)
    waiting, streams = client.app[GATEWAY].admission.waiting, []

    async def generate(request):
        streams.append(TokenStream([1], None, 1))
        return streams[-1]

    async def until(count):
        async with asyncio.timeout(1):
            while waiting["talker"] != count or len(streams) < 3:
                await asyncio.sleep(0.001)

    node.chat.generate = generate
    body = {"prompt": ["a", "b", "c"], "stream": streamed}
    asked = asyncio.create_task(client.post(TEXT, body))
    await until(3)
    streams[1].push(TokenChunk(0, "x", (1,)))
    streams[1].push(TokenChunk(0, "y", (1,)))
    await until(2)
    await asyncio.sleep(0.01)
    assert waiting["talker"] == 2
    assert (await client.post(TEXT, {"prompt": ["d", "e"]})).status == 503
    streams[0].push(TokenChunk(0, "x", (1,), finish_reason="stop"))
    await until(1)
    asked.cancel()
    await until(0)


@pytest.mark.parametrize(
    ("path", "body", "param", "numbers"),
    [
        (TEXT, {"prompt": ["a"] * 5}, "prompt", "`prompt` comes to 5; one request may ask for 4"),
        (TEXT, {"prompt": [[1]] * 10_000, "n": 128}, "prompt", "10000 with 128 answers each, 1280000"),
        (TEXT, {"prompt": ["a", "b"], "best_of": 3}, "prompt", "2 with 3 answers each, 6 sequences"),
        (TEXT, {"prompt": "a", "n": 5}, "n", "1 with 5 answers each, 5 sequences in all"),
        (CHAT, {**BODY, "n": 5}, "n", "1 with 5 answers each, 5 sequences in all"),
        (EMBED, {"input": ["a"] * 5}, "input", "`input` comes to 5; one request may ask for 4"),
        (EMBED, {"input": [[1]] * 5}, "input", "`input` comes to 5; one request may ask for 4"),
    ],
)  # fmt: skip
async def test_a_request_of_more_sequences_than_one_may_ask_for_is_400_with_the_numbers(
    serve, node, path, body, param, numbers
):
    client = await serve(max_sequences_per_request=4)
    reply = await client.post(path, body)
    assert (reply.status, reply.error["param"]) == (400, param)
    assert numbers in reply.error["message"]
    assert not node.chat.streams
    assert not node.embed.requests


async def test_a_reranking_of_too_many_documents_is_400(serve, judge):
    client = await serve(max_sequences_per_request=4)
    reply = await client.post(RERANK, {"query": "a", "documents": ["b"] * 5})
    assert (reply.status, reply.error["param"]) == (400, "documents")
    assert (await client.post(RERANK, {"query": "a", "documents": ["b"] * 4})).status == 200


async def test_what_one_request_may_ask_for_may_change_while_the_server_runs(serve):
    client = await serve(max_sequences_per_request=4)
    assert (await client.post(EMBED, {"input": ["a"] * 5})).status == 400
    client.app[GATEWAY].configure(ServerSpec(max_sequences_per_request=5))
    assert (await client.post(EMBED, {"input": ["a"] * 5})).status == 200


async def test_what_openai_takes_is_taken_by_default(client):
    assert (await client.post(EMBED, {"input": ["a"] * 2048})).status == 200
    assert (await client.post(CHAT, {**BODY, "n": 128})).status == 200
