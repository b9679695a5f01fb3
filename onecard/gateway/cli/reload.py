"""A running server's orders: models to sleep and wake, and a changed registry to serve from now on.

The registry is read, checked, fetched for, and handed to the node.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from onecard.engines.api import (
    CardLedger,
    InvalidRegistryError,
    ModelControl,
    ReloadReport,
    ShuttingDownError,
    SleepLevel,
)
from onecard.engines.api.aside import aside
from onecard.registry.changes import compare, in_effect, needs_restart
from onecard.registry.sources import fetch
from onecard.registry.spec import ModelSpec, Registry, RegistryError, ServerSpec
from onecard.registry.units import format_bytes

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

Load = Callable[[], Registry]
"""Reads and checks the registry file. Raises RegistryError. Runs on a thread."""
Apply = Callable[[Registry, dict[str, Path]], Awaitable[ReloadReport]]
"""Makes the node serve this registry from these paths, all or nothing: raises `InvalidRegistryError`, and has
changed nothing then, for one that can't be served (one that doesn't fit its card)."""


class LogProgress:
    """A `Progress` for a server that has no terminal to draw bars on. `on_news` hears that bytes arrive."""

    def __init__(self, on_news: Callable[[], object] = lambda: None) -> None:
        self._on_news = on_news

    def start(self, name: str, total_bytes: int | None) -> None:
        size = f" ({format_bytes(total_bytes)})" if total_bytes is not None else ""
        logger.info("fetching %s%s", name, size)

    def advance(self, n: int) -> None:
        """The log tells of beginnings and ends only."""
        self._on_news()

    def done(self) -> None:
        logger.info("fetched")


Fetch = Callable[[ModelSpec, LogProgress], Path]
"""The model's file or folder on this machine, fetched if need be. Raises RegistryError; on a thread."""


@asynccontextmanager
async def in_time(seconds: float) -> AsyncIterator[Callable[[], object]]:
    """Raises `TimeoutError` after so many seconds. What it yields begins them anew, on any thread."""
    loop, over = asyncio.get_running_loop(), False
    async with asyncio.timeout(seconds) as limit:

        def renew() -> None:
            if not (over or limit.expired()):
                limit.reschedule(loop.time() + seconds)

        try:
            yield partial(loop.call_soon_threadsafe, renew)
        finally:
            over = True


_Prepared = tuple[Registry, dict[str, Path], tuple[str, ...]]


class Reloader:
    """Reloads one at a time; used on the event loop. `running` and `paths` are what is served at first."""

    def __init__(
        self,
        load: Load,
        apply: Apply,
        running: Registry,
        paths: Mapping[str, Path],
        fetch: Fetch = fetch,
    ) -> None:
        self._load, self._apply, self._fetch = load, apply, fetch
        self._running, self._paths = running, dict(paths)
        self._turn = asyncio.Lock()
        self._doing = ""
        """What a reload is at on its thread."""

    async def reload(self) -> ReloadReport:
        """Apply the registry file as it is now. Don't cancel it half-way.

        Raises `InvalidRegistryError` with what is wrong with the file; then nothing has changed.
        """
        async with self._turn:
            try:
                report = await self._reload()
            except (InvalidRegistryError, RegistryError) as error:
                logger.error("the registry is not reloaded, nothing has changed: %s", error)
                raise InvalidRegistryError(str(error)) from error
            for note in report.notes:
                logger.warning("%s", note)
            return report

    async def _reload(self) -> ReloadReport:
        registry, paths, notes = await self._prepared()
        changes = compare(self._running, registry)
        report = ReloadReport()
        if changes:
            report = await self._apply(registry, paths)
            self._running, self._paths = registry, paths
        logger.info("the registry is reloaded: %s", "; ".join(changes.lines()) or "nothing has changed")
        return replace(report, notes=(*report.notes, *notes))

    async def _prepared(self) -> _Prepared:
        """What `_prepare` makes of the file. A thread that gets stuck is left to itself: nothing that it does
        counts any more. Bytes of a download that still arrive are no reason to give up."""
        limit = self._running.server.reload_timeout
        try:
            async with in_time(limit) as renew:
                return await aside(partial(self._prepare, LogProgress(renew)), "reload")
        except TimeoutError:
            raise InvalidRegistryError(
                f"{self._doing} took more than {limit:g} s (`server.reload_timeout`)"
            ) from None

    def _prepare(self, progress: LogProgress) -> _Prepared:
        """The registry as far as it can be served without a restart, its models' paths, and what can't."""
        self._doing = "reading the registry"
        written = self._load()
        wanted = in_effect(self._running, written)
        serving = {model.name: model for model in self._running.models}
        paths = {model.name: self._path(model, serving.get(model.name), progress) for model in wanted.models}
        return wanted, paths, needs_restart(self._running, written)

    def _path(self, model: ModelSpec, serving: ModelSpec | None, progress: LogProgress) -> Path:
        if serving is not None and (serving.source, serving.sha256) == (model.source, model.sha256):
            return self._paths[model.name]  # what is being served needs no second look, nor its hash
        self._doing = f"fetching {model.name} ({model.source})"
        return self._fetch(model, progress)


@runtime_checkable
class ReloadableNode(ModelControl, Protocol):
    """A node that takes orders."""

    async def apply(
        self, registry: Registry, paths: dict[str, Path], on_taken: Callable[[], None]
    ) -> ReloadReport:
        """Serve `registry` from now on: see `Apply`. `on_taken` is called once it can be refused no more;
        models may take long to be where they belong then."""


class ServerControl:
    """Implements `engines.api.NodeControl`. An order is carried out also when whoever gave it hangs up."""

    def __init__(self, node: ReloadableNode, reloader: Reloader) -> None:
        self._node, self._reloader = node, reloader
        self._orders: set[asyncio.Task[Any]] = set()
        self._draining = False

    async def sleep(self, name: str, level: SleepLevel = 1) -> SleepLevel:
        return await self._whole(self._node.sleep(name, level))

    async def wake(self, name: str) -> None:
        await self._whole(self._node.wake(name))

    def is_sleeping(self, name: str) -> bool:
        return self._node.is_sleeping(name)

    def ledger(self) -> Sequence[CardLedger]:
        return self._node.ledger()

    async def reload(self) -> ReloadReport:
        return await self._whole(self._reloader.reload())

    def begin_drain(self) -> None:
        """From now on orders raise `ShuttingDownError`."""
        self._draining = True

    @property
    def is_busy(self) -> bool:
        """An order is being carried out."""
        return bool(self._orders)

    async def settled(self, timeout: float | None = None) -> None:
        """Returns when no order is being carried out, or after `timeout` seconds."""
        if self._orders:
            await asyncio.wait(self._orders, timeout=timeout)

    async def _whole(self, order: Coroutine[Any, Any, Result]) -> Result:
        # A handler is cancelled with its client's connection; half a wake or reload would be worse than one
        # that nobody waits for. The set keeps the task alive.
        if self._draining:
            order.close()
            raise ShuttingDownError("The server is shutting down.")
        task = asyncio.create_task(order)
        self._orders.add(task)
        task.add_done_callback(self._orders.discard)
        return await asyncio.shield(task)


def server_control(
    node: object,
    load: Load,
    running: Registry,
    paths: dict[str, Path],
    configure: Callable[[ServerSpec], None],
) -> ServerControl | None:
    """The control of a server that serves `running` from `paths`; None for a node that takes no orders.

    `configure` gets what a reload says of the server itself, once the node has taken the rest: a key that was
    revoked opens nothing while models still finish what they were given.
    """
    if not isinstance(node, ReloadableNode):
        return None

    async def apply(registry: Registry, paths: dict[str, Path]) -> ReloadReport:
        return await node.apply(registry, paths, lambda: configure(registry.server))

    return ServerControl(node, Reloader(load, apply, running, paths))
