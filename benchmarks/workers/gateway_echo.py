"""A bare aiohttp echo: the least that any aiohttp server takes. A streamed request gets 16 small writes."""

from aiohttp import web
from http_server import run
from protocol import Channel

FRAME = b'data: {"choices":[{"index":0,"delta":{"content":" token"},"finish_reason":null}]}\n\n'


async def echo(request: web.Request) -> web.StreamResponse:
    body = await request.read()
    if b'"stream":true' not in body:
        return web.Response(body=body, content_type="application/json")
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for _ in range(16):
        await response.write(FRAME)
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response


if __name__ == "__main__":
    app = web.Application()
    app.router.add_post("/{path:.*}", echo)
    run(Channel(), app, {})
