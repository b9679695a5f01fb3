"""What a node is made of: cards that are open, and the models on them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from onecard.engines.api import CardStatus, Embedder, ModelInfo, ModelStatus, TextGenerator
from onecard.engines.lifecycle.card_model import CardModel
from onecard.engines.lifecycle.manager import LifecycleManager
from onecard.engines.memory.arena import DeviceArena
from onecard.engines.memory.card_plan import CardPlan, ModelNeeds
from onecard.engines.memory.page_pool import PagePool
from onecard.engines.models.config import ModelConfig
from onecard.engines.runtime.card_handle import CardHandle
from onecard.engines.runtime.card_watch import CardWatch
from onecard.engines.runtime.device_loop import DeviceLoop
from onecard.engines.runtime.fair_share import FairShare
from onecard.engines.step.step_size import StepSize
from onecard.registry.spec import CardSpec, ModelSpec

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


class ModelReport(Protocol):
    """Fills a model's row of `onecard ps`."""

    def __call__(self) -> ModelStatus: ...


@dataclass(frozen=True)
class Blueprint:
    """A model before it is built: what the registry says of it, its files, and what their headers say.

    `size`: the largest steps that it is built for.
    """

    spec: ModelSpec
    path: Path
    config: ModelConfig
    needs: ModelNeeds
    size: StepSize


@dataclass
class ServedModel:
    """`blueprint` follows the registry, but for its `size`: that is what the engine was built with."""

    blueprint: Blueprint
    card: Card
    engine: TextGenerator | Embedder
    card_model: CardModel
    report: ModelReport

    @property
    def info(self) -> ModelInfo:
        return self.engine.info

    @property
    def failed(self) -> bool:
        return self.card_model.gate.state == "failed"

    def answers_to(self, name: str) -> bool:
        return name == self.info.name or name in self.info.aliases
