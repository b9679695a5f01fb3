"""Whose prompts are whose: clients with different keys share no cached prefix unless the registry says so.

Else one could guess another's prompt, prefix by prefix, by what `cached_tokens` and the time of an answer
tell.
"""

from hashlib import blake2b

from aiohttp import web

from onecard.gateway.context import GATEWAY

TENANT = web.RequestKey("tenant", bytes)
"""A digest of the key that the request came with; absent where none is asked for."""
_SALT_BYTES = 16


def remember_key(request: web.Request, key: str) -> None:
    request[TENANT] = blake2b(key.encode("utf-8", "surrogateescape"), person=b"onecard tenant").digest()


def cache_salt(request: web.Request, asked: str | None) -> str | None:
    """What the prefix cache of a request's prompt is salted with, given the client's own salt if any."""
    tenant = request.get(TENANT)
    if tenant is None or request.app[GATEWAY].server.share_prefix_cache:
        return asked
    own = "" if asked is None else f"={asked}"
    return blake2b(own.encode("utf-8", "surrogatepass"), key=tenant, digest_size=_SALT_BYTES).hexdigest()
