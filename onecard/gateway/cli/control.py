"""An operator's orders, each to whom it concerns: models to the node, the registry to the reloader."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from onecard.engines.api import CardLedger, ModelControl, ReloadReport, ShuttingDownError, SleepLevel
from onecard.gateway.cli.reload import Load, Reloader
from onecard.registry.spec import Registry, ServerSpec

Result = TypeVar("Result")


@runtime_checkable
class ReloadableNode(ModelControl, Protocol):
    """A node that takes orders."""

    async def apply(
        self, registry: Registry, paths: dict[str, Path], on_taken: Callable[[], None]
    ) -> ReloadReport:
        """Serve `registry` from now on: see `gateway.cli.reload.Apply`. `on_taken` is called once it can be
        refused no more; models may take long to be where they belong then."""
        ...


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

    async def settled(self, timeout: float) -> None:
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
