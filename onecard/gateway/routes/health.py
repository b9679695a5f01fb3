"""What probes, scrapers and tools ask: `/health`, `/version`, `/metrics`, `/openapi.json`."""

import asyncio
from typing import Any

import orjson
from aiohttp import web

from onecard.engines.api import StartingError
from onecard.gateway import VERSION
from onecard.gateway.context import GATEWAY
from onecard.gateway.http.body import json_response
from onecard.gateway.loading import LoadingNode
from onecard.gateway.routes.openapi import openapi_json


async def live(request: web.Request) -> web.Response:
    """200: a process that only a restart would help has ended."""
    return _health(request.app[GATEWAY].node.status().state, ok=True)


async def ready(request: web.Request) -> web.Response:
    """200 from when the models are loaded until the server drains, whichever have failed."""
    gateway = request.app[GATEWAY]
    state = gateway.node.status().state
    return _health(state, state == "ready", gateway.loading)


async def version(_request: web.Request) -> web.Response:
    return json_response({"version": VERSION})


async def ping(request: web.Request) -> web.Response:
    """SageMaker's: 200 once requests are welcome."""
    return web.Response(status=200 if request.app[GATEWAY].loading is None else 503)


async def metrics(request: web.Request) -> web.Response:
    metrics = request.app[GATEWAY].metrics
    metrics.look()
    text = await asyncio.get_running_loop().run_in_executor(None, metrics.render)
    return web.Response(body=text, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


async def openapi(request: web.Request) -> web.Response:
    routes = request.app[GATEWAY].routes
    body = await asyncio.get_running_loop().run_in_executor(None, openapi_json, routes)
    return web.Response(body=body, content_type="application/json")


def _health(state: str, ok: bool, loading: LoadingNode | None = None) -> web.Response:
    answer: dict[str, Any] = {"status": state}
    headers = {}
    if loading is not None and not ok:
        answer["models"] = loading.progress()
        headers["Retry-After"] = str(StartingError.retry_after)
    body = orjson.dumps(answer)
    status = 200 if ok else 503
    return web.Response(body=body, status=status, headers=headers, content_type="application/json")
