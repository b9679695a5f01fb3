"""What happens to every request: an id, a key check, errors in one shape, and a count."""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable

from aiohttp import web

from onecard.engines.api import EngineError, StartingError
from onecard.engines.api.errors import is_panic
from onecard.gateway.context import GATEWAY, MEANT, REQUEST_ID
from onecard.gateway.http.auth import authorise
from onecard.gateway.http.body import refuse_packed
from onecard.gateway.http.cors import preflight
from onecard.gateway.http.errors import GatewayError, error_response, from_http

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
CLIENT_GONE = 499
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


@web.middleware
async def observe(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give the request its id and report how it went; a client that hung up counts as 499.

    Open paths aren't counted: probes would drown the requests that somebody waits for.
    """
    asked = request.headers.get("X-Request-Id", "")
    request[REQUEST_ID] = asked if _REQUEST_ID.fullmatch(asked) else secrets.token_hex(16)
    started, status, sent = time.perf_counter(), CLIENT_GONE, None
    gateway, task = request.app[GATEWAY], asyncio.current_task()
    assert task is not None
    gateway.admission.running.add(task)
    try:
        with gateway.connections.answering(request):
            response = await handler(request)
        status, sent = response.status, _body_bytes(response)
        return response
    finally:
        gateway.admission.running.discard(task)
        route, seconds = _route_name(request), time.perf_counter() - started
        if route not in gateway.routes.open_paths:
            gateway.metrics.http(route, request.method, status, seconds, request.content_length, sent)


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn whatever is raised into OpenAI's error body. Nothing inner leaves the server."""
    try:
        refuse_packed(request)
        _refuse_crowd(request)
        if (answer := preflight(request)) is not None:
            return answer
        authorise(request)
        _refuse_early(request)
        with request.app[GATEWAY].admission.cut_off_heard():
            return await handler(request)
    except EngineError as error:
        if error.status >= 500 and not isinstance(error, StartingError):  # whoever polls would fill the log
            log.warning("request %s: %s: %s", request[REQUEST_ID], type(error).__name__, error.message)
        return error_response(error)
    except web.HTTPException as error:
        return error_response(from_http(error, request.method, request.path))
    except ConnectionError:
        raise  # the client has gone: there is nobody to answer
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        log.exception("request %s failed", request[REQUEST_ID])
        return error_response(GatewayError(500, "Internal server error."))


async def add_request_id(request: web.Request, response: web.StreamResponse) -> None:
    """Signal: every answer, streams too, names its request."""
    response.headers["X-Request-Id"] = request.get(REQUEST_ID, "")


async def answer_begins(request: web.Request, _response: web.StreamResponse) -> None:
    """Signal: from here on the client sees its answer come."""
    request.app[GATEWAY].connections.begun(request)


def _refuse_crowd(request: web.Request) -> None:
    gateway = request.app[GATEWAY]
    connection = gateway.connections.find(request)
    if connection is None or not connection.probes_only:
        return
    connection.close_when_answered()
    if not gateway.routes.is_open(request.path):
        raise GatewayError(
            503,
            "Too many clients are connected. Please retry later, and close connections that are not used.",
            code="too_many_connections",
            headers={"Retry-After": "1", "Connection": "close"},
        )


def _refuse_early(request: web.Request) -> None:
    """Raises `StartingError` for what needs models while these are being loaded."""
    gateway = request.app[GATEWAY]
    if gateway.loading is not None and gateway.routes.needs_models(request.path):
        gateway.loading.refuse()


def _body_bytes(response: web.StreamResponse) -> int | None:
    # A stream has been written by now; a plain answer's body is written after the middleware.
    return response.content_length if isinstance(response, web.Response) else response.body_length


def _route_name(request: web.Request) -> str:
    # The route's pattern, never the path: a scanner's paths must not become label values.
    resource = request.match_info.route.resource
    name = request.get(MEANT, "" if resource is None else resource.canonical)
    return name if name in request.app[GATEWAY].routes.published_paths else "none"
