"""onecard's gateway, whole, before engines that answer at once."""

import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web
from fake_node import FakeNode
from http_server import run
from protocol import Channel

from onecard.gateway.app import create_app
from onecard.gateway.http.listen import app_runner, listen
from onecard.gateway.metrics import Metrics
from onecard.registry.spec import ModelSpec, Registry


@asynccontextmanager
async def as_served(app: web.Application, listener: socket.socket) -> AsyncIterator[None]:
    """With the connections of `onecard serve`: their time limits and their room."""
    runner = app_runner(app, 1)
    await runner.setup()
    server = await listen(runner, listener)
    try:
        yield
    finally:
        server.close()
        await runner.cleanup()


channel = Channel()
registry = Registry(models=(ModelSpec(name="chat"), ModelSpec(name="embedding", kind="embedding")))
app = create_app(FakeNode(time.perf_counter), registry, Metrics(["chat", "embedding"]))
run(channel, app, {}, as_served)
