"""Who may ask where no key is asked for: this machine and its network, not the web pages that their
browsers show.

A browser sends what any page tells it to. Two things give a page away: its `Origin`, and the name it asks
for. A site can make its own name mean this machine (DNS rebinding), but no address, and no name that isn't
its own.
"""

import ipaddress
import re
import socket
from functools import cache, lru_cache

from aiohttp import web

from onecard.gateway.context import GATEWAY
from onecard.gateway.http.cors import allowed_origin
from onecard.gateway.http.errors import GatewayError, shorten

OF_CLIENTS = frozenset(
    [
        "host",
        "user-agent",
        "accept",
        "accept-encoding",
        "accept-language",
        "accept-charset",
        "authorization",
        "x-api-key",
        "content-type",
        "content-length",
        "content-encoding",
        "transfer-encoding",
        "connection",
        "keep-alive",
        "te",
        "trailer",
        "expect",
        "cache-control",
        "pragma",
        "origin",
        "referer",
        "cookie",
        "dnt",
        "priority",
        "range",
        "upgrade-insecure-requests",
        "if-none-match",
        "if-modified-since",
        "save-data",
    ]
)
OF_BROWSERS = ("sec-", "x-stainless-")
"""How further names begin: those of browsers, and of OpenAI's clients."""
PRIVATE_DOMAINS = (".localhost", ".local", ".internal", ".home.arpa")
"""Reserved for names within a machine or a network: nobody can register one (RFC 6761, 6762, 8375; ICANN)."""

_HOST = re.compile(r"(?:\[([^]]*)]|([^:]*))(?::\d*)?")
_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?")


def refuse_strangers(request: web.Request) -> None:
    """`GatewayError` 403 for what a web page of somebody else's sends, as far as can be told."""
    server = request.app[GATEWAY].server
    for host in request.headers.getall("Host", ()):
        name = host_name(host)
        if "*" not in server.allowed_hosts and not _is_near(name, {*server.allowed_hosts, server.host}):
            raise GatewayError(
                403,
                f"Without `api_keys` in the registry, this server doesn't answer to the name "
                f"{shorten(repr(host))}: any site could give it that name. Add the name to "
                "`server.allowed_hosts`, set `server.api_keys`, or ask for an address.",
                code="host_not_allowed",
            )
    origin = request.headers.get("Origin")
    if origin is not None and allowed_origin(request) is None and not _is_own(origin, request):
        raise GatewayError(
            403,
            "Without `api_keys` in the registry, this server answers no web page of "
            f"{shorten(repr(origin))}. Add the origin to `server.allowed_origins`, or set `server.api_keys`.",
            code="origin_not_allowed",
        )


def is_local(request: web.Request) -> bool:
    """Whether a client of this machine asks, under a name that means this machine."""
    # A proxy on this machine speaks for others. What tells it are the headers it adds: any names at all.
    if foreign_header(request) is not None:
        return False
    # A site can make its own name mean this machine, and read in a browser here what answers to that name.
    if not all(is_loopback(host_name(host)) for host in request.headers.getall("Host", ())):
        return False
    return request.remote is None or is_loopback(request.remote)


def foreign_header(request: web.Request) -> str | None:
    """A header that clients don't send by themselves, so perhaps a proxy's."""
    names = (name for name in request.headers if name.lower() not in OF_CLIENTS)
    return next((name for name in names if not name.lower().startswith(OF_BROWSERS)), None)


def host_name(host: str) -> str:
    """Of a `Host` header, in lower case, without port and brackets; empty where it is none."""
    match = _HOST.fullmatch(host.lower())
    return "" if match is None else match[1] or match[2] or ""


def is_loopback(host: str) -> bool:
    """A server that listens on `::` sees IPv4 clients as `::ffff:127.0.0.1`."""
    if (address := _address(host)) is None:
        return host == "localhost"
    mapped = address.ipv4_mapped if address.version == 6 else None
    return (mapped or address).is_loopback


def _is_near(name: str, allowed: set[str]) -> bool:
    """An address, a name within this machine or network, or one that the registry allows."""
    if _address(name) is not None:
        return True
    if not _NAME.fullmatch(name):
        return False
    name = name.removesuffix(".")
    # Names without a dot are a network's own, such as those of a compose file's services.
    if "." not in name or name.endswith(PRIVATE_DOMAINS) or name == _own_name():
        return True
    return name in {host.lower() for host in allowed}


def _is_own(origin: str, request: web.Request) -> bool:
    """A page that was read from where it asks now, through a proxy that serves both."""
    return origin.lower().partition("://")[2] == request.headers.get("Host", "").lower() != ""


@lru_cache(256)  # most clients ask by one of a few
def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


@cache
def _own_name() -> str:
    return socket.gethostname().lower()
