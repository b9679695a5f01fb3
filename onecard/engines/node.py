"""What is being served: cards with their arenas and loops, models with their engines."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from onecard.engines.api import (
    CardLedger,
    CardStatus,
    Embedder,
    ModelInfo,
    ModelNotFoundError,
    ModelStatus,
    NodeStatus,
    ShuttingDownError,
    SleepLevel,
    TextGenerator,
)
from onecard.engines.lifecycle.keeper import Keeper
from onecard.engines.lifecycle.ledger import card_ledger
from onecard.engines.lifecycle.residence import Residence
from onecard.engines.memory.arena import DeviceArena
from onecard.engines.memory.card_plan import CardPlan
from onecard.engines.memory.page_pool import PagePool
from onecard.engines.runtime.card_watch import CardWatch
from onecard.engines.runtime.device_loop import DeviceLoop

DRAIN_POLL_SECONDS = 0.02
IDLE_CHECK_SECONDS = 0.25


@dataclass(frozen=True)
class Card:
    """One card: its plan, its memory, its loop, and who looks after it."""

    plan: CardPlan
    arena: DeviceArena
    pool: PagePool
    loop: DeviceLoop
    watch: CardWatch
    keeper: Keeper

    def status(self) -> CardStatus:
        return CardStatus(
            name=self.plan.card,
            device=self.plan.device,
            total_bytes=self.plan.total_bytes,
            budget_bytes=self.plan.budget_bytes,
            arena_bytes=self.plan.arena_bytes,
            page_bytes=self.plan.page_bytes,
            pages_free=self.pool.free_pages,
            pages_total=self.plan.num_pages,
            health=self.watch.latest,
        )

    def start(self) -> None:
        self.loop.start()
        self.watch.start()

    def stop(self) -> None:
        self.loop.stop()
        self.watch.stop()


class ModelReport(Protocol):
    """Fills a model's row of `onecard ps`."""

    def __call__(self) -> ModelStatus: ...


@dataclass(frozen=True)
class ServedModel:
    info: ModelInfo
    engine: TextGenerator | Embedder
    residence: Residence
    report: ModelReport


class LocalNode:
    """Implements `api.Node` over engines in this process, and `api.NodeControl` but for `reload`."""

    def __init__(self, cards: Sequence[Card], models: Sequence[ServedModel]):
        self._cards = list(cards)
        self._models = {model.info.name: model for model in models}
        self._names = {alias: m for m in models for alias in (m.info.name, *m.info.aliases)}
        self._state: Literal["ready", "draining"] = "ready"
        self._clockwork = asyncio.create_task(self._watch_idle(), name="ttl")

    def models(self) -> list[ModelInfo]:
        return [model.info for model in self._models.values()]

    def engine(self, name: str) -> TextGenerator | Embedder:
        if self._state == "draining":
            raise ShuttingDownError("The server is shutting down; try another one, or this one again later.")
        return self._find(name).engine

    async def sleep(self, name: str, level: SleepLevel = 1) -> None:
        model = self._find(name)
        await self._keeper_of(model).sleep(model.info.name, level)

    async def wake(self, name: str) -> None:
        model = self._find(name)
        await self._keeper_of(model).wake(model.info.name)

    def is_sleeping(self, name: str) -> bool:
        return not self._find(name).residence.awake

    def ledger(self) -> Sequence[CardLedger]:
        return [card_ledger(card.keeper) for card in self._cards]

    def _keeper_of(self, model: ServedModel) -> Keeper:
        return next(c.keeper for c in self._cards if model.info.name in c.keeper.residences)

    async def _watch_idle(self) -> None:
        while True:
            await asyncio.sleep(IDLE_CHECK_SECONDS)
            for card in self._cards:
                await card.keeper.sleep_idle()

    def _find(self, name: str) -> ServedModel:
        model = self._names.get(name)
        if model is None:
            valid = ", ".join(self._names)
            raise ModelNotFoundError(
                f"The model `{name[:200]}` does not exist. Valid models: {valid}.",
                param="model",
                code="model_not_found",
            )
        return model

    def status(self) -> NodeStatus:
        return NodeStatus(
            state=self._state,
            cards=tuple(card.status() for card in self._cards),
            models=tuple(model.report() for model in self._models.values()),
        )

    def begin_drain(self) -> None:
        self._state = "draining"

    async def drained(self) -> None:
        while not all(card.loop.is_idle() and card.keeper.is_quiet for card in self._cards):
            await asyncio.sleep(DRAIN_POLL_SECONDS)

    async def stop(self) -> None:
        self._clockwork.cancel()
        await asyncio.gather(*(asyncio.to_thread(card.stop) for card in self._cards))
