"""What probes, scrapers and tools ask: `/health`, `/version`, `/metrics`, `/openapi.json`."""

import asyncio

import orjson
from aiohttp import web

from onecard.gateway import VERSION
from onecard.gateway.context import GATEWAY
from onecard.gateway.http.body import json_response
from onecard.gateway.routes.openapi import openapi_json


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
    metrics = request.app[GATEWAY].metrics
    metrics.look()
    text = await asyncio.get_running_loop().run_in_executor(None, metrics.render)
    return web.Response(body=text, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


async def openapi(request: web.Request) -> web.Response:
    routes = request.app[GATEWAY].routes
    body = await asyncio.get_running_loop().run_in_executor(None, openapi_json, routes)
    return web.Response(body=body, content_type="application/json")


def _health(state: str, ok: bool) -> web.Response:
    body = orjson.dumps({"status": state})
    return web.Response(body=body, status=200 if ok else 503, content_type="application/json")
