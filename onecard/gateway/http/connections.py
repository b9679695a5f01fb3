"""How many clients may be connected, and for how long in silence.

aiohttp closes idle connections; the rest is here: a time for a request's headers, one for a client that
takes nothing of its answer, and room. When all places are taken the connection goes on which it has longest
been the client's turn. Where there is none the newcomer may ask only what is open to everybody, so that
probes are answered.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web

from onecard.gateway.http.connection import SILENT, Connection

HEADER_SECONDS = 10.0
"""For a request's headers, from the connection's beginning or their first byte: no network takes longer."""
STALLED_SECONDS = 60.0
"""For a client that takes nothing of its answer (nginx's `send_timeout`)."""
SWEEP_SECONDS = 1.0
PROBES = 8
"""Places for those who come when all others are taken."""
PEER_SHARE = 0.75
"""Of all places, for one address; a proxy has one for all of its clients."""


class Connections:
    """All connections of a server, `limit` of them at most. Used on the event loop only. Times in seconds."""

    def __init__(
        self,
        limit: int,
        header_seconds: float = HEADER_SECONDS,
        stalled_seconds: float = STALLED_SECONDS,
        sweep_seconds: float = SWEEP_SECONDS,
    ):
        self.limit = max(limit, 2 * PROBES)
        self._header_seconds, self._stalled_seconds = header_seconds, stalled_seconds
        self._sweep_seconds = sweep_seconds
        self._open: dict[asyncio.BaseTransport, Connection] = {}
        self._silent: dict[Connection, float] = {}
        """On which it is the client's turn, and since when; the longest silent first."""
        self._by_peer: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._open)

    def make(self, protocol: web.RequestHandler) -> Connection:
        """What a listening socket makes of a new client."""
        return Connection(protocol, self._changed)

    def find(self, request: web.BaseRequest) -> Connection | None:
        """The one that `request` came by; None where another server than `http.listen` took it."""
        transport = request.transport
        return None if transport is None else self._open.get(transport)

    @contextmanager
    def answering(self, request: web.BaseRequest) -> Iterator[None]:
        """Around the handling of a request."""
        connection = self.find(request)
        if connection is None:
            yield
            return
        connection.http_version = request.version
        connection.enter("answer")
        try:
            yield
        finally:
            connection.enter("idle")

    @contextmanager
    def receiving(self, request: web.BaseRequest) -> Iterator[None]:
        """Around the reading of a body."""
        connection = self.find(request)
        if connection is None:
            yield
            return
        connection.enter("body")
        try:
            yield
        finally:
            connection.enter("answer")

    def begun(self, request: web.BaseRequest) -> None:
        """The headers of an answer go out."""
        connection = self.find(request)
        if connection is not None and connection.phase == "answer":
            connection.enter("sending")

    async def watch(self) -> None:
        """Cut off whoever takes too long, until cancelled."""
        while True:
            await asyncio.sleep(self._sweep_seconds)
            now = time.monotonic()
            for connection in list(self._open.values()):
                if self._is_late(connection, now) or connection.has_stalled(now, self._stalled_seconds):
                    connection.abort()

    def _is_late(self, connection: Connection, now: float) -> bool:
        return connection.phase == "headers" and now - self._silent[connection] > self._header_seconds

    def _changed(self, connection: Connection) -> None:
        self._silent.pop(connection, None)
        if not connection.is_open:
            self._went(connection)
            return
        if connection.transport not in self._open:
            self._came(connection)
        if connection.is_open and connection.phase in SILENT:
            self._silent[connection] = time.monotonic()

    def _came(self, connection: Connection) -> None:
        self._open[connection.transport] = connection
        self._by_peer[connection.peer] += 1
        places = self.limit - PROBES
        if len(self._open) > places:
            self._make_room(connection, None)
        elif self._by_peer[connection.peer] > places * PEER_SHARE:
            self._make_room(connection, connection.peer)

    def _went(self, connection: Connection) -> None:
        del self._open[connection.transport]
        self._by_peer[connection.peer] -= 1
        if not self._by_peer[connection.peer]:
            del self._by_peer[connection.peer]

    def _make_room(self, newcomer: Connection, peer: str | None) -> None:
        """Of `peer`'s places, or of anybody's (None)."""
        for silent in self._silent:
            if peer in (None, silent.peer) and not silent.unsent_bytes:
                silent.abort()
                return
        newcomer.probes_only = True
        if len(self._open) > self.limit:
            newcomer.abort()
