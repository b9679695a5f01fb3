"""JSON bodies in, JSON answers out."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import orjson
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from pydantic import ValidationError

from onecard.engines.api import InvalidRequestError
from onecard.gateway.context import GATEWAY
from onecard.gateway.http.errors import GatewayError, from_validation, shorten, too_large
from onecard.gateway.schemas.base import RequestModel

PRIORITY_HEADER = "X-Priority"
"""For clients that can set a header for all requests of theirs, but no field in the body, which wins."""

Parsed = TypeVar("Parsed", bound=RequestModel)
Read = TypeVar("Read")


async def parse(request: web.Request, schema: type[Parsed]) -> Parsed:
    """The request's body as a `schema`; its `priority` may also come as a header.

    Raises `EngineError` with status 400, 408, 413 or 415.
    """
    return validated(request, await read_object(request), schema)


def validated(request: web.Request, data: dict[str, Any], schema: type[Parsed]) -> Parsed:
    """`data` as a `schema`, with the request's headers in it."""
    if data.get("priority") is None and PRIORITY_HEADER in request.headers:
        data["priority"] = _header_priority(request.headers[PRIORITY_HEADER])
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        raise from_validation(error) from None


async def read_object(request: web.Request) -> dict[str, Any]:
    """The body, which must be a JSON object."""
    _check_content_type(request)
    body = await arrived(request, request.read)
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequestError(
            f"The body is not valid JSON: {shorten(str(error))}.", code="invalid_json"
        ) from None
    if not isinstance(data, dict):
        raise InvalidRequestError("The body must be a JSON object.", code="invalid_json")
    return data


def json_response(answer: Any) -> web.Response:
    """`answer` as JSON; rows of numpy arrays are written without going through Python floats."""
    body = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    return web.Response(body=body, content_type="application/json")


def _header_priority(text: str) -> int:
    if re.fullmatch(r"[+-]?[0-9]{1,10}", text.strip()):
        return int(text)  # its range is the schema's
    raise InvalidRequestError(
        f"The header `{PRIORITY_HEADER}` must be an integer (got {shorten(repr(text))}).", param="priority"
    )


def _check_content_type(request: web.Request) -> None:
    # A missing header is let through: the body says what it is.
    if "Content-Type" in request.headers:
        kind = request.content_type
        if kind != "application/json" and not kind.endswith("+json"):
            raise GatewayError(415, f"Send the body as application/json, not as {shorten(kind)}.")


async def arrived(request: web.Request, read: Callable[[], Awaitable[Read]]) -> Read:
    """What `read` makes of the body, within the time for it; its failures as errors to be answered."""
    gateway = request.app[GATEWAY]
    limit = gateway.server.max_body_bytes
    if (request.content_length or 0) > limit:
        raise too_large(limit)
    try:
        if request.content.is_eof():  # all of it came with the headers, as it mostly does
            return await read()
        async with asyncio.timeout(gateway.body_timeout):
            return await read()
    except TimeoutError:
        raise GatewayError(408, f"The body did not arrive within {gateway.body_timeout:g} seconds.") from None
    except web.HTTPRequestEntityTooLarge:
        raise too_large(limit) from None
    except (HttpProcessingError, web.RequestPayloadError) as error:
        raise InvalidRequestError(f"The body could not be read: {shorten(str(error))}.") from None
