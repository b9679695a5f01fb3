"""Server-sent events: frames from prebuilt parts, and the loop that sends them.

A frame is `data: {json}\\n\\n`. Everything that stays the same over a stream is built once; for each token
only its text is escaped. What is ready is written at once, one write a batch.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import orjson
from aiohttp import web

from onecard.engines.api import EngineError, EngineFailedError, GenerationStream, TokenChunk
from onecard.gateway.admission import Ticket
from onecard.gateway.answers.generation import Identity, prompt_tokens, usage, usage_of
from onecard.gateway.answers.merger import StreamMerger, in_pieces
from onecard.gateway.http.errors import error_body

log = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"
HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}


class EventStream(web.StreamResponse):
    """An answer whose headers go out with its first frame, in one write."""

    _send_headers_immediately = False  # aiohttp's own `Response` has it so; without it there are two writes


class Frames(Protocol):
    """How one route writes its chunks."""

    def render(self, batch: Sequence[tuple[int, TokenChunk]]) -> bytes: ...

    def is_long(self, batch: Sequence[tuple[int, TokenChunk]]) -> bool:
        """Whether to render it takes more of the event loop than a thread's hop."""
        ...

    def end(self) -> bytes: ...


async def send(
    request: web.Request, merger: StreamMerger, frames: Frames, ticket: Ticket
) -> web.StreamResponse:
    """Send all that `merger` gives. Raises `EngineError` only while nothing has been sent.

    Headers go out with the first frame, so that a request that fails before it has a first token still gets
    its own status; a stream that is quiet, or says why it has to wait, sends them with a comment. A client
    that has gone raises `ConnectionResetError` or `CancelledError`. `write` waits while the client reads
    slowly.
    """
    response = EventStream(headers=HEADERS)
    last = b""
    try:
        with ticket.admission.cut_off_heard():
            while not merger.finished:
                batch = await merger.batch()
                if isinstance(batch, str):
                    await _write(request, response, _comment(batch))
                    continue
                *pieces, piece = in_pieces(batch)
                for early in pieces:  # a client that doesn't ask for log-probabilities gets one write
                    await _write(request, response, await _rendered(frames, early))
                    await asyncio.sleep(0)
                data = await _rendered(frames, piece)
                if merger.finished:
                    last = data
                else:
                    await _write(request, response, data)
        last += frames.end() + DONE
    except ConnectionError:
        raise
    except Exception as error:
        if not response.prepared:
            raise
        ticket.refused(error)
        last = _error_frame(error) + DONE
    await _prepare(request, response)
    await response.write_eof(last)
    return response


def frame_head(identity: Identity, object_name: str, more: Mapping[str, Any] | None = None) -> bytes:
    """The part of every frame that stays the same over one stream, up to its choices; and `more` fields."""
    return b"data: " + orjson.dumps({**identity.fields(object_name), **(more or {})})[:-1] + b',"choices":'


class UsageTail:
    """How a frame ends: with the usage so far, with `"usage": null` where it comes at the end, or without."""

    def __init__(self, streams: Sequence[GenerationStream], at_end: bool, running: bool):
        self._streams, self._at_end, self._running = streams, at_end, running
        self._sent = 0
        self._prompts: tuple[int, int] | None = None
        self.fixed = b',"usage":null}\n\n' if at_end else b"}\n\n"

    def begin_batch(self) -> None:
        """More prompts may have begun: their tokens are summed anew, once for all frames of a batch."""
        self._prompts = None

    def tail(self, sent: int = 0) -> bytes:
        """For a frame with a choice, with which `sent` more tokens go out."""
        self._sent += sent
        if not self._running:
            return self.fixed
        self._prompts = self._prompts or prompt_tokens(self._streams)
        return _as_field(usage_of(*self._prompts, self._sent))

    def last_frame(self, head: bytes) -> bytes:
        """The frame without choices that closes a stream whose client asked for usage; else nothing."""
        return head + b"[]" + _as_field(usage(self._streams)) if self._at_end else b""


def _as_field(used: dict[str, Any]) -> bytes:
    return b',"usage":' + orjson.dumps(used) + b"}\n\n"


def ending(logprobs: Any, chunk: TokenChunk | None = None) -> bytes:
    """The rest of a choice after its text: log-probabilities and how `chunk` finishes, if it does.

    Whoever writes it closes the choice.
    """
    if chunk is None or chunk.finish_reason is None:
        if logprobs is None:
            return PLAIN_ENDING
        return b',"logprobs":' + orjson.dumps(logprobs) + b',"finish_reason":null'
    finish, reason = orjson.dumps(chunk.finish_reason), orjson.dumps(chunk.stop_reason)
    return (
        b',"logprobs":' + orjson.dumps(logprobs) + b',"finish_reason":' + finish + b',"stop_reason":' + reason
    )


PLAIN_ENDING = b',"logprobs":null,"finish_reason":null'


async def _rendered(frames: Frames, batch: Sequence[tuple[int, TokenChunk]]) -> bytes:
    return await asyncio.to_thread(frames.render, batch) if frames.is_long(batch) else frames.render(batch)


async def _write(request: web.Request, response: web.StreamResponse, data: bytes) -> None:
    if data:
        await _prepare(request, response)
        await response.write(data)


async def _prepare(request: web.Request, response: web.StreamResponse) -> None:
    if not response.prepared:
        await response.prepare(request)


def _comment(text: str) -> bytes:
    # No empty line after it: an event without data, which that makes, ends the stream of some clients.
    return f": {' '.join(text.split())}\n".encode()


def _error_frame(error: Exception) -> bytes:
    if not isinstance(error, EngineError):
        log.exception("a stream failed", exc_info=error)
        error = EngineFailedError("Internal server error.")
    return b"data: " + orjson.dumps(error_body(error)) + b"\n\n"
