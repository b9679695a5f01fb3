"""Who may ask what: API keys on every path but the probes; the operator's paths have a key of their own."""

import hmac
import ipaddress

from aiohttp import web

from onecard.gateway.context import GATEWAY
from onecard.gateway.errors import GatewayError

OPEN_PATHS = frozenset(
    {
        "/health",
        "/health/live",
        "/health/ready",
        "/v1/health/live",
        "/v1/health/ready",
        "/healthz",
        "/readyz",
        "/version",
        "/metrics",
        "/ping",
    }
)
ADMIN_PREFIXES = ("/admin/", "/models/", "/-/")
ADMIN_PATHS = frozenset({"/sleep", "/wake_up", "/is_sleeping"})


def is_admin(path: str) -> bool:
    """Whether `path` is for operators: it shows or changes what the server does for everybody."""
    return path.startswith(ADMIN_PREFIXES) or path in ADMIN_PATHS


def authorise(request: web.Request) -> None:
    """Raises `GatewayError` 401 or 403 where the request may not go on. Paths are closed unless listed."""
    if request.path in OPEN_PATHS:
        return
    server = request.app[GATEWAY].server
    if is_admin(request.path):
        _authorise_admin(request, server.admin_key)
    elif server.api_keys:
        _require_key(request, server.api_keys)


def _authorise_admin(request: web.Request, admin_key: str) -> None:
    if admin_key:
        _require_key(request, (admin_key,))
    elif not _is_local(request):
        raise GatewayError(403, "Without `admin_key` in the registry, this path answers this machine only.")
    elif request.method != "GET" and "Origin" in request.headers:
        # A browser on this machine sends what any page tells it to; only its reading of answers is CORS's.
        raise GatewayError(403, "Without `admin_key` in the registry, this path answers no web page.")


def _require_key(request: web.Request, keys: tuple[str, ...]) -> None:
    presented = _presented_key(request)
    if presented is not None and _matches(keys, presented):
        return
    message = (
        "Incorrect API key provided."
        if presented is not None
        else "You didn't provide an API key. Send `Authorization: Bearer KEY` or `x-api-key: KEY`."
    )
    raise GatewayError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def _presented_key(request: web.Request) -> str | None:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else request.headers.get("x-api-key")


def _matches(keys: tuple[str, ...], presented: str) -> bool:
    # Every key is compared, each in constant time: the time taken tells nothing about any of them.
    candidate = presented.encode("utf-8", "surrogateescape")
    matches = [hmac.compare_digest(candidate, key.encode()) for key in keys if key]
    return any(matches)


def _is_local(request: web.Request) -> bool:
    # A proxy on this machine speaks for others, so what it forwards is not local.
    if "X-Forwarded-For" in request.headers or "Forwarded" in request.headers:
        return False
    try:
        return request.remote is None or ipaddress.ip_address(request.remote).is_loopback
    except ValueError:
        return False
