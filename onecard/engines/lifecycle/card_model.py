"""A model on its card: its weights, how its engine moves in and out, what the builders of each kind need."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from onecard.engines.api import SleepLevel
from onecard.engines.lifecycle.home_weights import HomeWeights, Load
from onecard.engines.memory.card_plan import ModelPlan
from onecard.engines.memory.homes import Resident
from onecard.engines.memory.page_pool import PagePool
from onecard.engines.memory.reclaim import Reclaimer
from onecard.engines.runtime.card_handle import CardHandle
from onecard.engines.runtime.gate import Gate
from onecard.engines.step.core import StepCore
from onecard.engines.step.hooks import EngineHooks
from onecard.registry.spec import ModelSpec


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


Count = Callable[[int, int], None]
"""Told (done, all)."""


@dataclass(frozen=True)
class Placement:
    """A model's share of a card, and how it gets going there."""

    card: CardHandle
    share: ModelPlan
    gate: Gate
    warm_up: bool = True
    """Whether steps run before the first request."""
    on_load: Count | None = None
    on_capture: Count | None = None

    def card_model(
        self,
        spec: ModelSpec,
        load: Load,
        engine: StepCore[Any, Any],
        hooks: EngineHooks,
    ) -> CardModel:
        """The model isn't on its card yet: it joins, and is brought in, through the `WeightMover`."""
        return CardModel(
            name=spec.name,
            gate=self.gate,
            weights=HomeWeights(self.card.arena, self.share.home, load),
            engine=engine,
            hooks=hooks,
            policy=policy_of(spec),
            floor_pages=self.share.floor_pages,
            ceiling_pages=self.share.ceiling_pages,
            longest_pages=self.share.longest_pages,
            on_load=self.on_load,
        )


def policy_of(spec: ModelSpec) -> Policy:
    return Policy(spec.pinned, spec.ttl, spec.sleep_level)
