"""Serves one aiohttp application on a free loopback port, and tells what its requests cost.

The command `{"read": true}` answers with the time of every request since the last one, from its handler's
first line to its last, less what the (fake) engine took, and the processor time of the whole process, which
counts parsing and writing too.
"""

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from aiohttp import web
from fake_node import engine_seconds
from protocol import Answer, Channel, serve

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Meter:
    """Seconds in the server's own code, a request each."""

    def __init__(self) -> None:
        self._seconds: list[float] = []
        self._cpu = time.process_time()

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        started = time.perf_counter()
        engine: list[float] = []
        engine_seconds.set(engine)
        try:
            return await handler(request)
        finally:
            self._seconds.append(time.perf_counter() - started - sum(engine))

    def read(self, _: Answer) -> Answer:
        seconds, self._seconds = self._seconds, []
        cpu, self._cpu = self._cpu, time.process_time()
        return {"seconds": seconds, "cpu_seconds": self._cpu - cpu}


@asynccontextmanager
async def plainly(app: web.Application, listener: socket.socket) -> AsyncIterator[None]:
    """Serve `app` as aiohttp does by itself."""
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.SockSite(runner, listener).start()
        yield
    finally:
        await runner.cleanup()


Serving = Callable[[web.Application, socket.socket], AbstractAsyncContextManager[None]]


def run(channel: Channel, app: web.Application, hello: Answer, serving: Serving = plainly) -> None:
    """Serve `app` until the parent closes the pipe."""
    import uvloop

    meter = Meter()
    app.middlewares.insert(0, meter.middleware)
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    ready, stopped = threading.Event(), asyncio.Event()
    loop = uvloop.new_event_loop()

    async def main() -> None:
        async with serving(app, listener):
            ready.set()
            await stopped.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),), daemon=True)
    thread.start()
    ready.wait()
    serve(channel, {**hello, "port": listener.getsockname()[1]}, meter.read)
    loop.call_soon_threadsafe(stopped.set)
    thread.join(5)
