"""A small proxy such as one writes in front of model servers: reads the model's name, forwards, streams back.

It looks the model up in a table, keeps connections to the upstream open, and passes bodies on as they come.
"""

import json
import sys
from collections.abc import AsyncIterator

import aiohttp
from aiohttp import web
from http_server import run
from protocol import Channel

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host", "content-encoding"}
SESSION = web.AppKey("session", aiohttp.ClientSession)
ROUTES = web.AppKey("routes", dict[str, str])


async def session(app: web.Application) -> AsyncIterator[None]:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as opened:
        app[SESSION] = opened
        yield


def end_to_end(headers: "aiohttp.typedefs.LooseHeaders") -> dict[str, str]:
    return {key: value for key, value in dict(headers).items() if key.lower() not in HOP_BY_HOP}


async def forward(request: web.Request) -> web.StreamResponse:
    body = await request.read()
    try:
        model = json.loads(body)["model"]
        upstream = request.app[ROUTES][model]
    except (ValueError, KeyError, TypeError):
        return web.json_response({"error": {"message": "unknown model"}}, status=404)
    try:
        answer = await request.app[SESSION].post(
            upstream + request.path_qs, data=body, headers=end_to_end(request.headers)
        )
    except aiohttp.ClientError:
        return web.json_response({"error": {"message": "upstream is gone"}}, status=502)
    async with answer:
        if answer.content_length is not None:
            return web.Response(
                body=await answer.read(), status=answer.status, headers=end_to_end(answer.headers)
            )
        response = web.StreamResponse(status=answer.status, headers=end_to_end(answer.headers))
        await response.prepare(request)
        async for data in answer.content.iter_any():
            await response.write(data)
        await response.write_eof()
        return response


if __name__ == "__main__":
    app = web.Application()
    app.cleanup_ctx.append(session)
    app[ROUTES] = dict.fromkeys(("chat", "embedding"), f"http://127.0.0.1:{sys.argv[1]}")
    app.router.add_post("/{path:.*}", forward)
    run(Channel(), app, {})
