"""What is being served: cards with their arenas and loops, models with their engines."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Literal

from onecard.engines.api import (
    CardLedger,
    EngineError,
    ModelInfo,
    ModelNotFoundError,
    ModelUnavailableError,
    NodeStatus,
    ReloadReport,
    ShuttingDownError,
    SleepLevel,
    Tokenizing,
)
from onecard.engines.lifecycle.ledger import card_ledger, shown_state
from onecard.engines.node.reload import Reload
from onecard.engines.node.served import Card, NodeContext, ServedModel
from onecard.registry.spec import Registry

logger = logging.getLogger(__name__)

IDLE_CHECK_SECONDS = 0.25


class LocalNode:
    """Implements `api.Node` over engines in this process, and `api.NodeControl` but for `reload`, whose work
    is `apply`. `at_end` is called when everything has stopped."""

    def __init__(
        self,
        registry: Registry,
        cards: Sequence[Card],
        models: Sequence[ServedModel],
        context: NodeContext,
        at_end: Callable[[], None] | None = None,
    ):
        """`models` in the registry's order. Starts the cards."""
        self._registry = registry
        self._cards = list(cards)
        self._models = {model.info.name: model for model in models}
        self._reload = Reload(self._cards, self._models, context)
        self._at_end = at_end
        self._changing = asyncio.Lock()
        """Held by whoever changes what is served."""
        self._state: Literal["ready", "draining"] = "ready"
        self._tasks: set[asyncio.Task[None]] = set()
        for card in self._cards:
            card.start()
        for model in models:
            model.card_model.gate.touch()  # its `ttl` begins now, however long the others took to load
        self._begin(self._watch_idle(), "ttl")

    def models(self) -> list[ModelInfo]:
        return [model.info for model in self._models.values()]

    def engine(self, name: str) -> Tokenizing:
        if self._state == "draining":
            raise ShuttingDownError("The server is shutting down; try another one, or this one again later.")
        return self._find(name).engine

    def status(self) -> NodeStatus:
        return NodeStatus(
            state=self._state,
            cards=tuple(card.status() for card in self._cards),
            models=tuple(model.status() for model in self._models.values()),
        )

    def ledger(self) -> Sequence[CardLedger]:
        return [card_ledger(card.manager) for card in self._cards]

    # --- what operators ask for -----------------------------------------------------------------------------

    async def sleep(self, name: str, level: SleepLevel = 1) -> SleepLevel:
        model = self._find(name)
        if model.card_model.gate.state == "loading":  # until it is where it belongs
            async with self._changing:
                model = self._find(name)
        if model.failed:
            raise _refusal(model)
        await model.card.manager.sleep(model.info.name, level)
        if model.failed:
            raise _refusal(model)
        return 1 if model.card_model.gate.state == "asleep" else 2

    async def wake(self, name: str) -> None:
        """A model that has failed gets another chance. Waits as long as a request does, and no longer."""
        model = self._find(name)
        gate = model.card_model.gate
        if not model.failed:
            await gate.enter()
            return
        reviving = self._begin(self._revive(name), f"revive {name}")
        reviving.add_done_callback(_note_error)
        async with gate.in_time():
            await asyncio.shield(reviving)

    def is_sleeping(self, name: str) -> bool:
        model = self._find(name)
        return shown_state(model.card_model, model.card.pool) not in ("ready", "falling_asleep")

    async def apply(
        self, registry: Registry, paths: dict[str, Path], on_taken: Callable[[], None] = lambda: None
    ) -> ReloadReport:
        """Serve `registry` from now on, its models from these files or folders. What can't change in a
        running server must be as it is.

        Returns once all models are where they belong; `on_taken` is called before, as soon as nothing can
        refuse the registry any more and requests go by it. Raises `InvalidRegistryError` for a registry that
        can't be served, and has changed nothing then.
        """

        def taken() -> None:
            self._registry = registry
            on_taken()

        async with self._changing:
            return await self._reload.apply(self._registry, registry, paths, taken)

    # --- the end --------------------------------------------------------------------------------------------

    def begin_drain(self) -> None:
        self._state = "draining"

    async def drained(self) -> None:
        await asyncio.gather(*(self._drained(card) for card in self._cards))

    async def _drained(self, card: Card) -> None:
        """What has left its gate is with the loop, and may have set weights moving when it has finished."""

        def is_quiet() -> bool:
            gates = [model.card_model.gate for model in self._models.values() if model.card is card]
            return card.manager.is_quiet and not any(gate.num_waiting for gate in gates)

        def has_requests() -> bool:
            models = list(self._models.values())
            return any(model.card_model.hooks.has_requests() for model in models if model.card is card)

        finished = False
        while not (finished and is_quiet()):
            await card.manager.until(is_quiet)
            idle = asyncio.Event()
            card.loop.when_idle(has_requests, idle.set)
            finished = await idle.wait()

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*(asyncio.to_thread(card.stop) for card in self._cards))
        if self._at_end is not None:
            self._at_end()

    # --- inside ---------------------------------------------------------------------------------------------

    def _find(self, name: str) -> ServedModel:
        model = self._models.get(name)
        if model is None:
            model = next((model for model in self._models.values() if model.answers_to(name)), None)
        if model is None:
            valid = ", ".join(alias for m in self.models() for alias in (m.name, *m.aliases))
            raise ModelNotFoundError(
                f"The model `{name[:200]}` does not exist. Valid models: {valid}.",
                param="model",
                code="model_not_found",
            )
        return model

    async def _revive(self, name: str) -> None:
        async with self._changing:
            model = self._find(name)
            if not model.failed:
                return
            try:
                await self._reload.revive(model, self._registry)
            except EngineError as error:
                logger.error("%s", error)  # who wanted it may not wait any more
                raise

    async def _watch_idle(self) -> None:
        while True:
            await asyncio.sleep(IDLE_CHECK_SECONDS)
            for card in self._cards:
                try:
                    await card.manager.sleep_idle()
                except Exception:
                    logger.exception("%s: an idle model can't be put to sleep", card.plan.card)

    def _begin(self, work: Coroutine[Any, Any, None], name: str) -> "asyncio.Task[None]":
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _note_error(task: "asyncio.Task[None]") -> None:
    """Whoever waits gets the error; if nobody does any more, it has been logged and is no news."""
    if not task.cancelled():
        task.exception()


def _refusal(model: ServedModel) -> EngineError:
    return model.card_model.gate.refusal or ModelUnavailableError(
        f"The model `{model.info.name}` has failed."
    )
