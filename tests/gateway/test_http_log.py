"""What clients send wrongly is answered, and leaves no traceback in the log; what goes wrong here does."""

import asyncio
import logging
import socket

import pytest
from aiohttp import web

from onecard.gateway.http.listen import aiohttp_log as log

NONSENSE = {
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "no http": b"GARBAGE\r\n\r\n",
    "two lengths": b"POST /ok HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "long url": b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "no gzip": b"POST /ok HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\nabcde",
}


@pytest.fixture
async def port():
    async def ok(request: web.Request) -> web.Response:
        try:
            await request.read()
        except web.RequestPayloadError:
            return web.Response(status=400)
        return web.Response()

    async def broken(_request: web.Request) -> web.Response:
        raise RuntimeError("a fault of ours")

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"more")
            await asyncio.sleep(0)

    app = web.Application()
    app.add_routes([web.post("/ok", ok), web.get("/broken", broken), web.get("/endless", endless)])
    runner = web.AppRunner(app, access_log=None, logger=log)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield runner.addresses[0][1]
    await runner.cleanup()


async def first_line(loop, port: int, sent: bytes) -> bytes:
    with socket.socket() as raw:
        raw.setblocking(False)
        await loop.sock_connect(raw, ("127.0.0.1", port))
        await loop.sock_sendall(raw, sent)
        return (await loop.sock_recv(raw, 4096)).partition(b"\r\n")[0]


@pytest.mark.parametrize("kind", NONSENSE)
async def test_nonsense_is_answered_and_not_logged(port, caplog, kind):
    loop = asyncio.get_running_loop()
    with caplog.at_level(logging.INFO):
        assert b"400" in await first_line(loop, port, NONSENSE[kind])
        await asyncio.sleep(0.05)
    assert caplog.records == []


async def test_what_is_no_http_is_answered_as_the_docs_say(port):
    """In plain text: aiohttp has no hook for it. Where it gets one, give OpenAI's error body, and change
    `docs/api.md`."""
    for kind in ("no http", "long url"):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(NONSENSE[kind])
        answer = await asyncio.wait_for(reader.read(), 5)  # to the end: the connection is closed
        writer.close()
        assert b"\r\nContent-Type: text/plain" in answer


async def test_a_client_that_hangs_up_in_mid_answer_is_not_logged(port, caplog):
    with caplog.at_level(logging.INFO):
        request = b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n"
        assert b"200" in await first_line(asyncio.get_running_loop(), port, request)
        await asyncio.sleep(0.1)
    assert caplog.records == []


async def test_our_own_faults_are_logged(port, caplog):
    request = b"GET /broken HTTP/1.1\r\nHost: x\r\n\r\n"
    assert b"500" in await first_line(asyncio.get_running_loop(), port, request)
    assert "a fault of ours" in caplog.text
