"""A model on its card: its weights, and how its engine moves in and out. Knows no kind of model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from onecard.engines.api import SleepLevel
from onecard.engines.lifecycle.gate import Gate
from onecard.engines.lifecycle.home_weights import HomeWeights
from onecard.engines.memory.homes import Resident
from onecard.engines.memory.page_pool import PagePool
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

    def rest(self, level: SleepLevel | None = None) -> None:
        """Its gate is closed: it sleeps so deep, or is about to; None: as deep as its weights lie."""
        level = level or (2 if self.weights.model is None else 1)
        self.gate.turn("asleep" if level == 1 else "unloaded")

    def seen(self, pool: PagePool, quiet: bool) -> Resident:
        """As decisions see it. It has its place for as long as its home is claimed, whatever its state: also
        while its last requests finish, or once it has failed and isn't cleared away yet."""
        return Resident(
            self.name,
            self.weights.home,
            awake=pool.has_home(self.name),
            pinned=self.policy.pinned and self.gate.state != "failed",
            floor_pages=self.floor_pages,
            longest_pages=self.longest_pages,
            idle=not self.busy,
            quiet=quiet,
            last_used=self.gate.last_used,
            failed=self.gate.refusal is not None,
        )
