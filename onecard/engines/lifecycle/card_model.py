"""A model on its card: its weights, and how its engine moves in and out. Knows no kind of model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from onecard.engines.api import SleepLevel
from onecard.engines.lifecycle.gate import Gate
from onecard.engines.lifecycle.home_weights import HomeWeights
from onecard.engines.memory.reclaim import Reclaimer
from onecard.engines.step.core import StepCore
from onecard.engines.step.hooks import EngineHooks


@dataclass
class Policy:
    """When a model may sleep; changes with the registry."""

    pinned: bool = False
    ttl: float | None = None
    sleep_level: SleepLevel = 1


@dataclass(eq=False)
class CardModel:
    """One model: its gate on the event loop, its weights' home, its engine's hooks and its share of pages.

    The manager alone changes `gate.state`.
    """

    name: str
    gate: Gate
    weights: HomeWeights
    engine: StepCore[Any, Any]
    hooks: EngineHooks
    policy: Policy
    floor_pages: int
    ceiling_pages: int
    longest_pages: int = 0
    """What a request of the greatest length takes."""
    on_load: Callable[[int, int], None] | None = None
    """Told of the bytes that were read while the weights load."""

    @property
    def reclaimer(self) -> Reclaimer | None:
        """What has pages of the card; None for an engine without KV blocks."""
        return self.engine.blocks

    @property
    def awake(self) -> bool:
        return self.gate.state == "ready"

    @property
    def busy(self) -> bool:
        """Something of it runs or waits, or is on its way."""
        return self.hooks.has_requests() or self.gate.num_waiting > 0
