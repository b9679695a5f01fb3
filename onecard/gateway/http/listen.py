"""From an application to a listening server: aiohttp's own bounds, and ours around them."""

import asyncio
import logging
import socket

import psutil
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from onecard.gateway.context import GATEWAY

IDLE_SECONDS = 75.0
"""For a connection on which nothing is asked (nginx's); clients and proxies mostly close theirs before."""
LINGER_SECONDS = 5.0
"""For the rest of a body that nobody wants, so that the client gets to read why."""
MOST_WAITING = 1024
"""Clients that wait to be taken."""
SHARE_OF_FILES = 0.75
"""Of the files that the process may still open; the rest is for models, spools, downloads and other
processes."""
MOST_CONNECTIONS = 16384
"""More have no use for one card, and each costs some 20 kB."""


class _ClientFaults(logging.Filter):
    """Drops what is the client's fault: it has been answered 400, or hung up while its answer was written.
    aiohttp would write a traceback for each; port scans and TLS on a plain port must not fill the disk."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, (HttpProcessingError, web.RequestPayloadError, ConnectionError))


aiohttp_log = logging.getLogger(__name__)
"""For what goes wrong in the HTTP layer beneath the application; not for what clients send wrongly."""
aiohttp_log.addFilter(_ClientFaults())


async def listen(runner: web.AppRunner, listener: socket.socket) -> asyncio.Server:
    """Serve `runner`, which is set up, on a bound socket. Close what is returned before `runner.cleanup`."""
    server = runner.server
    assert server is not None, "the runner must be set up first"
    connections = runner.app[GATEWAY].connections
    # asyncio takes so many at a time before the first of them is looked at.
    backlog = min(MOST_WAITING, connections.limit // 4)
    loop = asyncio.get_running_loop()
    return await loop.create_server(lambda: connections.make(server()), sock=listener, backlog=backlog)


def app_runner(app: web.Application, shutdown_timeout: float) -> web.AppRunner:
    """For `app`: a client that hangs up cancels its handler, and what it sends is never unpacked by
    aiohttp."""
    return web.AppRunner(
        app,
        handler_cancellation=True,
        access_log=None,
        logger=aiohttp_log,
        shutdown_timeout=shutdown_timeout,
        auto_decompress=False,
        keepalive_timeout=IDLE_SECONDS,
        lingering_time=LINGER_SECONDS,
    )


def room_for_connections() -> int:
    """As many as the process's limit of open files leaves room for."""
    process = psutil.Process()
    if not hasattr(process, "rlimit"):  # not on Linux: nothing says how many
        return MOST_CONNECTIONS // 16
    most, _ = process.rlimit(psutil.RLIMIT_NOFILE)
    if most < 0:  # unlimited
        return MOST_CONNECTIONS
    return min(MOST_CONNECTIONS, int((most - process.num_fds()) * SHARE_OF_FILES))
