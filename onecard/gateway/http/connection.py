"""One client's connection: what it is doing, and whether somebody is still there."""

import asyncio
from collections.abc import Callable
from typing import Literal, cast

from aiohttp import HttpVersion, HttpVersion11, web

Phase = Literal["headers", "body", "answer", "sending", "idle"]
"""What is waited for: a request's headers, its body, its answer, the end of an answer that has begun, or
nothing: the client may ask again. A plain answer is sent while `idle`: it needs nobody any more."""
SILENT: tuple[Phase, ...] = ("idle", "headers", "body")
"""In these it is the client's turn."""
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"
FIRST_PROBE_SECONDS = 0.05
LAST_PROBE_SECONDS = 1.0


class Connection(asyncio.Protocol):
    """Passes everything on to aiohttp's `protocol`. `told` hears when it is made, when its phase changes, and
    when it is lost.

    Who ends his half of the connection after asking (`shutdown(SHUT_WR)`, `nc -N`) gets an answer. Who
    hangs up looks the same at first; but his machine answers whatever is sent to it with a reset. So while
    no answer has begun "100 Continue" is sent now and then, which HTTP/1.1 has every client skip.
    """

    def __init__(self, protocol: web.RequestHandler, told: Callable[["Connection"], None]):
        self._protocol, self._told = protocol, told
        self.transport: asyncio.Transport
        self.is_open = False
        self.peer = ""
        self.phase: Phase = "headers"
        self.probes_only = False
        """It came when all places were taken."""
        self.http_version: HttpVersion = HttpVersion11
        self._unsent, self._sending_since = 0, 0.0

    def enter(self, phase: Phase) -> None:
        self.phase = phase
        if self.is_open:
            self._told(self)

    def close_when_answered(self) -> None:
        self._protocol.close()

    def abort(self) -> None:
        self._end()
        self.transport.abort()

    def has_stalled(self, now: float, seconds: float) -> bool:
        """Whether nothing of what is to be sent has gone for so long. To be asked regularly."""
        unsent, before = self.unsent_bytes, self._unsent
        self._unsent = unsent
        if not before or unsent < before:
            self._sending_since = now
        return unsent > 0 and now - self._sending_since > seconds

    @property
    def unsent_bytes(self) -> int:
        return self.transport.get_write_buffer_size()

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        address = transport.get_extra_info("peername")
        self.peer = str(address[0]) if isinstance(address, tuple) else ""
        self.is_open = True
        self._protocol.connection_made(transport)
        self._told(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        self._protocol.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.phase == "idle":
            self.enter("headers")
        self._protocol.data_received(data)

    def eof_received(self) -> bool:
        """True: the client is still answered."""
        self._protocol.eof_received()
        if self.phase in ("body", "sending"):
            return False  # it lacks what it was about to send, or has seen its answer begin
        self._probe_in(FIRST_PROBE_SECONDS)
        return True

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    def _probe_in(self, seconds: float, waited: bool = False) -> None:
        asyncio.get_running_loop().call_later(seconds, self._probe, seconds, waited)

    def _probe(self, seconds: float, waited: bool) -> None:
        if not self.is_open:
            return
        if self.phase not in SILENT:
            self.close_when_answered()
            if self.phase == "answer" and self.http_version < HttpVersion11:
                self.transport.close()  # it knows no interim answers, and such proxies do hang up
            elif self.phase == "answer":
                self.transport.write(INTERIM)
                self._probe_in(min(2 * seconds, LAST_PROBE_SECONDS))
        elif waited:
            self.transport.close()
        else:  # the loop may not have come to the request yet
            self._probe_in(seconds, waited=True)

    def _end(self) -> None:
        if self.is_open:
            self.is_open = False
            self._told(self)
