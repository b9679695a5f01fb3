"""A client that hangs up frees what it asked for at once, however it asked."""

import asyncio
import json

import pytest

WITHIN = 1.0
CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "Hi"}]}


def raw(path, body, *, length=None):
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {length or len(data)}\r\n\r\n".encode() + data


async def connect(client):
    return await asyncio.open_connection("127.0.0.1", client.port)


async def until(condition):
    async with asyncio.timeout(WITHIN):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize(
    ("path", "body", "streams"),
    [
        (CHAT, BODY, 1),
        (CHAT, {**BODY, "stream": True, "n": 2}, 1),
        ("/v1/completions", {"prompt": ["a", "b"]}, 2),
        ("/v1/completions", {"prompt": ["a", "b"], "stream": True}, 2),
    ],
)
async def test_hanging_up_aborts(client, node, metrics, path, body, streams, step):
    node.chat.hold(step)
    _, writer = await connect(client)
    writer.write(raw(path, body))
    await until(lambda: len(node.chat.streams) == streams)
    await until(lambda: step == 0 or all(stream.completion_tokens for stream in node.chat.streams[:1]))
    writer.close()
    async with asyncio.timeout(WITHIN):
        await asyncio.gather(*(stream.aborted.wait() for stream in node.chat.streams))
    await until(lambda: metrics.requests)
    assert metrics.requests[0][2] == 499


async def test_hanging_up_cancels_an_embedding(client, node):
    node.embed.gate = asyncio.Event()
    _, writer = await connect(client)
    writer.write(raw("/v1/embeddings", {"input": "a"}))
    await until(lambda: node.embed.requests)
    writer.close()
    async with asyncio.timeout(WITHIN):
        await node.embed.cancelled.wait()


async def test_hanging_up_cancels_a_reranking(client, judge):
    judge.gate = asyncio.Event()
    _, writer = await connect(client)
    writer.write(raw("/rerank", {"query": "a", "documents": ["b"]}))
    await until(lambda: judge.requests)
    writer.close()
    async with asyncio.timeout(WITHIN):
        await judge.cancelled.wait()


async def test_a_reset_connection_aborts(client, node):
    node.chat.hold(1)
    _, writer = await connect(client)
    writer.write(raw(CHAT, {**BODY, "stream": True}))
    await until(lambda: node.chat.streams)
    writer.transport.abort()
    async with asyncio.timeout(WITHIN):
        await node.chat.streams[0].aborted.wait()


async def test_finished_answers_are_not_aborted(client, node):
    await client.post(CHAT, BODY)
    await client.events(CHAT, BODY)
    assert [stream.aborted.is_set() for stream in node.chat.streams] == [False, False]


async def test_hanging_up_gives_the_place_in_the_queue_back(serve, node):
    client = await serve(max_queued_requests=1)
    gate = node.chat.hold(0)
    _, writer = await connect(client)
    writer.write(raw(CHAT, BODY))
    await until(lambda: node.chat.streams)
    assert (await client.post(CHAT, BODY)).status == 503
    writer.close()
    async with asyncio.timeout(WITHIN):
        await node.chat.streams[0].aborted.wait()
    gate.set()
    assert (await client.post(CHAT, BODY)).status == 200


async def test_half_sent_bodies_harm_nobody(client, node):
    writers = []
    for _ in range(20):
        _, writer = await connect(client)
        writer.write(raw(CHAT, BODY, length=10_000))
        writers.append(writer)
    for writer in writers[::2]:
        await writer.drain()
        writer.close()
    assert (await client.post(CHAT, BODY)).status == 200
    assert len(node.chat.requests) == 1
    for writer in writers[1::2]:
        writer.close()


async def test_a_body_that_does_not_come_is_answered(serve):
    client = await serve(body_timeout=0.05)
    reader, writer = await connect(client)
    writer.write(raw(CHAT, BODY, length=10_000))
    answer = await asyncio.wait_for(reader.readuntil(b"}}"), WITHIN)
    writer.close()
    assert answer.startswith(b"HTTP/1.1 408")
    assert b'"RequestTimeoutError"' in answer


async def test_broken_chunks_are_a_bad_request(client):
    reader, writer = await connect(client)
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Transfer-Encoding: chunked\r\n\r\nZZ\r\nnonsense\r\n".encode())
    answer = await asyncio.wait_for(reader.read(200), WITHIN)
    writer.close()
    assert b" 400 Bad Request" in answer.splitlines()[0]
    assert (await client.post(CHAT, BODY)).status == 200


async def test_a_slow_reader_loses_nothing(client, node):
    node.chat.words = ["x" * 50_000] * 40
    reader, writer = await connect(client)
    writer.write(raw(CHAT, {**BODY, "stream": True}))
    await asyncio.sleep(0.1)
    received = b""
    while b"[DONE]" not in received[-100:]:
        received += await asyncio.wait_for(reader.read(1 << 16), 5)
    writer.close()
    assert received.count(b"x" * 1000) == 40 * 50
