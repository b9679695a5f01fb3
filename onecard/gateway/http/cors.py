"""Which web pages may call this server from a browser (CORS, https://fetch.spec.whatwg.org).

Pages of this machine may (any port of localhost), and those that the registry's `allowed_origins` names. A
browser keeps answers from all other pages, so that a site that somebody visits can't talk to their models.
"""

from urllib.parse import urlsplit

from aiohttp import web

from onecard.gateway.context import GATEWAY

LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
EXPOSED_HEADERS = "X-Request-Id, Retry-After"
PREFLIGHT_SECONDS = 600


def preflight(request: web.Request) -> web.Response | None:
    """The answer to a browser that asks, before its real request and without a key, whether it may.

    None for any other request, and for a page that may not: it gets what OPTIONS gets anyway.
    """
    wanted = request.headers.get("Access-Control-Request-Method")
    if request.method != "OPTIONS" or wanted is None or allowed_origin(request) is None:
        return None
    headers = {
        "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
        "Access-Control-Allow-Headers": request.headers.get("Access-Control-Request-Headers", "*"),
        "Access-Control-Max-Age": str(PREFLIGHT_SECONDS),
    }
    return web.Response(status=204, headers=headers)


async def add_cors_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Signal: tell the browser that the page may read this answer, an error too."""
    if "Origin" not in request.headers:
        return
    response.headers.add("Vary", "Origin")
    origin = allowed_origin(request)
    if origin is not None:
        response.headers["Access-Control-Allow-Origin"] = origin
        response.headers["Access-Control-Expose-Headers"] = EXPOSED_HEADERS


def allowed_origin(request: web.Request) -> str | None:
    """The request's origin if its page may read the answer. What admins ask is for no page."""
    origin, gateway = request.headers.get("Origin"), request.app[GATEWAY]
    if origin is None or gateway.routes.is_admin(request.path):
        return None
    allowed = gateway.server.allowed_origins
    return origin if "*" in allowed or origin in allowed or _is_loopback(origin) else None


def _is_loopback(origin: str) -> bool:
    try:
        return urlsplit(origin).hostname in LOOPBACK_HOSTS
    except ValueError:
        return False
