"""JSON bodies in, JSON answers out."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

import orjson
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from pydantic import ValidationError

from onecard.engines.api import InvalidRequestError
from onecard.gateway.context import GATEWAY
from onecard.gateway.http.errors import GatewayError, error_response, from_validation, shorten, too_large
from onecard.gateway.http.tenant import cache_salt
from onecard.gateway.schemas import bounded_json
from onecard.gateway.schemas.base import RequestModel
from onecard.gateway.schemas.sampling import SamplingRequest

PRIORITY_HEADER = "X-Priority"
"""For clients that can set a header for all requests of theirs, but no field in the body, which wins."""

INLINE_BYTES = 64 << 10
"""A millisecond or two."""

Parsed = TypeVar("Parsed", bound=RequestModel)
Read = TypeVar("Read")


async def parse(request: web.Request, schema: type[Parsed]) -> Parsed:
    """The request's body as a `schema`; its `priority` may also come as a header.

    Raises `EngineError` with status 400, 408, 413 or 415.
    """
    body = await _body(request)
    return await off_loop(len(body), lambda: validated(request, _object(body), schema))


def validated(request: web.Request, data: dict[str, Any], schema: type[Parsed]) -> Parsed:
    """`data` as a `schema`, with what the request's headers say in it."""
    if (priority := request.headers.get(PRIORITY_HEADER)) is not None:
        from_header = _header_priority(priority)
        if data.get("priority") is None:
            data["priority"] = from_header
    try:
        asked = schema.model_validate(data)
    except ValidationError as error:
        raise from_validation(error) from None
    if isinstance(asked, SamplingRequest):
        asked.cache_salt = cache_salt(request, asked.cache_salt)
    return asked


async def read_object(request: web.Request) -> dict[str, Any]:
    """The body, which must be a JSON object."""
    body = await _body(request)
    return await off_loop(len(body), lambda: _object(body))


async def off_loop(size: int, call: Callable[[], Read]) -> Read:
    """`call` at once, or on a thread where it has to do with more than `INLINE_BYTES`.

    There it still wants the GIL; what it does must let go of it every few milliseconds, as Python code does.
    """
    if size <= INLINE_BYTES:
        return call()
    return await asyncio.get_running_loop().run_in_executor(None, call)


async def _body(request: web.Request) -> bytes:
    _check_content_type(request)
    return await arrived(request, request.read)


def _object(body: bytes) -> dict[str, Any]:
    data = bounded_json.loads(body)
    if not isinstance(data, dict):
        raise InvalidRequestError("The body must be a JSON object.", code="invalid_json")
    return data


def json_response(answer: Any) -> web.Response:
    """`answer` as JSON; rows of numpy arrays are written without going through Python floats."""
    return web.Response(body=_json(answer), content_type="application/json")


async def large_json_response(size: int, build: Callable[[], Any]) -> web.Response:
    """What `build` makes, as JSON of about `size` bytes. Its long lists should come from `json_list`."""
    body = await off_loop(size, lambda: _json(build()))
    return web.Response(body=body, content_type="application/json")


def json_list(items: Iterable[Any]) -> orjson.Fragment:
    """`items` as they will stand in the answer, written one by one: orjson lets go of the GIL only in
    between."""
    return orjson.Fragment(b"[" + b",".join(map(_json, items)) + b"]")


def _json(answer: Any) -> bytes:
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


def refuse_packed(request: web.Request) -> None:
    """415 for a body that is compressed: a few bytes of it may be any number in the end."""
    packed = ", ".join(request.headers.getall("Content-Encoding", ())).strip().lower()
    if packed not in ("", "identity"):
        raise GatewayError(
            415,
            f"`Content-Encoding: {shorten(packed)}` is not taken: send the body uncompressed.",
            headers={"Accept-Encoding": "identity"},
        )


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
        await _ask_for_body(request)
        with gateway.connections.receiving(request):
            async with asyncio.timeout(gateway.body_timeout):
                return await read()
    except TimeoutError:
        raise GatewayError(408, f"The body did not arrive within {gateway.body_timeout:g} s.") from None
    except web.HTTPRequestEntityTooLarge:
        raise too_large(limit) from None
    except (HttpProcessingError, web.RequestPayloadError) as error:
        raise InvalidRequestError(f"The body could not be read: {shorten(str(error))}.") from None


async def _ask_for_body(request: web.Request) -> None:
    """Some clients send a body only then (`Expect: 100-continue`): not before it is known to be wanted."""
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # no part of the answer


async def expectation(request: web.Request) -> web.StreamResponse | None:
    """aiohttp's hook for `Expect`, before anything else is looked at: an answer where it can't be met."""
    expected = request.headers.get("Expect", "")
    if expected.lower() == "100-continue":
        return None
    said = f"`Expect: {shorten(expected)}` can't be met; only 100-continue can."
    return error_response(GatewayError(417, said))
