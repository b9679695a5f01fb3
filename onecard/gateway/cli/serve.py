"""`onecard serve`: from a registry file to a server that answers, and gracefully down again."""

import argparse
import asyncio
import contextlib
import dataclasses
import logging
import socket
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from onecard.gateway.cli.command import Command, add_registry
from onecard.registry.units import counted

if TYPE_CHECKING:
    from aiohttp import web
    from rich.console import Console

    from onecard.engines.api import Node
    from onecard.gateway.cli.reload import Load
    from onecard.gateway.cli.triggers import RegistryFile
    from onecard.gateway.context import Gateway
    from onecard.registry.spec import Registry

logger = logging.getLogger(__name__)

LAST_BYTES_SECONDS = 1.0
"""What connections get to take their last bytes, twice at most."""

DRAIN_POLL_SECONDS = 0.02

LAST_ORDERS_SECONDS = 10.0
"""What an operator's order that is being carried out gets to finish."""


def port_number(text: str) -> int:
    if text.isdecimal() and int(text) <= 65535:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no port: write a number from 0 to 65535")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_registry(parser)
    parser.add_argument("--host", help="address to listen on (default: the registry's server.host)")
    parser.add_argument(
        "--port", type=port_number, help="port to listen on, 0 for any (default: the registry's server.port)"
    )
    parser.add_argument(
        "--no-watch",
        dest="watch",
        action="store_false",
        help="don't reload the registry by itself when its file changes (SIGHUP and POST /-/reload still do)",
    )
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from onecard.gateway.cli.bars import LogHandler
    from onecard.gateway.cli.plan_view import print_plans
    from onecard.gateway.cli.startup import allow_many_files, bind, refusals, settle_threads
    from onecard.gateway.cli.terminal import fetch_all
    from onecard.gateway.cli.triggers import RegistryFile

    console = Console(stderr=True)
    logging.basicConfig(level=args.log_level.upper(), handlers=[LogHandler(console)])
    # It logs every change of the registry's folder: a log file there would feed itself.
    logging.getLogger("watchfiles").setLevel(logging.WARNING)
    file = RegistryFile(args.registry) if args.watch else None
    load = partial(_load, args.registry, args.host, args.port)
    registry = load()
    allow_many_files()
    with bind(registry.server.host, registry.server.port) as listener:
        paths = fetch_all(registry.models, console)
        settle_threads()
        from onecard.engines.node.factory import (
            plan_registry,  # seconds of imports: not before the first bars
        )

        with refusals("can't plan"):
            plans = plan_registry(registry, paths)
        print_plans(console, plans)
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(_Start(registry, paths, load, file), listener, console))
    return 0


@dataclasses.dataclass(frozen=True)
class _Start:
    """What is served at first, and where it comes from. `file` is None where nobody watches it."""

    registry: "Registry"
    paths: dict[str, Path]
    load: "Load"
    file: "RegistryFile | None"


def _load(path: str, host: str | None, port: int | None) -> "Registry":
    """The registry file with the command line's address in it."""
    from onecard.registry.loader import load_registry

    registry = load_registry(path)
    server = dataclasses.replace(
        registry.server,
        host=registry.server.host if host is None else host,
        port=registry.server.port if port is None else port,
    )
    return dataclasses.replace(registry, server=server)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """uvloop's where it is installed; it has no Windows build."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


async def _serve(start: _Start, listener: socket.socket, console: "Console") -> None:
    from onecard.engines.node.factory import start_node
    from onecard.gateway.app import create_app
    from onecard.gateway.cli.bars import LoadBars
    from onecard.gateway.cli.reload import server_control
    from onecard.gateway.cli.startup import announcement, refusals
    from onecard.gateway.cli.triggers import ReloadTriggers, StopSignals
    from onecard.gateway.context import GATEWAY
    from onecard.gateway.metrics import Metrics
    from onecard.gateway.metrics.traffic_log import StatsFan, TrafficLog

    registry = start.registry
    signals, triggers = StopSignals(console.show_cursor), ReloadTriggers(start.file)
    metrics, traffic = Metrics([model.name for model in registry.models]), TrafficLog()
    with refusals("can't start"), LoadBars(console) as bars:
        stats = StatsFan([metrics, traffic])
        node = await start_node(registry, start.paths, stats, bars, on_compile=metrics.kernel_compiled)
    control = server_control(
        node, start.load, registry, start.paths, lambda server: app[GATEWAY].configure(server)
    )
    metrics.bind(node.status, None if control is None else control.ledger)
    app = create_app(node, registry, metrics, control=control)
    async with _listening(app, listener):
        ready = announcement(registry.server, node.models(), listener.getsockname()[1])
        console.print(ready, highlight=False, soft_wrap=True)
        beside = [asyncio.create_task(traffic.run())]
        if control is not None:
            beside.append(asyncio.create_task(triggers.run(control.reload)))
        await signals.wait()
        node.begin_drain()
        if control is not None:
            control.begin_drain()
        await _drain(node, app[GATEWAY])
        for task in beside:
            task.cancel()
    if control is not None:
        await control.settled(LAST_ORDERS_SECONDS)
    await node.stop()
    logger.info("stopped")


@contextlib.asynccontextmanager
async def _listening(app: "web.Application", listener: socket.socket) -> AsyncIterator[None]:
    """Serve `app` on the bound socket; on leaving, handlers that still run get their last moments."""
    from onecard.gateway.cli.startup import refusals
    from onecard.gateway.http.listen import app_runner, listen

    runner = app_runner(app, LAST_BYTES_SECONDS)
    await runner.setup()
    try:
        with refusals("can't listen"):
            server = await listen(runner, listener)
        yield
        server.close()
    finally:
        await runner.cleanup()


async def _drain(node: "Node", gateway: "Gateway") -> None:
    """Wait for what runs; the port stays open meanwhile, and answers 503 to what comes new."""
    running, timeout = gateway.admission.running, gateway.server.drain_timeout
    try:
        async with asyncio.timeout(timeout):
            await node.drained()
            while running:
                await asyncio.sleep(DRAIN_POLL_SECONDS)
    except TimeoutError:
        unfinished = counted(len(running), "request was", "requests were")
        logger.warning("%s still unfinished after %g s and cut off", unfinished, timeout)
        gateway.admission.cut_off()


COMMAND = Command(
    summary="serve the models of a registry",
    description="Fetch what is missing, plan the memory, load the models and answer HTTP requests.",
    epilog="""\
Ctrl-C or SIGTERM drains: running requests finish (server.drain_timeout), new ones get 503; a second signal
exits at once. A changed registry file is applied while the server runs (also on SIGHUP and POST /-/reload);
one that is wrong changes nothing, and the log says why.
The API is OpenAI's, /metrics has vLLM's names, /health/ready says when requests are welcome.

  onecard serve configs/demo.yaml
  onecard serve configs/demo.yaml --host 0.0.0.0 --port 9000
""",
    add_arguments=add_arguments,
    run=run,
)
