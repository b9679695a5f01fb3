"""Who may ask what: API keys on every path but the probes; the operator's paths have a key of their own."""

import hmac

from aiohttp import web

from onecard.gateway.context import GATEWAY
from onecard.gateway.http.errors import GatewayError, shorten
from onecard.gateway.http.keyless import foreign_header, is_local, refuse_strangers
from onecard.gateway.http.tenant import remember_key


def authorise(request: web.Request) -> None:
    """Raises `GatewayError` 401 or 403 where the request may not go on. Paths are closed unless open."""
    gateway = request.app[GATEWAY]
    if gateway.routes.is_open(request.path):
        return
    if gateway.routes.is_admin(request.path):
        _authorise_admin(request, gateway.server.admin_key)
    elif gateway.server.api_keys:
        remember_key(request, _require_key(request, gateway.server.api_keys))
    else:
        refuse_strangers(request)


def _authorise_admin(request: web.Request, admin_key: str) -> None:
    if admin_key:
        _require_key(request, (admin_key,))
    elif not is_local(request):
        foreign = foreign_header(request)
        why = "" if foreign is None else f" (the header {shorten(foreign)} may be a proxy's)"
        raise GatewayError(
            403,
            "Without `admin_key` in the registry, this path answers this machine only: as localhost or a "
            f"loopback address, and through no proxy{why}. Set `server.admin_key` and send it as a key.",
        )
    elif request.method != "GET" and "Origin" in request.headers:
        # A browser on this machine sends what any page tells it to; only its reading of answers is CORS's.
        raise GatewayError(403, "Without `admin_key` in the registry, this path answers no web page.")


def _require_key(request: web.Request, keys: tuple[str, ...]) -> str:
    """The one that the request has."""
    presented = _presented_key(request)
    if presented is not None and _matches(keys, presented):
        return presented
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
