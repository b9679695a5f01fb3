"""`/`, and every path that is not in the table: what it plainly means is served, the rest is 404 or 405.

A base URL is easily written with a slash too many, without `/v1` or with two; and since clients don't follow
redirects with what they post, such paths are served, not redirected.
"""

from aiohttp import web

from onecard.gateway import VERSION
from onecard.gateway.context import GATEWAY, MEANT
from onecard.gateway.http.body import json_response

ANY_PATH = "/{path:.*}"


async def root(_request: web.Request) -> web.Response:
    """Says who is here to whoever opens the address in a browser."""
    return json_response(
        {
            "name": "onecard",
            "version": VERSION,
            "base_path": "/v1",
            "models": "/v1/models",
            "description": "/openapi.json",
            "health": "/health",
            "metrics": "/metrics",
        }
    )


async def elsewhere(request: web.Request) -> web.StreamResponse:
    """Raises `HTTPNotFound` or `HTTPMethodNotAllowed` where nothing is meant."""
    routes = request.app[GATEWAY].routes
    found = routes.exactly(request.path) or routes.meant(request.path)
    for meant in found:
        if meant.row.method == request.method:
            request[MEANT] = meant.row.published
            request.match_info.update(meant.said)
            return await meant.row.handler(request)
    if found:
        raise web.HTTPMethodNotAllowed(request.method, {meant.row.method for meant in found})
    raise web.HTTPNotFound
