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
from onecard.registry.address import host_of
from onecard.registry.units import counted

if TYPE_CHECKING:
    from aiohttp import web
    from rich.console import Console

    from onecard.engines.api import Node, StatsSink
    from onecard.engines.node.factory import PlannedNode
    from onecard.gateway.cli.deadline import Deadline
    from onecard.gateway.cli.reload import Load, ServerControl
    from onecard.gateway.cli.triggers import RegistryFile
    from onecard.gateway.context import Gateway
    from onecard.gateway.loading import LoadingNode, Unit
    from onecard.registry.spec import Registry

logger = logging.getLogger(__name__)

LAST_BYTES_SECONDS = 0.5
"""What connections get to take their last bytes, twice at most."""

LAST_SECONDS = 2.0
"""What the process gets to end after the drain, whatever still runs."""


def port_number(text: str) -> int:
    if text.isdecimal() and int(text) <= 65535:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no port: write a number from 0 to 65535")


def host_name(text: str) -> str:
    try:
        return host_of(text, "--host {}", "--port {}")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_registry(parser)
    parser.add_argument(
        "--host", type=host_name, help="address to listen on (default: the registry's server.host)"
    )
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
    from onecard.gateway.cli.deadline import Deadline
    from onecard.gateway.cli.startup import allow_many_files, bind, settle_threads
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
        settle_threads()
        deadline = Deadline()
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(_Start(registry, load, file), listener, console, deadline))
    deadline.done()
    return 0


@dataclasses.dataclass(frozen=True)
class _Start:
    """What is served at first, and where it comes from. `file` is None where nobody watches it."""

    registry: "Registry"
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


async def _serve(start: _Start, listener: socket.socket, console: "Console", deadline: "Deadline") -> None:
    from onecard.gateway.app import create_app
    from onecard.gateway.cli.startup import announcement, base_url
    from onecard.gateway.cli.triggers import ReloadTriggers, StopSignals
    from onecard.gateway.context import GATEWAY
    from onecard.gateway.loading import LoadingNode
    from onecard.gateway.metrics import Metrics
    from onecard.gateway.metrics.traffic_log import StatsFan, TrafficLog

    registry, port = start.registry, listener.getsockname()[1]
    url = base_url(registry.server.host, port)
    signals, triggers = StopSignals(console.show_cursor), ReloadTriggers(start.file)
    metrics, traffic = Metrics([model.name for model in registry.models]), TrafficLog()
    loading = LoadingNode(registry)
    metrics.bind(loading.status)
    app = create_app(loading, registry, metrics)
    gateway = app[GATEWAY]
    with contextlib.closing(signals):
        async with _listening(app, listener):
            logger.info("listening on %s, ready once the models are loaded", url)
            stats = StatsFan([metrics, traffic])
            node, control = await _load_models(start, loading, gateway, stats, console)
            metrics.bind(node.status, None if control is None else control.ledger)
            gateway.serve(node, control)
            ready = announcement(registry.server, node.models(), port)
            console.print(ready, highlight=False, soft_wrap=True)
            beside = [asyncio.create_task(traffic.run())]
            if control is not None:
                beside.append(asyncio.create_task(triggers.run(control.reload)))
            await signals.wait(
                lambda: deadline.within(gateway.server.drain_timeout + LAST_SECONDS, "draining")
            )
            node.begin_drain()
            if control is not None:
                control.begin_drain()
            await _drain(node, gateway, control)
            deadline.within(LAST_SECONDS, "closing connections")
            for task in beside:
                task.cancel()
        deadline.doing = "stopping the models' steps"
        await node.stop()
        deadline.doing = "carrying out an operator's order (a reload, a wake)"
        if control is not None and control.is_busy:
            deadline.expire()
        deadline.doing = "waiting for its threads"
        logger.info("stopped")


async def _load_models(
    start: _Start, loading: "LoadingNode", gateway: "Gateway", stats: "StatsSink", console: "Console"
) -> "tuple[Node, ServerControl | None]":
    """The node that serves the registry, and what takes orders for it. Meanwhile the port answers."""
    from onecard.engines.api.aside import aside
    from onecard.gateway.cli.bars import LoadBars
    from onecard.gateway.cli.plan_view import print_plans
    from onecard.gateway.cli.reload import server_control
    from onecard.gateway.cli.startup import fetch_watched, refusals

    registry, metrics = start.registry, gateway.metrics
    paths = await aside(partial(fetch_watched, registry.models, loading, console), "fetch")
    for model in registry.models:
        loading.turn(model.name, "reading")
    with refusals("can't plan"):
        planned = await aside(partial(_plan, registry, paths), "plan")
    for share in (share for plan in planned.plans for share in plan.models):
        loading.turn(share.name, "waiting" if share.awake_at_start else "asleep")
    print_plans(console, planned.plans)
    from onecard.engines.node.factory import start_planned

    with refusals("can't start"), LoadBars(console) as bars:

        def progress(model: str, done: int, total: int, unit: "Unit" = "bytes") -> None:
            bars(model, done, total, unit)
            loading.loaded(model, done, total, unit)

        node = await start_planned(planned, stats, progress, on_compile=metrics.kernel_compiled)
    return node, server_control(node, start.load, registry, paths, gateway.configure)


def _plan(registry: "Registry", paths: dict[str, Path]) -> "PlannedNode":
    from onecard.engines.node.factory import plan_node  # seconds of imports: not on the event loop
    from onecard.gateway.cli.startup import settle_heap

    settle_heap()
    return plan_node(registry, paths)


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
        try:
            yield
        finally:
            server.close()
    finally:
        await runner.cleanup()


async def _drain(node: "Node", gateway: "Gateway", control: "ServerControl | None") -> None:
    """Wait for what runs; the port stays open meanwhile, and answers 503 to what comes new."""
    running, timeout = gateway.admission.running, gateway.server.drain_timeout
    try:
        async with asyncio.timeout(timeout):
            while running:
                await asyncio.wait(running)
            if control is not None:
                await control.settled()
            await node.drained()
    except TimeoutError:
        unfinished = counted(len(running), "request was", "requests were")
        logger.warning("%s still unfinished after %g s and cut off", unfinished, timeout)
        gateway.admission.cut_off()


COMMAND = Command(
    summary="serve the models of a registry",
    description="Fetch what is missing, plan the memory, load the models and answer HTTP requests.",
    epilog="""\
The port answers at once; /health/ready says 503 and how far each model is until all are loaded.
Ctrl-C or SIGTERM drains: running requests finish (server.drain_timeout), new ones get 503; a second signal
exits at once. What never ends is cut off two seconds later, with status 124.
A changed registry file is applied while the server runs (also on SIGHUP and POST /-/reload).
One that is wrong changes nothing, and the log says why.
The API is OpenAI's, /metrics has vLLM's names, /health/ready says when requests are welcome.

  onecard serve configs/demo.yaml
  onecard serve configs/demo.yaml --host 0.0.0.0 --port 9000
""",
    add_arguments=add_arguments,
    run=run,
)
