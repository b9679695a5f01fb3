"""What a node is made of: cards that are open, and the models on them, from blueprint to engine."""

from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

from onecard.engines.api import (
    CacheConfig,
    CardStatus,
    LoadProgress,
    ModelInfo,
    ModelStatus,
    StatsSink,
    Tokenizing,
)
from onecard.engines.kinds import KINDS
from onecard.engines.kinds.kind import Blueprint
from onecard.engines.lifecycle.card_model import CardModel, Placement
from onecard.engines.lifecycle.ledger import shown_state, weight_bytes
from onecard.engines.lifecycle.manager import LifecycleManager
from onecard.engines.memory.arena import DeviceArena
from onecard.engines.memory.card_plan import CardPlan, ModelPlan
from onecard.engines.memory.page_pool import PagePool
from onecard.engines.runtime.card_handle import CardHandle
from onecard.engines.runtime.card_watch import CardWatch
from onecard.engines.runtime.device_loop import DeviceLoop
from onecard.engines.runtime.fair_share import FairShare
from onecard.engines.runtime.gate import Gate, WakeTimeout
from onecard.registry.spec import CardSpec

QUANTUM_SECONDS = {"cuda": 0.05, "cpu": 0.1}
"""The longest step while several models want a card, where the registry doesn't say."""


def quantum_of(spec: CardSpec, device_type: str) -> float:
    return QUANTUM_SECONDS[device_type] if spec.quantum is None else spec.quantum


@dataclass
class Card:
    """One card: its memory and loop, how its time is shared, and who looks after it.

    `plan` changes with the registry; what it says of the arena holds for good.
    """

    plan: CardPlan
    handle: CardHandle
    turns: FairShare
    """The loop's: touched on its thread."""
    watch: CardWatch
    manager: LifecycleManager

    @property
    def arena(self) -> DeviceArena:
        return self.handle.arena

    @property
    def pool(self) -> PagePool:
        return self.handle.pool

    @property
    def loop(self) -> DeviceLoop:
        return self.handle.loop

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


@dataclass
class ServedModel:
    """`blueprint` follows the registry, but for its `size`: that is what the engine was built with."""

    blueprint: Blueprint
    card: Card
    engine: Tokenizing
    card_model: CardModel

    @property
    def info(self) -> ModelInfo:
        return self.engine.info

    @property
    def failed(self) -> bool:
        return self.card_model.gate.state == "failed"

    def answers_to(self, name: str) -> bool:
        return name == self.info.name or name in self.info.aliases

    def status(self) -> ModelStatus:
        """Its row of `onecard ps`. Any thread may ask."""
        model, plan, pool = self.card_model, self.card.plan, self.card.pool
        core, blocks, needs = model.engine, model.engine.blocks, self.blueprint.needs
        owned = pool.owned(model.name) if model.name in pool.engines else 0  # it may have failed
        cache = None
        if blocks is not None:
            num_blocks = model.ceiling_pages * blocks.blocks_per_page
            cache = CacheConfig(needs.block_size, num_blocks, blocks.enable_caching)
        return ModelStatus(
            name=self.info.name,
            kind=self.info.kind,
            card=plan.card,
            state=shown_state(model, pool),
            weight_bytes=weight_bytes(model, pool),
            kv_bytes_used=0 if blocks is None else blocks.num_used_blocks * (needs.block_bytes or 0),
            kv_bytes_owned=owned * plan.page_bytes,
            floor_bytes=model.floor_pages * plan.page_bytes,
            ceiling_bytes=model.ceiling_pages * plan.page_bytes,
            running=0 if core.warming else core.num_running,
            waiting=(0 if core.warming else core.num_waiting) + model.gate.num_waiting,
            finished=core.num_finished,
            cache=cache,
        )


@dataclass(frozen=True)
class NodeContext:
    """What all models of a node share."""

    executor: Executor
    """Its threads tokenise."""
    stats: StatsSink
    progress: LoadProgress
    warm_up: bool
    wake_timeout: WakeTimeout


def build_served(blueprint: Blueprint, share: ModelPlan, card: Card, context: NodeContext) -> ServedModel:
    """The model with its share of the card, not yet known there: nothing of the card is touched.

    Any thread may call it. Raises what tokenizers and templates that can't be read raise.
    """
    spec = blueprint.spec
    place = Placement(
        card.handle,
        share,
        Gate(spec.name, card.manager, context.wake_timeout, "loading"),
        context.warm_up,
        on_load=partial(context.progress, spec.name),
        on_capture=partial(_captured, context.progress, spec.name),
    )
    engine, card_model = KINDS[spec.kind].build(blueprint, place)
    return ServedModel(blueprint, card, engine, card_model)


def _captured(progress: LoadProgress, model: str, done: int, total: int) -> None:
    progress(model, done, total, "graphs")
