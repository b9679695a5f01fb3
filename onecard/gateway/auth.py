"""Who may ask what: API keys on every path but the probes, the admin path also from this machine."""

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
ADMIN_PREFIX = "/admin/"


def authorise(request: web.Request) -> None:
    """Raises `GatewayError` 401 or 403 where the request may not go on. Paths are closed unless listed."""
    if request.path in OPEN_PATHS:
        return
    keys = request.app[GATEWAY].server.api_keys
    if request.path.startswith(ADMIN_PREFIX):
        _authorise_admin(request, keys)
    elif keys:
        _require_key(request, keys)


def _authorise_admin(request: web.Request, keys: tuple[str, ...]) -> None:
    if _is_local(request):
        return
    if not keys:
        raise GatewayError(403, "Without API keys in the registry, this path answers this machine only.")
    _require_key(request, keys)


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
