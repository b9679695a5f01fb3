"""What probes, scrapers and tools ask: `/health`, `/version`, `/metrics`, `/openapi.json`."""

import orjson
from aiohttp import web

from onecard.gateway import VERSION
from onecard.gateway.context import GATEWAY
from onecard.gateway.http.body import json_response
from onecard.gateway.routes.openapi import openapi_document


async def live(request: web.Request) -> web.Response:
    """200: a process that only a restart would help has ended."""
    return _health(request.app[GATEWAY].node.status().state, ok=True)


async def ready(request: web.Request) -> web.Response:
    """200 until the server drains, whichever models have failed."""
    state = request.app[GATEWAY].node.status().state
    return _health(state, ok=state == "ready")


async def version(_request: web.Request) -> web.Response:
    return json_response({"version": VERSION})


async def ping(_request: web.Request) -> web.Response:
    return web.Response()


async def metrics(request: web.Request) -> web.Response:
    text = request.app[GATEWAY].metrics.render()
    return web.Response(body=text, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


async def openapi(request: web.Request) -> web.Response:
    return json_response(openapi_document(request.app[GATEWAY].routes))


def _health(state: str, ok: bool) -> web.Response:
    body = orjson.dumps({"status": state})
    return web.Response(body=body, status=200 if ok else 503, content_type="application/json")
