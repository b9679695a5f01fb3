"""Errors as OpenAI's clients expect them: `{"error": {"message", "type", "param", "code"}}` and a status.

Types are vLLM's names, codes OpenAI's strings. What a client sent is echoed in part only, and what went
wrong inside is logged, not answered: no paths, no tracebacks.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from aiohttp import web
from pydantic import ValidationError

from onecard.engines.api import EngineError, InvalidRequestError, QueueFullError

MAX_REPORTED_ERRORS = 10
MAX_LOOKED_AT = 2048
MAX_ECHOED_CHARS = 200
MAX_MESSAGE_CHARS = 4000

TYPE_OF_STATUS = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    405: "MethodNotAllowedError",
    408: "RequestTimeoutError",
    413: "RequestTooLargeError",
    415: "UnsupportedMediaTypeError",
    500: "InternalServerError",
    501: "NotImplementedError",
    503: "ServiceUnavailableError",
}

_PATH = re.compile(r"(?<![\w.:/])(?:[A-Za-z]:\\|/)(?:[^\s'\"`:,;()<>/\\]+[/\\])+[^\s'\"`:,;()<>]*")


class GatewayError(EngineError):
    """An error of the HTTP layer itself: a status, and the type that goes with it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message, param=param, code=code)
        self.status = status
        self.type = TYPE_OF_STATUS.get(status, "BadRequestError" if status < 500 else "InternalServerError")
        self.headers = dict(headers or {})


def shorten(text: str, limit: int = MAX_ECHOED_CHARS) -> str:
    """`text`, cut to `limit` characters."""
    return text if len(text) <= limit else text[: limit - 3] + "..."


def error_body(error: EngineError) -> dict[str, Any]:
    """The JSON body that tells of `error`; inner failures lose their paths and all but their first line."""
    message = error.message
    if error.status >= 500:
        message = _PATH.sub("<path>", message.strip().partition("\n")[0])
    # What a client sent and a message echoes may hold half a character, which no JSON can.
    message = shorten(message, MAX_MESSAGE_CHARS).encode("utf-8", "backslashreplace").decode()
    return {"error": {"message": message, "type": error.type, "param": error.param, "code": error.code}}


def error_response(error: EngineError) -> web.Response:
    """The whole HTTP answer for `error`, with `Retry-After` where coming again makes sense."""
    headers = dict(error.headers) if isinstance(error, GatewayError) else {}
    if isinstance(error, QueueFullError):
        headers["Retry-After"] = str(error.retry_after)
    body = orjson.dumps(error_body(error))
    return web.Response(body=body, status=error.status, headers=headers, content_type="application/json")


def from_validation(error: ValidationError) -> InvalidRequestError:
    """Pydantic's findings as one sentence each, at most ten, with `param` naming the first field at fault."""
    if (count := error.error_count()) > MAX_LOOKED_AT:
        # pydantic tells of all at once: 20 us each, and the GIL is held.
        return InvalidRequestError(f"The request has {count} mistakes: too many to list them.")
    found = error.errors(include_url=False, include_context=False)
    said = [_sentence(item) for item in found[:MAX_REPORTED_ERRORS]]
    if len(found) > MAX_REPORTED_ERRORS:
        said.append(f"and {len(found) - MAX_REPORTED_ERRORS} more")
    return InvalidRequestError("; ".join(said), param=field_name(found[0]["loc"]) or None)


def from_http(error: web.HTTPException, method: str, path: str) -> GatewayError:
    """aiohttp's own exceptions (no such route, wrong method, body too large) in our shape."""
    where = f"{method} {shorten(path)}"
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        message = f"{where}: this path takes {allowed} only."
        return GatewayError(405, message, headers={"Allow": allowed})
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return too_large(None)
    if error.status == 404:
        return GatewayError(
            404, f"There is no {where}. GET /openapi.json lists what there is.", code="not_found"
        )
    return GatewayError(error.status, f"{where}: {error.reason}.")


def too_large(limit: int | None, of: str = "bytes") -> GatewayError:
    """413, naming the limit where it is known."""
    size = f" The limit is {limit} {of}." if limit is not None else ""
    return GatewayError(413, f"The request body is too large.{size}", code="request_too_large")


def field_name(location: Sequence[int | str]) -> str:
    """`("messages", 0, "content")` as `messages[0].content`."""
    name = ""
    for part in location:
        if isinstance(part, int):
            name += f"[{part}]"
        else:
            name += f".{part}" if name else part
    return shorten(name)


def _sentence(item: Any) -> str:
    message = shorten(item["msg"].removeprefix("Value error, "), 2 * MAX_ECHOED_CHARS)
    name = field_name(item["loc"])
    if item["type"] == "missing":
        return f"`{name}` is required"
    got = "" if item["type"] == "value_error" else f" (got {_echo(item['input'])})"
    return f"`{name}`: {message}{got}" if name else message + got


def _echo(value: object) -> str:
    # repr of a huge container would be built whole before it is cut, so containers are only named.
    if isinstance(value, (list, dict, tuple)):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    return shorten(repr(value[: MAX_ECHOED_CHARS + 1] if isinstance(value, str) else value))
