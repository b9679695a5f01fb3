"""Who may ask what: API keys on every path but the probes; the operator's paths have a key of their own."""

import hmac
import ipaddress
import re

from aiohttp import web

from onecard.gateway.context import GATEWAY
from onecard.gateway.http.errors import GatewayError

_OF_PROXY = re.compile(
    "forwarded|via|x-forwarded.*|x-real-ip|x-client-ip|x-cluster-client-ip|true-client-ip|cf-connecting-ip|"
    "fastly-client-ip|x-envoy-external-address",
    re.IGNORECASE,
)
_HOST = re.compile(r"(?:\[([^]]*)]|([^:]*))(?::\d*)?")


def authorise(request: web.Request) -> None:
    """Raises `GatewayError` 401 or 403 where the request may not go on. Paths are closed unless open."""
    gateway = request.app[GATEWAY]
    if gateway.routes.is_open(request.path):
        return
    if gateway.routes.is_admin(request.path):
        _authorise_admin(request, gateway.server.admin_key)
    elif gateway.server.api_keys:
        _require_key(request, gateway.server.api_keys)


def _authorise_admin(request: web.Request, admin_key: str) -> None:
    if admin_key:
        _require_key(request, (admin_key,))
    elif not _is_local(request):
        raise GatewayError(
            403,
            "Without `admin_key` in the registry, this path answers this machine only: as localhost or a "
            "loopback address, and through no proxy. Set `server.admin_key` and send it as a key.",
        )
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
    if any(map(_OF_PROXY.fullmatch, request.headers)):
        return False
    # A site can make its own name mean this machine, and read in a browser here what answers to that name.
    if not all(_is_loopback(_host_name(host)) for host in request.headers.getall("Host", ())):
        return False
    return request.remote is None or _is_loopback(request.remote)


def _host_name(host: str) -> str:
    """Of a `Host` header, in lower case, without port and brackets; empty where it is none."""
    match = _HOST.fullmatch(host.lower())
    return "" if match is None else match[1] or match[2] or ""


def _is_loopback(host: str) -> bool:
    """A server that listens on `::` sees IPv4 clients as `::ffff:127.0.0.1`."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    mapped = address.ipv4_mapped if address.version == 6 else None
    return (mapped or address).is_loopback
