"""What is refused unread, how long silence lasts, and who is answered when all places are taken.

Over real sockets: what a client library would tidy up is what matters here.
"""

import asyncio
import gzip
import json
import sys
from pathlib import Path

import pytest

from onecard.gateway.http.connections import PROBES, Connections

HERE = Path(__file__).parent
WITHIN = 2.0
CHAT = "/v1/chat/completions"
BODY = json.dumps({"messages": [{"role": "user", "content": "Hi"}]}).encode()
EVERY_ROUTE = [
    ("GET", "/health"),
    ("GET", "/metrics"),
    ("GET", "/v1/models"),
    ("GET", "/nothing/here"),
    ("POST", "/ping"),
    ("POST", CHAT),
    ("POST", "/v1/embeddings"),
    ("POST", "/sleep"),
]


def head(method="GET", path="/health", *lines, version="1.1", length=None):
    length = [] if length is None else [f"Content-Length: {length}"]
    return "\r\n".join([f"{method} {path} HTTP/{version}", "Host: x", *lines, *length, "", ""]).encode()


async def connect(client, address="127.0.0.1"):
    """From `address`, which is another peer's where its last number is another."""
    return await asyncio.open_connection("127.0.0.1", client.port, local_addr=(address, 0))


async def answer(reader):
    """Status, headers and body of the next answer; interim ones are skipped, as every client does."""
    async with asyncio.timeout(WITHIN):
        while True:
            status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            if status.split()[1] != "100":
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                return int(status.split()[1]), headers, body


async def ask(client, data):
    reader, writer = await connect(client)
    writer.write(data)
    try:
        return await answer(reader)
    finally:
        writer.close()


async def until(condition):
    async with asyncio.timeout(WITHIN):
        while not condition():
            await asyncio.sleep(0.005)


async def is_closed(reader):
    async with asyncio.timeout(WITHIN):
        try:
            return await reader.read() == b""
        except ConnectionError:
            return True


# --- bodies that are packed ----------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, "sesame"])
@pytest.mark.parametrize(("method", "path"), EVERY_ROUTE)
async def test_a_packed_body_is_refused_on_every_route_before_it_is_read(serve, method, path, key):
    client = await serve(api_keys=("sesame",))
    lines = ["Content-Encoding: gzip", "Content-Type: application/json"]
    lines += [] if key is None else [f"x-api-key: {key}"]
    status, headers, body = await ask(client, head(method, path, *lines, length=1 << 20) + b"\x1f\x8b")
    assert (status, headers["accept-encoding"]) == (415, "identity")
    assert json.loads(body)["error"]["type"] == "UnsupportedMediaTypeError"


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "x-gzip", "identity, gzip"])
async def test_no_coding_is_taken_but_identity(client, node, coding):
    packed = gzip.compress(BODY)
    status, _, _ = await ask(
        client, head("POST", CHAT, f"Content-Encoding: {coding}", length=len(packed)) + packed
    )
    assert (status, node.chat.requests) == (415, [])


@pytest.mark.parametrize("coding", ["identity", "Identity", ""])
async def test_identity_is_no_coding(client, coding):
    status, _, _ = await ask(
        client, head("POST", CHAT, f"Content-Encoding: {coding}", length=len(BODY)) + BODY
    )
    assert status == 200


# --- silence ---------------------------------------------------------------------------------------------


def hasty(limit=100, **seconds):
    return Connections(limit, **{"header_seconds": 0.1, "sweep_seconds": 0.02, **seconds})


@pytest.mark.parametrize("sent", [b"", b"GET /heal", b"GET /health HTTP/1.1\r\nHost: x\r\n"])
async def test_who_sends_no_whole_headers_is_cut_off(serve, sent):
    connections = hasty()
    reader, writer = await connect(await serve(connections=connections))
    writer.write(sent)
    assert await is_closed(reader)
    assert len(connections) == 0


async def test_headers_byte_by_byte_gain_no_time(serve):
    reader, writer = await connect(await serve(connections=hasty()))

    async def trickle():
        for byte in head():
            writer.write(bytes([byte]))
            await asyncio.sleep(0.01)

    trickling = asyncio.create_task(trickle())
    assert await is_closed(reader)
    trickling.cancel()


async def test_an_idle_connection_may_stay_longer_than_headers_may_take(serve):
    reader, writer = await connect(await serve(connections=hasty()))
    for _ in range(2):
        writer.write(head())
        assert (await answer(reader))[0] == 200
        await asyncio.sleep(0.3)
    writer.write(head()[:10])
    assert await is_closed(reader)


async def test_a_long_answer_is_not_silence(serve, node):
    client = await serve(connections=hasty())
    held = node.chat.hold(0)
    reader, writer = await connect(client)
    writer.write(head("POST", CHAT, length=len(BODY)) + BODY)
    await asyncio.sleep(0.3)
    held.set()
    assert (await answer(reader))[0] == 200


async def test_a_client_that_takes_nothing_of_its_answer_is_cut_off(serve, node):
    node.chat.words = ["x" * (32 << 20)]  # more than the kernel's buffers take
    connections = hasty(stalled_seconds=0.1)
    _, writer = await connect(await serve(connections=connections))
    writer.transport.pause_reading()
    writer.write(head("POST", CHAT, length=len(BODY)) + BODY)
    await until(lambda: node.chat.requests)
    await until(lambda: len(connections) == 0)


async def test_a_body_that_trickles_is_given_up(serve):
    reader, writer = await connect(await serve(body_timeout=0.1))
    writer.write(head("POST", CHAT, length=100) + b"{")
    status, _, _ = await answer(reader)
    assert status == 408


# --- room ------------------------------------------------------------------------------------------------

PLACES = 8
LIMIT = PLACES + PROBES


async def test_silent_clients_make_room_for_whoever_comes(serve):
    connections = Connections(LIMIT)
    client = await serve(connections=connections)
    silent = [await connect(client) for _ in range(3 * LIMIT)]
    await until(lambda: len(connections) <= PLACES)
    for path in ("/health", "/v1/models"):
        assert (await ask(client, head(path=path)))[0] == 200
    assert await is_closed(silent[0][0])  # the longest silent first


async def test_clients_that_send_half_a_body_make_room_too(serve):
    connections = Connections(LIMIT)
    client = await serve(connections=connections)
    for _ in range(2 * LIMIT):
        _, writer = await connect(client)
        writer.write(head("POST", CHAT, length=100) + b"{")
        await asyncio.sleep(0.005)
    assert len(connections) <= PLACES
    assert (await ask(client, head("POST", CHAT, length=len(BODY)) + BODY))[0] == 200


async def test_where_all_are_being_answered_probes_still_are(serve, node):
    connections = Connections(LIMIT)
    client = await serve(connections=connections)
    held = node.chat.hold(0)
    busy = []
    for i in range(int(PLACES * 0.75)):  # one address gets no more
        busy.append(await connect(client))
        busy[-1][1].write(head("POST", CHAT, length=len(BODY)) + BODY)
        await until(lambda i=i: len(node.chat.requests) == i + 1)
    status, headers, body = await ask(client, head("POST", CHAT, length=len(BODY)) + BODY)
    assert (status, headers["retry-after"], headers["connection"]) == (503, "1", "close")
    assert json.loads(body)["error"]["code"] == "too_many_connections"
    for path in ("/health", "/health/live", "/metrics"):
        assert (await ask(client, head(path=path)))[0] == 200
    held.set()
    for reader, writer in busy:
        assert (await answer(reader))[0] == 200
        writer.close()
    await until(lambda: len(connections) == 0)
    assert (await ask(client, head("POST", CHAT, length=len(BODY)) + BODY))[0] == 200


@pytest.mark.skipif(sys.platform != "linux", reason="needs all of 127.0.0.0/8")
async def test_many_addresses_together_get_no_more_places(serve, node):
    connections = Connections(LIMIT)
    client = await serve(connections=connections)
    for i in range(2, 3 * LIMIT):
        await connect(client, f"127.0.0.{i}")
    await until(lambda: len(connections) == PLACES)
    held = node.chat.hold(0)
    busy = []
    for i in range(PLACES):
        busy.append(await connect(client, f"127.0.0.{i + 2}"))
        busy[-1][1].write(head("POST", CHAT, length=len(BODY)) + BODY)
        await until(lambda i=i: len(node.chat.requests) == i + 1)
    for path, expected in ((CHAT, 503), ("/health", 200)):
        reader, writer = await connect(client, "127.0.0.99")
        asked = head("POST", path, length=len(BODY)) + BODY if path == CHAT else head(path=path)
        writer.write(asked)
        assert (await answer(reader))[0] == expected
    for i in range(2 * LIMIT):
        await connect(client, f"127.0.0.{i + 2}")
        assert len(connections) <= LIMIT
    held.set()
    for reader, _ in busy:
        assert (await answer(reader))[0] == 200


async def test_there_is_an_end_to_probes_as_well(serve, node):
    connections = Connections(LIMIT)
    client = await serve(connections=connections)
    node.chat.hold(0)
    for i in range(3):
        _, writer = await connect(client)
        writer.write(head("POST", CHAT, length=len(BODY)) + BODY)
        await until(lambda i=i: len(node.chat.requests) == i + 1)
    for _ in range(3 * LIMIT):
        await connect(client)
        assert len(connections) <= LIMIT


async def test_a_connection_that_is_idle_after_an_answer_gives_way_last(serve):
    connections = Connections(LIMIT)
    client = await serve(connections=connections)
    for _ in range(5):
        await connect(client)
    await until(lambda: len(connections) == 5)
    reader, writer = await connect(client)
    writer.write(head())
    await answer(reader)
    for _ in range(5):  # six are one address's share
        await connect(client)
    await until(lambda: len(connections) <= 6)
    writer.write(head())
    assert (await answer(reader))[0] == 200


# --- who has hung up, and what is expected ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [("/health", None, b"ready"), (CHAT, BODY, b"Hello"), ("/v1/completions", b'{"prompt": "Hi"}', b"Hello")],
)
async def test_who_ends_his_half_after_asking_is_answered(client, path, body, says):
    reader, writer = await connect(client)
    writer.write(head(path=path) if body is None else head("POST", path, length=len(body)) + body)
    writer.write_eof()
    status, _, answered = await answer(reader)
    assert (status, says in answered) == (200, True)
    assert await is_closed(reader)


async def test_a_half_closed_client_waits_as_long_as_it_takes(client, node):
    held = node.chat.hold(0)
    reader, writer = await connect(client)
    writer.write(head("POST", CHAT, length=len(BODY)) + BODY)
    writer.write_eof()
    await asyncio.sleep(0.4)
    held.set()
    assert (await answer(reader))[0] == 200
    assert await is_closed(reader)


async def test_a_half_closed_client_gets_its_stream(client, node):
    held = node.chat.hold(1)
    body = BODY[:-1] + b', "stream": true}'
    reader, writer = await connect(client)
    writer.write(head("POST", CHAT, length=len(body)) + body)
    writer.write_eof()
    await asyncio.sleep(0.2)
    held.set()
    async with asyncio.timeout(WITHIN):
        assert b"data: [DONE]" in await reader.read()


async def test_clients_of_http_1_0_are_sent_no_interim_answer_and_hang_up_by_ending_their_half(client, node):
    node.chat.hold(0)
    reader, writer = await connect(client)
    writer.write(head("POST", CHAT, length=len(BODY), version="1.0") + BODY)
    writer.write_eof()
    async with asyncio.timeout(WITHIN):
        assert await reader.read() == b""
        await node.chat.streams[0].aborted.wait()


async def test_who_hangs_up_within_a_body_has_gone(client):
    reader, writer = await connect(client)
    writer.write(head("POST", CHAT, length=100) + b"{")
    await asyncio.sleep(0.05)
    writer.write_eof()
    assert await is_closed(reader)


@pytest.mark.parametrize("path", [CHAT, "/health", "/nothing"])
async def test_an_expectation_that_cannot_be_met_is_said(client, path):
    method = "POST" if path == CHAT else "GET"
    status, _, body = await ask(client, head(method, path, "Expect: x", length=2) + b"{}")
    assert status == 417
    assert b"100-continue" in body or path == "/nothing"


async def test_a_body_is_asked_for_only_when_it_is_wanted(serve):
    client = await serve(api_keys=("sesame",), body_timeout=1.0)
    lines = ["Content-Type: application/json", "Expect: 100-continue"]
    reader, writer = await connect(client)
    writer.write(head("POST", CHAT, *lines, "x-api-key: sesame", length=len(BODY)))
    async with asyncio.timeout(WITHIN):
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(BODY)
    assert (await answer(reader))[0] == 200
    reader, writer = await connect(client)
    writer.write(head("POST", CHAT, *lines, length=len(BODY)))
    async with asyncio.timeout(WITHIN):
        assert (await reader.readline()).split()[1] == b"401"


# --- what a process has room for --------------------------------------------------------------------------

SMALL_SERVER = """
import asyncio, resource, socket, sys
sys.path.insert(0, sys.argv[1])
from conftest import FakeMetrics, FakeNode
from onecard.gateway.app import create_app
from onecard.gateway.http.listen import app_runner, listen
from onecard.registry.spec import Registry

async def main():
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    runner = app_runner(create_app(FakeNode(), Registry(), FakeMetrics()), 1)
    await runner.setup()
    listener = socket.create_server(("127.0.0.1", 0))
    await listen(runner, listener)
    print(listener.getsockname()[1], flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_more_silent_clients_than_a_process_may_have_files_do_not_fill_it():
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        SMALL_SERVER,
        str(HERE),
        cwd=HERE.parents[1],
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        port = int(await process.stdout.readline())
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(200)]
        for path in ("/health", "/v1/models"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head(path=path))
            assert (await answer(reader))[0] == 200
            writer.close()
        assert len(silent) == 200
    finally:
        process.kill()
        await process.wait()


async def test_a_packed_transfer_is_not_unpacked_either(client, node):
    packed = gzip.compress(BODY)
    chunk = f"{len(packed):x}\r\n".encode() + packed + b"\r\n0\r\n\r\n"
    status, _, _ = await ask(client, head("POST", CHAT, "Transfer-Encoding: gzip, chunked") + chunk)
    assert (status, node.chat.requests) == (400, [])


async def test_an_idle_connection_is_closed_in_the_end(serve, monkeypatch):
    monkeypatch.setattr("onecard.gateway.http.listen.IDLE_SECONDS", 0.1)
    reader, writer = await connect(await serve())
    writer.write(head())
    assert (await answer(reader))[0] == 200
    assert await is_closed(reader)
